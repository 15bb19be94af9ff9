import pytest
import torch
from torch import nn

from doublehead.model.norms import group_norm
from doublehead.model.parts import CONV_HEAD_FORMS, ConvHeadConfig, FCHeadConfig
from doublehead.model.trunks import BottleneckBlock, ConvHead, FCHead, NonLocalBlock, UpBlock


def test_fc_head_has_weights_of_its_own_for_every_position() -> None:
    head = FCHead(4, 7, FCHeadConfig(layers=2, width=8))
    x = torch.randn(3, 4, 7, 7)
    assert head(x).shape == (3, 8)
    moved = x.roll(1, dims=3)
    assert not torch.allclose(head(x), head(moved))


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("form", ["paper", "mmdetection"])
def test_conv_head_keeps_7x7_and_averages_it(form: str, norm: str) -> None:
    config = ConvHeadConfig(blocks=CONV_HEAD_FORMS[form], width=32, bottleneck_width=8, non_local_width=16)
    head = ConvHead(16, 7, config, norm).eval()
    x = torch.randn(2, 16, 7, 7)
    features = head.feature_map(x)
    assert features.shape == (2, 32, 7, 7)
    torch.testing.assert_close(head(x), features.mean((2, 3)))


def test_forms_are_the_published_ones() -> None:
    kinds = {
        form: [type(block) for block in ConvHead(8, 7, ConvHeadConfig(blocks=blocks, width=32)).blocks]
        for form, blocks in CONV_HEAD_FORMS.items()
    }
    attention = [NonLocalBlock, BottleneckBlock]
    assert kinds == {"paper": [UpBlock, *attention, *attention], "mmdetection": [UpBlock] + [BottleneckBlock] * 4}


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, group_norm])
def test_non_local_block_begins_as_the_identity(norm: object) -> None:
    block = NonLocalBlock(16, 8, 4, norm).eval()  # type: ignore[arg-type]
    x = torch.randn(2, 16, 7, 7)
    torch.testing.assert_close(block(x), x.relu())


def test_non_local_block_is_the_dot_product_without_softmax() -> None:
    """Written out position by position: y_i = 1/49 sum_j (theta_i . phi_j) g_j in each group."""
    torch.manual_seed(0)
    block = NonLocalBlock(6, 4, 2, nn.BatchNorm2d).double().eval()
    for p in block.parameters():
        nn.init.normal_(p)
    x = torch.randn(1, 6, 7, 7, dtype=torch.float64)
    theta, phi, g = (layer(x)[0].flatten(1) for layer in (block.theta, block.phi, block.g))  # (4, 49)
    y = torch.zeros(4, 49, dtype=torch.float64)
    for group in (slice(0, 2), slice(2, 4)):
        for i in range(49):
            for j in range(49):
                y[group, i] += (theta[group, i] @ phi[group, j]) * g[group, j] / 49
    wanted = (x + block.norm(block.out(y.view(1, 4, 7, 7)))).relu()
    torch.testing.assert_close(block(x), wanted)


def test_no_rois_pass_through() -> None:
    x = torch.zeros(0, 16, 7, 7)
    conv = ConvHead(16, 7, ConvHeadConfig(width=32, bottleneck_width=8, non_local_width=16), "group")
    assert conv(x).shape == (0, 32)
    assert FCHead(16, 7, FCHeadConfig(width=8))(x).shape == (0, 8)


def test_attention_does_not_overflow_float16() -> None:
    """A sum of products of 100,000 is more than float16 holds; its 49th part is not."""
    block = NonLocalBlock(8, 8, 1, nn.BatchNorm2d).eval().half()
    for layer in (block.theta, block.phi):
        nn.init.zeros_(layer.weight)
        nn.init.constant_(layer.bias, 112.0)  # type: ignore[arg-type]
    nn.init.constant_(block.out.weight, 1e-4)
    assert block(torch.full((1, 8, 7, 7), 0.01, dtype=torch.float16)).isfinite().all()
