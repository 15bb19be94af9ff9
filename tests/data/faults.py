"""Datasets with one fault each, and what becomes of it: the tests run this table, docs/reliability.md shows it.

`python tests/data/faults.py` prints the table for the docs.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from making import picture, thing, xml
from PIL import Image

OBJECTS = [("red", 2, 3, 12, 13), ("red", 15, 4, 25, 14), ("red", 3, 16, 13, 27), ("white", 20, 15, 35, 28)]
CLASSES = ["red", "white"]
WIDTH, HEIGHT = 40, 30
NAMES = {"train": [f"t{i}" for i in range(10)], "val": [f"v{i}" for i in range(4)]}


@dataclass(frozen=True)
class Fault:
    format: str
    what: str
    spoil: Callable[[Path], None]
    says: str  # an error: part of its sentence; a warning: its kind
    error: bool = False
    trains: bool = True


FAULTS: list[Fault] = []


def fault(form: str, what: str, says: str, error: bool = False, trains: bool | None = None) -> Callable[..., Any]:
    def enter(spoil: Callable[[Path], None]) -> Callable[[Path], None]:
        FAULTS.append(Fault(form, what, spoil, says, error, not error if trains is None else trains))
        return spoil

    return enter


# Sound datasets


def sound(form: str, root: Path) -> Path:
    """Ten training images and four to validate, with four objects each, in one of the three formats."""
    return {"COCO": sound_coco, "VOC": sound_voc, "YOLO": sound_yolo}[form](root)


def sound_coco(root: Path) -> Path:
    (root / "annotations").mkdir(parents=True)
    for split, names in NAMES.items():
        content: dict[str, Any] = {
            "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)],
            "images": [],
            "annotations": [],
        }
        for number, name in enumerate(names, start=1):
            picture(root / split / f"{name}.png", seed=hash_of(name))
            content["images"].append({"id": number, "file_name": f"{name}.png", "width": WIDTH, "height": HEIGHT})
            for kind, x1, y1, x2, y2 in OBJECTS:
                content["annotations"].append(
                    {
                        "id": len(content["annotations"]) + 1,
                        "image_id": number,
                        "category_id": CLASSES.index(kind) + 1,
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                    }
                )
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def sound_voc(root: Path) -> Path:
    (root / "Annotations").mkdir(parents=True)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for split, names in NAMES.items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names))
        for name in names:
            picture(root / "JPEGImages" / f"{name}.png", seed=hash_of(name))
            (root / "Annotations" / f"{name}.xml").write_text(xml("".join(thing(*entry) for entry in OBJECTS)))
    return root


def sound_yolo(root: Path) -> Path:
    lines = []
    for kind, x1, y1, x2, y2 in OBJECTS:
        edges = ((x1 + x2) / 2 / WIDTH, (y1 + y2) / 2 / HEIGHT, (x2 - x1) / WIDTH, (y2 - y1) / HEIGHT)
        lines.append(f"{CLASSES.index(kind)} {' '.join(f'{edge:.6f}' for edge in edges)}\n")
    for split, names in NAMES.items():
        (root / "labels" / split).mkdir(parents=True)
        for name in names:
            picture(root / "images" / split / f"{name}.png", seed=hash_of(name))
            (root / "labels" / split / f"{name}.txt").write_text("".join(lines))
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnc: 2\nnames: [red, white]\n")
    return root


def hash_of(name: str) -> int:
    return int.from_bytes(name.encode(), "big")


# Ways to spoil them


def content(root: Path, split: str = "train") -> dict[str, Any]:
    return json.loads((root / "annotations" / f"instances_{split}.json").read_text())


def edit(root: Path, change: Callable[[dict[str, Any]], object], split: str = "train") -> None:
    values = content(root, split)
    change(values)
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(values))


def annotation(form: str, what: str, says: str, error: bool = False, **changes: Any) -> None:
    """A fault of the third annotation of COCO's training split."""
    fault(form, what, says, error)(lambda root: edit(root, lambda values: values["annotations"][2].update(changes)))


