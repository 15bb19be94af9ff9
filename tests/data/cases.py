"""Small datasets as annotation tools export them: each shows the same pictures, so that all must read alike."""

from __future__ import annotations

import base64
import csv
import io
import json
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 96, 72
NAMES = ("car", "dog")
TRAIN, VAL = tuple(range(8)), tuple(range(100, 104))
ALL = TRAIN + VAL
Row = tuple[str, int, int, int, int]  # class, xyxy


@dataclass(frozen=True)
class Case:
    write: Callable[[Path], object]
    splits: dict[str, tuple[int, ...]]  # split -> pictures; of `all`: split by share
    kinds: tuple[str, ...] = ()  # of findings that tell what was left out or changed
    names: tuple[str, ...] = NAMES
    crowds: int = 0
    lossy: float = 1e-3  # of the coordinates in pixels


CASES: dict[str, Case] = {}
BOTH = {"train": TRAIN, "val": VAL}
WHOLE = {"all": ALL}


def case(splits: dict[str, tuple[int, ...]], *kinds: str, **more: Any) -> Callable[..., Any]:
    def enter(write: Callable[[Path], object]) -> Callable[[Path], object]:
        CASES[write.__name__] = Case(write, splits, kinds, **more)
        return write

    return enter


@cache
def encoded(k: int) -> bytes:
    pixels = np.random.default_rng(k).integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((WIDTH, HEIGHT)).save(file, "PNG")
    return file.getvalue()


@cache
def rows(k: int) -> tuple[Row, ...]:
    """Three objects, none of them a square."""
    random = np.random.default_rng(k + 1000)
    found = []
    for place in range(3):
        x, y, w, h = (int(random.integers(low, high)) for low, high in ((0, 60), (0, 40), (12, 20), (21, 31)))
        found.append((NAMES[(k + place) % 2], x, y, x + w, y + h))
    return tuple(found)


