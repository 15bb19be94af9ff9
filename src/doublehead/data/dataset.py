"""Datasets: the splits of a folder or YAML file in any supported format."""

from __future__ import annotations

import copy
import os.path
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from doublehead.common.errors import DoubleheadError, brief, sentence
from doublehead.common.strict import Strict
from doublehead.config import SplitConfig, read_yaml
from doublehead.data.azure_ml import find_azure_ml
from doublehead.data.coco import find_coco, read_coco
from doublehead.data.createml import find_createml
from doublehead.data.cvat import find_cvat
from doublehead.data.darwin import find_darwin
from doublehead.data.datumaro import find_datumaro
from doublehead.data.fiftyone import find_fiftyone
from doublehead.data.folder import Folder, canonical, split_of_folder
from doublehead.data.ground_truth import find_ground_truth
from doublehead.data.huggingface import find_imagefolder, find_tables
from doublehead.data.kitti import find_kitti
from doublehead.data.label_studio import find_label_studio
from doublehead.data.labelbox import find_labelbox
from doublehead.data.labelme import find_labelme
from doublehead.data.mot import find_mot
from doublehead.data.objects import NotMine, Splits
from doublehead.data.open_images import find_open_images
from doublehead.data.records import Split
from doublehead.data.shares import share_out
from doublehead.data.superannotate import find_superannotate
from doublehead.data.supervisely import find_supervisely
from doublehead.data.tables import find_csv
from doublehead.data.ultralytics import find_ultralytics
from doublehead.data.vertex_ai import find_vertex_ai
from doublehead.data.via import find_via
from doublehead.data.voc import find_voc, voc_splits
from doublehead.data.vott import find_vott
from doublehead.data.yolo import find_yolo, yolo_splits
from doublehead.data.yolo_layout import read_data_yaml

Reader = Callable[[Folder], Splits | NotMine | None]  # None: nothing of the format is there

# Each format is one row. A folder may hold the files of several: the first with splits is read, else the first.
READERS: dict[str, Reader] = {
    "voc": find_voc,
    "coco": find_coco,
    "yolo": find_yolo,
    "cvat": find_cvat,
    "labelme": find_labelme,
    "fiftyone": find_fiftyone,
    "label studio": find_label_studio,
    "via": find_via,
    "datumaro": find_datumaro,
    "supervisely": find_supervisely,
    "createml": find_createml,
    "labelbox": find_labelbox,
    "darwin": find_darwin,
    "vott": find_vott,
    "ultralytics": find_ultralytics,
    "ground truth": find_ground_truth,
    "azure ml": find_azure_ml,
    "vertex ai": find_vertex_ai,
    "superannotate": find_superannotate,
    "kitti": find_kitti,
    "mot": find_mot,
    "open images": find_open_images,
    "imagefolder": find_imagefolder,
    "parquet": partial(find_tables, suffix=".parquet"),
    "arrow": partial(find_tables, suffix=".arrow"),
    "csv": find_csv,
}

_STRUCTURE = ("images", "labels", "annotations", "data", "jpegimages", "imagesets", "metadata")


@dataclass(frozen=True)
class Dataset:
    """The splits of a dataset, read on demand.

    Splits are named `train`, `val` and `test` where possible: `train2017` and `Validation` become `train` and `val`. A
    dataset without splits has a single split `whole`, which is split into train, val and test (`shares.py`), and can
    also be read as `all`.
    """

    path: Path
    format: str  # a row of READERS
    splits: dict[str, Callable[[], Split]]
    whole: Callable[[], Split] | None = None
    shares: SplitConfig = field(default_factory=SplitConfig)

    @property
    def distinct(self) -> list[str]:
        """Names of the splits, without VOC's trainval if train and val exist."""
        again = "trainval" if {"train", "val"} <= set(self.splits) else ""
        return [name for name in self.splits if name != again]

    @property
    def note(self) -> str:
        """How the images were split, in one line; "" if the dataset has its own splits."""
        if not self.whole:
            return ""
        return f"{self.path}: no splits found; images are split {self.shares} by content (set data.split to change it)"

    def has(self, split: str) -> bool:
        """Whether the dataset has this split."""
        return self.name_of(split) is not None

    def read(self, split: str) -> Split:
        """Read one split. Its `name` is that of the dataset.

        Raises:
            DoubleheadError: the split does not exist, or its files are invalid.
        """
        return self.look(split).sound()

    def look(self, split: str) -> Split:
        """Read one split as far as possible, with errors among its findings. It may not be valid for training.

        Raises:
            DoubleheadError: the split does not exist, or cannot be read at all.
        """
        name = self.name_of(split)
        if name is None:
            raise DoubleheadError(f"{self.path}: has no split `{split}`; it has {', '.join(self.splits)}")
        return self.whole() if self.whole and name == "all" else self.splits[name]()

    def name_of(self, split: str) -> str | None:
        """Name of the split in this dataset; None if it does not exist."""
        names = [*self.splits, *(["all"] if self.whole else [])]
        return next((name for name in (split, canonical(split)) if name in names), None)