def entry(form: str, what: str, says: str, error: bool = False, **changes: Any) -> None:
    """A fault of the third image's entry in COCO's training split."""
    fault(form, what, says, error)(lambda root: edit(root, lambda values: values["images"][2].update(changes)))


def image(form: str, what: str, says: str, error: bool = False) -> Callable[..., Any]:
    """A fault of the third training image's file, whatever the format."""

    def enter(spoil: Callable[[Path], None]) -> Callable[[Path], None]:
        folder = {"COCO": "train", "VOC": "JPEGImages", "YOLO": "images/train"}[form]
        return fault(form, what, says, error)(lambda root: spoil(root / folder / "t2.png"))

    return enter


def add(root: Path, bbox: list[float], category: int = 1) -> None:
    edit(root, lambda values: values["annotations"].append(
        {"id": 1000, "image_id": 3, "category_id": category, "bbox": bbox}
    ))  # fmt: skip


def objects(root: Path, text: str, name: str = "t2") -> None:
    """Put other objects into one XML file."""
    (root / "Annotations" / f"{name}.xml").write_text(xml(text))


def lines(root: Path, text: str, name: str = "t2") -> None:
    """Add lines to one file of YOLO's labels."""
    with (root / "labels" / "train" / f"{name}.txt").open("a") as file:
        file.write(text + "\n")


def yaml(root: Path, text: str) -> None:
    (root / "data.yaml").write_text(text)


# COCO, errors

for what, text in (("cut short", None), ("nested 100,000 deep", "[" * 100_000)):

    @fault("COCO", f"annotation file {what}", "cannot be read as JSON", error=True)
    def _(root: Path, text: str | None = text) -> None:
        file = root / "annotations" / "instances_train.json"
        file.write_text(file.read_text()[:-50] if text is None else text)


@fault("COCO", "annotation file without `annotations`", "has no list of `annotations`", error=True)
def _(root: Path) -> None:
    edit(root, lambda values: values.pop("annotations"))


@fault("COCO", "folder of images missing", "no folder of images for it", error=True)
def _(root: Path) -> None:
    shutil.rmtree(root / "train")


@fault("COCO", "folder without a dataset", "no dataset found there", error=True)
def _(root: Path) -> None:
    shutil.rmtree(root / "annotations")


@fault("COCO", "no training split", "has no split `train`", error=True)
def _(root: Path) -> None:
    (root / "annotations" / "instances_train.json").rename(root / "annotations" / "instances_extra.json")
    (root / "train").rename(root / "extra")


@image("COCO", "image missing", "there is no such image file", error=True)
def _(file: Path) -> None:
    file.unlink()


@image("COCO", "image that is text", "is not an image that can be read", error=True)
def _(file: Path) -> None:
    file.write_text("no image")


@image("COCO", "image of no bytes", "is not an image that can be read", error=True)
def _(file: Path) -> None:
    file.write_bytes(b"")


for suffix in ("PNG", "JPEG"):

    @image("COCO", f"{suffix} cut short", "is damaged or cut short", error=True)
    def _(file: Path, suffix: str = suffix) -> None:
        Image.open(file).save(file, suffix)
        file.write_bytes(file.read_bytes()[:-400])


@image("COCO", "image whose header says 30,000 x 30,000 pixels", "has more pixels than Pillow's limit", error=True)
def _(file: Path) -> None:
    whole = file.read_bytes()
    header = b"IHDR" + (30_000).to_bytes(4, "big") * 2 + whole[24:29]
    file.write_bytes(whole[:12] + header + zlib.crc32(header).to_bytes(4, "big") + whole[33:])


@image("COCO", "image of 32-bit floats", "has 32-bit values", error=True)
def _(file: Path) -> None:
    Image.new("F", (WIDTH, HEIGHT), 0.5).save(file, "TIFF")


entry("COCO", "size in the annotations wrong", "is 40x30, but the annotations say 80x60", True, width=80, height=60)


@image("COCO", "size as it was before the EXIF orientation", "before its EXIF orientation turned it", error=True)
def _(file: Path) -> None:
    turned(file, Image.open(file))


