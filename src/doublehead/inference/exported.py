"""Inference with exported detectors in onnxruntime, OpenVINO or LiteRT."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from doublehead.common.categories import Categories
from doublehead.common.errors import DoubleheadError, require
from doublehead.common.files import cache_folder
from doublehead.common.model_files import EXPORTED, missing_weights, of_newer_version
from doublehead.config import AROUND_MODEL, IN_MODEL, InferenceOptions, ModelConfig, inference_options
from doublehead.inference.canvas import Canvas
from doublehead.model.boxes import Edges
from doublehead.model.postprocess import thresholds

OUTPUTS = ("boxes", "scores", "labels")
FORMAT_VERSION = 1
SECTION = "doublehead"
"""Section of OpenVINO's runtime information that holds a file's metadata."""
ABOUT = "doublehead.json"
"""Name of a .tflite file's metadata in the archive appended to it."""

REMEDY = "export it again with `doublehead export`"

Run = Callable[[dict[str, np.ndarray]], list[np.ndarray]]
"""Runs the file's inputs and returns the `OUTPUTS`."""


@dataclass(frozen=True)
class Exported:
    """A detector from a file written by `doublehead export`."""

    path: Path
    categories: Categories
    config: ModelConfig  # of the model that was exported
    about: Mapping[str, str]  # the file's own words of itself
    run: Run
    canvas: Canvas | None  # the input, if it has one fixed size

    def __str__(self) -> str:
        return str(self.path)

    def require_possible(self, options: InferenceOptions) -> None:
        """Reject options that are fixed in the file.

        Raises:
            DoubleheadError: an option differs from the file's; the message names it.
        """
        own = inference_options(self.config)
        later = {
            "score_threshold": options.score_threshold >= own.score_threshold,
            "detections": options.detections <= own.detections,
            "class_thresholds": all(least >= own.score_threshold for _, least in options.class_thresholds),
            "decision_threshold": True,  # applied to what the file finds
        }
        for name in [name for name in InferenceOptions.model_fields if name not in AROUND_MODEL]:
            if getattr(options, name) != getattr(own, name) and not later.get(name):
                raised = "can only be raised"
                limit = {"score_threshold": raised, "class_thresholds": raised, "detections": "can only be lowered"}
                fix = "export it again with --set" if name in IN_MODEL else "use its checkpoint"
                raise DoubleheadError(
                    f"{self}: {name} {limit.get(name, 'is fixed')} in an exported model ({getattr(own, name)}); {fix}"
                )

    def detect(self, images: list[Tensor], options: InferenceOptions | None = None) -> list[dict[str, Tensor]]:
        """As `Detector.detect`, for images uint8 (3, H, W), as many at once as the file takes."""
        found = [dict(zip(OUTPUTS, values, strict=True)) for values in self._found(images)]
        if options is None:
            return found
        kept = [each["scores"] > thresholds(options, each["labels"]) for each in found]  # scores fall: best first
        return [
            {name: value[k][: options.detections] for name, value in each.items()}
            for each, k in zip(found, kept, strict=True)
        ]

    def _found(self, images: list[Tensor]) -> Iterator[list[Tensor]]:
        """The `OUTPUTS` of each image, in its own pixels."""
        if self.canvas is None:
            for image in images:
                yield [torch.from_numpy(value) for value in self.run({"image": image.numpy()})]
            return
        for start in range(0, len(images), self.canvas.batch):
            inputs, ratios = self.canvas.fill(images[start : start + self.canvas.batch], self.config.input)
            results = zip(*map(torch.from_numpy, self.run(inputs)), strict=True)
            for (boxes, scores, labels), ratio in zip(results, ratios, strict=False):  # the last canvases may be empty
                there = scores > 0
                boxes = Edges(self.config.inclusive_pixels).rescale(boxes[there], ratio)
                yield [boxes, scores[there], labels[there]]


def is_exported(path: Path) -> bool:
    """Whether a file name is that of an exported detector."""
    return path.suffix.lower() in EXPORTED


def open_exported(path: Path, device: str = "auto", precision: str = "fp32") -> Exported:
    """Open an exported detector. It uses as many threads as torch.

    Raises:
        DoubleheadError: the file is missing, damaged or not written by `doublehead export`, its runtime is not
            installed, or it does not support the device or the precision.
    """
    if not path.is_file():
        raise missing_weights(path)
    if precision not in ("fp32", "auto"):
        raise DoubleheadError(f"{path}: its precision was fixed at export; omit --precision {precision}")
    run, about = STARTS[path.suffix.lower()](path, device)
    try:
        version = int(about["format_version"])
        if version > FORMAT_VERSION:
            raise of_newer_version(path, about["doublehead"])
        categories = Categories.from_json(about["categories"])
        config = ModelConfig.model_validate_json(about["model"])
        canvas = Canvas(**json.loads(about["canvas"])) if "canvas" in about else None
    except (KeyError, TypeError, ValueError) as error:
        raise DoubleheadError(f"{path}: is a model, but not one that `doublehead export` wrote") from error
    return Exported(path, categories, config, about, run, canvas)


