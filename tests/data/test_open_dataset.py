import re

import pytest
from making import box, coco, image, picture, thing, xml

from doublehead.common.errors import DoubleheadError
from doublehead.data.dataset import open_dataset, summary

CATS = [{"id": 1, "name": "cat"}]


def one(file, name="1.png"):
    return coco(file, [image(1, file_name=name)], [box(1, 1, 1, [1, 1, 5, 5])], CATS)


@pytest.mark.parametrize("folder", ["train2017", "images/train2017", "train", "images/train", "images"])
def test_official_layout(tmp_path, folder):
    one(tmp_path / "annotations/instances_train2017.json")
    picture(tmp_path / folder / "1.png")
    dataset = open_dataset(tmp_path)
    assert (dataset.format, list(dataset.splits)) == ("coco", ["train"])
    for name in ("train", "train2017"):
        split = dataset.read(name)
        assert split.name == "train"
        assert split.records[0].path == tmp_path / folder / "1.png"


def test_two_years_do_not_hide_each_other_and_missing_images_are_told(tmp_path):
    for split in ("val2014", "train2017", "val2017"):
        one(tmp_path / f"annotations/instances_{split}.json")
    dataset = open_dataset(tmp_path)
    assert list(dataset.splits) == ["train", "val", "val2017"]
    with pytest.raises(DoubleheadError, match=r"no folder of images for it in .*looked for val2017, images/val2017"):
        dataset.read("val2017")


def test_roboflow_layout(tmp_path):
    for split in ("valid", "train", "test"):
        one(tmp_path / split / "_annotations.coco.json")
    dataset = open_dataset(str(tmp_path))
    assert list(dataset.splits) == ["train", "val", "test"]
    assert dataset.read("val").records[0].path == tmp_path / "valid" / "1.png"
    assert dataset.has("valid")


@pytest.mark.parametrize(("file", "folder"), [("instances.json", "images"), ("labels.json", "images"), ("l.json", ".")])
def test_flat_layout_is_shared_out_and_can_be_read_whole(tmp_path, file, folder):
    one(tmp_path / file)
    picture(tmp_path / folder / "1.png")
    dataset = open_dataset(tmp_path)
    assert list(dataset.splits) == ["train", "val", "test"]
    assert [len(dataset.read(name).records) for name in dataset.splits] in ([1, 0, 0], [0, 1, 0], [0, 0, 1])
    assert dataset.read("all").records[0].path.is_file()


def make_voc(root):
    (root / "Annotations").mkdir(parents=True)
    (root / "Annotations" / "a.xml").write_text(xml(thing("ape", 1, 1, 9, 9)))
    picture(root / "JPEGImages" / "a.jpg")
    for split in ("test", "train", "trainval", "ape_train"):
        (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("a\n")
    return root


def test_voc_layout(tmp_path):
    dataset = open_dataset(make_voc(tmp_path))
    assert (dataset.format, list(dataset.splits)) == ("voc", ["train", "test", "trainval"])
    assert dataset.distinct == ["train", "test", "trainval"]
    (tmp_path / "ImageSets/Main/val.txt").touch()
    assert open_dataset(tmp_path).distinct == ["train", "val", "test"]
    assert dataset.read("test").categories.names == ("ape",)


def test_yaml_names_format_and_splits(tmp_path):
    make_voc(tmp_path / "voc")
    file = tmp_path / "data.yaml"
    file.write_text("format: voc\nroot: voc\nsplits:\n  train: ImageSets/Main/test.txt\n")
    assert open_dataset(file).read("train").records[0].path == tmp_path / "voc/JPEGImages/a.jpg"
    one(tmp_path / "x.json")
    picture(tmp_path / "pictures/1.png")
    file.write_text("format: coco\nsplits:\n  mine: {annotations: x.json, images: pictures}\n")
    assert open_dataset(file).read("mine").records[0].path.is_file()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("format: coco\nparts: {}\n", "unknown key `parts`"),
        ("format: coco\nsplits: {train: {annotation: x, images: y}}\n", "unknown key `splits.train.annotation`"),
        ("format: yolov9\nsplits: {}\n", "`format` must be coco or voc, not 'yolov9'"),
        ("format: voc\nroot: gone\nsplits: {train: x}\n", "`root` names .*gone, which is not a folder"),
        ("format: voc\nsplits: {}\n", "`splits` is empty"),
        ("- a list", "must hold"),
        ("[" * 100_000, "cannot be read as YAML"),
        ("format: 2001-99-99", "cannot be read as YAML"),
    ],
)
def test_mistakes_in_the_yaml_are_named(tmp_path, text, message):
    file = tmp_path / "data.yaml"
    file.write_text(text)
    with pytest.raises(DoubleheadError, match=rf"data\.yaml.*{message}"):
        open_dataset(file)


@pytest.mark.parametrize("name", ["export.zip", "export.tar.gz"])
def test_an_archive_says_to_unpack_it(name, tmp_path):
    (tmp_path / name).write_bytes(b"PK")
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(DoubleheadError, match=rf"{re.escape(str(path))}.*unpack"):
            open_dataset(path)


@pytest.mark.parametrize("name", ["train/chess.tfrecord", "train.tfrecord-00000-of-00002"])
def test_tfrecords_say_what_to_export_instead(name, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"\0" * 100)
    with pytest.raises(DoubleheadError, match=f"{name}.*COCO"):
        open_dataset(tmp_path)


def test_a_folder_without_a_dataset_says_what_is_there_and_what_is_missing(tmp_path):
    with pytest.raises(DoubleheadError, match="no dataset found there, but nothing"):
        open_dataset(tmp_path)
    for number in range(3):
        picture(tmp_path / f"images/{number}.png")
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / f"labels/{number}.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    with pytest.raises(DoubleheadError, match=r"3 \.png, 3 \.txt; .*labels/0\.txt lacks .*classes\.txt"):
        open_dataset(tmp_path)
    with pytest.raises(DoubleheadError, match="there is no such dataset"):
        open_dataset(tmp_path / "gone")
    with pytest.raises(DoubleheadError, match="give the folder"):
        open_dataset(one(tmp_path / "x.json"))


def test_summary_tells_counts_and_findings(tmp_path):
    annotations = [box(1, 1, 1, [1, 1, 5, 5]), box(2, 1, 1, [1, 1, 0, 5]), box(3, 1, 1, [1, 1, 9, 9], iscrowd=1)]
    coco(tmp_path / "instances.json", [image(1), image(2)], annotations, CATS)
    assert summary(open_dataset(tmp_path).read("all")).splitlines() == [
        "all: 2 images, 1 boxes of 1 classes, 1 images without boxes, 1 crowds or difficult objects",
        "  1 boxes without area ignored, such as 1.png, annotation 2",
    ]
