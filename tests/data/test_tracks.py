"""Tracks of objects in videos, as CVAT and MOTChallenge write them."""

import numpy as np
import pytest
from cases import cvat_image, cvat_xml, put, rows, save

from doublehead.common.errors import DoubleheadError
from doublehead.data.dataset import open_dataset


def frames(root, numbers, name="images/frame_{:06}.png"):
    for number in numbers:
        save(root / name.format(number), number)


def shape(frame, x, outside=0):
    return f'<box frame="{frame}" keyframe="1" outside="{outside}" xtl="{x}" ytl="2" xbr="{x + 20}" ybr="30"/>'


def boxes(root):
    return [record.boxes.tolist() for record in open_dataset(root).read("all").records]


def test_keyframes_alone_place_the_object_in_the_frames_between_as_cvat_does(tmp_path):
    frames(tmp_path, range(8))
    track = shape(0, 10) + shape(4, 30) + shape(6, 40, outside=1) + shape(7, 50)
    put(tmp_path / "annotations.xml", cvat_xml([f'<track label="car">{track}</track>']))
    found = [[[x, 2, x + 20, 30]] for x in (10, 15, 20, 25, 30, 30)] + [[], [[50, 2, 70, 30]]]
    assert boxes(tmp_path) == found


def test_an_object_that_left_is_not_in_the_frames_until_it_comes_back(tmp_path):
    frames(tmp_path, range(4))
    track = shape(0, 10) + shape(1, 10, outside=1) + shape(3, 30)
    put(tmp_path / "annotations.xml", cvat_xml([f'<track label="car">{track}</track>']))
    assert [len(found) for found in boxes(tmp_path)] == [1, 0, 0, 1]


def test_frames_without_their_images_are_named(tmp_path):
    frames(tmp_path, range(2))
    put(tmp_path / "annotations.xml", cvat_xml([f'<track label="car">{shape(0, 1)}{shape(5, 1)}</track>']))
    with pytest.raises(DoubleheadError, match="frame_000005"):
        open_dataset(tmp_path).read("all")


@pytest.mark.parametrize(
    ("name", "tasks"),
    [("images/frame_{:06}.png", (1, 2)), ("images/IMG_{}.png", (1, 1))],
    ids=["two tasks", "other names"],
)
def test_a_video_whose_frames_cannot_be_told_says_how_to_export_it(name, tasks, tmp_path):
    frames(tmp_path, range(3), name)
    tracks = [f'<track label="car" task_id="{task}">{shape(1, 1)}</track>' for task in tasks]
    put(tmp_path / "annotations.xml", cvat_xml(tracks))
    with pytest.raises(DoubleheadError, match="CVAT for images"):
        open_dataset(tmp_path)


def test_a_folder_with_images_and_a_video_has_both(tmp_path):
    frames(tmp_path, range(2), "val/frame_{:06}.png")
    put(tmp_path / "val/annotations.xml", cvat_xml([f'<track label="car">{shape(0, 1)}{shape(1, 1)}</track>']))
    name = save(tmp_path / "train/a.png", 5)
    put(tmp_path / "train/annotations.xml", cvat_xml([cvat_image(name, 5)]))
    dataset = open_dataset(tmp_path)
    assert {split: len(dataset.read(split).records) for split in dataset.distinct} == {"train": 1, "val": 2}


def test_mot15_has_pedestrians_alone_and_positions_in_place_of_classes(tmp_path):
    frames(tmp_path, (1, 2), "PETS09-S2L1/img1/{:06}.jpg")
    put(tmp_path / "PETS09-S2L1/gt/gt.txt", ["1,1,11,21,30,40,1,-14.08,-11.27,0", "2,1,12,21,30,40,0,-13.99,-11.3,0"])
    split = open_dataset(tmp_path).read("all")
    assert split.categories.names == ("pedestrian",)
    np.testing.assert_allclose(split.records[0].boxes, [[10, 20, 40, 60]])
    assert [record.crowd.tolist() for record in split.records] == [[False], [True]]


def test_a_sequence_without_images_says_where_they_belong(tmp_path):
    frames(tmp_path, (1,), "other/{:06}.jpg")
    put(tmp_path / "MOT17-02/gt/gt.txt", ["1,1,11,21,30,40,1,1,1"])
    with pytest.raises(DoubleheadError, match="img1"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("line", ["1,1,11,21", "1,1,eleven,21,30,40,1,1,1", "1,1,11,21,30,40,1,3,1"])
def test_a_line_that_cannot_be_read_is_named(line, tmp_path):
    frames(tmp_path, (1,), "img1/{:06}.jpg")
    good = ",".join(map(str, (1, 1, *rows(1)[0][1:3], 20, 30, 1, 1, 1)))
    put(tmp_path / "gt/gt.txt", [good, line])
    put(tmp_path / "gt/labels.txt", ["car", "dog"])
    with pytest.raises(DoubleheadError, match=r"gt\.txt: line 2"):
        open_dataset(tmp_path).read("all")
