"""`export`: write a checkpoint as ONNX, OpenVINO or LiteRT, and compare its detections before saving the file."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

import doublehead
from doublehead.common.console import Console
from doublehead.common.errors import DoubleheadError, require
from doublehead.common.files import writing
from doublehead.common.names import names_only
from doublehead.config import InputConfig, ModelConfig
from doublehead.data.check import read_record
from doublehead.data.images import read_image, to_tensor
from doublehead.data.records import Record
from doublehead.data.synthetic import synthesize
from doublehead.deploy.bulk.sources import find_files
from doublehead.deploy.graph import Graph, StaticGraph, write_onnx
from doublehead.deploy.litert import write_litert
from doublehead.deploy.openvino import write_openvino
from doublehead.deploy.parity import Parity, RawDetections, compare, require_parity
from doublehead.deploy.static import canvas_of, filling, require_options
from doublehead.deploy.tensorrt import require_readable
from doublehead.evaluation.evaluate import measured_split
from doublehead.inference.canvas import Canvas
from doublehead.inference.exported import FORMAT_VERSION, Exported, open_exported
from doublehead.inference.predictor import Detects
from doublehead.model.checkpoint import Checkpoint, load_model
from doublehead.model.interop.published import resolve
from doublehead.model.optimize import for_inference
from doublehead.model.parts import BranchConfig
from doublehead.model.variants import AVERAGED, VARIANTS

COMPARED = 8
"""Number of images on which the file is compared with the checkpoint."""

CALIBRATION = 128
"""Number of images for quantisation."""

DRAWN = ((1.0, 1.25), (1.5, 1.0), (2.0, 2.0))
"""Sizes of generated images, in multiples of the input's short side, chosen so that resizing is exact."""

DRAWN_IMAGES = 6

FORMATS = {"onnx": ".onnx", "openvino": ".xml", "litert": ".tflite"}
ONNX = dict.fromkeys(("onnx", "onnxscript", "onnxruntime"), "export")
PACKAGES = {".onnx": ONNX, ".xml": {"openvino": "openvino"} | ONNX, ".tflite": {"litert_torch": "litert"}}
"""Packages that write a format, and the extra of each."""


@dataclass(frozen=True)
class ExportWritten:
    """Exported file, and its comparison with the checkpoint."""

    path: Path
    about: dict[str, str]
    parity: Parity

    def __str__(self) -> str:
        what = f"{self.about['variant']}, {len(json.loads(self.about['categories'])['names'])} classes"
        said = f"{self.path} holds {what}, at most {self.about['owners']} owners"
        if "canvas" in self.about:
            canvas = Canvas(**json.loads(self.about["canvas"]))
            said += f", input {canvas.batch} x 3 x {canvas.height} x {canvas.width}"
        if not self.parity.detections:
            return f"{said}; nothing was found in the images to compare with the checkpoint: give some as --images"
        return f"{said}; compared with the checkpoint, {self.parity}"


def export(
    weights: str | Path,
    output: Path,
    format: str | None = None,
    owners: int | None = None,
    int8: str | Path | None = None,
    images: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    static: tuple[int, int] | None = None,
    batch_size: int | None = None,
    target: str | None = None,
) -> ExportWritten:
    """Export a detector to ONNX, OpenVINO or LiteRT, including pre- and post-processing.

    A file with static shapes does not resize; see `inference.canvas`.

    Args:
        weights: a checkpoint, or the name of a published model.
        output: the file to write: .onnx; .xml, which gets its weights beside it in .bin; or .tflite.
        format: onnx, openvino or litert; None: by the file's ending.
        owners: how many proposals a branch that only regresses sees at most, when compared in the checkpoint too; None:
            all that own a candidate detection.
        int8: a dataset whose training images layers are quantised by; None: fp32.
        images: files, folders or globs to compare with the checkpoint on; none: images of `int8`, or drawn ones.
        settings: inference options of the file by their names; see `config.InferenceOptions`.
        static: width and height of an image, in pixels; the file gets the static shapes of the model's input for it.
            None: images of any size.
        batch_size: images per run of a file with static shapes; None: 1.
        target: tensorrt: reject operators that TensorRT does not support; None: any ONNX runtime.

    Raises:
        DoubleheadError: an argument is invalid, a package is not installed, or the detections differ from those of the
            checkpoint, in which case the file is not saved. Quantised files may differ.
        Fault: the file cannot be written.
    """
    _require_format(output, format, int8)
    require_options(output, static, batch_size, target, int8)
    model, checkpoint = load_model(resolve(weights), settings)
    if checkpoint.config.roi.nms != "hard":
        raise DoubleheadError(
            f"{weights}: soft-NMS cannot be exported, because it takes one step per detection; add --set nms=hard"
        )
    most = owners or checkpoint.config.rpn.proposals_inference
    canvas = canvas_of(model, weights, static, batch_size or 1) if static else None
    graph = StaticGraph(model, most, canvas) if canvas else Graph(model, most)
    reference: Detects = for_inference(model, model.mean.device)
    if owners:
        reference = graph if isinstance(graph, Graph) else Graph(model, most)
    about = describe(checkpoint, most, "int8" if int8 else "fp32", canvas)
    calibration = _spread(_training_images(weights, int8), CALIBRATION) if int8 else []
    shown = _spread(list(find_files(images)), COMPARED) if images else calibration[:COMPARED]
    console = Console()
    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=".exporting-", dir=output.parent)
    with folder as name:
        unfinished = Path(name, output.name)
        onnx = unfinished.with_suffix(".onnx")
        console.say("tracing the model and writing its graph: half a minute for a small one")
        if isinstance(graph, StaticGraph) and output.suffix.lower() == FORMATS["litert"]:
            write_litert(graph, about, unfinished)
        else:
            write_onnx(graph, about, onnx)
        if target:
            require_readable(onnx, str(output))
        if output.suffix.lower() == FORMATS["openvino"]:
            by = f", in int8 by {len(calibration)} images" if calibration else ""
            console.say(f"converting it to OpenVINO's format{by}")
            write_openvino(onnx, about, unfinished, _tensors(calibration))
        pictures = _tensors(shown) if shown else _drawn(Path(name), [static] if static else _sizes(model.config.input))
        if canvas:
            pictures = filling(pictures, model, canvas)
        parity = _compared(reference, open_exported(unfinished, "cpu"), pictures, console)
        if not int8 and parity.detections:
            require_parity(parity, f"{output} was not written: it", "please report this with the output of `pip list`")
        with writing(output):
            for suffix in (".bin", output.suffix):
                if unfinished.with_suffix(suffix).exists():
                    os.replace(unfinished.with_suffix(suffix), output.with_suffix(suffix))
    return ExportWritten(output, about, parity)


