import json

import pytest
from making import box, coco, image, picture

from doublehead.common.errors import DoubleheadError
from doublehead.data.coco import read_coco

CATS = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}, {"id": 90, "name": "cow"}]


def test_ids_with_gaps_become_labels_in_order_of_id_and_classes_without_boxes_stay(tmp_path):
    file = coco(tmp_path / "a.json", [image(5)], [box(1, 5, 7, [1, 2, 3, 4]), box(2, 5, 90, [1, 2, 3, 4])], CATS)
    split = read_coco("train", file, tmp_path)
    assert split.categories.names == ("dog", "cat", "cow")
    assert split.categories.ids == (3, 7, 90)
    assert split.records[0].labels.tolist() == [2, 3]
    assert split.records[0].boxes[0].tolist() == [1, 2, 4, 6]
    assert split.records[0].image_id == 5


def test_crowds_are_kept_but_do_not_train_and_empty_images_stay(tmp_path):
    annotations = [box(1, 1, 3, [0, 0, 9, 9], iscrowd=1, area=50), box(2, 1, 7, [0, 0, 4, 5])]
    split = read_coco("train", coco(tmp_path / "a.json", [image(1), image(2)], annotations, CATS), tmp_path)
    full, empty = split.records
    assert full.crowd.tolist() == [True, False]
    assert full.areas.tolist() == [50, 20]
    assert full.training_boxes()[1].tolist() == [2]
    assert empty.boxes.shape == (0, 4)
    assert empty.training_boxes()[0].shape == (0, 4)


def test_boxes_without_area_are_left_out_and_counted(tmp_path):
    edges = [[5, 5, 0, 4], [5, 5, 4, -1], [50, 5, 4, 4], [-9, 5, 9, 4], [5, 5, 1, 1]]
    annotations = [box(i, 1, 3, bbox) for i, bbox in enumerate(edges, start=1)]
    split = read_coco("train", coco(tmp_path / "a.json", [image(1)], annotations, CATS), tmp_path)
    assert split.records[0].boxes.tolist() == [[5, 5, 6, 6]]
    assert split.findings.counts == {"boxes without area ignored": 2, "boxes outside the image ignored": 2}
    assert split.findings.by_kind["boxes without area ignored"].places[0].text == "1.png, annotation 1"


def test_boxes_past_the_edge_are_kept_as_annotated_clipped_for_training_and_counted(tmp_path):
    annotations = [box(1, 1, 3, [-5, 20, 20, 30]), box(2, 1, 3, [0, 0, 40.3, 30])]
    split = read_coco("train", coco(tmp_path / "a.json", [image(1)], annotations, CATS), tmp_path)
    assert split.records[0].boxes[0].tolist() == [-5, 20, 15, 50]
    assert split.records[0].training_boxes()[0].tolist() == [[0, 20, 15, 30], [0, 0, 40, 30]]
    assert split.findings.counts == {"boxes past the image's edge clipped for training": 1}


def test_size_comes_from_the_file_where_the_json_has_none(tmp_path):
    picture(tmp_path / "sub" / "x.png", 50, 20)
    entry = {"id": 1, "file_name": "sub/x.png"}
    record = read_coco("train", coco(tmp_path / "a.json", [entry], [], CATS), tmp_path).records[0]
    assert (record.width, record.height) == (50, 20)
    assert record.path == tmp_path / "sub" / "x.png"


def test_roboflows_placeholder_is_left_out_only_where_it_is_one(tmp_path):
    cells = [{"id": 0, "name": "cells", "supercategory": "none"}]
    cells += [{"id": i, "name": name, "supercategory": "cells"} for i, name in ((1, "red"), (2, "white"))]
    split = read_coco("train", coco(tmp_path / "a.json", [image(1)], [box(1, 1, 1, [1, 1, 5, 5])], cells), tmp_path)
    assert split.categories.ids == (1, 2)
    assert split.records[0].labels.tolist() == [1]
    assert "placeholder category ignored" in split.findings.counts

    used = coco(tmp_path / "used.json", [image(1)], [box(1, 1, 0, [1, 1, 5, 5])], cells)
    assert read_coco("train", used, tmp_path).categories.ids == (0, 1, 2)
    cells[1]["supercategory"] = "blood"
    other = coco(tmp_path / "other.json", [image(1)], [], cells)
    assert read_coco("train", other, tmp_path).categories.ids == (0, 1, 2)


@pytest.mark.parametrize(
    ("images", "annotations", "message"),
    [
        ([image(1)], [box(12, 2, 3, [1, 1, 2, 2])], "annotation 12 names image 2, which is not among the images"),
        ([image(1)], [box(12, 1, 4, [1, 1, 2, 2])], "annotation 12 names category 4, which is not defined"),
        ([image(1)], [box(12, 1, [], [1, 1, 2, 2])], "annotation 12 names category"),
        ([image(1)], [box(12, 1, 3, [1, 1, 2])], "annotation 12 needs a `bbox` of four finite numbers"),
        ([image(1)], [box(12, 1, 3, [1, 1, 2, float("nan")])], "annotation 12 needs a `bbox` of four finite numbers"),
        ([image(1)], [box(12, 1, 3, [1, 1, 2, 10**400])], "annotation 12 needs a `bbox` of four finite numbers"),
        ([image(1)], [box(12, 1, 3, [1, 1, 2, "2"])], "annotation 12 needs a `bbox` of four finite numbers"),
        ([image(1)], [box(12, 1, 3, [1, 1, 2, 2], area=float("inf"))], "annotation 12 needs a finite number as `area`"),
        ([image(1)], [{"image_id": 1, "category_id": 3}], "annotation without id needs a `bbox`"),
        ([image(1), image(1)], [], "two images have the id 1"),
        ([image("one")], [], "ids are whole numbers"),
        ([image(1, file_name="../secret.png")], [], "image 1 lies outside"),
        ([image(1, file_name="/etc/secret.png")], [], "image 1 lies outside"),
        ([{"id": 1}], [], "image 1 has no `file_name`"),
    ],
)
def test_contradictions_name_the_file_and_the_entry(tmp_path, images, annotations, message):
    file = coco(tmp_path / "a.json", images, annotations, CATS)
    with pytest.raises(DoubleheadError, match=r"a\.json") as caught:
        read_coco("train", file, tmp_path).sound()
    assert message in str(caught.value)


def test_files_that_are_no_coco_are_named(tmp_path):
    file = tmp_path / "a.json"
    with pytest.raises(DoubleheadError, match=r"a\.json: there is no such annotation file"):
        read_coco("train", file, tmp_path)
    for text, message in (("{", "cannot be read as JSON"), ("[]", "no list of `images`"), ('{"images": []}', "annota")):
        file.write_text(text)
        with pytest.raises(DoubleheadError, match=message):
            read_coco("train", file, tmp_path)
    file.write_text(json.dumps({"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}] * 2}))
    with pytest.raises(DoubleheadError, match="two categories have the id 1"):
        read_coco("train", file, tmp_path)
    with pytest.raises(DoubleheadError, match="gone: there is no such folder"):
        read_coco("train", file, tmp_path / "gone")
