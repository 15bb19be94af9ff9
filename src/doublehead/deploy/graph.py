"""A detector as a graph: one image to its detections, without data-dependent control flow."""

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
from doublehead.inference.exported import OUTPUTS
from doublehead.model.detector import Detector
from doublehead.model.optimize import for_inference

OPSET = 18
EXAMPLE = (3, 150, 210)
"""Shape of the image for tracing; the graph accepts any size."""
MANY = 2**31 - 1
"""Maximum boxes kept by NMS: no limit."""


class Graph(nn.Module):
    """The exported module: the parts of the detector, with post-processing in one round.

    Args:
        model: detector, of which a copy is optimised for inference on CPUs.
        owners: maximum proposals passed to a box-only branch.
    """

    def __init__(self, model: Detector, owners: int) -> None:
        super().__init__()
        self.model = for_inference(model, torch.device("cpu"))
        self.owners = owners
        self.config = model.config
        for branch in self.model.roi_heads:
            branch.trunk.in_parts(None)  # how many parts there are would depend on what was found

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


def write_onnx(graph: Graph, about: Mapping[str, str], path: Path) -> None:
    """Write the graph with torch's exporter, and `about` as metadata.

    Raises:
        DoubleheadError: the backbone's operations depend on the image size in a way that cannot be exported.
    """
    image = torch.zeros(EXAMPLE, dtype=torch.uint8)
    sizes = ({1: Dim.DYNAMIC, 2: Dim.DYNAMIC},)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of operators that torchvision registers by a name from before
        try:
            program = torch.export.export(graph, (image,), dynamic_shapes=sizes, strict=False)
        except GuardOnDataDependentSymNode as error:
            raise DoubleheadError(
                f"model.backbone: {graph.config.backbone.network} cannot be exported, because its steps depend on the "
                "size of the image; export a model with another backbone, such as a ResNet, EfficientNet or ConvNeXt"
            ) from error
        written = torch.onnx.export(
            program,
            (image,),
            input_names=["image"],
            output_names=list(OUTPUTS),
            opset_version=OPSET,
            custom_translation_table={torch.ops.doublehead.class_nms.default: _class_nms()},
            optimize=False,  # which takes longer than all the rest; runtimes do it when they load
            verbose=False,
        )
    assert written is not None
    for node in written.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces, which name folders of this machine
    written.model.metadata_props.update(about)
    written.save(path, external_data=False)


def _class_nms() -> Any:
    """`postprocess.class_nms` in ONNX, whose NonMaxSuppression handles classes separately."""
    op = require("onnxscript", "export").opset18

    def number(*values: int) -> Any:
        return op.Constant(value_ints=values)

    def class_nms(boxes: Any, scores: Any, labels: Any, iou: float) -> Any:
        last = op.ReduceMax(op.Concat(labels, number(0), axis=0), keepdims=0)
        classes = op.Range(op.Constant(value_int=0), op.Add(last, op.Constant(value_int=1)), op.Constant(value_int=1))
        own = op.Equal(op.Unsqueeze(classes, number(1)), op.Unsqueeze(labels, number(0)))  # (C + 1, K)
        kept = op.NonMaxSuppression(
            op.Unsqueeze(boxes, number(0)),
            op.Unsqueeze(op.Where(own, op.Unsqueeze(scores, number(0)), op.Constant(value_float=0.0)), number(0)),
            number(MANY),
            op.Constant(value_floats=[iou]),
            op.Constant(value_floats=[0.0]),
        )
        places = op.Gather(kept, op.Constant(value_int=2), axis=1)  # of batch, class and place; class by class
        in_order, _ = op.TopK(places, op.Shape(places), largest=0)
        return in_order

    return class_nms
