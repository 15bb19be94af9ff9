"""Large images in tiles: every object once and whole, bounded batches, and nothing changed where one tile suffices."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seeing import Box, Seeing, area, asked, painted

import doublehead
from doublehead.inference.tiles import detect_in_tiles, merge, tiles_of


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(32, 900), st.floats(0, 0.9))
@settings(deadline=None, max_examples=60)
def test_tiles_cover_the_image_evenly(height: int, width: int, side: int, overlap: float) -> None:
    tiles = tiles_of(height, width, side, overlap)
    assert {(x2 - x1, y2 - y1) for x1, y1, x2, y2 in tiles} == {(min(side, width), min(side, height))}
    for first, last, length in ((0, 2, width), (1, 3, height)):
        spans = sorted({(tile[first], tile[last]) for tile in tiles})
        assert (spans[0][0], spans[-1][1]) == (0, length)
        for (_, end), (start, _) in pairwise(spans):
            assert end - start >= int(side * overlap)
        if len(spans) > 1:  # one fewer would overlap less
            assert (length - side) / (len(spans) - 1) <= side * (1 - overlap) + 1
            assert len(spans) == 2 or (length - side) / (len(spans) - 2) > int(side * (1 - overlap))


@st.composite
def scenes(draw: st.DrawFn) -> list[Box]:
    """Boxes that do not touch, of 4 to 200 pixels, in an image of 300 x 400."""
    boxes: list[Box] = []
    for _ in range(draw(st.integers(1, 8))):
        width, height = draw(st.integers(4, 200)), draw(st.integers(4, 200))
        x, y = draw(st.integers(0, 400 - width)), draw(st.integers(0, 300 - height))
        box = (x, y, x + width, y + height)
        if all(box[0] > b[2] or b[0] > box[2] or box[1] > b[3] or b[1] > box[3] for b in boxes):
            boxes.append(box)
    return boxes


@pytest.mark.parametrize("merge", ["nms", "wbf"])
@given(boxes=scenes())
@settings(deadline=None, max_examples=60)
def test_each_object_is_found_once_and_whole(merge: str, boxes: list[Box]) -> None:
    """Whether a tile holds it, an edge cuts it, or it is larger than the overlap or than a tile."""
    model = Seeing([area(box) for box in boxes])
    (found,) = detect_in_tiles(
        model.detect, [painted(300, 400, boxes)], asked(tiles=100, overlap=0.3, tile_merge=merge)
    )
    assert sorted(map(tuple, found["boxes"].tolist())) == sorted(boxes)
    assert found["scores"].min() > 0.89


@given(boxes=scenes())
@settings(deadline=None, max_examples=60)
def test_parts_are_joined_where_no_tile_holds_an_object(boxes: list[Box]) -> None:
    """Nothing is found in the whole image: objects larger than the overlap come from their parts alone."""
    model = Seeing([area(box) for box in boxes], largest=100)
    (found,) = detect_in_tiles(model.detect, [painted(300, 400, boxes)], asked(tiles=100, overlap=0.3))
    assert sorted(map(tuple, found["boxes"].tolist())) == sorted(boxes)


def test_a_cut_box_yields_whatever_its_class_and_score() -> None:
    """The left tile takes the part it sees for another class, and is surer of it."""
    options = asked(tiles=100, overlap=0.2)
    left = {"boxes": torch.tensor([[90.0, 10, 100, 30]]), "scores": torch.tensor([0.9]), "labels": torch.tensor([2])}
    right = {"boxes": torch.tensor([[10.0, 10, 30, 30]]), "scores": torch.tensor([0.6]), "labels": torch.tensor([1])}
    nothing = {name: value[:0] for name, value in left.items()}
    found = merge([left, right, nothing], [(0, 0, 100, 100), (80, 0, 180, 100), (0, 0, 180, 100)], options)
    assert found["boxes"].tolist() == [[90, 10, 110, 30]]
    assert found["labels"].tolist() == [1]


def test_what_the_image_itself_cuts_stays() -> None:
    model = Seeing([400, 400])
    boxes = [(0, 40, 20, 60), (380, 280, 400, 300)]
    (found,) = detect_in_tiles(model.detect, [painted(300, 400, boxes)], asked(tiles=100))
    assert sorted(map(tuple, found["boxes"].tolist())) == boxes


@pytest.mark.parametrize("at_once", [1, 4, 7])
def test_tiles_go_through_the_model_in_batches(at_once: int) -> None:
    model = Seeing([])
    image = torch.zeros(3, 400, 600, dtype=torch.uint8)
    detect_in_tiles(model.detect, [image, image], asked(tiles=80, overlap=0.2, tile_batch=at_once))
    tiles = [sizes for sizes in model.batches if sizes != [(400, 600)]]
    assert len(model.batches) - len(tiles) == 2
    assert max(map(len, tiles)) == at_once
    assert {size for sizes in tiles for size in sizes} == {(80, 80)}
    assert sum(map(len, tiles)) == 2 * len(tiles_of(400, 600, 80, 0.2))


def test_the_best_detections_remain(trained: Path) -> None:
    model = doublehead.load(trained / "best.safetensors", "cpu", settings={"tiles": 64, "score_threshold": 0.0})
    image = torch.randint(0, 255, (3, 100, 150), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    (many,), (few,) = model.detect([image]), model.with_options(detections=3).detect([image])
    assert len(few) == 3
    assert (many.scores[:-1] >= many.scores[1:]).all()


def test_one_tile_is_the_plain_path_bit_for_bit(trained: Path, dataset: Path) -> None:
    plain = doublehead.load(trained / "best.safetensors", "cpu")
    images = [str(path) for path in sorted((dataset / "val").iterdir())]  # 96 x 64
    expected = plain.predict(images)
    assert sum(map(len, expected))
    for side in (96, 800):
        assert plain.with_options(tiles=side, tile_merge="wbf").predict(images) == expected
    assert plain.with_options(tiles=95).predict(images) != expected


def test_images_of_one_tile_and_of_many_come_back_in_order(trained: Path, dataset: Path) -> None:
    model = doublehead.load(trained / "best.safetensors", "cpu", settings={"tiles": 96})
    small = torch.randint(0, 255, (3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    large = torch.randint(0, 255, (3, 128, 192), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    assert model.detect([large, small]) == model.detect([large]) + model.detect([small])


@pytest.mark.parametrize(
    "wrong",
    [{"tiles": 8}, {"tiles": 1.5}, {"overlap": 1}, {"overlap": -0.1}, {"tile_merge": "soft"}, {"tile_batch": 0}],
)
def test_mistakes_are_named(trained: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(doublehead.DoubleheadError, match=next(iter(wrong))):
        doublehead.load(trained / "best.safetensors", "cpu", settings=wrong)


def test_commands_take_tiles(trained: Path, dataset: Path, tmp_path: Path, command: Any) -> None:
    weights, asked = trained / "best.safetensors", {"tiles": 64, "overlap": 0.3}
    flags = ("--tiles", 64, "--overlap", 0.3, "--device", "cpu")
    model = doublehead.load(weights, "cpu", settings=asked)
    files = sorted((dataset / "test").iterdir())
    expected = [
        one for number, file in enumerate(files, 1) for one in model.predict(str(file)).above(0.02).to_coco(number)
    ]
    for form in ("pictures", "coco"):
        out = tmp_path / form
        outcome = command("predict", weights, dataset / "test", "-o", out, "--score", 0.02, "--format", form, *flags)
        assert outcome.code == 0, outcome.err
        written = json.loads((out / "predictions.json").read_text())["annotations"]
        assert sorted(one["score"] for one in written) == pytest.approx(
            sorted(one["score"] for one in expected), abs=1e-5
        )
    assert (
        "settings"
        in command("predict", weights, dataset / "test", "-o", out, "--format", "coco", "--score", 0.02).sentence
    )
    outcome = command("evaluate", weights, dataset, "-o", tmp_path / "measured", *flags)
    assert outcome.code == 0, outcome.err
    plain = doublehead.evaluate(weights, dataset, device="cpu")
    tiled = json.loads((tmp_path / "measured" / "predictions.json").read_text())
    assert tiled == doublehead.evaluate(weights, dataset, device="cpu", settings=asked).results != plain.results


def test_what_looks_inside_a_whole_image_refuses_tiles(
    trained: Path, dataset: Path, tmp_path: Path, command: Any
) -> None:
    words = ("analyze", trained / "best.safetensors", dataset, "-o", tmp_path / "a", "--device", "cpu")
    assert "tiles" in command(*words, "--set", "tiles=64").sentence
    outcome = command("export", trained / "best.safetensors", "-o", tmp_path / "a.onnx", "--set", "tiles=64")
    assert "`tiles`" in outcome.sentence