def describe(checkpoint: Checkpoint, owners: int, precision: str, canvas: Canvas | None) -> dict[str, str]:
    """What a file says of itself."""
    config = checkpoint.config
    thresholds = {name: getattr(config.roi, name) for name in ("score_threshold", "nms_iou", "detections")}
    return {
        "format_version": str(FORMAT_VERSION),
        "doublehead": doublehead.__version__,
        "variant": variant(config),
        "categories": checkpoint.categories.to_json(),
        "thresholds": json.dumps(thresholds),
        "owners": str(owners),
        "precision": precision,
        "model": json.dumps(names_only(config.model_dump(mode="json"))),
        **({"canvas": json.dumps(asdict(canvas))} if canvas else {}),
    }


def variant(config: ModelConfig) -> str:
    """Variant of a model's branches, or `custom`; with the prefix `cascade-` for cascades."""

    def tasks(branches: Sequence[BranchConfig]) -> list[tuple[str, bool, bool]]:
        return [(b.trunk, b.classify > 0, b.regress > 0) for b in branches]

    known = [name for name in VARIANTS if name not in AVERAGED or config.roi.box_fusion == "average"]
    name = next((name for name in known if tasks(VARIANTS[name]) == tasks(config.branches)), "custom")
    return f"cascade-{name}" if len(config.stages) > 1 else name


def _require_format(output: Path, format: str | None, int8: str | Path | None) -> None:
    """Require that file extension, format and options fit together."""
    if format is not None and format not in FORMATS:
        raise DoubleheadError(f"--format {format}: is unknown; use {' or '.join(FORMATS)}")
    if output.suffix.lower() not in ((FORMATS[format],) if format else FORMATS.values()):
        wanted = FORMATS[format] if format else ".onnx, in .xml for OpenVINO, or in .tflite for LiteRT"
        raise DoubleheadError(f"{output}: the output file must end in {wanted}")
    for module, extra in PACKAGES[output.suffix.lower()].items():
        require(module, extra)
    if int8 and output.suffix.lower() != FORMATS["openvino"]:
        raise DoubleheadError(f"{output}: int8 is available only for OpenVINO; give a file that ends in .xml")
    if int8:
        require("nncf", "openvino")


def _compared(reference: Detects, exported: Exported, pictures: list[Tensor], console: Console) -> Parity:
    """Compare a file, run in its own batches, with the checkpoint, run image by image."""
    expected, found = list[RawDetections](), list[RawDetections]()
    at_once = exported.canvas.batch if exported.canvas else 1
    with console.progress("comparing", len(pictures)) as advance:
        for start in range(0, len(pictures), at_once):
            batch = pictures[start : start + at_once]
            for picture in batch:
                expected += reference.detect([picture])
            found += exported.detect(batch)
            advance(len(batch))
    return compare(expected, found)


def _training_images(weights: str | Path, data: str | Path) -> list[Path | Record]:
    return [*measured_split(weights, data, "train").records]


def _spread(images: Sequence[Path | Record], most: int) -> list[Path | Record]:
    """Select at most `most` images, evenly spaced."""
    step = max(1, len(images) / most)
    return [images[int(i * step)] for i in range(min(most, len(images)))]


def _tensors(images: Iterable[Path | Record]) -> list[Tensor]:
    return [to_tensor(read_record(image) if isinstance(image, Record) else read_image(image)) for image in images]


def _sizes(config: InputConfig) -> list[tuple[int, int]]:
    """Width and height of images to draw, of several shapes."""
    return [(max(64, int(w * config.short_side)), max(64, int(h * config.short_side))) for w, h in DRAWN]


def _drawn(folder: Path, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Pictures of shapes, of several sizes."""
    each = -(-DRAWN_IMAGES // len(sizes))
    made = [synthesize(folder / f"{w}x{h}", {"drawn": each}, size=(w, h)) for w, h in sizes]
    return _tensors(sorted(file for place in made for file in (place / "drawn").iterdir()))
