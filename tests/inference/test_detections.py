"""The result type: choosing, drawing, saving, and handing to other tools."""

import importlib
import io
import json
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from doublehead.common.errors import DoubleheadError
from doublehead.inference.detections import Detections, class_colour, draw_boxes


def some(**changes):
    values = {
        "boxes": [[1, 2, 11, 22], [30, 30, 60, 50], [5.25, 5.5, 40.125, 45]],
        "scores": [0.9, 0.4, 0.1],
        "labels": [2, 1, 2],
        "names": ("cat", "dog"),
        "category_ids": (17, 44),
    }
    return Detections(**{**values, **changes})


def nothing():
    return Detections([], [], [], ("cat", "dog"))


def test_values_become_arrays_of_the_documented_types():
    found = some()
    assert (found.boxes.shape, found.boxes.dtype) == ((3, 4), np.float32)
    assert (found.scores.dtype, found.labels.dtype) == (np.float32, np.int64)
    assert found.class_names == ["dog", "cat", "dog"]
    assert nothing().boxes.shape == (0, 4)
    assert nothing().category_ids == (1, 2)


@pytest.mark.parametrize(
    ("index", "kept"),
    [
        (0, [0]),
        (-1, [2]),
        (slice(1, None), [1, 2]),
        ([2, 0], [2, 0]),
        ([], []),
        (np.array([True, False, True]), [0, 2]),
        ([False, True, False], [1]),
    ],
)
def test_getitem_takes_masks_slices_and_indices(index, kept):
    chosen = some()[index]
    assert isinstance(chosen, Detections)
    np.testing.assert_array_equal(chosen.boxes, some().boxes[kept])
    np.testing.assert_array_equal(chosen.labels, some().labels[kept])
    assert chosen.category_ids == (17, 44)


def test_iteration_ends_and_gives_single_detections():
    assert [len(one) for one in some()] == [1, 1, 1]
    assert list(nothing()) == []


def test_above_and_equality():
    assert some().above(0.4) == some()[:2]
    assert some() != some(scores=[0.9, 0.4, 0.2])
    assert some() == some(image=Image.new("RGB", (9, 9)))
    assert some() != 3


def test_where_chooses_classes_and_scores():
    assert some().where("dog") == some()[[0, 2]]
    assert some().where(["dog", "cat"], score=0.4) == some()[:2]
    assert some().where(score=0.95) == some()[[]]
    with pytest.raises(DoubleheadError, match="fox"):
        some().where("fox")


def test_crops_are_the_boxes_of_the_picture_with_their_margin():
    pixels = np.arange(70 * 60 * 3, dtype=np.uint32).reshape(60, 70, 3).astype(np.uint8)
    picture = Image.fromarray(pixels)
    found = some(boxes=[[1, 2, 11, 22], [60, 50, 90, 80], [5.25, 5.5, 5.3, 45.2]])
    first, outside, thin = found.crops(picture)
    np.testing.assert_array_equal(np.asarray(first), pixels[2:22, 1:11])
    np.testing.assert_array_equal(np.asarray(outside), pixels[50:60, 60:70])
    np.testing.assert_array_equal(np.asarray(thin), pixels[5:46, 5:6])
    assert found.crops(picture, margin=0.5)[0].size == (16, 32)  # cut off at the edges
    assert some(boxes=[[900, 900, 950, 950]] * 3).crops(picture)[0].size == (1, 1)
    with pytest.raises(DoubleheadError, match="picture"):
        some().crops()


def test_a_notebook_shows_the_drawn_picture():
    assert some()._repr_png_() is None
    shown = some(image=Image.new("RGB", (70, 60)))._repr_png_()
    assert shown is not None
    with Image.open(io.BytesIO(shown)) as picture:
        assert (picture.format, picture.size) == ("PNG", (70, 60))


