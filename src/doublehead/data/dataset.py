"""A folder or a YAML file to its splits, whatever the format."""

from __future__ import annotations

import os.path
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from doublehead.common.errors import DoubleheadError, brief
from doublehead.config import Strict, read_yaml, sentence
from doublehead.data.coco import read_coco
from doublehead.data.records import Split
from doublehead.data.voc import read_voc, voc_categories
from doublehead.data.yolo import read_data_yaml, read_yolo

LAYOUTS = (
    "annotations/instances_train.json with train/ or images/ (COCO)",
    "train/_annotations.coco.json (Roboflow)",
    "instances.json with images/ (COCO, one split)",
    "Annotations/, JPEGImages/ and ImageSets/Main/train.txt (Pascal VOC)",
    "data.yaml (YOLO)",
)


@dataclass(frozen=True)
class Dataset:
    """The splits found, none of them read yet.

    Splits go by `train`, `val` and `test` where they can: `train2017` and `valid` are also found as `train` and `val`.
    A dataset without splits has the one split `all`, which is also found as `train`, but never as `val` or `test`:
    nobody should measure on training images unawares.
    """

    path: Path
    format: Literal["coco", "voc", "yolo"]
    splits: dict[str, Callable[[], Split]]

    @property
    def distinct(self) -> list[str]:
        """Names of the splits, without VOC's trainval where train and val are there."""
        again = "trainval" if {"train", "val"} <= set(self.splits) else ""
        return [name for name in self.splits if name != again]

    def has(self, split: str) -> bool:
        """Whether `read` finds this split."""
        return self.name_of(split) is not None

    def read(self, split: str) -> Split:
        """Read one split; its `name` is the one found.

        Raises:
            DoubleheadError: there is no such split, or its files have a mistake.
        """
        return self.look(split).sound()

    def look(self, split: str) -> Split:
        """Read one split as far as it goes, with its faults among its findings; not yet fit to train on.

        Raises:
            DoubleheadError: there is no such split, or nothing of it can be read.
        """
        name = self.name_of(split)
        if name is None:
            raise DoubleheadError(f"{self.path}: has no split `{split}`; it has {', '.join(self.splits)}")
        return self.splits[name]()

    def name_of(self, split: str) -> str | None:
        """The name under which `read` finds this split."""
        wanted = (split, canonical(split), "all" if canonical(split) == "train" else split)
        return next((name for name in wanted if name in self.splits), None)


def open_dataset(path: str | Path) -> Dataset:
    """Recognise a dataset from its folder, or from a YAML file that names its format and splits.

    Raises:
        DoubleheadError: the path is missing, nothing known is found there, or the YAML has a mistake.
    """
    path = Path(os.path.expanduser(path))
    if os.path.isfile(path):
        if path.suffix.lower() not in (".yaml", ".yml"):
            raise DoubleheadError(f"{path}: a dataset is a folder or a YAML file; give the folder that holds this file")
        return _from_yaml(path)
    if not os.path.isdir(path):
        raise DoubleheadError(f"{path}: there is no such dataset; give a folder or a YAML file")
    for recognise in (_voc, _official, _roboflow, _yolo, _flat):
        dataset = recognise(path)
        if dataset:
            return dataset
    raise DoubleheadError(f"{path}: no dataset found there; looked for {'; '.join(LAYOUTS)}")


def canonical(split: str) -> str:
    """The plain name of a split: without its year, and `val` for `valid`, `all` for CVAT's `default`."""
    name = re.sub(r"(?<=[a-z])(19|20)\d\d$", "", split)
    return {"valid": "val", "validation": "val", "default": "all"}.get(name, name)


def summary(split: Split) -> str:
    """One line on what the split holds, and one on what was found amiss, if anything was."""
    records = split.records
    crowds = sum(int(record.crowd.sum()) for record in records)
    empty = sum(not len(record.boxes) for record in records)
    boxes = sum(len(record.boxes) for record in records) - crowds
    counts = [f"{len(records)} images", f"{boxes} boxes of {len(split.categories)} classes"]
    counts += [f"{empty} images without boxes"] * bool(empty) + [f"{crowds} crowds or difficult objects"] * bool(crowds)
    lines = [f"{split.name}: {', '.join(counts)}"]
    for finding in split.findings:
        lines.append(f"  {finding.count} {finding.kind}, such as {finding.places[0].text}")
    return "\n".join(lines)


