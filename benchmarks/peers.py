"""The models compared, made alike: one backbone, one RPN, one input size, so that only the heads differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from benchmarks.measure import BenchmarkSettings
from doublehead.common.device import PRECISIONS
from doublehead.common.errors import DoubleheadError
from doublehead.config import ModelConfig, merge
from doublehead.model.branches import at_least_float32
from doublehead.model.detector import Detector
from doublehead.model.optimize import compiled, for_inference
from doublehead.model.postprocess import fuse
from doublehead.model.presets import preset_values

TORCHVISION = "torchvision Faster R-CNN"
CLASSES = 80


@dataclass(frozen=True)
class Variant:
    """What a case runs."""

    row: str | None  # of the variants' table; None: torchvision's Faster R-CNN
    changes: Mapping[str, Any] = field(default_factory=dict)  # to its settings, as nested keys
    precision: str = "fp32"
    ready: bool = True  # prepared as `doublehead.load` and training do: folded norms, channels last
    compiled: bool = False
    recompute: bool = False  # `train.checkpoint_backbone`
    file: str = ""  # ending of the file that runs in its place (`benchmarks.formats`); empty: the model itself


@dataclass
class Peer:
    """A model, and where to look into it. Both kinds are called with images, or with images and targets."""

    name: str
    model: Any  # Detector or FasterRCNN, which name their parts alike: backbone, rpn, roi_heads
    variant: Variant
    classifiers: list[nn.Linear]
    fuse: Callable[[list[Tensor]], Tensor]  # logits (N, C + 1) of each classifier to scores (N, C + 1)
    threshold: float  # scores above it are candidate detections
    box_layer: nn.Linear  # computes the deltas that become boxes; if boxes are averaged, the last such layer
    head: Any  # what draws proposals for the loss
    sampler: str  # the attribute of it that does

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context in which it computes."""
        precision = PRECISIONS[self.variant.precision]
        return torch.autocast(device.type, precision, enabled=precision is not None)


def build_peers(
    variants: Mapping[str, Variant],
    settings: BenchmarkSettings,
    device: torch.device,
    changes: Mapping[str, Any],
    learn: bool,
) -> list[Peer]:
    """torchvision's Faster R-CNN and the variants chosen, with random weights and the same backbone and RPN.

    Args:
        variants: what there is to choose from.
        settings: which of them, and on what images.
        device: where they go.
        changes: to the settings of all models, as nested keys.
        learn: whether they are to be trained, or to detect.

    Raises:
        DoubleheadError: `settings.cases` names none of the variants.
    """
    chosen = {TORCHVISION: Variant(None)} | _chosen(variants, settings.cases)
    peers = []
    first: dict[str, dict[str, Tensor]] = {}
    with torch.random.fork_rng(devices=[]):
        for name, variant in chosen.items():
            torch.manual_seed(0)  # the same layers in the same order: the same weights for the same variant
            config = _config(variant.row or "single-fc", settings, merge(dict(changes), dict(variant.changes)))
            model: Any = Detector(config, CLASSES) if variant.row else _torchvision(config)
            for part in ("backbone", "rpn"):
                state = first.setdefault(part, _damped(getattr(model, part).state_dict()))
                getattr(model, part).load_state_dict(state)
            peers.append(_peer(name, _made_ready(model.to(device), variant, device, learn), variant))
    return peers


def _damped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weaken each bottleneck's residual: with random weights, the maps of 33 of them would overflow."""
    return {name: value / 4 if name.endswith("bn3.weight") else value for name, value in state.items()}


def of_detector(name: str, model: Detector, variant: Variant) -> Peer:
    """One of ours as a peer."""
    head, options = model.roi_heads.last, model.options
    branches = list(head)
    classifiers, box_layer = (
        [branches[i].classifier for i in head.score_branches(options)],
        branches[head.box_branches(options)[-1]].regressor,
    )
    assert box_layer is not None
    return Peer(
        name,
        model,
        variant,
        [classifier for classifier in classifiers if classifier is not None],
        lambda logits: fuse([at_least_float32(x).softmax(1) for x in logits], options.fusion),
        options.score_threshold,
        box_layer,
        head,
        "sampler",
    )


def _peer(name: str, model: Any, variant: Variant) -> Peer:
    if isinstance(model, Detector):
        return of_detector(name, model, variant)
    heads = model.roi_heads
    predictor = heads.box_predictor
    return Peer(
        name,
        model,
        variant,
        [predictor.cls_score],
        lambda logits: logits[0].float().softmax(-1),
        heads.score_thresh,
        predictor.bbox_pred,
        heads,
        "fg_bg_sampler",
    )


def _made_ready(model: Any, variant: Variant, device: torch.device, learn: bool) -> Any:
    """As our commands would use it; torchvision's is left as it comes."""
    if learn and variant.recompute:
        model.backbone.recompute = True
    if learn:
        return model.to(memory_format=torch.channels_last) if variant.row and variant.ready else model
    if variant.row and variant.ready:
        model = for_inference(model, device, PRECISIONS[variant.precision])
    return compiled(model) if variant.compiled else model.eval()


def _torchvision(config: ModelConfig) -> FasterRCNN:
    """torchvision's `fasterrcnn_resnet50_fpn` as it is with trained weights, before they are loaded.

    That function, given no weights, would build BatchNorm and train all of the backbone; frozen norms and three
    trainable stages are what it has otherwise. Numbers not given here are torchvision's, which are ours.
    """
    backbone, rpn, roi = config.backbone, config.rpn, config.roi
    return FasterRCNN(
        resnet_fpn_backbone(backbone_name=backbone.name, weights=None, trainable_layers=backbone.trainable_stages),
        num_classes=CLASSES + 1,
        min_size=config.input.short_side,
        max_size=config.input.long_side,
        rpn_pre_nms_top_n_train=rpn.before_nms_training,
        rpn_pre_nms_top_n_test=rpn.before_nms_inference,
        rpn_post_nms_top_n_train=rpn.proposals_training,
        rpn_post_nms_top_n_test=rpn.proposals_inference,
        box_batch_size_per_image=roi.sampled,
        box_positive_fraction=roi.positive_fraction,
        box_detections_per_img=roi.detections,
    )


def _chosen(variants: Mapping[str, Variant], wanted: tuple[str, ...]) -> dict[str, Variant]:
    """The variants called by a name or by a part of it, or all where nothing is wanted."""

    def meant(name: str) -> bool:
        return any(word == name or (word not in variants and word.lower() in name.lower()) for word in wanted)

    chosen = {name: variant for name, variant in variants.items() if not wanted or meant(name)}
    if not chosen:
        raise DoubleheadError(f"--cases {' '.join(wanted)}: no case is called so; there are: {'; '.join(variants)}")
    return chosen


def _config(row: str, settings: BenchmarkSettings, changes: dict[str, Any]) -> ModelConfig:
    """The R-50 preset of a variant without weights, for images of just this size."""
    values = merge(preset_values(f"{row}-r50"), {"backbone": {"weights": None}})
    sides = {"short_side": min(settings.shape), "long_side": max(settings.shape)}
    return ModelConfig.model_validate(merge(merge(values, {"input": sides}), changes))
