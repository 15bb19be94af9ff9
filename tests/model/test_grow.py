"""A second head on a trained detector: what is taken, adapted and new."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import small_config
from torch import Tensor

import doublehead
from doublehead.common.categories import Categories
from doublehead.common.errors import DoubleheadError
from doublehead.config import ModelConfig, merge
from doublehead.model.checkpoint import load_checkpoint, save_checkpoint
from doublehead.model.cost import parameters
from doublehead.model.detector import Detector
from doublehead.model.grow import Part, form, grow
from doublehead.model.interop.convert import convert_back
from doublehead.training.recipes import resolve
from small import SMALL, config_of, flags

THREE = Categories(("a", "b", "c"), (1, 2, 3))


def donor(path: Path, variant: str, categories: Categories = THREE, **changes: Any) -> Path:
    """A checkpoint whose weights differ from those that a new detector draws."""
    torch.manual_seed(1)
    config = small_config(variant, **changes)
    model = Detector(config, len(categories))
    for parameter in model.parameters():
        parameter.data.uniform_(-1, 1)
    save_checkpoint(path, config, categories, model.state_dict(), {})
    return path


def grown(
    source: Path, variant: str, categories: Categories = THREE, **changes: Any
) -> tuple[Detector, dict[str, Part], dict[str, Tensor]]:
    """The detector, its parts by their names, and the weights of the source."""
    checkpoint = load_checkpoint(source)
    config = small_config(variant, **merge(form(checkpoint.config), changes))
    torch.manual_seed(2)
    model = Detector(config, len(categories))
    parts = grow(model, categories, str(source))
    return model, {part.name: part for part in parts}, checkpoint.weights


def test_backbone_pyramid_and_rpn_follow_the_source_in_form_and_weights(tmp_path: Path) -> None:
    rpn = {"depth": 2, "aspect_ratios": [0.4, 1.0, 2.5, 4.0], "anchors": "mmdetection"}
    changes = {
        "backbone": {"norm": "batch", "resnet": {"norm_eps": 1e-3}},
        "fpn": {"norm": "batch", "channels": 8},
        "rpn": rpn,
        "roi": {"aligned": True},
        "input": {"mean": [0.1, 0.2, 0.3], "short_side": 64},
    }
    model, parts, weights = grown(donor(tmp_path / "a.safetensors", "single-fc", **changes), "double-head")
    state = model.state_dict()
    first_stage = [key for key in state if key.startswith(("backbone.", "rpn."))]
    counters = [key for key in first_stage if key.endswith("num_batches_tracked")]
    assert counters
    assert all(torch.equal(state[key], weights[key]) for key in set(first_stage) - set(counters))
    assert (model.config.rpn.depth, model.config.rpn.anchors, model.config.roi.aligned) == (2, "mmdetection", True)
    assert model.config.input.mean == (0.1, 0.2, 0.3)
    assert model.config.input.short_side == 96  # the model's own
    assert [parts[name].new for name in ("backbone", "FPN", "RPN")] == [0, 0, 0]


def test_the_table_counts_every_parameter_once(tmp_path: Path) -> None:
    model, parts, _ = grown(donor(tmp_path / "a.safetensors", "single-fc"), "double-head-ext")
    assert sum(part.taken + part.adapted + part.new for part in parts.values()) == parameters(model)
    assert parts["fc: trunk"].new == 0 < parts["fc: trunk"].taken
    assert parts["conv: trunk"].taken == 0 < parts["conv: trunk"].new


@pytest.mark.parametrize(
    ("source", "variant", "taken", "new"),
    [
        ("single-fc", "double-head", {"fc: trunk", "fc: classifier"}, {"conv: trunk", "conv: regressor"}),
        ("double-head", "single-fc", {"fc: trunk", "fc: classifier"}, {"fc: regressor"}),
        ("double-head", "double-head-reverse", set(), {"conv: trunk", "fc: trunk", "fc: regressor"}),
        ("double-fc", "single-fc", {"fc: trunk", "fc: classifier"}, {"fc: regressor"}),
        ("single-convfc", "double-head", set(), {"fc: trunk", "fc: classifier", "conv: trunk", "conv: regressor"}),
        ("double-head", "double-head-ext", {"fc: trunk", "fc: classifier", "conv: trunk", "conv: regressor"}, set()),
    ],
)  # fmt: skip
def test_heads_are_taken_by_trunk_and_task(
    tmp_path: Path, source: str, variant: str, taken: set[str], new: set[str]
) -> None:
    model, parts, weights = grown(donor(tmp_path / "a.safetensors", source), variant)
    assert taken <= {name for name, part in parts.items() if part.taken and not part.new}
    assert new <= {name for name, part in parts.items() if part.new and not part.taken and not part.adapted}
    if "fc: classifier" in taken:
        assert any(torch.equal(model.roi_heads.last.branches[0].classifier.weight, w) for w in weights.values())  # type: ignore[union-attr]


def test_rows_of_classes_that_both_know_are_adapted(tmp_path: Path) -> None:
    source = donor(tmp_path / "a.safetensors", "single-fc")
    model, parts, weights = grown(source, "single-fc", Categories(("c", "new", "a"), (7, 8, 9)))
    rows = 3 * (32 + 1)
    assert parts["fc: classifier"] == Part("fc: classifier", 0, rows, 33)
    assert parts["fc: regressor"] == Part("fc: regressor", 0, 4 * rows, 4 * 33)
    (branch,) = model.roi_heads
    assert branch.classifier is not None
    assert branch.regressor is not None
    theirs = {key.rpartition("branches.0.")[2]: value for key, value in weights.items()}
    assert torch.equal(branch.classifier.weight[[0, 1, 3]], theirs["classifier.weight"][[0, 3, 1]])
    boxes, known = branch.regressor.bias.unflatten(0, (-1, 4)), theirs["regressor.bias"].unflatten(0, (-1, 4))
    assert torch.equal(boxes[[0, 1, 3]], known[[0, 3, 1]])
    assert not boxes[2].any()  # as it was drawn


def test_predictors_are_new_without_a_common_class_or_with_another_kind_of_boxes(tmp_path: Path) -> None:
    source = donor(tmp_path / "a.safetensors", "single-fc")
    _, parts, _ = grown(source, "single-fc", Categories(("x", "y", "z"), (1, 2, 3)))
    assert (parts["fc: classifier"].taken, parts["fc: classifier"].adapted) == (0, 0)
    _, parts, _ = grown(source, "single-fc", roi={"class_agnostic": True})
    assert parts["fc: classifier"].new == 0
    assert parts["fc: regressor"].new == 4 * 33


def test_layers_of_a_trunk_fit_one_by_one_and_predictors_need_all_of_them(tmp_path: Path) -> None:
    source = donor(tmp_path / "a.safetensors", "single-conv", conv_head={"blocks": "mmdetection"})
    _, parts, _ = grown(source, "double-head")
    assert parts["conv: trunk"].taken > 0 < parts["conv: trunk"].new  # the up-block and the bottlenecks
    assert parts["conv: regressor"].taken == 0


def test_every_stage_of_a_cascade_takes_the_heads_of_a_plain_detector(tmp_path: Path) -> None:
    """Boxes are coded by other deviations in later stages: the same box needs other numbers."""
    source = donor(tmp_path / "a.safetensors", "single-fc", roi={"class_agnostic": True})
    model, parts, weights = grown(source, "cascade-double-head")
    assert sum(part.taken + part.adapted + part.new for part in parts.values()) == parameters(model)
    assert all(parts[f"stage {n}, fc: {part}"].new == 0 for n in (1, 2, 3) for part in ("trunk", "classifier"))
    assert parts["stage 1, fc: regressor"].taken == parts["stage 2, fc: regressor"].adapted == 33 * 4
    assert parts["stage 3, conv: trunk"].taken == 0
    theirs = next(value for key, value in weights.items() if key.endswith("regressor.bias"))
    first, second, _ = model.roi_heads.each
    box = torch.tensor([[10.0, 20.0, 30.0, 50.0]])
    expected = first.coder.decode_single(theirs[None], box)
    for head in (first, second):
        torch.testing.assert_close(head.coder.decode_single(head.branches[0].regressor.bias[None], box), expected)  # type: ignore[union-attr]


def test_a_plain_detector_takes_heads_of_whichever_stage_has_them(tmp_path: Path) -> None:
    source = donor(tmp_path / "a.safetensors", "cascade-double-head")
    model, parts, weights = grown(source, "double-head", roi={"class_agnostic": True})
    assert all(part.new == 0 for part in parts.values())
    assert torch.equal(
        model.state_dict()["roi_heads.heads.0.branches.0.classifier.weight"],
        weights["roi_heads.heads.0.branches.0.classifier.weight"],
    )
    assert (parts["conv: regressor"].taken, parts["conv: regressor"].adapted) == (0, 4 * (32 + 1))
    again, parts, _ = grown(source, "cascade-double-head")
    assert all(part.new == part.adapted == 0 for part in parts.values())
    assert all(torch.equal(value, weights[key]) for key, value in again.state_dict().items() if "tracked" not in key)


def test_a_backbone_changed_by_settings_is_refused_unless_asked_for(tmp_path: Path) -> None:
    source = donor(tmp_path / "a.safetensors", "single-fc")
    with pytest.raises(DoubleheadError, match=r"a\.safetensors: [\d,]+ parameters of its backbone do not fit"):
        grown(source, "double-head", backbone={"resnet": {"width": 32}})


def test_files_that_convert_reads_are_sources(tmp_path: Path) -> None:
    ours, theirs = donor(tmp_path / "a.safetensors", "single-fc", backbone={"norm": "frozen"}), tmp_path / "theirs.pth"
    convert_back(ours, theirs, "torchvision")
    config = resolve("double-head-tiny", grow_from=str(theirs))
    assert config.train.grow_from == str(theirs)
    assert (config.model.backbone.norm, config.model.backbone.own.norm_eps) == ("frozen", 0.0)
    model = Detector(config.model, 3)
    parts = {part.name: part for part in grow(model, THREE, str(theirs))}
    assert parts["backbone"].new == parts["FPN"].new == parts["RPN"].new == 0
    weights = load_checkpoint(ours).weights
    assert torch.equal(model.backbone.body.conv1.weight, weights["backbone.body.conv1.weight"])


def test_settings_and_files_win_over_the_form_of_the_source(tmp_path: Path) -> None:
    source = donor(tmp_path / "a.safetensors", "single-fc", rpn={"depth": 2})
    settings = {"train.grow_from": str(source), "model.rpn.smallest_side": 3.0}
    config = resolve("double-head-tiny", settings=settings)
    assert (config.model.rpn.depth, config.model.rpn.smallest_side, config.model.fpn.channels) == (2, 3.0, 16)
    (tmp_path / "more.yaml").write_text("model: {rpn: {depth: 3}}")
    assert resolve("double-head-tiny", file=tmp_path / "more.yaml", grow_from=str(source)).model.rpn.depth == 3


def test_mistakes_are_told_in_a_sentence(tmp_path: Path) -> None:
    source = str(donor(tmp_path / "a.safetensors", "single-fc"))
    with pytest.raises(DoubleheadError, match=r"has a resnet18, not a resnet50: .* such as double-head-r18"):
        resolve("double-head-r50", grow_from=source)
    with pytest.raises(DoubleheadError, match="has a resnet18, not a resnet34"):
        resolve("double-head-tiny", backbone="resnet34", grow_from=source)
    with pytest.raises(DoubleheadError, match="has a resnet18, not a resnet34"):
        resolve("double-head-tiny", settings={"model.backbone.name": "resnet34"}, grow_from=source)
    assert resolve("double-head-tiny", backbone="resnet18", grow_from=source).model.backbone.norm == "group"
    with pytest.raises(DoubleheadError, match="nothing: there is no such file"):
        resolve("double-head-tiny", grow_from="nothing")
    with pytest.raises(DoubleheadError, match="is a trained model, so it cannot grow"):
        resolve(source, grow_from=source)
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(DoubleheadError, match=r"text\.pth: cannot be read as weights"):
        resolve("double-head-tiny", grow_from=str(tmp_path / "text.pth"))


def test_a_grown_run_resumes_without_its_source(dataset: Path, tmp_path: Path, command: Any) -> None:
    source, run = donor(tmp_path / "a.safetensors", "single-fc"), tmp_path / "run"
    settings = {k: v for k, v in SMALL.items() if not k.startswith(("model.fpn", "model.backbone"))}
    settings |= {"train.steps": 2, "data.val_split": None}
    words = ("--model", "double-head-tiny", "--from", source, "-o", run)
    outcome = command("train", dataset, *words, *flags(settings))
    assert outcome.code == 0, outcome.err
    lines = [line.split() for line in outcome.err.splitlines()]
    (backbone,) = (line for line in lines if line[1:2] == ["backbone"])
    assert len([word for word in backbone if word[0].isdigit()]) == 1  # taken, and nothing else
    assert config_of(run)["train"]["grow_from"] == str(source)
    assert config_of(run)["model"]["fpn"]["channels"] == 16
    whole = load_checkpoint(run / "best.safetensors").weights
    longer = run / "config.yaml"
    longer.write_text(longer.read_text().replace("steps: 2\n", "steps: 3\n"))
    source.unlink()
    best = doublehead.resume(run)
    assert load_checkpoint(best).notes["step"] == 3
    assert whole.keys() == load_checkpoint(best).weights.keys()


def test_the_config_of_a_run_grows_again(tmp_path: Path) -> None:
    source = donor(tmp_path / "a.safetensors", "single-fc", rpn={"depth": 2})
    first = resolve("double-head-tiny", grow_from=str(source))
    (tmp_path / "config.yaml").write_text(first.model_dump_json())
    again = resolve(file=tmp_path / "config.yaml")
    assert again == first
    assert isinstance(again.model, ModelConfig)