def _onnx(path: Path, device: str) -> tuple[Run, Mapping[str, str]]:
    """Open a session of onnxruntime."""
    runtime = require("onnxruntime", "export")
    there = runtime.get_available_providers()
    wanted: list[Any] = ["CPUExecutionProvider"]
    if device != "cpu" and "CUDAExecutionProvider" in there:
        number = device.partition(":")[2] or "0"
        wanted.insert(0, ("CUDAExecutionProvider", {"device_id": number}))
    elif device not in ("auto", "cpu"):
        raise DoubleheadError(
            f"{path}: device {device} is not available: this onnxruntime has only {', '.join(there)}; use --device "
            "cpu, or pip install onnxruntime-gpu instead"
        )
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors alone: what it meets while it folds constants is of no use to anybody
    try:
        session = runtime.InferenceSession(path, options, providers=wanted)
    except Exception as error:  # a class of its own for each fault, none of them public
        raise _unreadable(path, "ONNX", error) from error
    about = session.get_modelmeta().custom_metadata_map
    return lambda inputs: session.run(OUTPUTS, inputs), about


def _openvino(path: Path, device: str) -> tuple[Run, Mapping[str, str]]:
    """Compile a model with OpenVINO."""
    require("openvino", "openvino")
    if device not in ("auto", "cpu"):
        raise DoubleheadError(f"{path}: OpenVINO models run only on the CPU; use --device cpu")
    if not path.with_suffix(".bin").is_file():
        raise DoubleheadError(f"{path}: its weights, {path.with_suffix('.bin').name}, are missing beside it")
    # By default OpenVINO uses bf16 on CPUs that have it.
    settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    settings["PERFORMANCE_HINT"] = "LATENCY"  # images come one by one
    if cache := cache_folder("openvino"):
        settings["CACHE_DIR"] = str(cache)  # the compiled model: the next start reads it
    try:
        core = openvino_core()
        model = core.read_model(path)
        about = _about(model)
        compiled = core.compile_model(model, "CPU", settings)
    except Exception as error:
        raise _unreadable(path, "OpenVINO", error) from error

    def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        found = compiled(inputs)
        return [found[name] for name in OUTPUTS]

    return run, about


@cache
def openvino_core() -> Any:
    """OpenVINO's Core, shared by the whole process.

    OpenVINO's CPU plugin installs a signal stack for the thread and restores the previous one when it is destroyed. If
    the lifetimes of two overlap, the last one restores a stack that no longer exists, and the next signal crashes the
    process.
    """
    return require("openvino", "openvino").Core()


def _about(model: Any) -> dict[str, str]:
    """Metadata of the file; empty if doublehead did not write it."""
    told = model.get_rt_info(SECTION).value if model.has_rt_info(SECTION) else {}
    return {key: value.value if hasattr(value, "value") else value for key, value in told.items()}


def _litert(path: Path, device: str) -> tuple[Run, Mapping[str, str]]:
    """Open an interpreter of LiteRT."""
    runtime = require("ai_edge_litert.interpreter", "litert")
    if device not in ("auto", "cpu"):
        raise DoubleheadError(f"{path}: LiteRT runs only on the CPU here; use --device cpu")
    try:
        interpreter = runtime.Interpreter(str(path), num_threads=torch.get_num_threads())
        signature = interpreter.get_signature_runner()
    except Exception as error:
        raise _unreadable(path, "LiteRT", error) from error
    try:
        with zipfile.ZipFile(path) as archive:
            about = json.loads(archive.read(ABOUT))
    except (zipfile.BadZipFile, KeyError, ValueError):
        about = {}

    def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        found = signature(**inputs)
        return [found[f"output_{place}"] for place in range(len(OUTPUTS))]

    return run, about


STARTS: dict[str, Callable[[Path, str], tuple[Run, Mapping[str, str]]]] = {
    ".onnx": _onnx,
    ".xml": _openvino,
    ".tflite": _litert,
}
"""How the files of each suffix are opened."""


def _unreadable(path: Path, kind: str, error: Exception) -> DoubleheadError:
    return DoubleheadError(
        f"{path}: is damaged or not an {kind} model ({' '.join(str(error).split())[:200]}); {REMEDY}"
    )