def _named(splits: Mapping[str, Callable[[str], Split]]) -> dict[str, Callable[[], Split]]:
    """Splits under their plain names, train, val and test first; a name keeps its year where two would meet."""
    result: dict[str, Callable[[], Split]] = {}
    for given, read in splits.items():
        name = given if canonical(given) in result else canonical(given)
        result[name] = partial(read, name)
    order = ("train", "val", "test")
    return dict(sorted(result.items(), key=lambda item: (order.index(item[0]) if item[0] in order else 3, item[0])))


def _official(root: Path) -> Dataset | None:
    folder = root / "annotations"
    files = sorted(folder.glob("instances_*.json")) or sorted(folder.glob("*.json"))
    splits = {file.stem.removeprefix("instances_"): file for file in files}
    readers = {split: partial(_read_official, root=root, split=split, file=file) for split, file in splits.items()}
    return Dataset(root, "coco", _named(readers)) if readers else None


def _read_official(name: str, root: Path, split: str, file: Path) -> Split:
    folders = [root / split, root / "images" / split, root / name, root / "images" / name, root / "images"]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        looked = ", ".join(str(folder.relative_to(root)) for folder in dict.fromkeys(folders))
        raise DoubleheadError(f"{file}: no folder of images for it in {root}; looked for {looked}")
    return read_coco(name, file, folder)


def _roboflow(root: Path) -> Dataset | None:
    files = sorted(root.glob("*/_annotations.coco.json"))
    readers = {file.parent.name: partial(read_coco, annotations=file, images=file.parent) for file in files}
    return Dataset(root, "coco", _named(readers)) if readers else None


def _flat(root: Path) -> Dataset | None:
    files = [root / "instances.json"] if (root / "instances.json").is_file() else list(root.glob("*.json"))
    if len(files) != 1:
        return None
    images = root / "images" if (root / "images").is_dir() else root
    return Dataset(root, "coco", {"all": partial(read_coco, "all", files[0], images)})


def _voc(root: Path) -> Dataset | None:
    lists = sorted((root / "ImageSets" / "Main").glob("*.txt"))
    # lists per class, such as aeroplane_train.txt, name the same images as train.txt
    whole = {file.stem: file for file in lists if not re.search(r"_(train|val|trainval|test)$", file.stem)}
    if not whole or not (root / "Annotations").is_dir():
        return None
    return _voc_dataset(root, root, whole)


def _voc_dataset(path: Path, root: Path, lists: dict[str, Path]) -> Dataset:
    categories = cache(partial(voc_categories, root))  # every XML file is looked at: once for all splits

    def reader(file: Path) -> Callable[[str], Split]:
        return lambda name: read_voc(name, root, file, categories())

    return Dataset(path, "voc", _named({split: reader(file) for split, file in lists.items()}))


def _yolo(root: Path) -> Dataset | None:
    files = [root / name for name in ("data.yaml", "data.yml", "dataset.yaml") if (root / name).is_file()]
    return _yolo_dataset(root, files[0]) if files else None


def _yolo_dataset(path: Path, file: Path) -> Dataset:
    data = read_data_yaml(file)
    readers = {split: partial(read_yolo, data=data, source=split) for split in data.sources}
    return Dataset(path, "yolo", _named(readers))


class _CocoSplit(Strict):
    annotations: str
    images: str


class _CocoYaml(Strict):
    format: Literal["coco"]
    root: str = "."
    splits: dict[str, _CocoSplit]


class _VocYaml(Strict):
    format: Literal["voc"]
    root: str = "."
    splits: dict[str, str]


def _from_yaml(path: Path) -> Dataset:
    values = read_yaml(path)
    if "format" not in values and ("names" in values or "nc" in values):
        return _yolo_dataset(path, path)
    if values.get("format") not in ("coco", "voc"):
        raise DoubleheadError(
            f"{path}: `format` must be coco or voc, not {brief(values.get('format'))}; "
            "a data.yaml of YOLO has none, but `names`"
        )
    model: type[_CocoYaml | _VocYaml] = _CocoYaml if values["format"] == "coco" else _VocYaml
    try:
        description = model.model_validate(values)
    except ValidationError as error:
        raise DoubleheadError(f"{path}: {sentence(error)}") from error
    root = path.parent / os.path.expanduser(description.root)
    if not os.path.isdir(root):
        raise DoubleheadError(f"{path}: `root` names {root}, which is no folder")
    if not description.splits:
        raise DoubleheadError(f"{path}: `splits` is empty; name at least train")
    if isinstance(description, _VocYaml):
        return _voc_dataset(path, root, {name: root / file for name, file in description.splits.items()})
    readers = {
        name: partial(read_coco, annotations=root / split.annotations, images=root / split.images)
        for name, split in description.splits.items()
    }
    return Dataset(path, "coco", _named(readers))
