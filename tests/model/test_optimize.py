import pytest
import torch
from small_models import small_model

from doublehead.model import optimize
from doublehead.model.detector import Detector
from doublehead.model.trunks import ConvHead
from doublehead.model.variants import VARIANTS


def shaken(model: Detector) -> Detector:
    """Norms as after training: no statistic is 0 or 1."""
    for module in model.modules():
        if hasattr(module, "running_var") or isinstance(module, torch.nn.GroupNorm):
            for value in module.state_dict().values():
                if value.is_floating_point():
                    value.add_(torch.rand_like(value) * 0.2 - 0.1)
    return model.eval()


@pytest.mark.parametrize("norm", ["frozen", "batch", "group"])
@pytest.mark.parametrize("variant", [*VARIANTS])
@pytest.mark.parametrize("blocks", ["paper", "mmdetection"])
def test_the_copy_gives_the_same_detections(
    variant: str, norm: str, blocks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimize, "AT_ONCE_ON_CPU", 5)
    head_norm = "group" if norm == "group" else "batch"
    changes = {"backbone": {"norm": norm}, "head_norm": head_norm, "conv_head": {"blocks": blocks}}
    model = shaken(small_model(variant, **changes, roi={"score_threshold": 0.0, "nms_iou": 0.9})).double()
    images = [torch.rand(3, 80, 120, dtype=torch.float64), torch.rand(3, 96, 96, dtype=torch.float64)]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    copy = optimize.for_inference(model, torch.device("cpu"))
    for ours, theirs in zip(copy.detect(images), model.detect(images), strict=True):
        assert len(theirs["boxes"]) > 0
        assert torch.equal(ours["labels"], theirs["labels"])
        torch.testing.assert_close(ours["boxes"], theirs["boxes"], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(ours["scores"], theirs["scores"], rtol=1e-6, atol=1e-6)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert norm == "group" or not any("running_var" in key for key in copy.state_dict())
    heads = [branch.trunk for branch in copy.roi_heads if isinstance(branch.trunk, ConvHead)]
    assert all(head.at_once == 5 for head in heads)
