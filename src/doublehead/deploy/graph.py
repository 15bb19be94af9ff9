"""A detector as a graph: images in, their detections out, by steps that do not depend on what was found."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from doublehead.common.errors import DoubleheadError, require
from doublehead.config import InferenceOptions
from doublehead.inference.canvas import Canvas
from doublehead.inference.exported import OUTPUTS
from doublehead.model.detector import Detector
from doublehead.model.optimize import for_inference

OPSET = 18
EXAMPLE = (3, 150, 210)
"""Shape of the image for tracing; the graph accepts any size."""
MANY = 2**31 - 1
"""Maximum boxes kept by NMS: no limit."""


class Traceable(nn.Module):
    """A detector that can be exported. Subclasses define `forward`.

    Args:
        model: the detector; a copy of it is prepared for inference on CPUs.
        owners: maximum proposals of an image passed to a box-only branch.
        example: inputs for tracing, by name.
        free: per input, its dimensions of any size.
    """

    def __init__(
        self, model: Detector, owners: int, example: Mapping[str, Tensor], free: tuple[dict[int, Any], ...]
    ) -> None:
        super().__init__()
        self.model = for_inference(model, torch.device("cpu"))
        self.owners = owners
        self.config = model.config
        self.example = example
        self.free = free
        for branch in self.model.roi_heads:
            branch.trunk.in_parts(None)  # the number of parts would depend on the detections


class Graph(Traceable):
    """The parts of the detector, with post-processing in one round, for one image of any size.

    Args:
        model: as in `Traceable`.
        owners: as in `Traceable`.
    """

    def __init__(self, model: Detector, owners: int) -> None:
        image = torch.zeros(EXAMPLE, dtype=torch.uint8)
        super().__init__(model, owners, {"image": image}, ({1: Dim.DYNAMIC, 2: Dim.DYNAMIC},))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """RGB uint8 (3, H, W) to boxes (D, 4) xyxy in pixels, scores (D,) in falling order and labels (D,) in 1..C."""
        stage = self.model.first_stage([image])
        found = self.model.roi_heads.detections_in_one_round(
            stage.levels, stage.proposals[0], stage.sizes[0], self.owners, self.model.options
        )
        return self.model.edges.rescale(found["boxes"], stage.ratios[0]), found["scores"], found["labels"]

    @torch.no_grad()
    def detect(self, images: list[Tensor], options: InferenceOptions | None = None) -> list[dict[str, Tensor]]:
        """As `Detector.detect`, computed as in the exported file: per image, in one round, with the model's options."""
        return [dict(zip(OUTPUTS, self(image), strict=True)) for image in images]


class StaticGraph(Traceable):
    """The same for runtimes that require static shapes: only the output of NMS has a dynamic size.

    Args:
        model: as in `Traceable`; without a score floor.
        owners: as in `Traceable`.
        canvas: the input.
    """

    def __init__(self, model: Detector, owners: int, canvas: Canvas) -> None:
        inputs, _ = canvas.fill([], model.config.input)
        super().__init__(model, owners, {name: torch.from_numpy(value) for name, value in inputs.items()}, ({}, {}))
        self.model.use_fixed_sizes()

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs of `Canvas.fill` to boxes (N, D, 4) xyxy in canvas pixels, scores (N, D) falling and labels (N, D).

        Empty places have score and label 0.
        """
        stage = self.model.first_stage_of_canvases(images, sizes)
        found = self.model.roi_heads.detections_in_fixed_sizes(
            stage.levels, stage.proposals, stage.sizes, self.owners, self.model.options
        )
        boxes, scores, labels = (torch.stack([each[name] for each in found]) for name in OUTPUTS)
        return boxes, scores, labels


def write_onnx(graph: Traceable, about: Mapping[str, str], path: Path) -> None:
    """Write the graph by torch's exporter, with what is to be said of it as metadata.

    Raises:
        DoubleheadError: the backbone's operations depend on the image size in a way that cannot be exported.
    """
    inputs = tuple(graph.example.values())
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of operators that torchvision registers by a name from before
        try:
            program = torch.export.export(graph, inputs, dynamic_shapes=graph.free, strict=False)
        except GuardOnDataDependentSymNode as error:
            raise DoubleheadError(
                f"model.backbone: {graph.config.backbone.network} cannot be exported, because its steps depend on the "
                "size of the image; export a model with another backbone, such as a ResNet, EfficientNet or ConvNeXt"
            ) from error
        written = torch.onnx.export(
            program,
            inputs,
            input_names=list(graph.example),
            output_names=list(OUTPUTS),
            opset_version=OPSET,
            custom_translation_table=_own_operators(),
            # With static shapes it folds constants and removes sequences. Otherwise it takes longer than all other
            # steps, and runtimes optimise when they load.
            optimize=isinstance(graph, StaticGraph),
            verbose=False,
        )
    assert written is not None
    for node in written.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces, which name folders of this machine
    written.model.metadata_props.update(about)
    written.save(path, external_data=False)


def _own_operators() -> dict[Any, Any]:
    """ONNX's way of `class_nms` and `kept_by_class_nms`: its NonMaxSuppression treats classes separately."""
    op = require("onnxscript", "export").opset18

    def number(*values: int) -> Any:
        return op.Constant(value_ints=values)

    def places(boxes: Any, scores: Any, labels: Any, iou: float, classes: Any) -> Any:
        """Indices kept, class by class."""
        own = op.Equal(op.Unsqueeze(classes, number(1)), op.Unsqueeze(labels, number(0)))  # (C + 1, K)
        kept = op.NonMaxSuppression(
            op.Unsqueeze(boxes, number(0)),
            op.Unsqueeze(op.Where(own, op.Unsqueeze(scores, number(0)), op.Constant(value_float=0.0)), number(0)),
            number(MANY),
            op.Constant(value_floats=[iou]),
            op.Constant(value_floats=[0.0]),
        )
        return op.Gather(kept, op.Constant(value_int=2), axis=1)  # of batch, class and place

    def class_nms(boxes: Any, scores: Any, labels: Any, iou: float) -> Any:
        last = op.ReduceMax(op.Concat(labels, number(0), axis=0), keepdims=0)
        classes = op.Range(op.Constant(value_int=0), op.Add(last, op.Constant(value_int=1)), op.Constant(value_int=1))
        kept = places(boxes, scores, labels, iou, classes)
        in_order, _ = op.TopK(kept, op.Shape(kept), largest=0)
        return in_order

    def kept_by_class_nms(boxes: Any, scores: Any, labels: Any, iou: float, classes: int) -> Any:
        kept = places(boxes, scores, labels, iou, number(*range(classes)))
        none = op.Sub(scores, scores)  # zeros of known size
        ones = op.Expand(op.Constant(value_float=1.0), op.Shape(kept))
        return op.Greater(op.ScatterElements(none, kept, ones), op.Constant(value_float=0.5))

    own = torch.ops.doublehead
    return {own.class_nms.default: class_nms, own.kept_by_class_nms.default: kept_by_class_nms}
