"""What `check` sees and suggests."""

from __future__ import annotations

import io
import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from rich.cells import cell_len
from rich.console import Console as RichConsole

from doublehead.config import ModelConfig, override, parse_settings
from doublehead.data import advice
from doublehead.data.advice import advise
from doublehead.data.inspection import Inspection
from doublehead.data.records import Categories, Findings, Record, Split
from doublehead.data.suspects import suspect_near_copies
from doublehead.model.presets import preset, preset_values
from doublehead.training.recipes import resolve

TINY = preset("double-head-tiny")


def split(sizes: Any, image: tuple[int, int] = (1000, 800)) -> Split:
    """One image with boxes of these widths and heights."""
    sizes = np.asarray(sizes, dtype=np.float32).reshape(-1, 2)
    boxes = np.concatenate([np.zeros_like(sizes), sizes], axis=1)
    count = len(boxes)
    record = Record(1, Path("a.jpg"), *image, boxes, np.ones(count, np.int64), np.zeros(count, bool), boxes[:, 2])
    return Split("train", [record], Categories(("a",), (1,)), Findings())


def holding(name: str, files: list[str]) -> Split:
    """A split of these images, without boxes."""
    none = np.zeros(0)
    records = [Record(1, Path(file), 9, 9, none.reshape(0, 4), none, none, none) for file in files]
    return Split(name, records, Categories(("a",), (1,)), Findings())


def changed(config: ModelConfig, found: advice.Advice) -> ModelConfig:
    keys = {key.removeprefix("model."): value for key, value in found.settings.items()}
    return ModelConfig.model_validate(override(config.model_dump(), keys))


def test_nothing_is_suggested_for_boxes_that_suit() -> None:
    found = advise(split([[150, 150], [120, 180], [300, 200]] * 10), TINY, "double-head-tiny")
    assert (found.settings, found.reasons, found.tiny, found.small, found.unreached) == ({}, [], 0, 0, 0)


def test_small_boxes_ask_for_a_larger_input() -> None:
    """At short side 240 of 800 pixels, 24 pixels become 7."""
    found = advise(split([[24, 24]] * 31 + [[200, 200]] * 69), TINY, "double-head-tiny")
    assert found.tiny == pytest.approx(0.31)
    assert found.settings["model.input.short_side"] == 320
    after = advise(split([[24, 24]] * 31 + [[200, 200]] * 69), changed(TINY, found), "")
    assert after.tiny == 0
    assert "31%" in found.reasons[0]


def test_mostly_small_objects_ask_for_a_larger_input_and_a_minority_does_not() -> None:
    """In COCO's sense, under 32 x 32 pixels: at short side 240 of 800 pixels, 70 pixels become 21."""
    found = advise(split([[70, 70]] * 60 + [[300, 300]] * 40), TINY, "double-head-tiny")
    assert (found.tiny, found.small) == (0, pytest.approx(0.6))
    assert found.settings["model.input.short_side"] == 400
    assert advise(split([[70, 70]] * 60 + [[300, 300]] * 40), changed(TINY, found), "").small == 0
    assert not advise(split([[70, 70]] * 40 + [[300, 300]] * 60), TINY, "double-head-tiny").settings


def test_histograms_hold_every_box_and_say_which_no_anchor_reaches() -> None:
    found = advise(split([[400, 40]] * 5 + [[107, 107]] * 3), TINY, "double-head-tiny")
    for bins in (found.sides, found.shapes):
        assert sum(each.boxes for each in bins) == 8
        assert sum(each.unreached for each in bins) == 5
    assert [anchor for each in found.sides for anchor in each.anchors] == list(TINY.rpn.anchor_sizes)
    assert [anchor for each in found.shapes for anchor in each.anchors] == list(TINY.rpn.aspect_ratios)
    (wide,) = (each for each in found.shapes if each.low <= 0.1 < each.high)
    assert (wide.boxes, wide.unreached) == (5, 5)


