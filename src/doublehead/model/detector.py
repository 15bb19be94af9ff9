"""The detector: images to features, features to proposals, proposals to detections."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import nms
from torchvision.transforms.v2 import functional as images_v2

from doublehead.common.device import float32_by_default
from doublehead.config import InferenceOptions, ModelConfig, RPNConfig, inference_options
from doublehead.model.anchors import ANCHORS
from doublehead.model.backbone import Backbone
from doublehead.model.boxes import Edges, Size
from doublehead.model.branches import at_least_float32
from doublehead.model.matching import PairMatcher
from doublehead.model.postprocess import kept_by_class_nms
from doublehead.model.roi_heads import RoIHeads
from doublehead.model.rpn_gradient import rpn_outputs

Target = dict[str, Tensor]


@dataclass(frozen=True)
class FirstStage:
    """Features and proposals of a batch of images: the input of the branches."""

    levels: list[Tensor]  # P2..P5
    proposals: list[Tensor]  # per image, (N, 4) xyxy in input pixels
    sizes: list[Any]  # per image, (height, width) of its part of the input: numbers; of canvases, tensors ()
    ratios: list[Tensor]  # per image, (4,): pixels of the original image per input pixel, for x, y, x, y


class Detector(nn.Module):
    """A two-stage detector whose box head consists of branches.

    Args:
        config: the architecture.
        classes: number of classes C without the background.
        pretrained: whether to load `config.backbone.weights`.

    Raises:
        DoubleheadError: the weights of the backbone cannot be downloaded or do not fit.
    """

    mean: Tensor
    std: Tensor

    @float32_by_default()
    def __init__(self, config: ModelConfig, classes: int, pretrained: bool = False) -> None:
        super().__init__()
        self.config = config
        self.options = inference_options(config)
        self.backbone = Backbone(config.backbone, config.fpn, pretrained)
        self.edges = Edges(config.inclusive_pixels)
        self.rpn = build_rpn(config.rpn, config.fpn.channels, self.edges, config.strides)
        self.roi_heads = RoIHeads(config, classes)
        self.register_buffer(
            "mean", torch.tensor(config.input.mean, dtype=torch.float32).view(3, 1, 1), persistent=False
        )
        self.register_buffer("std", torch.tensor(config.input.std, dtype=torch.float32).view(3, 1, 1), persistent=False)

    def losses(self, images: list[Tensor], targets: list[Target]) -> dict[str, Tensor]:
        """Compute losses, to be summed, of images resized for training. Works in training and in inference mode.

        Args:
            images: RGB, uint8 (3, H, W) in 0..255 or float in 0..1.
            targets: per image, `boxes` (M, 4) float32 xyxy pixels and `labels` (M,) int64 in 1..C.
        """
        targets = [{k: target[k].to(self.mean.device) for k in ("boxes", "labels")} for target in targets]
        batch, features = self._features(images)
        return self._losses(batch, features, targets)

    def _losses(self, batch: ImageList, features: OrderedDict[str, Tensor], targets: list[Target]) -> dict[str, Tensor]:
        proposals, rpn_losses = self.rpn(batch, features, targets)
        result = {
            "rpn_classify": rpn_losses["loss_objectness"],
            "rpn_regress": rpn_losses["loss_rpn_box_reg"],
        }
        return result | self.roi_heads.losses(_levels(features), proposals, targets, batch.image_sizes)

    @torch.no_grad()
    def detect(self, images: list[Tensor], options: InferenceOptions | None = None) -> list[dict[str, Tensor]]:
        """Detect objects; boxes are in pixels of the original images.

        Args:
            images: RGB of any sizes, uint8 (3, H, W) in 0..255 or float in 0..1.
            options: inference options; None: the model's defaults.

        Returns:
            Per image `boxes` (D, 4) float32 xyxy, `scores` (D,) in falling order, `labels` (D,) int64 in 1..C.
        """
        return self.second_stage(self.first_stage(images, options), options) if images else []

    @torch.no_grad()
    def detect_with_losses(
        self, images: list[Tensor], targets: list[Target], options: InferenceOptions | None = None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Compute detections as in `detect` and losses as in `losses`, in one pass through the backbone.

        Args:
            images: RGB of any sizes, at least one.
            targets: per image, boxes and labels as in `losses`, in pixels of the original images.
            options: inference options; None: the model's defaults.
        """
        batch, features, ratios = self._resized_features(images, options)
        detections = self.second_stage(self._proposed(batch, features, ratios), options)
        resized = [
            {"boxes": target["boxes"].to(ratio) / ratio, "labels": target["labels"].to(ratio.device)}
            for target, ratio in zip(targets, ratios, strict=True)
        ]
        return detections, self._losses(batch, features, resized)

    @torch.no_grad()
    def first_stage(self, images: list[Tensor], options: InferenceOptions | None = None) -> FirstStage:
        """Resize images of any sizes and compute features and proposals: everything before the branches."""
        return self._proposed(*self._resized_features(images, options))

    def _proposed(self, batch: ImageList, features: OrderedDict[str, Tensor], ratios: list[Tensor]) -> FirstStage:
        proposals, _ = self.rpn(batch, features)
        return FirstStage(_levels(features), proposals, batch.image_sizes, ratios)

    def _resized_features(
        self, images: list[Tensor], options: InferenceOptions | None
    ) -> tuple[ImageList, OrderedDict[str, Tensor], list[Tensor]]:
        """Padded batch of resized images, its feature maps, and per image the original pixels per input pixel (4,)."""
        size = options or self.options
        images = [image.to(self.mean.device) for image in images]  # a card resizes faster than the CPU
        resized = [resize(image, size.short_side, size.long_side, self.config.input.antialias) for image in images]
        batch, features = self._features(resized)
        level = features["0"]
        dtype, device = level.dtype, level.device  # `new_tensor` does not export
        ratios = [
            torch.tensor([image.shape[-1] / width, image.shape[-2] / height], dtype=dtype, device=device).repeat(2)
            for image, (height, width) in zip(images, batch.image_sizes, strict=True)
        ]
        return batch, features, ratios

    @torch.no_grad()
    def second_stage(self, stage: FirstStage, options: InferenceOptions | None = None) -> list[dict[str, Tensor]]:
        """Run the branches and return detections as `detect` does."""
        results = self.roi_heads.detections(stage.levels, stage.proposals, stage.sizes, options or self.options)
        for result, ratio in zip(results, stage.ratios, strict=True):
            result["boxes"] = self.edges.rescale(result["boxes"], ratio)
        return results

    def use_fixed_sizes(self) -> None:
        """Make all sizes independent of the detections; `first_stage_of_canvases` gives a fixed number of proposals."""
        rpn: Any = self.rpn
        rpn.fixed_sizes = True
        for head in self.roi_heads.each:
            head.pooler.fixed_sizes = True

    @torch.no_grad()
    def first_stage_of_canvases(self, canvases: Tensor, sizes: Tensor) -> FirstStage:
        """As `first_stage`, for resized images in canvases of one size.

        Args:
            canvases: RGB uint8 (N, 3, H, W), H and W multiples of `backbone.body.multiple`; each holds an image in its
                top left corner.
            sizes: (N, 2) height and width of the images.
        """
        rows, columns = (torch.arange(side, device=sizes.device) for side in canvases.shape[-2:])
        inside = (rows[:, None] < sizes[:, 0, None, None]) & (columns < sizes[:, 1, None, None])  # (N, H, W)
        pixels = (unit_range(canvases, self.mean.dtype) - self.mean) / self.std
        batch = torch.where(inside[:, None], pixels, 0.0)
        of_each = [(size[0], size[1]) for size in sizes.to(self.mean.dtype)]
        images: Any = ImageList(batch, of_each)  # sizes are numbers elsewhere
        return self._proposed(images, self._maps(batch), [self.mean.new_ones(4)] * len(of_each))

    def forward(self, images: list[Tensor], targets: list[Target] | None = None) -> object:
        """Call `losses` if targets are given, else `detect`. Entry point for DistributedDataParallel."""
        return self.detect(images) if targets is None else self.losses(images, targets)

    def _features(self, images: list[Tensor]) -> tuple[ImageList, OrderedDict[str, Tensor]]:
        """Padded batch and maps P2..P6 in at least 32 bits: anchors take their type, and bf16 would move them."""
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        multiple = self.backbone.body.multiple
        height, width = (padded(max(side), multiple) for side in zip(*sizes, strict=True))
        on_device = [unit_range(image.to(self.mean.device), self.mean.dtype) for image in images]
        batch = torch.stack(
            [
                pad((image - self.mean) / self.std, (0, width - w, 0, height - h))
                for image, (h, w) in zip(on_device, sizes, strict=True)
            ]
        )
        return ImageList(batch, sizes), self._maps(batch)

    def _maps(self, batch: Tensor) -> OrderedDict[str, Tensor]:
        """P2..P6, not in 16 bits (anchors take the maps' type: bf16 would move them)."""
        return OrderedDict((name, at_least_float32(f)) for name, f in self.backbone(batch).items())