def save(path: Path, k: int) -> str:
    """Write a picture, whatever its suffix as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(k))
    return path.name


def put(path: Path, text: str | list[str] | dict[str, Any], encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(text) if isinstance(text, dict) else "\n".join(text) + "\n" if isinstance(text, list) else text
    path.write_text(text, encoding=encoding)


# COCO


def coco(pictures: Iterable[tuple[str, int]], first: int = 1, **more: Any) -> dict[str, Any]:
    """Of (file name, picture); `more` goes into every annotation."""
    images, annotations = [], []
    for number, (name, k) in enumerate(pictures, first):
        images.append({"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT})
        for c, x1, y1, x2, y2 in rows(k):
            annotations.append(
                {"id": len(annotations) + first, "image_id": number, "category_id": first + NAMES.index(c),
                 "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0, **more}
            )  # fmt: skip
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": first + i, "name": name} for i, name in enumerate(NAMES)],
    }


def coco_splits(root: Path, name: str = "{split}/p{k}.png", listed: str = "p{k}.png", **more: Any) -> None:
    for split, ks in BOTH.items():
        for k in ks:
            save(root / name.format(split=split, k=k), k)
        pictures = [(listed.format(split=split, k=k), k) for k in ks]
        put(root / f"annotations/instances_{split}.json", coco(pictures, **more))


@case(WHOLE, "category id 0, which some programs take for the background")
def label_studio_coco(root: Path) -> None:
    put(root / "result.json", coco([(f"images/{save(root / f'images/{k:08x}-p{k}.png', k)}", k) for k in ALL], first=0))


@case(WHOLE)
def label_studio_windows_coco(root: Path) -> None:
    """Names with a prefix that is not there, and backslashes."""
    put(root / "result.json", coco([(f"upload\\1\\{save(root / f'images/p{k}.png', k)}", k) for k in ALL]))


@case(WHOLE)
def fiftyone_coco(root: Path) -> None:
    put(root / "labels.json", coco([(save(root / f"data/p{k}.png", k), k) for k in ALL]))


@case(WHOLE)
def coco_of_any_name_beside_its_folder(root: Path) -> None:
    put(root / "export.json", coco([(save(root / f"my pictures/p{k}.png", k), k) for k in ALL]))


@case(BOTH)
def cvat_coco(root: Path) -> None:
    for split, ks in (("Train", TRAIN), ("Validation", VAL)):
        pictures = [(save(root / f"images/{split}/p{k}.png", k), k) for k in ks]
        put(root / f"annotations/instances_{split}.json", coco(pictures))


@case(BOTH)
def coco_files_at_the_top(root: Path) -> None:
    for split, ks in (("training", TRAIN), ("dev", VAL)):
        put(root / f"{split}.json", coco([(save(root / f"all/p{k}.png", k), k) for k in ks]))


@case(BOTH)
def coco_in_a_folder_per_split(root: Path) -> None:
    for split, ks in (("TRAIN", TRAIN), ("Valid", VAL)):
        pictures = [(save(root / f"{split}/images/{i}.png", k), k) for i, k in enumerate(ks)]  # same names in both
        put(root / f"{split}/annotations.json", coco(pictures))


@case(BOTH)
def coco_unpacked_to_a_folder_of_its_own(root: Path) -> None:
    coco_splits(root / "archive (1)")
    put(root / "README.md", "readme")


@case(BOTH)
def coco_split_in_file_name(root: Path) -> None:
    coco_splits(root, listed="{split}/p{k}.png")


@case(BOTH)
def coco_percent_encoded(root: Path) -> None:
    coco_splits(root, "{split}/my p{k}.png", "my%20p{k}.png")


@case(BOTH)
def coco_other_case_of_the_extension(root: Path) -> None:
    coco_splits(root, "{split}/p{k}.JPG", "p{k}.jpg")


@case(BOTH)
def coco_other_extension(root: Path) -> None:
    coco_splits(root, "{split}/p{k}.jpeg", "p{k}.png")


@case(BOTH)
def coco_decomposed_umlauts(root: Path) -> None:
    coco_splits(root, "{split}/a\u0308{k}.png", "\u00e4{k}.png")


@case(BOTH, "polygons reduced to the box around them")
def coco_polygons_only(root: Path) -> None:
    coco_splits(root)
    for split in BOTH:
        change(root / f"annotations/instances_{split}.json", outlined)


def outlined(values: dict[str, Any]) -> None:
    for annotation in values["annotations"]:
        x, y, w, h = annotation.pop("bbox")
        annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]


@case(BOTH, "masks reduced to the box around them")
def coco_masks_only(root: Path) -> None:
    coco_splits(root)
    for split in BOTH:
        change(root / f"annotations/instances_{split}.json", masked)


def masked(values: dict[str, Any]) -> None:
    for place, annotation in enumerate(values["annotations"]):
        x, y, w, h = annotation.pop("bbox")
        counts = [x * HEIGHT + y, *[h, HEIGHT - h] * (w - 1), h]
        counts.append(WIDTH * HEIGHT - sum(counts))
        annotation["segmentation"] = {
            "size": [HEIGHT, WIDTH],
            "counts": compressed(counts) if place % 2 else counts,
        }


def compressed(counts: list[int]) -> str:
    """As pycocotools writes it (maskApi.c, rleToString)."""
    text = ""
    for place, count in enumerate(counts):
        value = count - counts[place - 2] if place > 2 else count
        more = True
        while more:
            five, value = value & 31, value >> 5
            more = value != (-1 if five & 16 else 0)
            text += chr(48 + (five | 32 * more))
    return text


@case(BOTH, "objects with `ignore` set, treated as crowds", crowds=6)
def coco_ignore_flag(root: Path) -> None:
    coco_splits(root)
    change(root / "annotations/instances_train.json", lambda v: [a.update(ignore=1) for a in v["annotations"][:6]])


@case(BOTH, crowds=6)
def coco_crowd_as_text(root: Path) -> None:
    coco_splits(root, iscrowd="0")
    change(root / "annotations/instances_train.json", lambda v: [a.update(iscrowd="1") for a in v["annotations"][:6]])


@case(BOTH, "class names without their invisible characters")
def coco_invisible_in_names(root: Path) -> None:
    coco_splits(root)
    for split in BOTH:
        change(
            root / f"annotations/instances_{split}.json", lambda v: v["categories"][0].update(name="car\u200b\n\xa0")
        )


@case(BOTH)
def coco_byte_order_mark(root: Path) -> None:
    coco_splits(root)
    for file in (root / "annotations").iterdir():
        put(file, file.read_text(), "utf-8-sig")


def change(file: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(file.read_text())
    edit(values)
    put(file, values)


# Pascal VOC


def voc_xml(
    name: str, k: int, box: str = "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>"
) -> str:
    objects = "".join(f"<object><name>{c}</name>{box.format(*edges)}</object>" for c, *edges in rows(k))
    return f"<annotation><filename>{name}</filename>{objects}</annotation>"


def voc(root: Path, inner: str = "", line: str = "{inner}p{k}", lists: Iterable[str] = ("train", "val")) -> None:
    for name, ks in zip(lists, BOTH.values(), strict=True):
        for k in ks:
            save(root / f"JPEGImages/{inner}p{k}.jpg", k)
            put(root / f"Annotations/{inner}p{k}.xml", voc_xml(f"p{k}.jpg", k))
        put(root / f"ImageSets/Main/{name}.txt", [line.format(inner=inner, k=k) for k in ks])


@case(BOTH)
def cvat_voc(root: Path) -> None:
    voc(root, lists=("Train", "Validation"))
    for name, ks in (("Train", TRAIN), ("Validation", VAL)):
        put(root / f"ImageSets/Main/car_{name}.txt", [f"p{k}  1" for k in ks])
    put(root / "labelmap.txt", "# label:color_rgb:parts:actions\ncar:250,50,83::\n")


@case(WHOLE, "deleted objects ignored", "masks reduced to the box around them")
def cvat_labelme_xml(root: Path) -> None:
    """LabelMe 3.0: boxes as polygons, masks with a box, and objects that its web tool marks as deleted."""
    corners = "".join(f"<pt><x>{x}.00</x><y>{y}.00</y></pt>" for x, y in (("{0}", "{1}"), ("{2}", "{3}")))
    box = f"<deleted>0</deleted><type>bounding_box</type><polygon>{corners}<username/></polygon>"
    edges = "<xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax>"
    mask = f"<deleted>0</deleted><segm><username/><mask>p_mask_0.png</mask><box>{edges}</box></segm>"
    gone = "<object><name>ghost</name><deleted>1</deleted><polygon><pt><x>1</x><y>1</y></pt></polygon></object>"
    for k in ALL:
        save(root / f"p{k}.jpg", k)
        text = voc_xml(f"p{k}.jpg", k, mask if k % 2 else box)
        put(root / f"p{k}.xml", text.replace("</annotation>", f"{gone}</annotation>"))


@case(BOTH)
def voc_in_subfolders(root: Path) -> None:
    voc(root, "camera1/")


@case(BOTH)
def voc_lists_with_extensions(root: Path) -> None:
    voc(root, line="p{k}.jpg")


@case(BOTH)
def voc_lists_of_windows(root: Path) -> None:
    voc(root, "camera1/", line="camera1\\p{k}.jpg\r")


@case(BOTH)
def voc_lists_with_a_byte_order_mark(root: Path) -> None:
    voc(root)
    for file in (root / "ImageSets/Main").iterdir():
        put(file, file.read_text(), "utf-16")


@case(BOTH)
def voc_lists_at_the_top(root: Path) -> None:
    voc(root)
    for file in (root / "ImageSets/Main").iterdir():
        file.rename(root / file.name)


@case({"train": TRAIN, "test": VAL})
def voc_trainval_test(root: Path) -> None:
    voc(root, lists=("trainval", "test"))


@case(BOTH)
def roboflow_voc(root: Path) -> None:
    for split, ks in (("train", TRAIN), ("valid", VAL)):
        for k in ks:
            name = save(root / split / f"p{k}_png.rf.{k:032x}.jpg", k)
            put((root / split / name).with_suffix(".xml"), voc_xml(name, k))


@case(WHOLE)
def labelimg_flat(root: Path) -> None:
    for k in ALL:
        put(root / f"p{k}.xml", voc_xml(save(root / f"p{k}.jpg", k), k))


@case(WHOLE)
def kaggle_voc(root: Path) -> None:
    for k in ALL:
        put(root / f"annotations/p{k}.xml", voc_xml(save(root / f"images/p{k}.png", k), k))


@case(WHOLE)
def voc_of_two_cameras_with_the_same_names(root: Path) -> None:
    for place, k in enumerate(ALL):
        camera, number = divmod(place, 6)
        put(root / f"camera{camera}/xml/{number}.xml", voc_xml(save(root / f"camera{camera}/img/{number}.png", k), k))


@case(WHOLE, "polygons reduced to the box around them")
def voc_polygons(root: Path) -> None:
    box = "<polygon><x1>{0}</x1><y1>{1}</y1><x2>{2}</x2><y2>{1}</y2><x3>{2}</x3><y3>{3}</y3></polygon>"
    for k in ALL:
        put(root / f"p{k}.xml", voc_xml(save(root / f"p{k}.jpg", k), k, box))


# YOLO


def line(row: Row) -> str:
    c, x1, y1, x2, y2 = row
    values = ((x1 + x2) / 2 / WIDTH, (y1 + y2) / 2 / HEIGHT, (x2 - x1) / WIDTH, (y2 - y1) / HEIGHT)
    return f"{NAMES.index(c)} " + " ".join(f"{value:.6f}" for value in values)


def lines(k: int) -> list[str]:
    return [line(row) for row in rows(k)]


def yolo(root: Path, yaml: str = "train: images/train\nval: images/val\nnames: [car, dog]\n") -> None:
    for split, ks in BOTH.items():
        for k in ks:
            save(root / f"images/{split}/p{k}.png", k)
            put(root / f"labels/{split}/p{k}.txt", lines(k))
    if yaml:
        put(root / "data.yaml", yaml)


@case(WHOLE)
def label_studio_yolo(root: Path) -> None:
    for k in ALL:
        save(root / f"images/p{k}.png", k)
        put(root / f"labels/p{k}.txt", lines(k))
    put(root / "classes.txt", list(NAMES))
    put(root / "notes.json", {"categories": [{"id": i, "name": name} for i, name in enumerate(NAMES)]})


@case(WHOLE)
def yolo_names_in_notes_alone(root: Path) -> None:
    label_studio_yolo(root)
    (root / "classes.txt").unlink()


@case(WHOLE)
def labelimg_yolo(root: Path) -> None:
    """All in one folder."""
    for k in ALL:
        save(root / f"p{k}.jpg", k)
        put(root / f"p{k}.txt", lines(k))
    put(root / "classes.txt", list(NAMES))


@case(BOTH)
def cvat_yolo_1_1(root: Path) -> None:
    for split, ks in BOTH.items():
        for k in ks:
            save(root / f"obj_{split}_data/p{k}.png", k)
            put(root / f"obj_{split}_data/p{k}.txt", lines(k))
        put(root / f"{split}.txt", [f"data/obj_{split}_data/p{k}.png" for k in ks])
    put(root / "obj.names", list(NAMES))
    put(root / "obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")


@case(BOTH)
def cvat_ultralytics(root: Path) -> None:
    yolo(root, "names:\n  0: car\n  1: dog\npath: .\ntrain: train.txt\nval: val.txt\n")
    for split, ks in BOTH.items():
        put(root / f"{split}.txt", [f"data/images/{split}/p{k}.png" for k in ks])


@case(BOTH)
def roboflow_yolo(root: Path) -> None:
    for split, ks in (("train", TRAIN), ("valid", VAL)):
        for k in ks:
            save(root / f"{split}/images/p{k}_jpg.rf.{k:032x}.jpg", k)
            put(root / f"{split}/labels/p{k}_jpg.rf.{k:032x}.txt", lines(k))
    put(root / "data.yaml", "train: ../train/images\nval: ../valid/images\n\nnc: 2\nnames: ['car', 'dog']\n")


@case(BOTH)
def yolo_without_data_yaml(root: Path) -> None:
    yolo(root, "")
    put(root / "classes.txt", list(NAMES))


@case(BOTH)
def supervision_yolo(root: Path) -> None:
    yolo(root, "nc: 2\nnames:\n- car\n- dog\n")


@case(BOTH)
def yolo_of_another_machine(root: Path) -> None:
    yolo(root, "path: /content/datasets/mine\ntrain: images/train\nval: images/val\nnames: {0: car, 1: dog}\n")


@case(BOTH)
def yolo_absolute_list(root: Path) -> None:
    yolo(root, "train: train.txt\nval: val.txt\nnames: [car, dog]\n")
    for split, ks in BOTH.items():
        put(root / f"{split}.txt", [f"{root.resolve()}/images/{split}/p{k}.png" for k in ks])


@case(BOTH)
def yolo_absolute_folders(root: Path) -> None:
    images = root.resolve() / "images"
    yolo(root, f"train: {images}/train\nval: {images}/val\nnames: [car, dog]\n")


@case(BOTH)
def yolo_byte_order_mark(root: Path) -> None:
    yolo(root)
    for file in [*(root / "labels").rglob("*.txt"), root / "data.yaml"]:
        put(file, file.read_text(), "utf-8-sig")


@case(BOTH, "hidden files and folders skipped")
def yolo_appledouble(root: Path) -> None:
    yolo(root)
    for file in [*(root / "images").rglob("*.png"), *(root / "labels").rglob("*.txt")]:
        (file.parent / f"._{file.name}").write_bytes(bytes.fromhex("0005160700020000") + bytes(100))


@case(BOTH, "hidden files and folders skipped")
def yolo_ipynb_checkpoints(root: Path) -> None:
    yolo(root)
    save(root / "images/train/.ipynb_checkpoints/p0-checkpoint.png", 0)


@case(BOTH, "hidden files and folders skipped")
def yolo_macosx(root: Path) -> None:
    yolo(root)
    save(root / "__MACOSX/images/train/p0.png", 0)


@case(BOTH)
def yolo_labels_beside_images(root: Path) -> None:
    yolo(root)
    for k in TRAIN:
        (root / f"labels/train/p{k}.txt").rename(root / f"images/train/p{k}.txt")


@case(BOTH)
def yolo_labels_with_the_extension_of_the_image(root: Path) -> None:
    yolo(root)
    for file in [*(root / "labels").rglob("*.txt")]:
        file.rename(file.with_suffix(".png.txt"))


@case(BOTH, names=("010", "12:30"))
def yolo_names_that_yaml_changes(root: Path) -> None:
    yolo(root, "train: images/train\nval: images/val\nnames: [010, 12:30]\n")


@case(BOTH, names=("no", "null"))
def yolo_names_that_yaml_takes_for_values(root: Path) -> None:
    yolo(root, "train: images/train\nval: images/val\nnames:\n  0: no\n  1: null\n")


@case(BOTH)
def yolo_linked_folder(root: Path) -> None:
    yolo(root)
    store = root.parent / f"{root.name}-store"
    (root / "images/train").rename(store)
    (root / "images/train").symlink_to(store.resolve())


@case(BOTH)
def yolo_folder_linked_to_itself(root: Path) -> None:
    yolo(root)
    (root / "images/loop").symlink_to(root.resolve())


# Formats of one file


def cvat_image(name: str, k: int, more: str = "", shape: str = "") -> str:
    shape = shape or '<box label="{}" xtl="{}" ytl="{}" xbr="{}" ybr="{}" occluded="0"/>'
    shapes = "".join(shape.format(*row) for row in rows(k))
    return f'<image id="{k}" name="{name}" width="{WIDTH}" height="{HEIGHT}" {more}>{shapes}</image>'


def cvat_xml(images: Iterable[str]) -> str:
    labels = "".join(f"<label><name>{name}</name></label>" for name in NAMES)
    return f"<annotations><meta><job><labels>{labels}</labels></job></meta>{''.join(images)}</annotations>"


@case(WHOLE)
def cvat_images(root: Path) -> None:
    put(root / "annotations.xml", cvat_xml(cvat_image(save(root / f"images/p{k}.png", k), k) for k in ALL))


@case(BOTH, "polygons reduced to the box around them", "annotations without a box ignored (polyline)")
def cvat_images_with_subsets(root: Path) -> None:
    polygon = '<polygon label="{0}" points="{1},{2};{3},{2};{3},{4}"/>'
    images = []
    for subset, ks in (("Train", TRAIN), ("Validation", VAL)):
        for k in ks:
            name = f"{subset}/{save(root / f'images/{subset}/p{k}.png', k)}"
            images.append(cvat_image(name, k, f'subset="{subset}"', polygon))
    images[0] = images[0].replace("</image>", '<polyline label="car" points="1,2;3,4"/></image>')
    images[8] = images[8].replace("</image>", '<polyline label="car" points="1,2;3,4"/></image>')
    put(root / "annotations.xml", cvat_xml(images))


def cvat_tracks(frames: dict[int, int]) -> str:
    """Each object as a track of one frame, as CVAT writes shapes."""
    shape = '<box frame="{}" keyframe="1" outside="{}" occluded="0" xtl="{}.00" ytl="{}.00" xbr="{}.00" ybr="{}.00"/>'
    return "".join(
        f'<track id="0" label="{c}" source="manual">{shape.format(f, 0, *box)}{shape.format(f + 1, 1, *box)}</track>'
        for f, k in frames.items()
        for c, *box in rows(k)
    )


@case(WHOLE, "annotations without a box ignored (points)")
def cvat_video(root: Path) -> None:
    """Every fifth frame, as the task's frame filter takes them."""
    frames = {5 * place: k for place, k in enumerate(ALL)}
    for frame, k in frames.items():
        save(root / f"images/frame_{frame:06}.PNG", k)
    points = '<track label="dog"><points frame="5" keyframe="1" outside="0" points="3,4"/></track>'
    put(root / "annotations.xml", cvat_xml([cvat_tracks(frames), points]))


