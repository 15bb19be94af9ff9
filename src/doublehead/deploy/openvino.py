"""Conversion from ONNX to OpenVINO's format, in fp32 or int8."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from doublehead.common.errors import require
from doublehead.inference.exported import SECTION, openvino_core


def write_openvino(onnx: Path, about: Mapping[str, str], path: Path, calibration: Sequence[Tensor] = ()) -> None:
    """Convert an ONNX file to OpenVINO's format: `path`, which ends in .xml, with the weights in a .bin file beside it.

    Args:
        onnx: file written by `write_onnx`.
        about: metadata, stored as runtime information.
        path: output file.
        calibration: images uint8 (3, H, W) for quantisation to int8; empty: fp32.
    """
    openvino = require("openvino", "openvino")
    model = openvino_core().read_model(onnx)  # `convert_model` takes a comma in the path for the end of it
    _average_when_resizing(model)
    if calibration:
        model = _quantised(model, calibration)
    for key, value in about.items():
        model.set_rt_info(value, [SECTION, key])
    openvino.save_model(model, path, compress_to_fp16=False)


def _quantised(model: Any, calibration: Sequence[Tensor]) -> Any:
    """Quantise backbone, pyramid, RPN and fully connected layers to int8; the rest stays in float."""
    nncf = require("nncf", "openvino")
    nncf.set_log_level(logging.ERROR)  # else a line for each operator left alone
    kept = [node.get_friendly_name() for node in model.get_ops() if node.get_output_size() == 1 and not _fit(node)]
    return nncf.quantize(
        model,
        nncf.Dataset(list(calibration), lambda image: image.numpy()),
        subset_size=len(calibration),
        preset=nncf.QuantizationPreset.MIXED,  # activations below 0 are rare
        ignored_scope=nncf.IgnoredScope(names=kept, validate=False),
    )


def _fit(node: Any) -> bool:
    """Whether int8 is precise enough for the output of an operator.

    It is not for coordinates, scores and RoI feature maps: a model trained on BCCD has AP 0.567 with its conv-head in
    int8 too, 0.592 without, and 0.591 in fp32.
    """
    shape = node.get_output_partial_shape(0)
    if shape.rank.is_dynamic:
        return False
    if node.get_type_name() == "MatMul":
        return len(shape) == 2
    return len(shape) == 4 and shape[0].is_static  # maps of the image


def _average_when_resizing(model: Any) -> None:
    """Replace the resizing operator chosen by OpenVINO's ONNX reader by one that averages like Pillow and torch."""
    operators = require("openvino", "openvino").opset11
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Interpolate" and node.get_attributes()["antialias"]:
            axes = operators.constant(np.array([2, 3], dtype=np.int64))
            size = operators.gather(node.input_value(1), axes, operators.constant(np.int64(0)))
            resized = operators.interpolate(node.input_value(0), size, "bilinear_pillow", "sizes", axes=axes)
            node.output(0).replace(resized.output(0))
