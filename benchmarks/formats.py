"""Exported files of untrained models: those of `doublehead export`, and torchvision's by torch's older exporter."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measure import Workload
from benchmarks.peers import TORCHVISION, Peer, Variant
from doublehead.common.errors import require
from doublehead.deploy.graph import Graph, write_onnx
from doublehead.deploy.openvino import write_openvino
from doublehead.deploy.parity import RawDetections, compare, require_parity
from doublehead.inference.exported import OUTPUTS, STARTS, Run
from doublehead.model.detector import Detector

INT8 = ".int8.xml"
FILES = {
    "single-fc": Variant("single-fc"),
    "double-head": Variant("double-head"),
    f"{TORCHVISION}, ONNX": Variant(None, file=".onnx"),
    "single-fc, ONNX": Variant("single-fc", file=".onnx"),
    "double-head, ONNX": Variant("double-head", file=".onnx"),
    "double-head, OpenVINO": Variant("double-head", file=".xml"),
    "double-head, OpenVINO, int8": Variant("double-head", file=INT8),
}
"""Measured cases. int8 is calibrated on the measured image: its time is meaningful, its detections are not."""


def file_run(peer: Peer, images: list[Tensor], owners: int, folder: Path) -> Workload:
    """Write a peer's file into the folder; return what runs it on the images, one by one.

    Args:
        peer: in float32, with its owners set.
        images: (3, H, W) in 0..1, of 256 levels.
        owners: how many the peer has per image, and our files at most: in int8, random weights could give any number.
        folder: for the file.

    Raises:
        DoubleheadError: a package is missing, or the file finds other detections than the peer.
    """
    levels = [(image * 255).round().to(torch.uint8) for image in images]
    name, ending = peer.name.replace(" ", "-"), peer.variant.file
    onnx = folder / f"{name}.onnx"
    if not isinstance(peer.model, Detector):
        run = _older_exporter(peer, images[0], onnx)
        return lambda: [run({"image": image.numpy()}) for image in images]
    graph = Graph(peer.model, owners)
    write_onnx(graph, {}, onnx)
    path = folder / f"{name}{ending}"
    if path.suffix == ".xml":
        write_openvino(onnx, {}, path, levels[:1] if ending == INT8 else ())
    run, _ = STARTS[path.suffix](path, "cpu")

    def detect(image: Tensor) -> RawDetections:
        found = run({"image": image.numpy()})
        return dict(zip(OUTPUTS, map(torch.from_numpy, found), strict=True))

    if ending != INT8:
        parity = compare(peer.model.detect(levels[:1]), [detect(levels[0])])
        require_parity(parity, peer.name, "its time means nothing; please report this with the output of `pip list`")
    return lambda: [detect(image) for image in levels]


def _older_exporter(peer: Peer, image: Tensor, path: Path) -> Run:
    """Export torchvision's model with the exporter that supports it."""
    runtime = require("onnxruntime", "export")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            peer.model,
            ([image],),
            str(path),
            input_names=["image"],
            output_names=list(OUTPUTS),
            opset_version=17,
            dynamo=False,
        )
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, inputs)