def turned(file: Path, content: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content.save(file, exif=exif)


entry("COCO", "two images with one id", "two images have the id 1", True, id=1)
entry("COCO", "image id that is text", "has the id 'three'; ids are whole numbers", True, id="three")
entry("COCO", "image id beyond 2^53", "ids are whole numbers", True, id=2**53 + 1)
entry("COCO", "image without `file_name`", "has no `file_name`", True, file_name=None)
entry("COCO", "`file_name` with ../", "lies outside", True, file_name="../../secret.png")
entry("COCO", "absolute `file_name`", "lies outside", True, file_name="/secret.png")
annotation("COCO", "annotation of an unknown image", "names image 99, which is not among", True, image_id=99)
annotation("COCO", "annotation of an unknown category", "names category 7, which is not defined", True, category_id=7)
annotation("COCO", "box of three numbers", "needs a `bbox` of four finite numbers", True, bbox=[1, 2, 3])
annotation("COCO", "box with NaN", "needs a `bbox` of four finite numbers", True, bbox=[1, 2, 3, float("nan")])
annotation("COCO", "box with 1e30", "needs a `bbox` of four finite numbers", True, bbox=[1, 2, 3, 1e30])
annotation("COCO", "box of texts", "needs a `bbox` of four finite numbers", True, bbox=["1", "2", "3", "4"])
annotation("COCO", "infinite area", "needs a finite number as `area`", True, area=float("inf"))


@fault("COCO", "two categories with one id", "two categories have the id 1", error=True)
def _(root: Path) -> None:
    edit(root, lambda values: values["categories"][1].update(id=1))


@fault("COCO", "category without a name", "needs a whole number as id and a name", error=True)
def _(root: Path) -> None:
    edit(root, lambda values: values["categories"][1].update(name=" "))


@fault("COCO", "no categories", "defines no categories", error=True)
def _(root: Path) -> None:
    edit(root, lambda values: values.update(categories=[]))


@fault("COCO", "val with other classes than train", "have different classes", error=True)
def _(root: Path) -> None:
    edit(root, lambda values: values["categories"][1].update(name="green"), "val")


@fault("COCO", "training split without boxes", "has no boxes to learn from", error=True)
def _(root: Path) -> None:
    edit(root, lambda values: values.update(annotations=[]))


@fault("COCO", "training split of crowds alone", "has no boxes to learn from", error=True)
def _(root: Path) -> None:
    edit(root, lambda values: [box.update(iscrowd=1) for box in values["annotations"]])


@fault("COCO", "training split without images", "has no boxes to learn from", error=True)
def _(root: Path) -> None:
    edit(root, lambda values: values.update(images=[], annotations=[]))


@fault("COCO", "image of the test split cut short", "is damaged or cut short", error=True, trains=True)
def _(root: Path) -> None:
    shutil.copy(root / "annotations" / "instances_val.json", root / "annotations" / "instances_test.json")
    shutil.copytree(root / "val", root / "test")
    file = root / "test" / "v1.png"
    file.write_bytes(file.read_bytes()[:-400])


# COCO, warnings

for what, says, bbox in (
    ("box of no width", "boxes without area ignored", [5, 5, 0, 4]),
    ("box of negative height", "boxes without area ignored", [5, 5, 4, -3]),
    ("box outside the image", "boxes outside the image ignored", [50, 5, 4, 4]),
    ("box past the edge", "boxes past the image's edge clipped for training", [30, 3, 20, 9]),
    ("box of one pixel", "boxes under 2 pixels", [30, 3, 1, 1]),
    ("box over the whole image", "boxes over the whole image", [0, 0, 40, 30]),
    ("box annotated twice", "boxes annotated twice", [2, 3, 10, 10]),
):
    fault("COCO", what, says)(lambda root, bbox=bbox: add(root, bbox))


@fault("COCO", "box annotated twice with different classes", "boxes annotated twice with different classes")
def _(root: Path) -> None:
    add(root, [2, 3, 10, 10], category=2)


@fault("COCO", "boxes as fractions of the image", "splits whose boxes look like fractions, not pixels")
def _(root: Path) -> None:
    edit(root, lambda values: [
        box.update(bbox=[v / side for v, side in zip(box["bbox"], (WIDTH, HEIGHT) * 2, strict=True)])
        for box in values["annotations"]
    ])  # fmt: skip


annotation("COCO", "annotation id used twice", "annotation ids used twice", id=1)
annotation("COCO", "annotation id 0", "annotation id 0, which pycocotools takes for none", id=0)


@fault("COCO", "category id 0", "category id 0, which some programs take for the background")
def _(root: Path) -> None:
    for split in NAMES:
        edit(root, lambda values: (values["categories"][0].update(id=0), [
            box.update(category_id=0) for box in values["annotations"] if box["category_id"] == 1
        ]), split)  # fmt: skip


@fault("COCO", "category 0 of Roboflow, parent of the others", "placeholder category ignored")
def _(root: Path) -> None:
    for split in NAMES:
        edit(root, lambda values: (
            [category.update(supercategory="cells") for category in values["categories"]],
            values["categories"].insert(0, {"id": 0, "name": "cells", "supercategory": "none"}),
        ), split)  # fmt: skip


@fault("COCO", "class without boxes", "classes without boxes")
def _(root: Path) -> None:
    for split in NAMES:
        edit(root, lambda values: values["categories"].append({"id": 5, "name": "green"}), split)


@fault("COCO", "two classes of one name", "classes whose names differ little or not at all")
def _(root: Path) -> None:
    for split in NAMES:
        edit(root, lambda values: values["categories"].append({"id": 5, "name": "red"}), split)


entry("COCO", "file listed as two images", "files listed as two images", file_name="t1.png")


@fault("COCO", "image copied within a split", "pictures twice in a split")
def _(root: Path) -> None:
    shutil.copy(root / "train" / "t1.png", root / "train" / "t2.png")


@fault("COCO", "image of train also in val", "pictures in two splits")
def _(root: Path) -> None:
    shutil.copy(root / "train" / "t1.png", root / "val" / "v1.png")


@fault("COCO", "image of train also in val, in another format", "pictures in two splits")
def _(root: Path) -> None:
    Image.open(root / "train" / "t1.png").save(root / "val" / "v1.png", "BMP")


@fault("COCO", "image without boxes among labelled ones", "images that look unlabelled")
def _(root: Path) -> None:
    without(root, lambda box: box["image_id"] == 3)


@fault("COCO", "image without the class that all others have many of", "images that look unlabelled")
def _(root: Path) -> None:
    without(root, lambda box: box["image_id"] == 3 and box["category_id"] == 1)


def without(root: Path, unwanted: Callable[[dict[str, Any]], bool]) -> None:
    edit(root, lambda values: values.update(annotations=[box for box in values["annotations"] if not unwanted(box)]))


@fault("COCO", "image that no split names", "image files that no split names")
def _(root: Path) -> None:
    picture(root / "train" / "more.png", seed=77)


@fault("COCO", "no val split", "splits missing")
def _(root: Path) -> None:
    (root / "annotations" / "instances_val.json").unlink()


@image("COCO", "EXIF orientation, with the size as seen", "images rotated upright by their EXIF orientation")
def _(file: Path) -> None:
    turned(file, Image.open(file).transpose(Image.Transpose.ROTATE_90))


for mode in ("L", "P", "RGBA", "CMYK", "I;16"):

    @image("COCO", f"image of mode {mode}", "images of other colour modes, converted to RGB")
    def _(file: Path, mode: str = mode) -> None:
        if mode == "I;16":
            pixels = np.random.default_rng(1).integers(0, 65536, (HEIGHT, WIDTH), dtype=np.uint16)
            Image.fromarray(pixels).save(file)
        else:
            Image.open(file).convert(mode).save(file, "JPEG" if mode == "CMYK" else "PNG")


@image("COCO", "animation", "images of several frames or pages, the first one read")
def _(file: Path) -> None:
    frames = [Image.open(file).convert("RGB"), Image.new("RGB", (WIDTH, HEIGHT))]
    frames[0].save(file, "TIFF", save_all=True, append_images=frames[1:])


@image("COCO", "image of one colour", "images of a single colour")
def _(file: Path) -> None:
    Image.new("RGB", (WIDTH, HEIGHT), "black").save(file)


# Pascal VOC

for what, text, says in (
    ("XML cut short", "<annotation><object>", "cannot be read as XML"),
    ("XML with an entity", '<!DOCTYPE x [<!ENTITY e "e">]><annotation>&e;</annotation>', "cannot be read as XML"),
    ("edge that is no number", xml(thing("red", 1, 1, "wide", 9)), "<bndbox/xmax> must be a finite number"),
    ("edge that is NaN", xml(thing("red", 1, 1, "nan", 9)), "<bndbox/xmax> must be a finite number"),
    ("object without a box", xml("<object><name>red</name></object>"), "<bndbox/xmin> must be a finite number"),
    ("object without a name", xml("<object/>"), "an object has no <name>"),
    ("size in the XML wrong", xml("", size="<width>50</width><height>30</height>"), "but the annotations say 50x30"),
):

    @fault("VOC", what, says, error=True)
    def _(root: Path, text: str = text) -> None:
        (root / "Annotations" / "t2.xml").write_text(text)


@fault("VOC", "XML missing", "there is no such file, but the list names it", error=True)
def _(root: Path) -> None:
    (root / "Annotations" / "t2.xml").unlink()


@image("VOC", "image missing", "its image `t2` is not in", error=True)
def _(file: Path) -> None:
    file.unlink()


@fault("VOC", "list that leads out of the dataset", "lies outside the dataset's folder", error=True)
def _(root: Path) -> None:
    (root / "ImageSets" / "Main" / "train.txt").write_text("t1\n../../secret\n")


@fault("VOC", "list that is no text", "cannot be read as a list of image names", error=True)
def _(root: Path) -> None:
    (root / "ImageSets" / "Main" / "train.txt").write_bytes(b"\xff\xfe\x00")


@fault("VOC", "no folder of images", "its image `t0` is not in", error=True)
def _(root: Path) -> None:
    shutil.rmtree(root / "JPEGImages")


@fault("VOC", "no object anywhere", "no annotation there holds an object", error=True)
def _(root: Path) -> None:
    for file in (root / "Annotations").glob("*.xml"):
        file.write_text(xml(""))


for what, says, text in (
    ("box with xmin = xmax", "boxes without area ignored", thing("red", 5, 5, 5, 9)),
    ("class in other letters", "classes whose names differ little or not at all", thing("Red", 5, 20, 12, 28)),
):

    @fault("VOC", what, says)
    def _(root: Path, text: str = text) -> None:
        objects(root, "".join(thing(*entry) for entry in OBJECTS) + text)


@fault("VOC", "image listed twice", "images listed twice, read once")
def _(root: Path) -> None:
    (root / "ImageSets" / "Main" / "train.txt").write_text("\n".join([*NAMES["train"], "t2"]))


@fault("VOC", "image in two lists", "pictures in two splits")
def _(root: Path) -> None:
    (root / "ImageSets" / "Main" / "val.txt").write_text("\n".join([*NAMES["val"], "t2"]))


@image("VOC", "two images of one name", "images of the same name, the last one taken")
def _(file: Path) -> None:
    picture(file.with_suffix(".bmp"), seed=5)


# YOLO

for what, text, says in (
    ("data.yaml that is no YAML", "train: [", "cannot be read as YAML"),
    ("data.yaml without classes", "train: images/train\nnc: null\nnames: null\n", "needs the classes as `names`"),
    ("`nc` unlike `names`", "train: images/train\nnc: 3\nnames: [red, white]\n", "`nc` is 3, but `names` holds 2"),
    ("`names` with a gap", "train: images/train\nnames: {0: red, 2: white}\n", "must be numbered 0, 1, 2 ..."),
    ("keypoints", "train: images/train\nkpt_shape: [17, 3]\nnames: [red, white]\n", "describes keypoints"),
    ("folder of images missing", "train: images/gone\nnames: [red, white]\n", "neither a folder nor a .txt list"),
    ("folder outside the dataset", "train: ../../secret\nnames: [red, white]\n", "lies outside the dataset's folder"),
    ("folder without images", "train: labels/train\nnames: [red, white]\n", "without images"),
):
    fault("YOLO", what, says, error=True)(lambda root, text=text: yaml(root, text))

for what, text, says in (
    ("class beyond the last", "2 0.5 0.5 0.1 0.1", "is of class 2, but the classes are 0 to 1"),
    ("negative class", "-1 0.5 0.5 0.1 0.1", "is of class -1"),
    ("fractional class", "0.5 0.5 0.5 0.1 0.1", "is of class 0.5"),
    ("line of four numbers", "0 0.5 0.5 0.1", "has 4 numbers"),
    ("line with a confidence", "0 0.5 0.5 0.1 0.1 0.9", "a confidence behind the box has no place in labels"),
    ("coordinates in pixels", "0 20 15 10 10", "coordinates are fractions of the image's size, not pixels"),
    ("coordinate that is no number", "0 0.5 0.5 0.1 wide", "which is not a finite number"),
    ("coordinate that is NaN", "0 0.5 0.5 0.1 nan", "which is not a finite number"),
):
    fault("YOLO", what, says, error=True)(lambda root, text=text: lines(root, text))


@fault("YOLO", "labels that are no text", "cannot be read as YOLO labels", error=True)
def _(root: Path) -> None:
    (root / "labels" / "train" / "t2.txt").write_bytes(b"\xff\xfe\x00")


@fault("YOLO", "list that names a missing image", "there is no such image file", error=True)
def _(root: Path) -> None:
    listed(root, "./images/train/gone.png\n")


@fault("YOLO", "list that leads out of the dataset", "lies outside the dataset's folder", error=True)
def _(root: Path) -> None:
    listed(root, "../../secret.png\n")


def listed(root: Path, more: str) -> None:
    (root / "train.txt").write_text("".join(f"./images/train/{name}.png\n" for name in NAMES["train"]) + more)
    yaml(root, "train: train.txt\nval: images/val\nnames: [red, white]\n")


@fault("YOLO", "image listed twice", "images listed twice, read once")
def _(root: Path) -> None:
    listed(root, "images/train/t2.png\n")


for what, says, text in (
    ("polygon", "polygons reduced to the box around them", "0 0.5 0.5 0.6 0.5 0.6 0.8"),
    ("oriented box", "four corners reduced to the upright box around them", "0 0.6 0.1 0.8 0.2 0.75 0.4 0.55 0.3"),
    ("box of no height", "boxes without area ignored", "0 0.5 0.5 0.1 0"),
    ("box outside the image", "boxes outside the image ignored", "0 1.5 0.5 0.1 0.1"),
    ("box past the edge", "boxes past the image's edge clipped for training", "0 0.95 0.2 0.3 0.2"),
):
    fault("YOLO", what, says)(lambda root, text=text: lines(root, text))


@fault("YOLO", "image without a label file", "images without a label file, taken as empty")
def _(root: Path) -> None:
    (root / "labels" / "train" / "t2.txt").unlink()


@fault("YOLO", "label file without an image", "label files without an image")
def _(root: Path) -> None:
    lines(root, "0 0.5 0.5 0.1 0.1", "gone")


def table() -> str:
    """The corpus as a table in Markdown."""
    rows = ["| format | fault | `check` | training | what is said |", "|---|---|---|---|---|"]
    for row in FAULTS:
        level = "error" if row.error else "warning"
        said = f"... {row.says} ..." if row.error else row.says
        rows.append(f"| {row.format} | {row.what} | {level} | {'runs' if row.trains else 'refuses'} | {said} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(table(), end="")