def open_dataset(path: str | Path, shares: SplitConfig | None = None) -> Dataset:
    """Open a dataset: a folder, whose format is detected, or a YAML file that names format and splits.

    Args:
        path: the folder or YAML file.
        shares: how to split a dataset without splits; None: as the YAML says, else 80/10/10.

    Raises:
        DoubleheadError: the path does not exist, its format is unknown, or the YAML is invalid; or `shares` is given
            and the dataset already has splits.
    """
    path = Path(os.path.expanduser(path))
    if os.path.isfile(path):
        if _is_archive(path.name):
            raise DoubleheadError(f"{path}: is an archive; unpack it and give the folder")
        if path.suffix.lower() not in (".yaml", ".yml"):
            raise DoubleheadError(f"{path}: a dataset is a folder or a YAML file; give the folder that holds this file")
        dataset = _from_yaml(path)
    elif os.path.isdir(path):
        dataset = _from_folder(path)
    else:
        raise DoubleheadError(f"{path}: there is no such dataset; give a folder or a YAML file")
    if shares and not dataset.whole:
        raise DoubleheadError(f"{path}: has splits of its own ({', '.join(dataset.splits)}); remove `data.split`")
    return _shared_out(dataset, dataset.whole, shares or dataset.shares) if dataset.whole else dataset


def summary(split: Split) -> str:
    """Describe the content of a split in one line, and its findings, if any, in another."""
    records = split.records
    crowds = sum(int(record.crowd.sum()) for record in records)
    empty = sum(not len(record.boxes) for record in records)
    boxes = sum(len(record.boxes) for record in records) - crowds
    counts = [f"{len(records)} images", f"{boxes} boxes of {len(split.categories)} classes"]
    counts += [f"{empty} images without boxes"] * bool(empty) + [f"{crowds} crowds or difficult objects"] * bool(crowds)
    made = f" (no splits found: {split.made}, by content)" if split.made else ""
    lines = [f"{split.name}: {', '.join(counts)}{made}"]
    for finding in split.findings:
        lines.append(f"  {finding.count} {finding.kind}, such as {finding.places[0].text}")
    return "\n".join(lines)


def _from_folder(path: Path) -> Dataset:
    folder = _unpacked(Folder(path))
    nearest: NotMine | None = None
    without_splits: Dataset | None = None
    for name, find in READERS.items():
        found = find(folder)
        if isinstance(found, NotMine):
            nearest = nearest or found
        elif found:
            dataset = _dataset(path, name, found, folder)
            if dataset.splits:
                return dataset
            without_splits = without_splits or dataset
    if without_splits:
        return without_splits
    counts = Counter(os.path.splitext(file)[1].lower() or "without extension" for file in folder.files)
    seen = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common(5)) or "nothing"
    raise DoubleheadError(f"{path}: no dataset found there, but {seen}; {_lack(folder, nearest)}")


def _lack(folder: Folder, nearest: NotMine | None) -> str:
    """What is missing for a dataset, or how to get one."""
    if nearest:
        return f"{nearest.found} lacks {nearest.missing}"
    if archive := next(filter(_is_archive, folder.files), None):
        return f"unpack {archive}"
    if records := next((file for file in folder.files if re.search(r"\.tfrecords?\b", file, re.IGNORECASE)), None):
        return f"TFRecord ({records}) is not supported: export it as COCO"
    return "no annotations of a known format (docs/data.md)"


def _is_archive(name: str) -> bool:
    return name.lower().endswith((".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar"))


