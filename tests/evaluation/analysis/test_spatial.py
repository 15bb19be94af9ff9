"""Correlation between the positions of a proposal."""

import numpy as np
import pytest
import torch

from doublehead.evaluation.analysis import spatial
from doublehead.model.parts import ConvHeadConfig, FCHeadConfig
from doublehead.model.trunks import ConvHead, FCHead

ROIS = torch.randn(3, 8, 7, 7, generator=torch.Generator().manual_seed(0))


def correlation(vectors):
    result = spatial.Correlation.empty("model", "fc", "output")
    result.add(vectors)
    return result


def test_the_fc_output_split_by_position_sums_to_the_first_layer_before_relu():
    trunk = FCHead(8, 7, FCHeadConfig(width=32))
    torch.nn.init.normal_(trunk.layers[0].bias)
    parts = trunk.by_position(ROIS)
    assert parts.shape == (3, 49, 32)
    whole = trunk.layers[0](ROIS.flatten(1))
    torch.testing.assert_close(parts.sum(1) + trunk.layers[0].bias, whole, rtol=1e-4, atol=1e-5)
    other = ROIS.clone()
    other[:, :, 2, 3] += 1  # position 2 * 7 + 3 alone
    changed = (trunk.by_position(other) - parts).abs().amax((0, 2)) > 1e-4
    assert torch.where(changed)[0].tolist() == [17]


def test_weights_that_positions_share_are_perfectly_alike():
    trunk = FCHead(8, 7, FCHeadConfig(width=32))
    assert correlation(trunk.weights_by_position()).mean == pytest.approx(0, abs=0.05)
    shared = torch.randn(32, 8, 1).expand(32, 8, 49).flatten(1)
    trunk.layers[0].weight.data.copy_(shared)
    assert correlation(trunk.weights_by_position()).mean == pytest.approx(1)


def test_the_conv_output_is_what_the_trunk_pools():
    config = ConvHeadConfig(width=16, bottleneck_width=8, non_local_width=8)
    trunk = ConvHead(8, 7, config, "group").eval()
    output = trunk.by_position(ROIS)
    assert output.shape == (3, 49, 16)
    torch.testing.assert_close(output.mean(1), trunk(ROIS))


def test_objects_are_averaged_whatever_the_parts_they_come_in():
    vectors = torch.randn(5, 49, 6)
    whole, parts = correlation(vectors), correlation(vectors[:2])
    parts.add(vectors[2:])
    np.testing.assert_allclose(parts.matrix, whole.matrix)
    assert parts.objects == 5
    expected = torch.nn.functional.cosine_similarity(vectors[:, 3], vectors[:, 40], dim=1).mean()
    assert whole.matrix[3, 40] == pytest.approx(float(expected), abs=1e-6)


def test_by_distance_groups_all_pairs():
    """Positions that are alike exactly if they share a column: 1 straight up and down, and 0 anywhere sideways."""
    columns = torch.eye(7).repeat(7, 1)[None]
    distances, means = correlation(columns).by_distance()
    at = dict(zip(distances.round(6).tolist(), means, strict=True))
    assert at[0] == pytest.approx(1)
    assert at[1] == pytest.approx(0.5)  # as many pairs above one another as side by side
    assert at[round(2**0.5, 6)] == pytest.approx(0)
    assert correlation(columns).mean == pytest.approx(6 / 48)
