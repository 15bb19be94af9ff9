import numpy as np
import pytest
from faults import sound
from making import picture
from pycocotools.coco import COCO

from doublehead.data.dataset import open_dataset


@pytest.mark.parametrize("form", ["COCO", "VOC", "YOLO"])
@pytest.mark.parametrize("link", [False, True])
def test_what_is_written_is_what_was_read(form, link, tmp_path, command):
    root = sound(form, tmp_path / "data")
    outcome = command("to-coco", root, tmp_path / "coco", *["--link"] * link)
    assert outcome.out == "train: 10 images\nval: 4 images\n", outcome.err
    before, after = open_dataset(root), open_dataset(tmp_path / "coco")
    assert after.format == "coco"
    assert list(after.splits) == list(before.splits)
    for name in before.splits:
        old, new = before.read(name), after.read(name)
        assert new.categories == old.categories
        for a, b in zip(old.records, new.records, strict=True):
            assert (a.image_id, a.width, a.height) == (b.image_id, b.width, b.height)
            assert a.path.read_bytes() == b.path.read_bytes()
            assert b.path.is_symlink() == link
            for field in ("boxes", "labels", "crowd", "areas"):
                assert np.array_equal(getattr(a, field), getattr(b, field))


def test_pycocotools_reads_it(tmp_path, command):
    root = sound("YOLO", tmp_path / "data")
    assert command("to-coco", root, tmp_path / "coco").code == 0
    read = COCO(tmp_path / "coco" / "annotations" / "instances_val.json")
    assert read.getCatIds() == [0, 1]
    assert len(read.getAnnIds(catIds=[0])) == 12
    assert read.loadAnns(read.getAnnIds())[0]["bbox"] == pytest.approx([2, 3, 10, 10], abs=1e-4)


def test_subfolders_stay_and_nothing_is_overwritten(tmp_path, command):
    root = sound("YOLO", tmp_path / "data")
    picture(root / "images/train/deep/t1.png")
    assert command("to-coco", root, tmp_path / "coco").code == 0
    assert (tmp_path / "coco/train/deep/t1.png").is_file()
    assert (tmp_path / "coco/train/t1.png").is_file()
    assert "is not empty; name a new folder" in command("to-coco", root, tmp_path / "coco").sentence


def test_a_faulty_dataset_is_refused(tmp_path, command):
    root = sound("YOLO", tmp_path / "data")
    (root / "labels/val/v1.txt").write_text("7 0.5 0.5 0.1 0.1\n")
    assert "v1.txt: line 1 is of class 7" in command("to-coco", root, tmp_path / "coco").sentence
    assert not (tmp_path / "coco").exists()
