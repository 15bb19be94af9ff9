"""How the settings of a run come about, and what is said of mistakes in them."""

import pytest
import yaml

from doublehead.common.errors import DoubleheadError
from doublehead.config import Config, override, parse_settings
from doublehead.model.presets import PRESETS, SMALL_DATA_MODEL, preset_values
from doublehead.training.recipes import RECIPES, resolve


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize("recipe", [None, *RECIPES])
def test_every_preset_goes_with_every_recipe(recipe):
    for name in PRESETS:
        config = resolve(name, recipe)
        assert config.model.preset == name
        assert (config.train.steps is None) != (config.train.epochs is None)
        assert Config.model_validate(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))) == config


def test_the_recipe_follows_the_backbone_unless_it_is_said():
    assert resolve("double-head-r50").train.optimizer == "sgd"
    assert resolve("double-head-tiny").train.optimizer == "adamw"
    assert resolve("double-head-r50", settings={"model.backbone.weights": None}).train.optimizer == "adamw"
    assert resolve("double-head-tiny", "coco-1x").train.optimizer == "sgd"


def test_later_words_win(file):
    path = file("train: {lr: 0.5, weight_decay: 0.25}\nmodel: {roi: {sampled: 32}}")
    config = resolve("double-head-tiny", "scratch", path, {"train.lr": 0.125})
    assert config.train.lr == 0.125  # --set
    assert config.train.weight_decay == 0.25  # the file
    assert config.model.roi.sampled == 32  # the file before the preset
    assert config.model.fc_head.width == 512  # the preset
    assert config.train.schedule == "cosine"  # the recipe


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 1e-3), ("0.5", 0.5), ("null", None), ("", None), ("[320, 480]", (320, 480))]
)
def test_values_are_read_as_yaml(text, value):
    key = "model.rpn.aspect_ratios" if isinstance(value, tuple) else "train.clip_norm"
    config = resolve("double-head-tiny", settings=parse_settings([f"{key}={text}"]))
    assert (config.model.rpn.aspect_ratios if isinstance(value, tuple) else config.train.clip_norm) == value


def test_one_branch_of_several_can_be_set():
    config = resolve("double-head-ext-r50", settings={"model.branches.1.roi_scale": 1.5})
    assert [branch.scale for branch in config.model.branches] == [1.0, 1.5]


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("train.epochs", "--set train.epochs: write it as key=value, such as train.epochs=10"),
        ("data.path=[", "--set data.path=[: `[` cannot be read as a YAML value"),
    ],
)
def test_a_slip_in_set_is_named(assignment, sentence):
    with pytest.raises(DoubleheadError) as error:
        parse_settings([assignment])
    assert str(error.value) == sentence


@pytest.mark.parametrize("key", ["model.branches.7.roi_scale", "model.branches.first.roi_scale", "model.preset.name"])
def test_a_key_that_leads_nowhere_is_named(key):
    with pytest.raises(DoubleheadError, match=f"there is no setting `{key}`"):
        resolve("double-head-r50", settings={key: 1})


def test_override_leaves_what_it_was_given():
    values = {"branches": [{"classify": 1.0}]}
    assert override(values, {"branches.0.classify": 2.0}) == {"branches": [{"classify": 2.0}]}
    assert values == {"branches": [{"classify": 1.0}]}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"train.lrr": 1}, "settings: unknown key `train.lrr`"),
        ({"train.lr": "fast"}, "settings: `train.lr`: Input should be a valid number"),
        ({"train.lr": -1}, "settings: `train.lr`: Input should be greater than 0"),
        ({"model.backbone.name": "resnet51"}, "`model.backbone.name`: unknown backbone `resnet51`; choose resnet18"),
        ({"model.branches.0.trunk": "fv"}, "`model.branches.0.trunk`: unknown trunk `fv`; choose fc, conv"),
        ({"model.conv_head.blocks": "papr"}, "`model.conv_head`: blocks is a list, or one of paper, mmdetection"),
        ({"model.backbone": "None"}, "settings: `model.backbone`: Input should be a valid dictionary"),
        ({"train": 5}, "settings: `train`: Input should be a valid dictionary"),
        ({"model.rpn.foreground_iou": 0.1}, "`model.rpn`: background_iou must not exceed foreground_iou"),
        ({"train.steps": 10, "train.epochs": 2}, "give the run's length as steps or as epochs"),
        ({"train.steps": None, "train.epochs": None}, "give the run's length as steps or as epochs"),
    ],
)
def test_a_wrong_setting_is_named(settings, sentence):
    with pytest.raises(DoubleheadError) as error:
        resolve("double-head-tiny", settings=settings)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_a_wrong_key_in_a_file_is_named_with_the_file(file):
    path = file("train: {lrr: 0.1}")
    with pytest.raises(DoubleheadError) as error:
        resolve("double-head-tiny", file=path)
    assert str(error.value) == f"{path}: unknown key `train.lrr`"
    with pytest.raises(DoubleheadError, match=r"^settings: unknown key `train.lr1`"):
        resolve("double-head-tiny", file=file("train: {lr: 0.1}"), settings={"train.lr1": 1})


