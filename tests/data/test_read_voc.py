from pathlib import Path

import pytest
from making import picture, thing, xml

from doublehead.common.errors import DoubleheadError
from doublehead.data.dataset import open_dataset


def voc(root: Path, files: dict[str, str], lists: dict[str, str]) -> Path:
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for stem, text in files.items():
        (root / "Annotations" / f"{stem}.xml").write_text(text)
        picture(root / "JPEGImages" / f"{stem}.jpg")
    for split, text in lists.items():
        (root / "ImageSets/Main" / f"{split}.txt").write_text(text)
    return root


def read(root: Path, split: str = "train"):
    return open_dataset(root).look(split)


def test_classes_are_alphabetical_and_alike_in_every_split(tmp_path):
    root = voc(
        tmp_path,
        {"a": xml(thing("zebra", 1, 2, 11, 12)), "b": xml(thing("ape", 3, 3, 9, 9))},
        {"train": "a\n", "val": "b\n"},
    )
    train, val = read(root), read(root, "val")
    assert train.categories == val.categories
    assert train.categories.names == ("ape", "zebra")
    assert train.categories.ids == (1, 2)
    assert train.records[0].boxes.tolist() == [[1, 2, 11, 12]]
    assert train.records[0].areas.tolist() == [100]
    assert (train.records[0].labels.tolist(), val.records[0].labels.tolist()) == ([2], [1])


def test_difficult_is_crowd_zero_area_is_left_out_and_parts_are_no_objects(tmp_path):
    part = "<object><name>man</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    part += "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>"
    objects = thing("man", 1, 1, 9, 9, difficult=1) + thing("man", 4, 1, 4, 9) + thing("man", 30, 1, 45, 9) + part
    split = read(voc(tmp_path, {"a": xml(objects)}, {"train": "a"}))
    assert split.records[0].crowd.tolist() == [True, False, False]
    assert split.findings.counts == {
        "boxes without area ignored": 1,
        "boxes past the image's edge clipped for training": 1,
    }
    assert split.categories.names == ("man",)


def test_ids_are_places_in_the_list_and_lists_per_class_are_understood(tmp_path):
    files = {name: xml(thing("a", 1, 1, 2, 2)) for name in ("x", "y", "my photo 1")}
    split = read(voc(tmp_path, files, {"train": "y -1\n\nx  1\nmy photo 1\nx\n"}))
    assert [(r.image_id, r.path.stem) for r in split.records] == [(1, "y"), (2, "x"), (3, "my photo 1")]
    assert split.findings.counts == {"images listed twice, read once": 1}


def test_the_image_is_found_by_stem_or_else_by_filename_and_its_size_read_where_the_xml_has_none(tmp_path):
    root = voc(tmp_path, {"a": xml(thing("a", 1, 1, 2, 2), "old.jpg", size="")}, {"train": "a"})
    (root / "JPEGImages/a.jpg").rename(root / "JPEGImages/old.jpg")
    record = read(root).records[0]
    assert record.path.name == "old.jpg"
    assert (record.width, record.height) == (40, 30)
    (root / "JPEGImages/old.jpg").rename(root / "JPEGImages/a.JPEG")
    assert read(root).records[0].path.name == "a.JPEG"
    (root / "JPEGImages/a.JPEG").unlink()
    with pytest.raises(DoubleheadError, match=r"a\.xml: its image `a` is not in"):
        read(root).sound()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>", "cannot be read as XML"),
        (xml(thing("a", 1, 1, "wide", 2)), "<bndbox/xmax> must be a finite number, not `wide`"),  # type: ignore[arg-type]
        (xml(thing("a", 1, 1, float("nan"), 2)), "<bndbox/xmax> must be a finite number"),
        (xml("<object><name>a</name></object>"), "<bndbox/xmin> must be a finite number, not ``"),
        (xml("<object/>"), "an object has no <name>"),
        ('<!DOCTYPE x [<!ENTITY e "e">]><annotation>&e;</annotation>', "cannot be read as XML"),
    ],
)
def test_malformed_files_are_named(tmp_path, text, message):
    root = voc(tmp_path, {"good": xml(thing("a", 1, 1, 2, 2)), "bad": text}, {"train": "good\nbad"})
    with pytest.raises(DoubleheadError, match=r"bad\.xml") as caught:
        read(root).sound()
    assert message in str(caught.value)


def test_what_the_list_names_must_be_there(tmp_path):
    root = voc(tmp_path, {"a": xml(thing("a", 1, 1, 2, 2))}, {"train": "a\nb"})
    with pytest.raises(DoubleheadError, match=r"b\.xml: there is no such file"):
        read(root).sound()
    (root / "ImageSets/Main/test.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DoubleheadError, match=r"test\.txt: cannot be read"):
        read(root, "test")


def test_of_several_files_with_a_name_a_list_means_the_one_in_its_folder(tmp_path):
    for home, name in ((tmp_path, "near"), (tmp_path / "zoo", "far")):
        picture(home / "x.jpg")
        (home / "x.xml").write_text(xml(thing(name, 1, 1, 9, 9)))
    (tmp_path / "train.txt").write_text("zoo/x\n")
    split = read(tmp_path)
    assert [record.path for record in split.records] == [tmp_path / "zoo/x.jpg"]
    assert [split.categories.names[label - 1] for label in split.records[0].labels] == ["far"]