def labelme(root: Path, ks: Iterable[int], more: Callable[[int], dict[str, Any]] = lambda k: {}) -> None:
    for k in ks:
        shapes = [
            {"label": c, "points": [[x2, y1], [x1, y2]], "shape_type": "rectangle", "group_id": None}
            for c, x1, y1, x2, y2 in rows(k)
        ]
        about = {"imagePath": f"p{k}.png", "imageData": None, "imageHeight": HEIGHT, "imageWidth": WIDTH}
        put(root / f"p{k}.json", {"version": "5.4.1", "flags": {}, "shapes": shapes, **about, **more(k)})


@case(WHOLE)
def labelme_flat(root: Path) -> None:
    labelme(root, ALL)
    for k in ALL:
        save(root / f"p{k}.png", k)


@case(BOTH)
def labelme_in_folders(root: Path) -> None:
    for split, ks in BOTH.items():
        labelme(root / split / "json", ks, lambda k: {"imagePath": f"..\\img\\p{k}.png"})
        for k in ks:
            save(root / split / f"img/p{k}.png", k)


@case(WHOLE, "polygons reduced to the box around them", "annotations without a box ignored (point)")
def labelme_shapes(root: Path) -> None:
    def shapes(k: int) -> dict[str, Any]:
        polygons = [
            {"label": c, "points": [[x1, y1], [x2, y1], [x2, y2]], "shape_type": "polygon"}
            for c, x1, y1, x2, y2 in rows(k)
        ]
        return {"shapes": [*polygons, {"label": "car", "points": [[1, 1]], "shape_type": "point"}]}

    labelme(root, ALL, shapes)
    for k in ALL:
        save(root / f"p{k}.png", k)