def test_text_names_what_was_found():
    assert repr(some()) == "<Detections: 3 (2 dog, 1 cat)>"
    assert repr(nothing()) == str(nothing()) == "<Detections: 0>"
    assert str(some()).splitlines()[1].split() == ["0.900", "dog", "1.0", "2.0", "11.0", "22.0"]
    many = Detections(np.zeros((30, 4)), np.linspace(0, 1, 30), np.ones(30), ("cat",))
    assert str(many).endswith("... and 20 more")
    assert "1.000" in str(many).splitlines()[1]


@pytest.mark.parametrize(
    "changes", [{"scores": [0.5]}, {"labels": [0, 1, 2]}, {"labels": [1, 2, 3]}, {"category_ids": (1, 2, 3)}]
)
def test_values_that_do_not_agree_are_refused(changes):
    with pytest.raises(DoubleheadError):
        some(**changes)


def test_to_coco_keeps_category_ids_and_every_digit_that_counts():
    rows = some().to_coco(139)
    assert rows[0] == {"image_id": 139, "category_id": 44, "bbox": [1.0, 2.0, 10.0, 20.0], "score": 0.9}
    assert rows[2]["bbox"] == [5.25, 5.5, 34.875, 39.5]
    assert json.loads(json.dumps(rows)) == rows
    assert nothing().to_coco(1) == []


def test_to_coco_never_makes_ties_of_different_scores():
    scores = np.nextafter(np.float32(0.7), np.float32([0, 1]), dtype=np.float32)
    rows = Detections(np.zeros((2, 4)), scores, [1, 1], ("cat",)).to_coco(1)
    assert [np.float32(row["score"]) for row in rows] == list(scores)
    assert rows[0]["score"] < rows[1]["score"]


def test_to_supervision():
    pytest.importorskip("supervision")
    theirs = some().to_supervision()
    np.testing.assert_array_equal(theirs.xyxy, some().boxes)
    np.testing.assert_array_equal(theirs.class_id, [1, 0, 1])
    np.testing.assert_array_equal(theirs.confidence, some().scores)
    assert list(theirs.data["class_name"]) == ["dog", "cat", "dog"]
    assert list(theirs[theirs.confidence > 0.3].data["class_name"]) == ["dog", "cat"]
    assert len(nothing().to_supervision()) == 0


def test_a_missing_extra_is_answered_by_the_pip_command(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(DoubleheadError, match=r"pip install 'doublehead\[supervision\]'"):
        some().to_supervision()


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "CMYK"])
def test_draw_leaves_the_picture_alone_and_gives_rgb(mode):
    picture = Image.new(mode, (80, 64))
    before = picture.tobytes()
    drawn = some(image=picture).draw()
    assert (drawn.mode, drawn.size) == ("RGB", (80, 64))
    assert picture.tobytes() == before
    assert drawn.tobytes() != picture.convert("RGB").tobytes()


def test_draw_shows_only_what_reaches_the_score():
    picture = Image.new("RGB", (80, 64))
    assert some().draw(picture, score=0.95).tobytes() == picture.tobytes()
    assert nothing().draw(picture).tobytes() == picture.tobytes()
    colours = {colour for _, colour in some().draw(picture, score=0.3).getcolors(100000)}
    assert {class_colour(1), class_colour(2)} <= colours


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3), (16, 16), (3000, 20)])
def test_draw_on_pictures_of_every_shape_with_boxes_anywhere(size):
    boxes = [
        [-50, -50, -10, -10],
        [0, 0, 0, 0],
        [-5, 1, 9000, 2],
        [1e4, 1e4, 2e4, 2e4],
        [5, 5, 2, 2],
        [0, 0, 1, np.nan],
    ]
    drawn = Detections(boxes, np.ones(6), np.ones(6), ("a rather long name",)).draw(Image.new("RGB", size))
    assert drawn.size == size