class _RPNHead(RPNHead):
    """torchvision's RPN head with outputs in at least 32 bits, from which proposals are decoded and sorted.

    On CPUs, the gradient is only computed at positions where it is not zero.
    """

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        if torch.is_grad_enabled() and x[0].device.type == "cpu":
            last: Any = self.conv[-1]
            hidden = [self.conv[:-1](level) for level in x]
            outputs = [rpn_outputs(level, last[0], self.cls_logits, self.bbox_pred) for level in hidden]
            logits, deltas = (list(each) for each in zip(*outputs, strict=True))
        else:
            logits, deltas = super().forward(x)
        return [at_least_float32(t) for t in logits], [at_least_float32(t) for t in deltas]


def _pair(objects: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    return objects, anchors


class _RPN(RegionProposalNetwork):
    """torchvision's RPN, with proposals clipped by our box convention, and NMS per level, which can be exported.

    Attributes:
        fixed_sizes: whether it always gives the same number of proposals, filled up with empty boxes.
    """

    def __init__(self, edges: Edges, smallest_side: float, matcher: PairMatcher, *parts: Any, **numbers: Any) -> None:
        super().__init__(*parts, **numbers)
        self.edges = edges
        self.min_size = smallest_side
        # torchvision hands one's result to the other: here the boxes themselves, which are matched in parts.
        own: Any = self
        own.box_similarity, own.proposal_matcher = _pair, matcher
        self.fixed_sizes = False

    def forward(
        self, images: ImageList, features: dict[str, Tensor], targets: list[Target] | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Compute proposals, and losses if targets are given, in training and in inference mode."""
        before, self.training = self.training, targets is not None
        try:
            return super().forward(images, features, targets)
        finally:
            self.training = before

    def filter_proposals(
        self, proposals: Tensor, objectness: Tensor, image_shapes: list[tuple[int, int]], anchors_per_level: list[int]
    ) -> tuple[list[Tensor], list[Tensor]]:
        scores = objectness.detach().view(len(proposals), -1)
        boxes, found = [], []
        for p, s, size in zip(proposals, scores, image_shapes, strict=True):
            levels = zip(p.split(anchors_per_level), s.split(anchors_per_level), strict=True)
            kept = [self._best_of_level(*level, size) for level in levels]
            score = torch.cat([score for _, score in kept])
            score, best = score.topk(torch.sym_min(score.shape[0], self.post_nms_top_n()))
            box = torch.cat([box for box, _ in kept])[best]
            boxes.append(torch.where(score[:, None] > 0, box, 0.0) if self.fixed_sizes else box)
            found.append(score)
        return boxes, found

    def _best_of_level(self, boxes: Tensor, logits: Tensor, size: Size) -> tuple[Tensor, Tensor]:
        """Boxes and scores of one level's best anchors after NMS; with fixed sizes dropped ones have score 0."""
        scores, best = logits.topk(torch.sym_min(logits.shape[0], self.pre_nms_top_n()))
        boxes, scores = self.edges.clip(boxes[best], size), scores.sigmoid()
        good = ((boxes[:, 2:] - boxes[:, :2]) >= self.min_size).all(1)
        if self.score_thresh:
            good &= scores >= self.score_thresh
        if self.fixed_sizes:
            scores = torch.where(good, scores, 0.0)
            kept = kept_by_class_nms(boxes, scores, torch.zeros_like(best), self.nms_thresh, 1)
            return boxes, torch.where(kept, scores, 0.0)
        places = torch.where(good)[0]
        keep = places[nms(boxes[places], scores[places], self.nms_thresh)]
        return boxes[keep], scores[keep]


def build_rpn(config: RPNConfig, channels: int, edges: Edges, strides: tuple[int, ...]) -> RegionProposalNetwork:
    """Build the region proposal network, on maps of these strides and one of twice the last."""
    return _RPN(
        edges,
        config.smallest_side,
        PairMatcher(config.foreground_iou, config.background_iou, best_of_each=True),
        ANCHORS[config.anchors](config.sizes, config.aspect_ratios, (*strides, 2 * strides[-1])),
        _RPNHead(channels, config.anchors_per_position, config.depth),
        config.foreground_iou,
        config.background_iou,
        config.sampled,
        config.positive_fraction,
        {"training": config.before_nms_training, "testing": config.before_nms_inference},
        {"training": config.proposals_training, "testing": config.proposals_inference},
        config.nms_iou,
        score_thresh=config.score_threshold,
    )


def resize(image: Tensor, short_side: int, long_side: int, antialias: bool) -> Tensor:
    """Resize an image (3, H, W) to the short side, or smaller if the long side would exceed its limit."""
    height, width = image.shape[-2:]
    size = input_size(height, width, short_side, long_side)
    if not torch.compiler.is_exporting():
        return images_v2.resize(image, size, antialias=antialias)
    # What torch does to uint8 on CPUs in one call: columns, then rows, each rounded. Runtimes round in their own ways.
    result, size = image[None].float(), [_unknown(side) for side in size]
    for step in ([height, size[1]], size):
        result = (interpolate(result, step, mode="bilinear", antialias=antialias) + 0.5).floor()
    return result[0].to(torch.uint8)


def input_size(height: int, width: int, short_side: int, long_side: int) -> list[Any]:
    """Height and width of an image after resizing, before padding; see `resize`."""
    short: Any = torch.sym_min(height, width)  # as the builtins, for sizes that an exporter does not know either
    long: Any = torch.sym_max(height, width)
    return [
        torch.sym_max(1, torch.sym_min(_ratio(side * short_side, short), _ratio(side * long_side, long)))
        for side in (height, width)
    ]


def padded(side: int, multiple: int) -> int:
    """Side of an input, in pixels, after padding to a multiple."""
    return (side + multiple - 1) // multiple * multiple


def _ratio(numerator: int, denominator: int) -> int:
    """Quotient rounded half to even, in integer arithmetic, so that exported graphs compute the same size as Python."""
    below = numerator // denominator
    return (2 * numerator + denominator - 1 + below % 2) // (2 * denominator)


def _unknown(side: int) -> Any:
    """The same number, opaque to the exporter, which would otherwise spend minutes on its formula."""
    number = torch.scalar_tensor(side, dtype=torch.int64).item()
    torch._check(number >= 1)
    return number


def unit_range(image: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert uint8 to float in 0..1; float stays unchanged."""
    return image.to(dtype) / 255 if image.dtype == torch.uint8 else image


def _levels(features: OrderedDict[str, Tensor]) -> list[Tensor]:
    """Levels P2..P5, from which RoIs are pooled: all but the extra level of the pyramid."""
    return list(features.values())[:-1]