@case(WHOLE)
def labelme_with_its_images(root: Path) -> None:
    labelme(root, ALL, lambda k: {"imageData": base64.b64encode(encoded(k)).decode()})


def csv_lines(ks: Iterable[int], row: str, split: str = "") -> list[str]:
    return [
        row.format(
            k=k, split=split, c=c, x1=x1, y1=y1, x2=x2, y2=y2, w=x2 - x1, h=y2 - y1,
            fx1=x1 / WIDTH, fy1=y1 / HEIGHT, fx2=x2 / WIDTH, fy2=y2 / HEIGHT, width=WIDTH, height=HEIGHT,
        )
        for k in ks for c, x1, y1, x2, y2 in rows(k)
    ]  # fmt: skip


def images(root: Path, ks: Iterable[int] = ALL, name: str = "images/p{k}.png") -> None:
    for k in ks:
        save(root / name.format(k=k), k)


@case(BOTH)
def csv_tensorflow(root: Path) -> None:
    images(root)
    for split, ks in BOTH.items():
        body = csv_lines(ks, "p{k}.png,{width},{height},{c},{x1},{y1},{x2},{y2}")
        put(root / f"{split}_labels.csv", ["filename,width,height,class,xmin,ymin,xmax,ymax", *body])


@case(BOTH)
def csv_roboflow(root: Path) -> None:
    for split, ks in (("train", TRAIN), ("valid", VAL)):
        images(root, ks, split + "/p{k}.jpg")
        body = csv_lines(ks, "p{k}.jpg;{c};{x1};{y1};{x2};{y2}\r")
        put(root / f"{split}/_annotations.csv", ["filename;class;xmin;ymin;xmax;ymax\r", *body], "utf-8-sig")


@case(WHOLE)
def csv_retinanet(root: Path) -> None:
    images(root)
    put(root / "annotations.csv", csv_lines(ALL, "/home/me/data/images/p{k}.png,{x1},{y1},{x2},{y2},{c}"))
    put(root / "classes.csv", ["car,0", "dog,1"])


@case(WHOLE, names=("object",))
def csv_kaggle(root: Path) -> None:
    """Global Wheat: no class, a box in one cell, images without extension."""
    images(root, name="train/p{k}.png")
    body = csv_lines(ALL, 'p{k},{width},{height},"[{x1}.0, {y1}.0, {w}.0, {h}.0]",arvalis_1')
    put(root / "boxes.csv", ["image_id,width,height,bbox,source", *body])


@case(WHOLE)
def csv_of_corner_and_size(root: Path) -> None:
    images(root)
    put(root / "boxes.csv", ["image,x,y,width,height,label", *csv_lines(ALL, "p{k}.png,{x1},{y1},{w},{h},{c}")])


@case(BOTH)
def csv_automl(root: Path) -> None:
    images(root)
    row = "{split},gs://bucket/folder/p{k}.png,{c},{fx1},{fy1},,,{fx2},{fy2},,"
    put(root / "export.csv", csv_lines(TRAIN, row, "TRAIN") + csv_lines(VAL, row, "VALIDATION"))


@case(BOTH, "boxes of images that are not in the folder ignored")
def open_images(root: Path) -> None:
    head = (
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
    )
    row = "{k:016x},xclick,/m/{c},1,{fx1},{fx2},{fy1},{fy2},0,0,0,0,0"
    for split, ks in (("train", TRAIN), ("validation", VAL)):
        images(root, ks, split + "/{k:016x}.jpg")
        gone = "ffff,xclick,/m/car,1,0.1,0.2,0.1,0.2,0,0,0,0,0"
        put(root / f"oidv6-{split}-annotations-bbox.csv", [head, *csv_lines(ks, row), gone])
    put(root / "class-descriptions-boxable.csv", [f"/m/{name},{name}" for name in NAMES])


def fractions(k: int) -> list[dict[str, Any]]:
    return [
        {"label": c, "bounding_box": [x1 / WIDTH, y1 / HEIGHT, (x2 - x1) / WIDTH, (y2 - y1) / HEIGHT]}
        for c, x1, y1, x2, y2 in rows(k)
    ]


@case(WHOLE)
def fiftyone_image_detection(root: Path) -> None:
    images(root, name="data/p{k}.png")
    labels = {f"p{k}": [one | {"label": NAMES.index(one["label"])} for one in fractions(k)] for k in ALL}
    put(root / "labels.json", {"classes": list(NAMES), "labels": labels})


@case(BOTH)
def fiftyone_dataset(root: Path) -> None:
    images(root, name="data/p{k}.png")
    samples = [
        {"filepath": f"data/p{k}.png", "tags": [tag], "metadata": {"width": WIDTH, "height": HEIGHT},
         "ground_truth": {"_cls": "Detections", "detections": fractions(k)}}
        for tag, ks in (("train", TRAIN), ("validation", VAL)) for k in ks
    ]  # fmt: skip
    put(root / "samples.json", {"samples": samples})
    put(root / "metadata.json", {"name": "mine"})


