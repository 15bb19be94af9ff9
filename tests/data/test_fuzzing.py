"""Damaged and hostile input: whatever it is, the answer is a result or a DoubleheadError, soon and in little memory.

    DOUBLEHEAD_FUZZ=2000 python -m pytest tests/data/test_fuzzing.py -s

tries 2000 inputs of each kind instead of a few, and prints how many were refused.
"""

from __future__ import annotations

import copy
import io
import json
import os
import resource
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from cases import CASES
from faults import sound
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console as RichConsole
from rich.table import Table

from doublehead.common.categories import Categories
from doublehead.common.errors import DoubleheadError
from doublehead.config import parse_settings
from doublehead.data.check import read_for_training
from doublehead.data.images import image_size, read_image
from doublehead.data.inspection import inspect
from doublehead.evaluation.coco import evaluate_detections
from doublehead.model.checkpoint import load_model, save_checkpoint
from doublehead.model.detector import Detector
from doublehead.training.recipes import resolve
from small import SMALL

EXAMPLES = int(os.environ.get("DOUBLEHEAD_FUZZ", "0"))
SECONDS = 10  # an input that takes longer hangs
MEMORY = 1 << 30  # bytes of address space that may be had besides what the process holds already

WORDS = (
    b"",
    b"\x00",
    b"\xff\xfe",
    b"NaN",
    b"-1",
    b"1e400",
    b"9" * 30,
    b'"',
    b"{",
    b"]",
    b"<",
    b"&x;",
    b"../",
    b"\n- ",
    b": ",
)
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 0.5, 1e30, -1e300, float("inf"), float("nan"), 10**30, 2**53, "", " ", "a" * 5000, "\x00",
    "\ud800", "[/b]", "../../x", "~nobody/x", [], {}, [[]], {"": None}, [1, 2, 3, 4], ["a"] * 50, {"id": 1},
)  # fmt: skip

places = st.lists(
    st.tuples(
        st.floats(0, 1), st.sampled_from((0, 0, 0, 1, 1, 1, 2, 2, 3)), st.sampled_from(WORDS) | st.binary(max_size=6)
    ),
    max_size=3,
)
values = st.sampled_from(VALUES) | st.integers(-3, 50) | st.floats()
changes = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 4), values), min_size=1, max_size=3)


def spoil_bytes(whole: bytes, places: list[tuple[float, int, bytes]]) -> bytes:
    """Overwrite, insert, delete or cut off, each at a place said as a fraction of the length."""
    for where, how, word in places:
        at = int(where * len(whole))
        end = (at + len(word), at, at + 1 + 3 * len(word), len(whole))[how]
        whole = whole[:at] + (b"" if how == 2 else word) + whole[end:]
    return whole


def spoil_tree(whole: Any, changes: list[tuple[float, int, Any]]) -> Any:
    """Replace, delete, double or rename nodes, each said as a fraction of all nodes."""
    whole = copy.deepcopy(whole)
    for where, how, value in changes:
        nodes = list(walk(whole))
        if not nodes:
            break
        parent, key = nodes[min(int(where * len(nodes)), len(nodes) - 1)]
        if how == 0:
            del parent[key]
        elif how == 1 and isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        elif how == 2 and isinstance(parent, dict):
            parent[f"{key}{value}"[:99]] = parent.pop(key)
        else:
            parent[key] = copy.deepcopy(value)
    return whole


def walk(node: Any) -> Iterator[tuple[Any, Any]]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in list(items):
        yield node, key
        yield from walk(value)


