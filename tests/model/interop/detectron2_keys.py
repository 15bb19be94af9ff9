"""The keys and shapes of detectron2's published files."""

from __future__ import annotations

import torch
from torch import Tensor

STAGES = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
FPN = 256


def published_keys(
    depth: int, classes: int = 80, baseline: bool = False, counted: bool = True, width: int = 64
) -> dict[str, Tensor]:
    """The keys and shapes of `faster_rcnn_R_<depth>_FPN`, as its layers give them.

    Args:
        depth: 50 or 101.
        classes: without the background.
        baseline: those of `mask_rcnn_R_<depth>_FPN_100ep_LSJ` instead: SyncBN everywhere, two convolutions in the RPN,
            four convolutions and one layer in the box head, and a mask head.
        counted: whether norms that learn count their batches.
        width: of the stem.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, inputs: int, outputs: int, kernel: int) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs, kernel, kernel)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.norm.{part}"] = (outputs,)
        if baseline and counted:
            shapes[f"{name}.norm.num_batches_tracked"] = ()

    def plain(name: str, *weight: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = weight, weight[:1]

    body = "backbone.bottom_up"
    conv(f"{body}.stem.conv1", 3, width, 7)
    inputs = width
    for stage, blocks in enumerate(STAGES[depth]):
        inner = width * 2**stage
        for block in range(blocks):
            name = f"{body}.res{stage + 2}.{block}"
            if block == 0:
                conv(f"{name}.shortcut", inputs, 4 * inner, 1)
            conv(f"{name}.conv1", inputs, inner, 1)
            conv(f"{name}.conv2", inner, inner, 3)
            conv(f"{name}.conv3", inner, 4 * inner, 1)
            inputs = 4 * inner
        if baseline:
            conv(f"backbone.fpn_lateral{stage + 2}", 4 * inner, FPN, 1)
            conv(f"backbone.fpn_output{stage + 2}", FPN, FPN, 3)
        else:
            plain(f"backbone.fpn_lateral{stage + 2}", FPN, 4 * inner, 1, 1)
            plain(f"backbone.fpn_output{stage + 2}", FPN, FPN, 3, 3)
    for name in (".conv0", ".conv1") if baseline else ("",):
        plain(f"proposal_generator.rpn_head.conv{name}", FPN, FPN, 3, 3)
    plain("proposal_generator.rpn_head.objectness_logits", 3, FPN, 1, 1)
    plain("proposal_generator.rpn_head.anchor_deltas", 12, FPN, 1, 1)
    plain("roi_heads.box_head.fc1", 1024, FPN * 49)
    if baseline:
        for n in range(1, 5):
            conv(f"roi_heads.box_head.conv{n}", FPN, FPN, 3)
            conv(f"roi_heads.mask_head.mask_fcn{n}", FPN, FPN, 3)
    else:
        plain("roi_heads.box_head.fc2", 1024, 1024)
    plain("roi_heads.box_predictor.cls_score", classes + 1, 1024)
    plain("roi_heads.box_predictor.bbox_pred", 4 * classes, 1024)
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def published_cascade_keys(depth: int, classes: int = 80) -> dict[str, Tensor]:
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
    return first_stage | {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