def _unpacked(folder: Folder) -> Folder:
    """The inner folder, if an archive was unpacked into its own folder."""
    while True:
        tops = {file.split("/")[0] for file in folder.folders if file}
        files = [file for file in folder.files if "/" not in file and not file.lower().startswith(("readme", "licen"))]
        if len(tops) != 1 or files:
            return folder
        (top,) = tops
        if top.lower() in _STRUCTURE or split_of_folder(f"{top}/"):
            return folder
        folder = folder.within(top)


def _dataset(
    path: Path, form: str, found: Splits, folder: Folder | None = None, shares: SplitConfig | None = None
) -> Dataset:
    """Build a dataset with plain split names; a single split named `all` or `default` is the whole."""
    splits = _named(found)
    if folder and folder.skipped:
        first = next(iter(splits))
        splits[first] = partial(_with_skipped, splits[first], folder)
    if set(splits) == {"all"}:
        return Dataset(path, form, {}, splits["all"], shares or SplitConfig())
    return Dataset(path, form, splits)


def _with_skipped(read: Callable[[], Split], folder: Folder) -> Split:
    split = read()
    for file in folder.skipped:
        split.findings.warn("hidden files and folders skipped", file)
    return split


def _shared_out(dataset: Dataset, whole: Callable[[], Split], shares: SplitConfig) -> Dataset:
    parts = cache(lambda: share_out(whole(), shares))

    def part(name: str) -> Split:
        return copy.deepcopy(parts()[name])  # the caller may add findings

    return replace(dataset, shares=shares, splits={name: partial(part, name) for name in shares.names})


def _named(splits: Mapping[str, Callable[[str], Split]]) -> dict[str, Callable[[], Split]]:
    """Splits by plain name, train, val and test first. Names keep their year if they would collide."""
    result: dict[str, Callable[[], Split]] = {}
    alone = not any(canonical(given) == "train" for given in splits)
    for given, read in splits.items():
        name = canonical(given)
        name = "train" if name == "trainval" and alone else name
        name = given if name in result else name
        result[name] = partial(read, name)
    order = ("train", "val", "test")
    return dict(sorted(result.items(), key=lambda item: (order.index(item[0]) if item[0] in order else 3, item[0])))


class _CocoSplit(Strict):
    annotations: str
    images: str


class _FolderYaml(Strict):
    root: str
    split: SplitConfig | None = None


class _CocoYaml(_FolderYaml):
    format: Literal["coco"]
    root: str = "."
    splits: dict[str, _CocoSplit]


class _VocYaml(_FolderYaml):
    format: Literal["voc"]
    root: str = "."
    splits: dict[str, str]


def _from_yaml(path: Path) -> Dataset:
    values = read_yaml(path)
    if "format" not in values and ("names" in values or "nc" in values):
        return _dataset(path, "yolo", yolo_splits(read_data_yaml(path)), shares=_yaml_shares(path, values))
    if "format" in values and values["format"] not in ("coco", "voc"):
        raise DoubleheadError(
            f"{path}: `format` must be coco or voc, not {brief(values.get('format'))}; "
            "a data.yaml of YOLO has none, but `names`; any other format is found by its folder, given as `root`"
        )
    models: dict[str, type[_FolderYaml]] = {"coco": _CocoYaml, "voc": _VocYaml}
    model = models.get(values.get("format", ""), _FolderYaml)
    try:
        description = model.model_validate(values)
    except ValidationError as error:
        raise DoubleheadError(f"{path}: {sentence(error)}") from error
    root = path.parent / os.path.expanduser(description.root)
    if not os.path.isdir(root):
        raise DoubleheadError(f"{path}: `root` names {root}, which is not a folder")
    shares = description.split or SplitConfig()
    if not isinstance(description, _CocoYaml | _VocYaml):
        return replace(_from_folder(root), path=path, shares=shares)
    if not description.splits:
        raise DoubleheadError(f"{path}: `splits` is empty; name at least train")
    if isinstance(description, _VocYaml):
        folder = Folder(root)
        return _dataset(path, "voc", voc_splits(folder, folder.suffixed(".xml"), description.splits), shares=shares)
    readers: Splits = {
        name: partial(read_coco, annotations=root / split.annotations, images=root / split.images)
        for name, split in description.splits.items()
    }
    return _dataset(path, "coco", readers, shares=shares)


def _yaml_shares(path: Path, values: Mapping[str, Any]) -> SplitConfig:
    try:
        return SplitConfig() if values.get("split") is None else SplitConfig.model_validate(values["split"])
    except ValidationError as error:
        raise DoubleheadError(f"{path}: `split`: {sentence(error)}") from error
