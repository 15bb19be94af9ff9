"""The keys and shapes of published cascades: MMDetection's Cascade R-CNN, detectron2's Cascade Mask R-CNN."""

from __future__ import annotations

import torch
from detectron2_keys import STAGES, published_keys
from torch import Tensor


def meta(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def mmdetections(depth: int, classes: int = 80) -> dict[str, Tensor]:
    """The keys and shapes of `cascade_rcnn_r<depth>_fpn`, as its layers give them."""
    shapes: dict[str, tuple[int, ...]] = {}

    def plain(name: str, *weight: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = weight, weight[:1]

    def conv(name: str, norm: str, *weight: int) -> None:
        shapes[f"{name}.weight"] = weight
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{part}"] = weight[:1]
        shapes[f"{norm}.num_batches_tracked"] = ()

    conv("backbone.conv1", "backbone.bn1", 64, 3, 7, 7)
    inputs = 64
    for stage, blocks in enumerate(STAGES[depth]):
        inner = 64 * 2**stage
        for block in range(blocks):
            name = f"backbone.layer{stage + 1}.{block}"
            conv(f"{name}.conv1", f"{name}.bn1", inner, inputs, 1, 1)
            conv(f"{name}.conv2", f"{name}.bn2", inner, inner, 3, 3)
            conv(f"{name}.conv3", f"{name}.bn3", 4 * inner, inner, 1, 1)
            if block == 0:
                conv(f"{name}.downsample.0", f"{name}.downsample.1", 4 * inner, inputs, 1, 1)
            inputs = 4 * inner
        plain(f"neck.lateral_convs.{stage}.conv", 256, 4 * inner, 1, 1)
        plain(f"neck.fpn_convs.{stage}.conv", 256, 256, 3, 3)
    plain("rpn_head.rpn_conv", 256, 256, 3, 3)
    plain("rpn_head.rpn_cls", 3, 256, 1, 1)
    plain("rpn_head.rpn_reg", 12, 256, 1, 1)
    for stage in range(3):
        head = f"roi_head.bbox_head.{stage}"
        plain(f"{head}.shared_fcs.0", 1024, 256 * 49)
        plain(f"{head}.shared_fcs.1", 1024, 1024)
        plain(f"{head}.fc_cls", classes + 1, 1024)
        plain(f"{head}.fc_reg", 4, 1024)
    return meta(shapes)


def detectron2s(depth: int, classes: int = 80) -> dict[str, Tensor]:
    """The keys and shapes of `cascade_mask_rcnn_R_<depth>_FPN`: its box heads, and the head that gives masks."""
    first_stage = {k: v for k, v in published_keys(depth).items() if not k.startswith("roi_heads.")}
    shapes: dict[str, tuple[int, ...]] = {}
    for stage in range(3):
        for name, weight in (
            (f"box_head.{stage}.fc1", (1024, 256 * 49)),
            (f"box_head.{stage}.fc2", (1024, 1024)),
            (f"box_predictor.{stage}.cls_score", (classes + 1, 1024)),
            (f"box_predictor.{stage}.bbox_pred", (4, 1024)),
            *((f"mask_head.mask_fcn{n}", (256, 256, 3, 3)) for n in (1, 2, 3, 4)),
            ("mask_head.deconv", (256, 256, 2, 2)),
            ("mask_head.predictor", (classes, 256, 1, 1)),
        ):
            shapes[f"roi_heads.{name}.weight"], shapes[f"roi_heads.{name}.bias"] = weight, weight[:1]
    return first_stage | meta(shapes)
