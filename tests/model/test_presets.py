import pytest

from doublehead.common.errors import DoubleheadError
from doublehead.config import ModelConfig
from doublehead.model.cost import cost
from doublehead.model.presets import CASCADES, PRESETS, SIZES, preset
from doublehead.model.variants import VARIANTS

CLASSES = 80


def conv(inputs: int, outputs: int, kernel: int, bias: bool = False) -> int:
    return inputs * outputs * kernel**2 + (outputs if bias else 0)


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def norm(channels: int) -> int:
    return 2 * channels


# ResNet-50 without its classifier, whose frozen BatchNorm counts no parameters: the layers' kernels, by hand.
STAGES = {(64, 64, 256): 3, (256, 128, 512): 4, (512, 256, 1024): 6, (1024, 512, 2048): 3}
RESNET50 = conv(3, 64, 7) + sum(
    conv(inputs, outputs, 1)  # the skip of the first block
    + conv(inputs, inner, 1) + (blocks - 1) * conv(outputs, inner, 1)
    + blocks * (conv(inner, inner, 3) + conv(inner, outputs, 1))
    for (inputs, inner, outputs), blocks in STAGES.items()
)  # fmt: skip
# torchvision's ResNet-50 has 25,557,032: with the classifier and 2 parameters per channel of BatchNorm.
CHANNELS = 64 + sum(outputs + blocks * (2 * inner + outputs) for (_, inner, outputs), blocks in STAGES.items())
FPN = sum(conv(width, 256, 1, bias=True) + conv(256, 256, 3, bias=True) for width in (256, 512, 1024, 2048))
RPN = conv(256, 256, 3, bias=True) + conv(256, 3, 1, bias=True) + conv(256, 12, 1, bias=True)
FC_HEAD = linear(256 * 49, 1024) + linear(1024, 1024)
UP = conv(256, 256, 3) + norm(256) + 2 * (conv(256, 1024, 1) + norm(1024))
BOTTLENECK = conv(1024, 256, 1) + conv(256, 256, 3) + conv(256, 1024, 1) + 2 * norm(256) + norm(1024)
NON_LOCAL = 3 * conv(1024, 512, 1, bias=True) + conv(512, 1024, 1, bias=True) + norm(1024)
CONV_HEAD = UP + 2 * (NON_LOCAL + BOTTLENECK)
CLASSIFIER, REGRESSOR = linear(1024, CLASSES + 1), linear(1024, 4 * (CLASSES + 1))


def test_the_hand_count_of_resnet50_is_the_known_one() -> None:
    assert RESNET50 + 2 * CHANNELS + linear(2048, 1000) == 25_557_032


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("single-fc-r50", FC_HEAD + CLASSIFIER + REGRESSOR),
        ("single-conv-r50", CONV_HEAD + CLASSIFIER + REGRESSOR),
        ("double-fc-r50", 2 * FC_HEAD + CLASSIFIER + REGRESSOR),
        ("double-conv-r50", 2 * CONV_HEAD + CLASSIFIER + REGRESSOR),
        ("double-head-r50", FC_HEAD + CONV_HEAD + CLASSIFIER + REGRESSOR),
        ("double-head-reverse-r50", FC_HEAD + CONV_HEAD + CLASSIFIER + REGRESSOR),
        ("double-head-ext-r50", FC_HEAD + CONV_HEAD + 2 * (CLASSIFIER + REGRESSOR)),
    ],
)
def test_parameters_of_the_paper_form_are_those_counted_by_hand(name: str, head: int) -> None:
    assert cost(preset(name), CLASSES).parameters == RESNET50 + FPN + RPN + head


def test_mmdetection_form() -> None:
    values = preset("double-head-r50").model_dump() | {"conv_head": {"blocks": "mmdetection"}}
    config = ModelConfig.model_validate(values)
    head = FC_HEAD + UP + 4 * BOTTLENECK + CLASSIFIER + REGRESSOR
    assert cost(config, CLASSES).parameters == RESNET50 + FPN + RPN + head


def test_staging_saves_what_the_conv_head_costs_on_the_proposals_it_does_not_see() -> None:
    multiplications = 49 * (
        (UP - norm(256) - 2 * norm(1024)) + 2 * (BOTTLENECK - 2 * norm(256) - norm(1024))
        + 2 * (3 * 1024 * 512 + 512 * 1024)  # non-local: the projections
        + 2 * (2 * 49 * 512)  # and theta phi, f g
    )  # fmt: skip
    found = cost(preset("double-head-r50"), CLASSES)
    saved = 2 * 900 * (multiplications + 1024 * 4 * (CLASSES + 1)) / 1e9
    assert found.gflops_all - found.gflops == pytest.approx(saved, rel=1e-6)


def test_every_variant_comes_in_every_size() -> None:
    assert len(PRESETS) == (len(VARIANTS) + len(CASCADES)) * len(SIZES)
    for name in PRESETS:
        assert preset(name).preset == name


def test_weights_of_the_variants_are_the_papers() -> None:
    """w_fc = 2.0 and w_conv = 2.5 divided by l_fc and l_conv (1 and 1; Ext: 0.7 and 0.8)."""
    weights = {name: [(b.trunk, b.classify, b.regress) for b in row] for name, row in VARIANTS.items()}
    assert weights["double-head"] == [("fc", 2.0, 0.0), ("conv", 0.0, 2.5)]
    ext = [("fc", 2.0 * 0.7, 2.0 * 0.3), ("conv", 2.5 * 0.2, 2.5 * 0.8)]
    for found, wanted in zip(weights["double-head-ext"], ext, strict=True):
        assert found[0] == wanted[0]
        assert found[1:] == pytest.approx(wanted[1:])


def test_an_unknown_preset_is_answered_with_the_nearest() -> None:
    with pytest.raises(DoubleheadError, match="did you mean double-head-r50"):
        preset("doublehead-r50")