@pytest.mark.parametrize("text", ["train: [", "- 1", "just words", "train: 2001-99-99"])
def test_a_file_that_holds_no_settings_is_named(file, text):
    path = file(text)
    with pytest.raises(DoubleheadError, match=str(path)):
        resolve("double-head-tiny", file=path)


def test_unknown_names_bring_the_near_ones():
    with pytest.raises(DoubleheadError, match=r"unknown model `double-haed-r50`: did you mean double-head-r50"):
        resolve("double-haed-r50")
    with pytest.raises(DoubleheadError, match=r"unknown recipe `finetun`: did you mean finetune\?"):
        resolve("double-head-r50", "finetun")


def test_without_a_model_there_is_the_one_for_small_data(file):
    assert resolve() == resolve(SMALL_DATA_MODEL)
    assert resolve(file=file("train: {lr: 0.1}")).model == resolve(SMALL_DATA_MODEL).model
    named = file(yaml.safe_dump({"model": preset_values("single-fc-tiny")}))
    assert resolve(file=named).model.preset == "single-fc-tiny"


@pytest.mark.parametrize("said", ["steps", "epochs"])
def test_a_length_that_is_said_takes_the_place_of_any_other(file, said):
    whole = resolve("double-head-tiny").model_dump(mode="json")
    path = file(yaml.safe_dump(whole))  # a run's config.yaml: both lengths stand in it, one as null
    for config in (
        resolve("double-head-tiny", "coco-1x", settings={f"train.{said}": 7}),
        resolve("double-head-tiny", "finetune", settings={f"train.{said}": 7}),
        resolve(file=path, settings={f"train.{said}": 7}),
        resolve("double-head-tiny", file=file(f"train: {{{said}: 7}}")),
    ):
        assert (config.train.steps, config.train.epochs) == ((7, None) if said == "steps" else (None, 7))
        path = file(yaml.safe_dump(whole))


OLD = {"width": 8, "stride_in": "1x1", "norm_eps": 0.001, "fpn_channels": 16}
"""Settings as version 0.1 had them, under model.backbone."""


def in_new_places(config):
    resnet = config.model.backbone.own
    return {
        "width": resnet.width,
        "stride_in": resnet.stride_in,
        "norm_eps": resnet.norm_eps,
        "fpn_channels": config.model.fpn.channels,
    }


def test_keys_of_the_previous_version_are_read(file):
    by_flag = resolve("double-head-tiny", settings={f"model.backbone.{key}": value for key, value in OLD.items()})
    by_file = resolve("double-head-tiny", file=file(yaml.safe_dump({"model": {"backbone": OLD}})))
    for config in (by_flag, by_file):
        assert in_new_places(config) == OLD  # rather than the preset's 128 channels
        dumped = config.model.model_dump()
        assert dumped["backbone"].keys() == {"name", "norm", "weights", "trainable_stages", "resnet"}
        assert dumped["fpn"]["channels"] == 16


def test_a_flag_wins_over_a_file_whichever_version_their_keys_are_of(file):
    old, new = "model.backbone.fpn_channels", "model.fpn.channels"
    texts = ("model: {backbone: {fpn_channels: 32}}", "model: {fpn: {channels: 32}}")
    for text in texts:
        for key in (old, new):
            assert resolve("double-head-tiny", file=file(text), settings={key: 48}).model.fpn.channels == 48


def test_a_section_of_no_part_is_unknown():
    with pytest.raises(DoubleheadError, match=r"unknown key `model\.wings`"):
        resolve("double-head-tiny", settings={"model.wings": 2})
    with pytest.raises(DoubleheadError, match=r"unknown key `model\.backbone\.resnets`"):
        resolve("double-head-tiny", settings={"model.backbone.resnets.width": 2})
