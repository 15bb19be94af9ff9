"""One way to find the picture that a name means, and nothing outside the dataset."""

import json
from contextlib import suppress
from pathlib import Path

import pytest
from cases import cvat_image, cvat_xml, voc_xml
from making import box, coco, image, picture

from doublehead.common.errors import DoubleheadError
from doublehead.data.dataset import open_dataset
from doublehead.data.folder import Folder, Pictures, canonical, split_in_name, split_of_folder
from doublehead.data.inspection import inspect


@pytest.fixture
def folder(tmp_path):
    for name in ("train/1.png", "val/1.png", "val/2.png", "extra/Deep/3.JPG", "extra/4.png", "extra/4.jpg", "5.a.png"):
        picture(tmp_path / name, seed=len(name) * 100 + ord(name[0]))
    (tmp_path / ".cache").mkdir()
    (tmp_path / "._1.png").touch()
    (tmp_path / ".DS_Store").touch()
    return Folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "split", "file"),
    [
        ("1.png", "train", "train/1.png"),
        ("1.png", "val", "val/1.png"),
        ("1.png", "all", None),  # two might be meant
        ("2.png", "train", None),  # never from the folder of another split
        ("2.png", "all", "val/2.png"),
        ("3.jpg", "train", "extra/Deep/3.JPG"),
        ("3", "train", "extra/Deep/3.JPG"),
        ("deep\\3.jpg", "train", "extra/Deep/3.JPG"),
        ("gone/of/mine/3.png", "train", "extra/Deep/3.JPG"),
        ("val/3.jpg", "all", None),  # the folder is there, and the picture is not in it
        ("4.png", "train", "extra/4.png"),
        ("5%2Ea.png", "train", "5.a.png"),
        ("5.a", "train", "5.a.png"),
        ("file:///home/me/3.jpg", "train", "extra/Deep/3.JPG"),
        ("C:\\pictures\\3.jpg", "train", "extra/Deep/3.JPG"),
        ("/data/local-files/?d=extra/Deep/3.JPG", "train", "extra/Deep/3.JPG"),
        ("6.png", "train", None),
        ("", "train", None),
    ],
)
def test_the_picture_that_a_name_means(folder, name, split, file):
    assert Pictures(folder, [name], split=split).seek(name) == file


def test_hidden_files_are_skipped_and_those_that_look_like_data_are_counted(folder):
    assert folder.skipped == [".cache/", "._1.png"] or folder.skipped == ["._1.png", ".cache/"]
    assert "._1.png" not in folder.files


def test_links_that_lead_in_circles_are_followed_once(tmp_path):
    for one, other in (("a", "b"), ("b", "a")):
        picture(tmp_path / one / "1.png")
        (tmp_path / one / "other").symlink_to(tmp_path / other)
    assert Folder(tmp_path).images == ["a/1.png", "a/other/1.png", "b/1.png", "b/other/1.png"]


@pytest.mark.parametrize(
    ("given", "plain"),
    [("Train", "train"), ("TRAINING", "train"), ("train2017", "train"), ("valid", "val"), ("Validation", "val"),
     ("dev", "val"), ("testing", "test"), ("Default", "all"), ("TrainVal", "trainval"), ("extra", "extra")],
)  # fmt: skip
def test_names_of_splits(given, plain):
    assert canonical(given) == plain


def test_splits_in_names_of_files_and_folders():
    assert split_in_name("oidv6-train-annotations-bbox") == "train"
    assert split_in_name("instances_val2017") == "val"
    assert split_in_name("constrained") is None
    assert split_of_folder("obj_Train_data/1.png") == "train"
    assert split_of_folder("data/valid_images/1.png") == "val"
    assert split_of_folder("my test pictures/1.png") is None
    assert split_of_folder("test.png") is None


def write_coco(root: Path, name: str) -> None:
    coco(root / "a.json", [image(1, file_name=name)], [box(1, 1, 1, [1, 1, 5, 5])], [{"id": 1, "name": "a"}])


def write_cvat(root: Path, name: str) -> None:
    (root / "annotations.xml").write_text(cvat_xml([cvat_image(name, 1)]))


def write_csv(root: Path, name: str) -> None:
    (root / "a.csv").write_text(f"filename,xmin,ymin,xmax,ymax,class\n{name},1,1,5,5,a\n")


def write_labelme(root: Path, name: str) -> None:
    shape = {"label": "a", "points": [[1, 1], [5, 5]], "shape_type": "rectangle"}
    (root / "a.json").write_text(json.dumps({"version": "5", "shapes": [shape], "imagePath": name}))


def write_voc(root: Path, name: str) -> None:
    (root / "a.xml").write_text(voc_xml(name, 1))


def write_imagefolder(root: Path, name: str) -> None:
    objects = {"bbox": [[1, 1, 4, 4]], "categories": ["a"]}
    (root / "metadata.jsonl").write_text(json.dumps({"file_name": name, "objects": objects}))


def write_fiftyone(root: Path, name: str) -> None:
    boxes = [{"label": "a", "bounding_box": [0.1, 0.1, 0.2, 0.2]}]
    sample = {"filepath": name, "ground_truth": {"_cls": "Detections", "detections": boxes}}
    (root / "samples.json").write_text(json.dumps({"samples": [sample]}))


def write_yolo(root: Path, name: str) -> None:
    (root / "data.yaml").write_text("train: train.txt\nnames: [a]\n")
    (root / "train.txt").write_text(f"{name}\n")


def write_yolo_folder(root: Path, name: str) -> None:
    (root / "data.yaml").write_text(f"train: {Path(name).parent.as_posix()}\nnames: [a]\n")


@pytest.mark.parametrize(
    "write",
    [write_coco, write_cvat, write_csv, write_labelme, write_voc, write_imagefolder, write_fiftyone, write_yolo,
     write_yolo_folder],
)  # fmt: skip
@pytest.mark.parametrize("name", ["../outside/secret.png", "x/../../outside/secret.png", "..%2Foutside%2Fsecret.png"])
def test_what_leads_out_of_the_dataset_is_refused(write, name, tmp_path):
    picture(tmp_path / "outside" / "secret.png")
    root = tmp_path / "data"
    root.mkdir()
    write(root, name)
    with suppress(DoubleheadError):
        for record in open_dataset(root).look("all" if open_dataset(root).whole else "train").records:
            assert not record.path.exists()
            assert record.path.is_relative_to(root)
    assert inspect(root).errors


def test_a_link_may_lead_out(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    picture(tmp_path / "store" / "1.png")
    (root / "pictures").symlink_to(tmp_path / "store")
    write_coco(root, "1.png")
    assert open_dataset(root).read("all").records[0].path == root / "pictures/1.png"