def test_captions_of_boxes_in_the_corners_stay_inside_the_picture():
    corners = np.array([[0, 0, 30, 20], [270, 0, 300, 20], [0, 180, 30, 200], [270, 180, 300, 200]])
    inside = draw_boxes(Image.new("RGB", (300, 200)), corners, [1, 2, 3, 4], ["elephant 0.99"] * 4)
    pixels = {colour: count for count, colour in inside.getcolors(100000)}
    assert min(pixels[class_colour(label)] for label in (1, 2, 3, 4)) > 300  # a box alone takes about 100


def test_colours_of_classes_are_distinct_and_steady():
    assert len({class_colour(label) for label in range(1, 81)}) == 80
    assert class_colour(3) == class_colour(3)


def test_draw_without_a_picture_says_what_to_do():
    with pytest.raises(DoubleheadError, match=r"detections\.draw\(image\)"):
        some().draw()


def test_save_pictures_and_json(tmp_path):
    found = some(image=Image.new("RGB", (80, 64)))
    for name in ("a.png", "new/folder/a.jpg"):
        assert Image.open(found.save(tmp_path / name)).size == (80, 64)
    rows = json.loads(found.save(tmp_path / "a.json").read_text())
    assert rows[0] == {"name": "dog", "label": 2, "category_id": 44, "score": 0.9, "box": [1, 2, 11, 22]}
    assert len(rows) == 3
    for name in ("a.xyz", "a"):
        with pytest.raises(DoubleheadError, match="not a picture format"):
            found.save(tmp_path / name)


def test_as_a_table_of_pandas():
    table = some().to_pandas()
    assert list(table.columns) == ["name", "label", "category_id", "score", "x1", "y1", "x2", "y2"]
    assert table["name"].tolist() == ["dog", "cat", "dog"]
    assert table["category_id"].tolist() == [44, 17, 44]
    assert table[["x1", "y1", "x2", "y2"]].to_numpy().tolist() == some().boxes.tolist()
    assert table["score"].tolist() == some().scores.tolist()
    assert nothing().to_pandas().empty


def test_without_pandas_the_command_that_adds_it_is_named(monkeypatch):
    def absent(name, *rest):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(DoubleheadError, match=r"pip install 'doublehead\[pandas\]'"):
        some().to_pandas()


def test_lines_of_yolo_are_shares_of_the_image():
    lines = some().to_yolo((100, 50)).splitlines()
    assert lines[:2] == ["1 0.060000 0.240000 0.100000 0.400000", "0 0.450000 0.800000 0.300000 0.400000"]
    assert nothing().to_yolo((100, 50)) == ""
    assert some(image=Image.new("RGB", (100, 50))).to_yolo() == some().to_yolo((100, 50))


def test_what_lies_outside_the_image_is_cut_off():
    found = some(boxes=[[-5, -5, 10, 10], [90, 40, 130, 70], [200, 0, 210, 10]])
    assert found.inside((100, 50)).boxes.tolist() == [[0, 0, 10, 10], [90, 40, 100, 50]]
    values = [float(value) for line in found.to_yolo((100, 50)).splitlines() for value in line.split()[1:]]
    assert len(values) == 8
    assert all(0 <= value <= 1 for value in values)


def test_an_annotation_of_voc_has_the_edges():
    root = ElementTree.fromstring(some().to_voc("pet.jpg", (100, 50)))
    assert (root.findtext("filename"), root.findtext("size/width"), root.findtext("size/height")) == (
        *("pet.jpg", "100", "50"),
    )
    first, *others = root.findall("object")
    assert [each.findtext("name") for each in (first, *others)] == ["dog", "cat", "dog"]
    assert [first.findtext(f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax")] == [
        *("1.00", "2.00", "11.00", "22.00"),
    ]


def test_annotations_need_the_size_of_the_image():
    for write in (lambda: some().to_yolo(), lambda: some().to_voc("pet.jpg")):
        with pytest.raises(DoubleheadError, match="size"):
            write()
