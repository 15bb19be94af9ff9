"""Variants: a box head is a tuple of branches, and every system of the paper is one row of a table.

A row determines the layers (weight 0: no such predictor), the losses (the weights) and the inference rule (scores of
all classifying branches are fused; boxes come from the branch with the largest regress weight, or are averaged).
"""

from __future__ import annotations

from doublehead.model.parts import BranchConfig


def _fc(classify: float, regress: float) -> BranchConfig:
    return BranchConfig(trunk="fc", classify=classify, regress=regress)


def _conv(classify: float, regress: float) -> BranchConfig:
    return BranchConfig(trunk="conv", classify=classify, regress=regress)


VARIANTS: dict[str, tuple[BranchConfig, ...]] = {
    "single-fc": (_fc(1.0, 1.0),),
    "single-conv": (_conv(1.0, 1.0),),
    "single-convfc": (BranchConfig(trunk="convfc", classify=1.0, regress=1.0),),
    "double-fc": (_fc(1.0, 0.0), _fc(0.0, 1.0)),
    "double-conv": (_conv(1.0, 0.0), _conv(0.0, 1.0)),
    "double-head-reverse": (_conv(2.5, 0.0), _fc(0.0, 2.0)),
    "double-head": (_fc(2.0, 0.0), _conv(0.0, 2.5)),
    "double-head-ext": (_fc(1.4, 0.6), _conv(0.5, 2.0)),
    "double-head-fused": (_fc(2.0, 2.0), _conv(0.0, 2.5)),
}
"""The paper's sections 4 and 5.1; weights are w_fc = 2.0 and w_conv = 2.5 divided by l_fc and l_conv.

Two are not in the paper. `single-convfc` is the box head of torchvision's second Faster R-CNN and of detectron2's new
baselines. `double-head-fused` is a double-head whose fc-head also predicts boxes; its boxes are the average."""

AVERAGED = frozenset({"double-head-fused"})
"""Variants whose boxes are the average of all regressing branches (`roi.box_fusion`)."""
