from pathlib import Path

import pytest
from making import picture, yolo
from PIL import Image

from doublehead.common.errors import DoubleheadError
from doublehead.data.dataset import open_dataset


def read(root: Path, split: str = "train"):
    return open_dataset(root).read(split)


def test_class_ids_from_0_stay_and_become_labels_from_1(tmp_path):
    split = read(yolo(tmp_path, {"a": "1 0.5 0.5 0.25 0.2\n\n0 0.25 0.5 0.1 0.1\n"}))
    assert (split.categories.names, split.categories.ids) == (("cat", "dog"), (0, 1))
    record = split.records[0]
    assert record.labels.tolist() == [2, 1]
    assert record.boxes[0].tolist() == pytest.approx([15, 12, 25, 18])  # of 40x30 pixels
    assert record.areas[0] == pytest.approx(60)
    assert (record.width, record.height, record.image_id) == (40, 30, 1)


def test_fractions_are_of_the_upright_image(tmp_path):
    root = yolo(tmp_path, {"a": "0 0.5 0.5 1 0.5\n"})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(root / "images" / "a.png", exif=exif)
    record = read(root).records[0]
    assert (record.width, record.height) == (30, 40)
    assert record.boxes.tolist() == [[0, 10, 30, 30]]


def test_polygons_and_four_corners_become_the_boxes_around_them(tmp_path):
    polygon, corners = "0 0.25 0.2 0.5 0.4 0.3 0.8\n", "1 0.5 0.1 0.75 0.3 0.5 0.5 0.25 0.3\n"
    split = read(yolo(tmp_path, {"a": polygon + corners}))
    boxes = split.records[0].boxes
    assert boxes[0].tolist() == pytest.approx([10, 6, 20, 24])
    assert boxes[1].tolist() == pytest.approx([10, 3, 30, 15])
    assert split.findings.counts == {
        "polygons reduced to the box around them": 1,
        "four corners reduced to the upright box around them": 1,
    }


def test_an_image_without_labels_is_background(tmp_path):
    split = read(yolo(tmp_path, {"a": "0 0.5 0.5 0.1 0.1", "b": "", "c": None}))
    assert [len(record.boxes) for record in split.records] == [1, 0, 0]
    assert split.findings.counts == {"images without a label file, taken as empty": 1}


@pytest.mark.parametrize(
    ("image", "labels"),
    [
        ("images/a/images/b/x.y.jpg", "images/a/labels/b/x.y.txt"),  # the last folder called images
        ("train/x.jpg", "train/x.txt"),
        ("images/x.jpg", "images/x.txt"),
        ("images/x.jpg", "labels/x.jpg.txt"),
        ("Images/x.jpg", "Labels/x.txt"),
        ("pictures/x.jpg", "labels/x.txt"),
        ("train/x.jpg", "train/labels/x.txt"),
    ],
)
def test_where_labels_may_lie(tmp_path, image, labels):
    root = tmp_path / "images"  # this one is above the dataset
    picture(root / image)
    (root / labels).parent.mkdir(parents=True, exist_ok=True)
    (root / labels).write_text("1 0.5 0.5 0.1 0.1\n")
    (root / "data.yaml").write_text("train: .\nnames: [cat, dog]\n")
    assert [record.labels.tolist() for record in read(root).records] == [[2]]


@pytest.mark.parametrize(
    "text",
    [
        "train: images\nnames: {1: dog, 0: cat}\n",
        "path: .\ntrain: [images]\nnames: [cat, dog]\ndownload: https://example.com/x.zip\n",
        "train: ../images\nnames: [cat, dog]\n",  # as Roboflow writes it
        "train: images.txt\nnc: 2\nnames: [cat, dog]\n",
        "path: /content/drive/of/someone\ntrain: images\nnames: [cat, dog]\n",  # where the export was made
    ],
)
def test_ways_to_say_where_images_are(tmp_path, text):
    root = yolo(tmp_path / "data", {"a": "1 0.5 0.5 0.1 0.1"}, text)
    (root / "images.txt").write_text(f"./images/a.png\n{root / 'images/a.png'}\n\n")
    split = read(root)
    assert [record.path for record in split.records] == [root / "images/a.png"]
    assert split.records[0].labels.tolist() == [2]
    assert split.categories.names == ("cat", "dog")


def test_splits_go_by_their_plain_names_and_the_file_may_have_any(tmp_path):
    text = "path: data\ntrain: images\nval: images\ntest: images\nnc: 2\n"
    yolo(tmp_path / "data", {"a": "1 0.5 0.5 0.1 0.1"})
    (tmp_path / "mine.yaml").write_text(text.replace("val", "valid"))
    dataset = open_dataset(tmp_path / "mine.yaml")
    assert (dataset.format, list(dataset.splits)) == ("yolo", ["train", "val", "test"])
    assert dataset.read("valid").categories.names == ("class 0", "class 1")


def test_folders_within_folders_are_searched(tmp_path):
    root = yolo(tmp_path, {"a": "0 0.5 0.5 0.1 0.1"})
    picture(root / "images/deep/b.jpg")
    (root / "labels/deep").mkdir()
    (root / "labels/deep/b.txt").write_text("1 0.5 0.5 0.1 0.1\n")
    assert [record.labels.tolist() for record in read(root).records] == [[1], [2]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path: gone\ntrain: pictures\nnames: [a]\n", "`path` names .*gone, which is not a folder"),
        ("path: [3]\ntrain: images\nnames: [a]\n", "`path` must be a folder, not "),
        ("train: {a: b}\nnames: [a]\n", "`train` must be a folder or a list of folders"),
        ("train: images\nnames: [a]\nnc: many\n", "`nc` must be the number of classes"),
        ("train: images\nnames: [a, [b]]\n", "class 1 under `names` needs a name"),
    ],
)
def test_mistakes_in_data_yaml_are_named(tmp_path, text, message):
    root = yolo(tmp_path, {"a": ""}, text)
    with pytest.raises(DoubleheadError, match=rf"data\.yaml: {message}"):
        read(root)