@pytest.fixture(autouse=True)
def limited_memory():
    """An allocation beyond the limit fails with MemoryError, which no test expects."""
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@contextmanager
def watched() -> Iterator[None]:
    def late(*_: object) -> None:
        raise TimeoutError(f"more than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fuzz(name: str, few: int, spoiled: st.SearchStrategy[Any], target: Callable[[Any], object]) -> None:
    seen = Counter[str]()

    @settings(
        max_examples=EXAMPLES or few,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(spoiled)
    def run(value: Any) -> None:
        with watched():
            try:
                target(value)
                seen["read"] += 1
            except DoubleheadError:
                seen["refused"] += 1

    run()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"\n{name}: {seen.total()} inputs, {seen['refused']} refused, {seen['read']} read; peak {peak} MiB")
    assert seen["read"]
    assert seen["refused"]


def look_at(root: Path) -> None:
    """Read a dataset in every way there is; `check` never fails, and agrees with training."""
    found = inspect(root)
    found.to_json()
    show(found.table())
    try:
        train, _ = read_for_training(root)
    except DoubleheadError:
        assert found.errors
        raise
    show(evaluate_detections(train.records, train.categories, []).table())


def show(table: Table) -> None:
    RichConsole(file=io.TextIOWrapper(io.BytesIO(), encoding="utf-8")).print(table)


FILES = {
    "COCO": ("annotations/instances_train.json",),
    "VOC": ("Annotations/t2.xml", "ImageSets/Main/train.txt"),
    "YOLO": ("labels/train/t2.txt", "data.yaml"),
    "coco_masks_only": ("annotations/instances_train.json",),
    "label_studio_yolo": ("classes.txt", "labels/p2.txt"),
    "cvat_yolo_1_1": ("obj.names", "train.txt"),
    "kaggle_voc": ("annotations/p2.xml",),
    "cvat_images_with_subsets": ("annotations.xml",),
    "cvat_video": ("annotations.xml",),
    "labelme_flat": ("p2.json",),
    "labelme_with_its_images": ("p2.json",),
    "csv_tensorflow": ("train_labels.csv",),
    "csv_automl": ("export.csv",),
    "csv_kaggle": ("boxes.csv",),
    "open_images": ("oidv6-train-annotations-bbox.csv", "class-descriptions-boxable.csv"),
    "fiftyone_image_detection": ("labels.json",),
    "fiftyone_dataset": ("samples.json",),
    "label_studio_rotated": ("export.json",),
    "label_studio_minimal": ("project-1-min.json",),
    "via_project": ("via_project.json",),
    "via_csv": ("via_export_csv.csv",),
    "cvat_datumaro": ("annotations/Train.json",),
    "supervisely_rectangles": ("ds0/ann/p2.png.json",),
    "supervisely_masks_in_two_datasets": ("train/ann/p2.png.json",),
    "roboflow_createml": ("train/_annotations.createml.json",),
    "labelbox": ("export-result.ndjson",),
    "v7_darwin": ("releases/latest/annotations/p2.json",),
    "vott_export": ("vott-json-export/mine-export.json",),
    "ultralytics_ndjson": ("mine.ndjson",),
    "sagemaker_ground_truth": ("train.manifest",),
    "azure_ml": ("train_annotations.jsonl",),
    "vertex_ai": ("data-00001-of-00001.jsonl",),
    "superannotate": ("p2.png.json",),
    "tao_kitti": ("labels/p2.txt",),
    "cvat_mot": ("gt/gt.txt", "gt/labels.txt"),
    "imagefolder": ("train/metadata.jsonl",),
    "parquet": ("data/train-00000-of-00001.parquet",),
    "saved_to_disk": ("train/data-00000-of-00001.arrow",),
}


@pytest.mark.parametrize("form", FILES)
def test_datasets(form, tmp_path):
    root = tmp_path / "data"
    if form in CASES:
        CASES[form].write(root)
    else:
        sound(form, root)
    whole = {root / name: (root / name).read_bytes() for name in FILES[form]}

    def target(value: tuple[Path, bytes]) -> None:
        for file, content in whole.items():
            file.write_bytes(content)
        value[0].write_bytes(value[1])
        look_at(root)

    def of_bytes(file: Path) -> st.SearchStrategy[tuple[Path, bytes]]:
        return places.map(lambda chosen: (file, spoil_bytes(whole[file], chosen)))

    spoiled = st.one_of(*map(of_bytes, whole))
    for file in whole:
        if file.suffix in (".json", ".yaml"):
            tree = yaml.safe_load(whole[file])
            spoiled |= changes.map(lambda chosen, file=file, tree=tree: (file, dumped(file, spoil_tree(tree, chosen))))
    fuzz(form, 40 if form in ("COCO", "VOC", "YOLO") else 15, spoiled, target)


LINES = (".jsonl", ".ndjson", ".manifest")  # of JSON
OF_TEXT = {form: [name for name in names if name.endswith((".json", *LINES, ".yaml"))] for form, names in FILES.items()}


@pytest.mark.parametrize(("form", "name"), [(form, name) for form, names in OF_TEXT.items() for name in names])
def test_each_value_of_another_type(form, name, tmp_path):
    """Every value in its turn: a list that cannot be a key, a mapping, a number, a word."""
    root = tmp_path / "data"
    (CASES[form].write if form in CASES else lambda at: sound(form, at))(root)
    file, answers = root / name, Counter[str]()
    lines = file.read_text().splitlines() if file.suffix in LINES else [file.read_text()]
    tree = [yaml.safe_load(line) for line in lines]
    count = len(list(walk(tree)))
    look_at(root)  # as it is, it is read
    for place in range(0, count, 1 if EXAMPLES else 1 + count // 15):
        for value in ([[]], {}) if place else ([[]], {}, 7, "x"):
            spoiled = copy.deepcopy(tree)
            parent, key = list(walk(spoiled))[place]
            parent[key] = value
            file.write_bytes(b"\n".join(dumped(file, part) for part in spoiled))
            with watched():
                try:
                    look_at(root)
                    answers["read"] += 1
                except DoubleheadError:
                    answers["refused"] += 1
    assert answers["refused"]


def dumped(file: Path, tree: Any) -> bytes:
    text = json.dumps(tree) if file.suffix in (".json", *LINES) else yaml.safe_dump(tree, allow_unicode=False)
    return text.encode(errors="surrogatepass")


def test_images(tmp_path):
    pixels = Image.effect_mandelbrot((24, 16), (-2, -1, 1, 1), 20)
    whole = {}
    for suffix in ("jpg", "png", "bmp", "gif", "tif", "webp", "ppm", "jp2"):
        pixels.convert("RGB").save(tmp_path / f"x.{suffix}")
        whole[suffix] = (tmp_path / f"x.{suffix}").read_bytes()

    def target(value: tuple[str, bytes]) -> None:
        file = tmp_path / f"spoiled.{value[0]}"
        file.write_bytes(value[1])
        image_size(file)
        assert read_image(file).mode == "RGB"

    of = st.sampled_from(sorted(whole))
    fuzz(
        "images",
        80,
        st.tuples(of, places).map(lambda drawn: (drawn[0], spoil_bytes(whole[drawn[0]], drawn[1]))),
        target,
    )


def test_config(tmp_path):
    tree = json.loads(resolve("double-head-ext-tiny").model_dump_json())
    text = yaml.safe_dump(tree).encode()
    file = tmp_path / "config.yaml"

    def target(value: bytes) -> None:
        file.write_bytes(value)
        resolve(None, None, file)

    def setting(value: str) -> None:
        resolve("double-head-tiny", None, None, parse_settings([value]))

    spoiled = places.map(lambda chosen: spoil_bytes(text, chosen)) | changes.map(
        lambda chosen: dumped(file, spoil_tree(tree, chosen))
    )
    fuzz("config", 40, spoiled, target)
    keys = [f"{name}.{key}" for name in tree for key in tree[name]] + ["model.branches.0.trunk", "x", "train.lr.x", ""]
    texts = (
        st.sampled_from([*map(repr, VALUES), "[" * 300, "2001-99-99", "&a [*a]", "!!python/name:os.system"]) | st.text()
    )
    fuzz("--set", 40, st.tuples(st.sampled_from(keys), texts).map("=".join), setting)


def test_checkpoints(tmp_path):
    config = resolve(
        "double-head-tiny", settings={key: v for key, v in SMALL.items() if key.startswith("model.")}
    ).model
    saved = tmp_path / "sound.safetensors"
    classes = Categories(("red", "white"), (1, 2))
    save_checkpoint(saved, config, classes, Detector(config, 2, pretrained=False).state_dict(), {"step": 7})
    whole = saved.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header, tensors = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    within = header["__metadata__"]
    inner = {key: json.loads(within[key]) for key in ("model", "categories", "notes")}
    file = tmp_path / "spoiled.safetensors"

    def spoil(how: str, chosen: list[Any]) -> Iterator[bytes]:
        """The file in pieces: a whole one is large, and hypothesis would keep every one that it was given."""
        if how == "header":
            yield spoil_bytes(whole[: 8 + length], chosen)
            yield tensors
        elif how == "bytes":
            yield spoil_bytes(whole, chosen)
        else:
            metadata = within | {key: json.dumps(value) for key, value in spoil_tree(inner, chosen).items()}
            changed = header | {"__metadata__": metadata} if how == "metadata" else spoil_tree(header, chosen)
            text = json.dumps(changed).encode()
            yield len(text).to_bytes(8, "little") + text
            yield tensors

    def target(value: tuple[str, list[Any]]) -> None:
        with file.open("wb") as out:
            out.writelines(spoil(*value))
        load_model(file)

    hows = st.sampled_from(("header", "bytes")), st.sampled_from(("metadata", "tree"))
    fuzz("checkpoints", 20, st.tuples(hows[0], places) | st.tuples(hows[1], changes), target)