def tasks(ks: Iterable[int] = ALL, shape: Callable[..., dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """Label Studio's, of images that were uploaded, with percentages."""

    def rectangle(x: float, y: float, w: float, h: float) -> dict[str, Any]:
        return {"x": x, "y": y, "width": w, "height": h, "rotation": 0}

    def region(c: str, x1: int, y1: int, x2: int, y2: int) -> dict[str, Any]:
        value = (shape or rectangle)(
            x1 / WIDTH * 100, y1 / HEIGHT * 100, (x2 - x1) / WIDTH * 100, (y2 - y1) / HEIGHT * 100
        )
        sizes = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
        return {**sizes, "value": {"rectanglelabels": [c], **value}, "type": "rectanglelabels", "id": "a"}

    return [
        {"id": k, "data": {"image": f"/data/upload/1/{k:08x}-p{k}.png"}, "file_upload": f"{k:08x}-p{k}.png",
         "annotations": [{"id": k, "was_cancelled": False, "created_at": "2026-11-02T10:00:00Z",
                          "result": [region(*row) for row in rows(k)]}], "predictions": []}
        for k in ks
    ]  # fmt: skip


@case(WHOLE, "tasks without annotations skipped", "tasks with several annotations, the latest taken")
def label_studio(root: Path) -> None:
    images(root)
    found = tasks()
    earlier = {"created_at": "2026-11-01T10:00:00Z", "result": [], "was_cancelled": False}
    skipped = {"created_at": "2026-11-03T10:00:00Z", "result": [], "was_cancelled": True}
    found[0]["annotations"] = [earlier, *found[0]["annotations"], skipped]
    put(root / "project-1-at-2026-11-02.json", json.dumps([*found, tasks([99])[0] | {"annotations": []}]))


@case(BOTH, "annotations without a box ignored (choices)", "annotations without a box ignored (keypointlabels)")
def label_studio_with_shapes_and_labels_apart(root: Path) -> None:
    """A shape without labels, and again with them; a choice for the image; a point."""
    images(root)
    for split, ks in BOTH.items():
        found = tasks(ks)
        for task in found:
            result = task["annotations"][0]["result"]
            for number, region in enumerate(list(result)):
                value = region["value"]
                labels = value.pop("rectanglelabels")
                region |= {"type": "rectangle", "id": f"r{number}"}
                result.append({**region, "type": "labels", "value": {**value, "labels": labels}})
            result.append({"type": "choices", "value": {"choices": ["sharp"]}, "id": "c"})
            point = {"x": 1, "y": 1, "width": 0.3, "keypointlabels": ["car"]}
            result.append({"type": "keypointlabels", "value": point, "id": "k"})
        put(root / f"{split}.json", json.dumps(found))


@case(WHOLE, "polygons reduced to the box around them")
def label_studio_polygons(root: Path) -> None:
    def polygon(x: float, y: float, w: float, h: float) -> dict[str, Any]:
        return {"points": [[x, y], [x + w, y], [x + w, y + h]]}

    images(root)
    put(root / "export.json", json.dumps(tasks(shape=polygon)))


@case(WHOLE, "rotated boxes reduced to the upright box around them")
def label_studio_rotated(root: Path) -> None:
    """A quarter turn about the corner, in pixels: a box from its upper right corner, with its sides changed over."""

    def turned(x: float, y: float, w: float, h: float) -> dict[str, Any]:
        return {"x": x + w, "y": y, "width": h * HEIGHT / WIDTH, "height": w * WIDTH / HEIGHT, "rotation": 90}

    images(root)
    put(root / "export.json", json.dumps(tasks(shape=turned)))


@case(WHOLE)
def label_studio_ellipses(root: Path) -> None:
    def ellipse(x: float, y: float, w: float, h: float) -> dict[str, Any]:
        return {"x": x + w / 2, "y": y + h / 2, "radiusX": w / 2, "radiusY": h / 2, "rotation": 0}

    images(root)
    put(root / "export.json", json.dumps(tasks(shape=ellipse)))


@case(WHOLE)
def label_studio_minimal(root: Path) -> None:
    """JSON-MIN, of images in a local folder that is served."""
    images(root, name="photos/p{k}.png")
    found = [
        {"image": f"/data/local-files/?d=mine/photos/p{task['id']}.png", "id": task["id"], "annotator": 1,
         "label": [region["value"] | {"original_width": WIDTH} for region in task["annotations"][0]["result"]],
         "annotation_id": task["id"], "created_at": "2026-11-02T10:00:00Z", "lead_time": 9.5}
        for task in tasks()
    ]  # fmt: skip
    put(root / "project-1-min.json", json.dumps(found))


def via(ks: Iterable[int], shape: Callable[..., dict[str, Any]] | None = None) -> dict[str, Any]:
    def rect(x1: int, y1: int, x2: int, y2: int) -> dict[str, Any]:
        return {"name": "rect", "x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1}

    return {
        f"p{k}.png{k}": {
            "filename": f"p{k}.png", "size": 1000, "file_attributes": {},
            "regions": [{"shape_attributes": (shape or rect)(*edges), "region_attributes": {"kind": c}}
                        for c, *edges in rows(k)]}
        for k in ks
    }  # fmt: skip


@case(WHOLE)
def via_project(root: Path) -> None:
    images(root)
    put(root / "via_project.json", {"_via_settings": {}, "_via_img_metadata": via(ALL), "_via_attributes": {}})


@case(BOTH, "polygons reduced to the box around them", "annotations without a box ignored (point)")
def via_polygons_in_folders(root: Path) -> None:
    """As the balloons of Matterport's Mask R-CNN: VIA 1 numbers the regions."""

    def polygon(x1: int, y1: int, x2: int, y2: int) -> dict[str, Any]:
        return {"name": "polygon", "all_points_x": [x1, x2, x2], "all_points_y": [y1, y1, y2]}

    for split, ks in BOTH.items():
        images(root, ks, split + "/p{k}.png")
        found = via(ks, polygon)
        point = {"shape_attributes": {"name": "point", "cx": 1, "cy": 1}, "region_attributes": {"kind": "car"}}
        for image in found.values():
            image["regions"] = {str(place): one for place, one in enumerate([*image["regions"], point])}
        put(root / split / "via_region_data.json", found)


@case(WHOLE)
def via_ticked_among_attributes(root: Path) -> None:
    """Several attributes, of which one is called class and has boxes to tick; ellipses."""

    def ellipse(x1: int, y1: int, x2: int, y2: int) -> dict[str, Any]:
        middle = {"cx": (x1 + x2) / 2, "cy": (y1 + y2) / 2}
        return {"name": "ellipse", **middle, "rx": (x2 - x1) / 2, "ry": (y2 - y1) / 2, "theta": 0}

    images(root)
    found = via(ALL, ellipse)
    for image in found.values():
        for region in image["regions"]:
            kind = region["region_attributes"]["kind"]
            region["region_attributes"] = {"quality": "good", "Class": {kind: True, "other": False}}
    put(root / "via.json", found)


@case(WHOLE)
def via_csv(root: Path) -> None:
    images(root)
    file = io.StringIO(newline="")
    table = csv.writer(file)
    head = ("file_size", "file_attributes", "region_count", "region_id", "region_shape_attributes", "region_attributes")
    table.writerow(["filename", *head])
    for image in via(ALL).values():
        for place, region in enumerate(image["regions"]):
            shape, attributes = map(json.dumps, (region["shape_attributes"], region["region_attributes"]))
            table.writerow([image["filename"], 1000, "{}", 3, place, shape, attributes])
    put(root / "via_export_csv.csv", file.getvalue())


def centered(c: str, x1: int, y1: int, x2: int, y2: int) -> dict[str, Any]:
    return {"label": c, "coordinates": {"x": (x1 + x2) / 2, "y": (y1 + y2) / 2, "width": x2 - x1, "height": y2 - y1}}


@case(BOTH)
def roboflow_createml(root: Path) -> None:
    for split, ks in (("train", TRAIN), ("valid", VAL)):
        images(root, ks, split + "/p{k}.png")
        found = [{"image": f"p{k}.png", "annotations": [centered(*row) for row in rows(k)]} for k in ks]
        put(root / split / "_annotations.createml.json", json.dumps(found))


@case(BOTH, "polygons reduced to the box around them", "rotated boxes reduced to the upright box around them",
      "masks reduced to the box around them", "annotations without a box ignored (label)")  # fmt: skip
def cvat_datumaro(root: Path) -> None:
    def annotation(place: int, c: str, x1: int, y1: int, x2: int, y2: int) -> dict[str, Any]:
        w, h = x2 - x1, y2 - y1
        shapes: list[dict[str, Any]] = [
            {"type": "polygon", "points": [x1, y1, x2, y1, x2, y2]},
            {"type": "bbox", "bbox": [(x1 + x2 - h) / 2, (y1 + y2 - w) / 2, h, w], "attributes": {"rotation": 90.0}},
            {"type": "mask", "rle": {"size": [HEIGHT, WIDTH],
                                     "counts": [x1 * HEIGHT + y1, *[h, HEIGHT - h] * (w - 1), h]}},
        ]  # fmt: skip
        return {"id": 0, "group": 0, "label_id": NAMES.index(c), "z_order": 0, "attributes": {}, **shapes[place]}

    labels = [{"name": name, "parent": "", "attributes": []} for name in NAMES]
    for subset, ks in (("Train", TRAIN), ("Validation", VAL)):
        images(root, ks, f"images/{subset}/p{{k}}.png")
        items = [
            {"id": f"p{k}", "annotations": [{"type": "label", "label_id": 0},
                                            *(annotation(place, *row) for place, row in enumerate(rows(k)))],
             "attr": {"frame": k}, "image": {"path": f"p{k}.png", "size": [HEIGHT, WIDTH]}}
            for k in ks
        ]  # fmt: skip
        categories = {"label": {"labels": labels, "attributes": ["occluded"]}, "points": {"items": []}}
        put(root / f"annotations/{subset}.json", {"info": {}, "categories": categories, "items": items})


@case(WHOLE)
def geti_datumaro(root: Path) -> None:
    """Without the images' sizes, and with names without extension."""
    images(root, name="images/default/p{k}.png")
    items = [
        {"id": f"p{k}", "media": {"path": ""}, "annotations": [
            {"type": "bbox", "label_id": NAMES.index(c), "bbox": [x1, y1, x2 - x1, y2 - y1]}
            for c, x1, y1, x2, y2 in rows(k)]}
        for k in ALL
    ]  # fmt: skip
    categories = {"label": {"label_groups": [], "labels": [{"name": name} for name in NAMES]}}
    put(root / "annotations/default.json", {"dm_format_version": "1.0", "categories": categories, "items": items})


def supervisely(root: Path, ks: Iterable[int], shape: Callable[..., dict[str, Any]]) -> None:
    for k in ks:
        found = [{"classTitle": c, **shape(*edges)} for c, *edges in rows(k)]
        size = {"height": HEIGHT, "width": WIDTH}
        put(root / f"ann/p{k}.png.json", {"description": "", "tags": [], "size": size, "objects": found})
        save(root / f"img/p{k}.png", k)


@case(WHOLE)
def supervisely_rectangles(root: Path) -> None:
    def rectangle(x1: int, y1: int, x2: int, y2: int) -> dict[str, Any]:
        return {"geometryType": "rectangle", "points": {"exterior": [[x1, y1], [x2, y2]], "interior": []}}

    supervisely(root / "ds0", ALL, rectangle)
    put(root / "meta.json", {"classes": [{"title": name, "shape": "rectangle"} for name in NAMES], "tags": []})


@case(BOTH, "masks reduced to the box around them")
def supervisely_masks_in_two_datasets(root: Path) -> None:
    def bitmap(x1: int, y1: int, x2: int, y2: int) -> dict[str, Any]:
        file = io.BytesIO()
        Image.new("1", (x2 - x1, y2 - y1), 1).save(file, "PNG")
        data = base64.b64encode(zlib.compress(file.getvalue())).decode()
        return {"geometryType": "bitmap", "bitmap": {"origin": [x1, y1], "data": data}}

    for split, ks in BOTH.items():
        supervisely(root / split, ks, bitmap)
    put(root / "meta.json", {"classes": [{"title": name, "shape": "bitmap"} for name in NAMES], "tags": []})


def corner_and_size(names: Sequence[str], row: Row) -> dict[str, int]:
    _, x1, y1, x2, y2 = row
    return dict(zip(names, (x1, y1, x2 - x1, y2 - y1), strict=True))


def corners(row: Row) -> list[dict[str, int]]:
    """A polygon of three corners, with the row's box around it."""
    _, x1, y1, x2, y2 = row
    return [{"x": x1, "y": y1}, {"x": x2, "y": y1}, {"x": x2, "y": y2}]


def put_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    put(path, [json.dumps(row) for row in rows])


CORNER_AND_SIZE = ("left", "top", "width", "height")


def labelbox_row(k: int, objects: list[dict[str, Any]], split: str | None = None) -> dict[str, Any]:
    labels = [{"label_kind": "Default", "id": "l", "annotations": {"objects": objects, "classifications": []}}]
    return {
        "data_row": {"id": f"ck{k}", "global_key": f"p{k}", "external_id": f"p{k}.png", "row_data": "https://x/y?z=1"},
        "media_attributes": {"height": HEIGHT, "width": WIDTH, "mime_type": "image/png"},
        "metadata_fields": [{"schema_id": "s", "schema_name": "split", "value": split}] if split else [],
        "projects": {"cl1": {"name": "mine", "labels": labels if objects else []}},
    }


def labelbox_object(row: Row) -> dict[str, Any]:
    about = {"feature_id": "f", "name": row[0], "value": row[0], "annotation_kind": "ImageBoundingBox"}
    return about | {"bounding_box": corner_and_size(CORNER_AND_SIZE, row)}


@case(WHOLE, "images without annotations skipped", "annotations without a box ignored (ImagePoint)")
def labelbox(root: Path) -> None:
    images(root)
    point = {"name": "car", "annotation_kind": "ImagePoint", "point": {"x": 1, "y": 2}}
    found = [labelbox_row(k, [*map(labelbox_object, rows(k)), point]) for k in ALL]
    put_lines(root / "export-result.ndjson", [*found, labelbox_row(99, [])])


@case(BOTH, "polygons reduced to the box around them")
def labelbox_polygons_with_splits(root: Path) -> None:
    images(root)
    put_lines(
        root / "export.ndjson",
        (
            labelbox_row(k, [{"name": row[0], "annotation_kind": "ImagePolygon", "polygon": corners(row)}
                             for row in rows(k)], {"train": "train", "val": "valid"}[split])
            for split, ks in BOTH.items() for k in ks
        ),
    )  # fmt: skip


def darwin(root: Path, image: Callable[[int], dict[str, Any]], more: Callable[[Row], dict[str, Any]]) -> None:
    for k in ALL:
        found = [
            {"id": "a", "name": row[0], "bounding_box": corner_and_size(("x", "y", "w", "h"), row), **more(row)}
            for row in rows(k)
        ]
        tag = {"id": "t", "name": "sharp", "tag": {}}
        put(root / f"releases/latest/annotations/p{k}.json", {**image(k), "annotations": [*found, tag]})
        save(root / f"images/p{k}.png", k)


@case(WHOLE, "annotations without a box ignored (tag)")
def v7_darwin(root: Path) -> None:
    def image(k: int) -> dict[str, Any]:
        source = [{"file_name": f"p{k}.png", "url": "https://x"}]
        slot = {"type": "image", "slot_name": "0", "width": WIDTH, "height": HEIGHT, "source_files": source}
        return {
            "version": "2.0",
            "schema_ref": "https://x",
            "item": {"name": f"p{k}.png", "path": "/", "slots": [slot]},
        }

    darwin(root, image, lambda row: {"slot_names": ["0"], "properties": []})


@case(WHOLE, "polygons reduced to the box around them")
def v7_darwin_1_polygons(root: Path) -> None:
    def image(k: int) -> dict[str, Any]:
        facts = {"width": WIDTH, "height": HEIGHT, "filename": f"p{k}.png", "path": "/", "workview_url": "https://x"}
        return {"dataset": "mine", "image": facts}

    darwin(root, image, lambda row: {"polygon": {"path": corners(row)}})


def vott_asset(k: int) -> dict[str, Any]:
    regions = [
        {"id": "r", "type": "RECTANGLE", "tags": [row[0]], "boundingBox": corner_and_size(CORNER_AND_SIZE, row)}
        for row in rows(k)
    ]
    size = {"width": WIDTH, "height": HEIGHT}
    asset = {"format": "png", "id": f"id{k}", "name": f"p{k}.png", "path": f"file:/C:/mine/p{k}.png", "size": size}
    return {"asset": asset | {"state": 2, "type": 1}, "regions": regions}


@case(WHOLE)
def vott_export(root: Path) -> None:
    """The export, beside the files that VoTT keeps for itself."""
    images(root, name="vott-json-export/p{k}.png")
    for k in ALL:
        put(root / f"id{k}-asset.json", vott_asset(k) | {"version": "2.2.0"})
    tags = [{"name": name, "color": "#5db300"} for name in NAMES]
    assets = {f"id{k}": vott_asset(k) for k in ALL}
    put(root / "vott-json-export/mine-export.json", {"name": "mine", "tags": tags, "assets": assets})


@case(WHOLE, "images without annotations skipped")
def vott_assets(root: Path) -> None:
    images(root, name="p{k}.png")
    for k in ALL:
        put(root / f"id{k}-asset.json", vott_asset(k) | {"version": "2.2.0"})
    unseen = vott_asset(99)["asset"] | {"state": 0}
    put(root / "id99-asset.json", {"asset": unseen, "regions": [], "version": "2.2.0"})


def ultralytics(root: Path, annotations: Callable[[int], dict[str, Any]]) -> None:
    about = {"type": "dataset", "task": "detect", "name": "mine", "class_names": dict(enumerate(NAMES))}
    rows = [
        {"type": "image", "file": f"p{k}.png", "url": "https://x", "width": WIDTH, "height": HEIGHT, "split": split,
         "annotations": annotations(k)}
        for split, ks in BOTH.items() for k in ks
    ]  # fmt: skip
    put_lines(root / "mine.ndjson", [about, *rows])
    images(root)


@case(BOTH)
def ultralytics_ndjson(root: Path) -> None:
    def box(row: Row) -> list[float]:
        label, *edges = line(row).split()
        return [int(label), *map(float, edges)]

    ultralytics(root, lambda k: {"boxes": [box(row) for row in rows(k)]})


@case(BOTH, "polygons reduced to the box around them")
def ultralytics_ndjson_segments(root: Path) -> None:
    def segment(row: Row) -> list[float]:
        edges = [(point["x"] / WIDTH, point["y"] / HEIGHT) for point in corners(row)]
        return [NAMES.index(row[0]), *(value for point in edges for value in point)]

    ultralytics(root, lambda k: {"segments": [segment(row) for row in rows(k)]})


@case(BOTH, "images without annotations skipped")
def sagemaker_ground_truth(root: Path) -> None:
    """A job that corrected an earlier one, and an image on which it failed."""

    def job(boxes: list[dict[str, int]], name: str) -> dict[str, Any]:
        about = {"class-map": {"0": "car", "1": "dog"}, "type": "groundtruth/object-detection", "job-name": name}
        size = [{"width": WIDTH, "height": HEIGHT, "depth": 3}]
        return {name: {"image_size": size, "annotations": boxes}, f"{name}-metadata": about}

    for split, ks in BOTH.items():
        images(root, ks, split + "/p{k}.png")
        found = [
            {"source-ref": f"s3://bucket/{split}/p{k}.png", **job([], "first"),
             **job([{"class_id": NAMES.index(row[0]), **corner_and_size(CORNER_AND_SIZE, row)} for row in rows(k)],
                   "adjusted")}
            for k in ks
        ]  # fmt: skip
        failed = {"source-ref": "s3://bucket/p99.png", "first-metadata": {"failure-reason": "no such file"}}
        put_lines(root / f"{split}.manifest", [*found, failed])


def edges_in_fractions(row: Row) -> list[float]:
    _, x1, y1, x2, y2 = row
    return [x1 / WIDTH, y1 / HEIGHT, x2 / WIDTH, y2 / HEIGHT]


@case(BOTH, "polygons reduced to the box around them", crowds=1)
def azure_ml(root: Path) -> None:
    def label(k: int, i: int, row: Row) -> dict[str, Any]:
        x1, y1, x2, y2 = edges_in_fractions(row)
        if k % 2:
            return {"label": row[0], "polygon": [[x1, y1, x2, y1], [x2, y2, x1, y2]], "isCrowd": "false"}
        edges = {"topX": x1, "topY": y1, "bottomX": x2, "bottomY": y2}
        return {"label": row[0], **edges, "isCrowd": str((k, i) == (2, 1)).lower()}

    for split, ks in (("train", TRAIN), ("validation", VAL)):
        images(root, ks, "images/p{k}.jpg")
        found = [
            {
                "image_url": f"azureml://subscriptions/s/workspaces/w/datastores/d/paths/images/p{k}.jpg",
                "image_details": {"format": "jpg", "width": f"{WIDTH}px", "height": f"{HEIGHT}px"},
                "label": [label(k, i, row) for i, row in enumerate(rows(k))],
            }
            for k in ks
        ]
        put_lines(root / f"{split}_annotations.jsonl", found)


@case(BOTH)
def vertex_ai(root: Path) -> None:
    images(root)

    def annotation(row: Row) -> dict[str, Any]:
        edges = dict(zip(("xMin", "yMin", "xMax", "yMax"), edges_in_fractions(row), strict=True))
        return {"displayName": row[0], "annotationResourceLabels": {}} | {k: v for k, v in edges.items() if v}

    found = [
        {
            "imageGcsUri": f"gs://bucket/images/p{k}.png",
            "boundingBoxAnnotations": [annotation(row) for row in rows(k)],
            "dataItemResourceLabels": {"aiplatform.googleapis.com/ml_use": "training" if k in TRAIN else "validation"},
        }
        for k in ALL
    ]
    put_lines(root / "data-00001-of-00001.jsonl", found)


@case(WHOLE, "annotations without a box ignored (point)", "polygons reduced to the box around them",
      "rotated boxes reduced to the upright box around them")  # fmt: skip
def superannotate(root: Path) -> None:
    images(root, name="p{k}.png")
    put(root / "classes/classes.json", json.dumps([{"id": i, "name": c} for i, c in enumerate(NAMES)]))
    for k in ALL:
        instances: list[dict[str, Any]] = [{"type": "point", "className": "car", "x": 1, "y": 2}]
        for i, (c, x1, y1, x2, y2) in enumerate(rows(k)):
            points = (
                {"x1": x1, "x2": x2, "y1": y1, "y2": y2},
                [x1, y1, x2, y1, x2, y2],
                {"x1": x1, "y1": y1, "x2": x2, "y2": y1, "x3": x2, "y3": y2, "x4": x1, "y4": y2},
            )[i]
            instances.append({"type": ("bbox", "polygon", "rbbox")[i], "className": c, "points": points})
        about = {"name": f"p{k}.png", "width": WIDTH, "height": HEIGHT, "status": "Completed"}
        put(root / f"p{k}.png.json", {"metadata": about, "instances": instances, "tags": [], "comments": []})


def kitti_lines(k: int) -> list[str]:
    found = [f"{c} 0.00 0 -1.58 {x1}.00 {y1}.00 {x2}.00 {y2}.00 1 1 3 -1 1 4 -1.59" for c, x1, y1, x2, y2 in rows(k)]
    return [*found, "DontCare -1 -1 -10 1.00 2.00 30.00 40.00 -1 -1 -1 -1000 -1000 -1000 -10"]


@case({"train": ALL}, "regions of no class ignored (DontCare)")
def kitti(root: Path) -> None:
    """Two cameras, of which the labels are of the one on the left; tests have no labels."""
    images(root, name="training/image_2/{k:06}.png")
    images(root, name="testing/image_2/{k:06}.png")
    for k in ALL:
        save(root / f"training/image_3/{k:06}.png", k + 1 if k + 1 in ALL else k)
        put(root / f"training/label_2/{k:06}.txt", kitti_lines(k))


@case(WHOLE)
def tao_kitti(root: Path) -> None:
    images(root)
    for k in ALL:
        put(root / f"labels/p{k}.txt", kitti_lines(k)[:-1])


@case(WHOLE, crowds=1)
def cvat_mot(root: Path) -> None:
    lines = []
    for place, k in enumerate(ALL, 1):
        save(root / f"img1/{place:06}.jpg", k)
        lines += [
            f"{place},{3 * k + i},{x1},{y1},{x2 - x1},{y2 - y1},{int((k, i) != (1, 2))},{NAMES.index(c) + 1},1.0"
            for i, (c, x1, y1, x2, y2) in enumerate(rows(k))
        ]
    put(root / "gt/gt.txt", lines)
    put(root / "gt/labels.txt", list(NAMES))


@case({"train": ALL}, "objects other than pedestrians ignored", names=("pedestrian",), crowds=len(ALL))
def mot_challenge(root: Path) -> None:
    """Sequences whose images are called alike; the third object of each is a person on a vehicle."""
    for name, ks in (("MOT17-02-SDP", TRAIN), ("MOT17-04-SDP", VAL)):
        home, lines = root / "train" / name, []
        for place, k in enumerate(ks, 1):
            save(home / f"img1/{place:06}.jpg", k)
            for i, (_, x1, y1, x2, y2) in enumerate(rows(k)):
                lines.append(f"{place},{i},{x1 + 1},{y1 + 1},{x2 - x1},{y2 - y1},{int(i < 2)},{1 + (i == 2)},0.8")
            lines.append(f"{place},9,5,5,20,20,0,3,1")
        put(home / "gt/gt.txt", lines)
        put(home / "det/det.txt", ["1,-1,1,1,40,50,0.9,-1,-1,-1"])
        put(home / "seqinfo.ini", f"[Sequence]\nname={name}\nimDir=img1\nseqLength={len(ks)}\nimExt=.jpg\n")


def columns(k: int) -> dict[str, Any]:
    boxes = [[x1, y1, x2 - x1, y2 - y1] for _, x1, y1, x2, y2 in rows(k)]
    return {"bbox": boxes, "categories": [c for c, *_ in rows(k)]}


@case(BOTH)
def imagefolder(root: Path) -> None:
    for split, ks in (("train", TRAIN), ("validation", VAL)):
        images(root, ks, split + "/p{k}.png")
        put(
            root / split / "metadata.jsonl", [json.dumps({"file_name": f"p{k}.png", "objects": columns(k)}) for k in ks]
        )


def hugging_face_table(ks: Sequence[int]) -> Any:
    """Images and objects as `datasets` keeps them: encoded images, and columns of each image's objects."""
    import pyarrow as pa

    label = {"names": list(NAMES), "_type": "ClassLabel"}
    about = {"info": {"features": {"objects": {"feature": {"bbox": {}, "category": label}, "_type": "Sequence"}}}}
    table = pa.table(
        {
            "image": [{"bytes": encoded(k), "path": f"p{k}.png"} for k in ks],
            "objects": [
                {"bbox": columns(k)["bbox"], "category": [NAMES.index(c) for c in columns(k)["categories"]]} for k in ks
            ],
        }
    )
    return table.replace_schema_metadata({"huggingface": json.dumps(about)})


@case(BOTH, names=NAMES)
def parquet(root: Path) -> None:
    from pyarrow.parquet import write_table

    (root / "data").mkdir(parents=True, exist_ok=True)
    for split, ks in (("train", TRAIN), ("validation", VAL)):
        write_table(hugging_face_table(ks), root / f"data/{split}-00000-of-00001.parquet", row_group_size=3)


def put_arrow(file: Path, table: Any, form: str = "stream") -> None:
    import pyarrow as pa

    file.parent.mkdir(parents=True, exist_ok=True)
    with getattr(pa.ipc, f"new_{form}")(str(file), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


@case(BOTH, names=NAMES)
def saved_to_disk(root: Path) -> None:
    put(root / "dataset_dict.json", [json.dumps({"splits": ["train", "validation"]})])
    for split, ks in (("train", TRAIN), ("validation", VAL)):
        name = "data-00000-of-00001.arrow"
        put_arrow(root / split / name, hugging_face_table(ks))
        put_arrow(root / split / "cache-3f.arrow", hugging_face_table(ks[:1]))
        put(root / split / "state.json", [json.dumps({"_data_files": [{"filename": name}], "_split": split})])
        put(root / split / "dataset_info.json", [json.dumps({"features": {}, "splits": {}})])


@case(WHOLE, names=NAMES)
def saved_to_disk_without_splits(root: Path) -> None:
    for place, ks in enumerate((TRAIN, VAL)):
        put_arrow(root / f"data-{place:05d}-of-00002.arrow", hugging_face_table(ks), "file")
    put(root / "state.json", [json.dumps({"_split": None})])
