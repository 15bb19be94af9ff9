"""Conversion of a graph with static shapes to LiteRT's format (TensorFlow Lite), and the operators it lacks there."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from doublehead.common.errors import DoubleheadError, require
from doublehead.deploy.graph import StaticGraph
from doublehead.inference.exported import ABOUT

ROUNDS = 16
"""Rounds of NMS. After n rounds it is decided for boxes at the end of a chain of n, each overlapping the one before."""


def write_litert(graph: StaticGraph, about: Mapping[str, str], path: Path) -> None:
    """Convert a graph; metadata is appended as an archive, as TensorFlow Lite's tools do: `unzip` shows it.

    Raises:
        DoubleheadError: the model samples RoIs adaptively.
    """
    converter = require("litert_torch", "litert")
    if graph.config.roi.sampling_ratio == 0:
        raise DoubleheadError(
            f"{path.name}: with an adaptive sampling ratio the size of RoIAlign depends on the image, and LiteRT needs "
            "static shapes; export to ONNX or OpenVINO"
        )
    decompositions = converter.fx_infra.decomp
    for operator, plain in PLAIN.items():
        decompositions.add_pre_convert_decomp(operator, plain)
    for tensor in (*graph.parameters(), *graph.buffers()):
        tensor.data = tensor.data.contiguous()  # the converter ignores strides
    converter.convert(graph.eval(), sample_kwargs=dict(graph.example)).export(str(path))
    names = json.loads(about["categories"])["names"]
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(ABOUT, json.dumps(dict(about)))
        archive.writestr("labels.txt", "".join(f"{name}\n" for name in names))


def kept_by_class_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float, classes: int) -> Tensor:
    """As `postprocess.kept_by_class_nms`, in operators of static shape.

    A box is kept if no kept box of its class with a higher score overlaps it. The rounds start with all boxes kept and
    settle this from the highest score down.
    """
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    least, most = (f(boxes[:, None], boxes[None]) for f in (torch.minimum, torch.maximum))
    sides = (least[..., 2:] - most[..., :2]).clamp(min=0)
    shared = sides[..., 0] * sides[..., 1]
    overlaps = shared > iou * (areas[:, None] + areas[None] - shared)
    place = torch.arange(len(scores), device=scores.device)
    tied = (scores[None] == scores[:, None]) & (place[None] < place[:, None])
    beats = (scores[None] > scores[:, None]) | tied  # column over row
    rivals = (overlaps & beats & (labels[None] == labels[:, None])).to(boxes.dtype)
    candidates = (scores > 0).to(boxes.dtype)[:, None]
    kept = candidates
    for _ in range(ROUNDS):
        kept = candidates * (rivals @ kept < 0.5).to(boxes.dtype)
    return kept[:, 0] > 0.5


def roi_align(
    features: Tensor,
    rois: Tensor,
    scale: float,
    height: int,
    width: int,
    sampling: int,
    aligned: bool,
) -> Tensor:
    """As `torchvision.ops.roi_align`, by gathering pixels.

    Args:
        features: (N, C, H, W).
        rois: (R, 5): image, then xyxy.
        scale: from the boxes to the map.
        height: bins in a column of the result.
        width: bins in a row.
        sampling: points per bin and side, at least 1.
        aligned: whether pixels are shifted by a half.

    Returns:
        (R, C, height, width).
    """
    _, channels, rows, columns = features.shape
    corners = rois[:, 1:] * scale - (0.5 if aligned else 0.0)
    sides = corners[:, 2:] - corners[:, :2]
    if not aligned:
        sides = sides.clamp(min=1)
    xs = _samples(corners[:, 0], sides[:, 0], width * sampling, columns)
    ys = _samples(corners[:, 1], sides[:, 1], height * sampling, rows)
    pixels = features.permute(0, 2, 3, 1).reshape(-1, channels)
    first = rois[:, 0].long() * (rows * columns)
    total: Tensor | None = None
    for y, y_weight in ys:
        for x, x_weight in xs:
            places = first[:, None, None] + y[:, :, None] * columns + x[:, None, :]
            values = pixels.index_select(0, places.reshape(-1)).reshape(*places.shape, channels)
            part = values * (y_weight[:, :, None] * x_weight[:, None, :])[..., None]
            total = part if total is None else total + part
    assert total is not None
    bins = total.reshape(-1, height, sampling, width, sampling, channels).mean((2, 4))
    return bins.permute(0, 3, 1, 2)


def _samples(start: Tensor, side: Tensor, number: int, limit: int) -> list[tuple[Tensor, Tensor]]:
    """Bilinear samples along an axis: the two pixels (R, number) of each, and their weights; 0 outside of the map."""
    steps = (torch.arange(number, device=start.device, dtype=start.dtype) + 0.5) / number
    at = start[:, None] + side[:, None] * steps
    inside = ((at >= -1) & (at <= limit)).to(at.dtype)
    at = at.clamp(min=0, max=limit - 1)
    low = at.floor()
    high = (low + 1).clamp(max=limit - 1)
    share = at - low
    return [(low.long(), (1 - share) * inside), (high.long(), share * inside)]


def split(values: Tensor, sizes: Sequence[int], dim: int = 0) -> list[Tensor]:
    """As `torch.split`; the converter's own fails on a single part."""
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [values.narrow(dim, start, size) for start, size in zip(starts, sizes, strict=True)]


PLAIN: dict[Any, Callable[..., Any]] = {
    torch.ops.doublehead.kept_by_class_nms.default: kept_by_class_nms,
    torch.ops.torchvision.roi_align.default: roi_align,
    torch.ops.aten.split_with_sizes.default: split,
}
"""Operators that the converter lacks, in those that it has."""