def test_images_are_not_enlarged_beyond_their_own_size() -> None:
    found = advise(split([[4, 4]] * 10, image=(300, 260)), TINY, "double-head-tiny")
    assert found.settings.get("model.input.short_side", 240) <= 260


def test_long_boxes_ask_for_other_ratios() -> None:
    found = advise(split([[400, 80]] * 50 + [[100, 100]] * 50), TINY, "double-head-tiny")
    assert found.unreached == pytest.approx(0.5)
    assert advise(split([[400, 80]] * 50 + [[100, 100]] * 50), changed(TINY, found), "").unreached < 0.05


def test_tiny_boxes_ask_for_smaller_anchors() -> None:
    config = ModelConfig.model_validate(preset_values("double-head-r50"))
    found = advise(split([[20, 20]] * 50, image=(1000, 800)), config, "double-head-r50")
    assert found.unreached == 1
    assert max(found.settings["model.rpn.anchor_sizes"]) < 512
    assert advise(split([[20, 20]] * 50), changed(config, found), "").unreached == 0


def test_the_command_can_be_pasted_into_any_shell() -> None:
    """Brackets are patterns to zsh, and folders may have spaces."""
    found = advise(split([[24, 24]] * 40 + [[900, 30]] * 60), TINY, "double-head-tiny")
    assert "[" not in re.sub("'[^']*'", "", found.line)
    words = shlex.split(found.command("my data"))
    assert words[:5] == ["doublehead", "train", "my data", "--model", "double-head-tiny"]
    assert words[5::2] == ["--set"] * len(found.settings)
    pasted = dict(word.split("=", 1) for word in words[6::2])
    config = resolve("double-head-tiny", settings={key: json.loads(value) for key, value in pasted.items()})
    assert config.model.input.short_side == found.settings["model.input.short_side"]


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float32, st.tuples(st.integers(0, 30), st.just(2)), elements=st.floats(0, 1e9, width=32)),
    st.tuples(st.integers(1, 20_000), st.integers(1, 20_000)),
    st.sampled_from(["double-head-tiny", "double-head-lite", "double-head-r50"]),
)
def test_following_it_never_makes_it_worse(sizes: np.ndarray, image: tuple[int, int], model: str) -> None:
    config = preset(model)
    found = advise(split(sizes, image), config, model)
    json.dumps(found.to_json(), allow_nan=False)
    assert sum(each.boxes for each in found.sides) == sum(each.boxes for each in found.shapes) == found.boxes
    assert bool(found.settings) == bool(found.reasons)
    if found.settings:
        after = advise(split(sizes, image), changed(config, found), model)
        assert after.tiny <= found.tiny
        assert after.small <= found.small
        if "model.input.short_side" not in found.settings:
            assert after.unreached <= found.unreached


def noise(seed: int) -> Image.Image:
    cells = np.random.default_rng(seed).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((96, 72), Image.Resampling.BICUBIC)


def test_near_copies_across_splits_are_told(own_dataset: Path, tmp_path: Path, command: Any) -> None:
    """Brightened and recompressed, its bytes and pixels differ; an exact copy is told as such, and no other picture."""
    train, val = (sorted((own_dataset / name).iterdir()) for name in ("train", "val"))
    size = Image.open(val[0]).size
    picture = noise(0).resize(size)
    picture.save(train[0])
    picture.point(lambda value: min(255, int(value * 1.1))).save(val[0], quality=60)
    noise(1).resize(size).save(val[1])
    outcome = command("check", own_dataset, "--json", tmp_path / "found.json")
    assert outcome.code == 0, outcome.err
    findings = {f["kind"]: f for f in json.loads((tmp_path / "found.json").read_text())["findings"]}
    alike = findings["pictures in two splits that look alike"]
    told = [place["text"] for place in alike["places"]]
    assert any(val[0].name in text and train[0].name in text for text in told)
    assert not any(val[1].name in text for text in told)


def test_each_picture_is_told_once_with_the_nearest_of_an_earlier_split() -> None:
    """Of hashes 0, 1 and 3 bits apart the nearest counts; pictures of one split and equal pixels do not."""
    parts = {"val": {"v0": 0b0, "v1": 0b111}, "train": {"t0": 0b0, "t1": 0b1, "t2": 0b11111}, "test": {"s": 0b111}}
    splits = [holding(name, list(files)) for name, files in parts.items()]
    hashes = {Path(file): look for files in parts.values() for file, look in files.items()}
    digests = {path: str(path).encode() for path in hashes} | {Path("v0"): b"t0"}
    findings = Findings()
    suspect_near_copies(splits, digests, hashes, findings)
    told = [(str(place.image), str(place.beside)) for finding in findings for place in finding.places]
    assert sorted(told) == [("s", "v1"), ("v0", "t1"), ("v1", "t1")]
    assert [pair for pair in told if pair[0] == "s"] == told[:1]


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("letter", ["x", "猫"])
def test_long_names_do_not_break_the_table(width: int, letter: str) -> None:
    """Every line has both borders within the console's width, and an error's path stays whole."""
    name, path = letter * 150, f"/data/{letter * 100}/a.jpg"
    found, of_split = Findings(), Findings()
    found.fault("images that cannot be read", f"{path}: is cut short; replace it")
    found.warn("pictures in two splits that look alike", f"A{name}.jpg of val and B{name}.png of train")
    of_split.warn("classes without boxes", name)
    inspection = Inspection(Path("data"), [Split(name, [], Categories((name,), (1,)), of_split)], found)
    file = io.StringIO()
    RichConsole(file=file, width=width).print(inspection.table())
    lines = [line for line in file.getvalue().splitlines() if line.startswith("│")]
    assert {cell_len(line) for line in file.getvalue().splitlines()} == {cell_len(lines[0])}
    assert cell_len(lines[0]) <= width
    assert all(line.endswith("│") for line in lines)
    examples = "".join(line.split("│")[5].replace(" ", "") for line in lines)
    assert path in examples
    assert all(end in examples for end in (f"A{letter}", ".jpgofval", f"B{letter}", ".pngoftrain"))


def test_json_holds_what_the_page_shows(own_dataset: Path, tmp_path: Path, command: Any) -> None:
    assert command("check", own_dataset, "--json", tmp_path / "found.json").code == 0
    found = json.loads((tmp_path / "found.json").read_text())
    train = next(each for each in found["splits"] if each["name"] == "train")
    assert sum(train["boxes_per_image"].values()) == train["images"]
    boxes = sum(int(count) * images for count, images in train["boxes_per_image"].items())
    assert boxes == sum(each["boxes"] for each in train["classes"]) == found["advice"]["boxes"]
    for histogram in ("sides", "shapes"):
        assert sum(each["boxes"] for each in found["advice"][histogram]) == boxes


def test_the_page_says_what_suits(own_dataset: Path, tmp_path: Path, command: Any) -> None:
    assert command("check", own_dataset, "--report", tmp_path, "--model", "double-head-tiny").code == 0
    text = (tmp_path / "index.html").read_text()
    assert "double-head-tiny" in text
    assert command("check", own_dataset, "--model", "no-such").sentence.startswith("unknown model `no-such`")


def test_the_command_repeats_the_settings_it_was_asked_with() -> None:
    asked = {"data.split": [70, 20, 10], "model.input.short_side": 320}
    found = advise(split([[24, 24]] * 31 + [[200, 200]] * 69), TINY, "a model", asked)
    words = shlex.split(found.command("my data"))
    assert words[:5] == ["doublehead", "train", "my data", "--model", "a model"]
    said = parse_settings(words[6::2])
    assert said == asked | found.settings
    assert said["model.input.short_side"] == found.settings["model.input.short_side"]
