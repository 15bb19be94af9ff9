"""ResNet with a feature pyramid, from torchvision's parts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from doublehead.config import BackboneConfig
from doublehead.errors import DoubleheadError
from doublehead.model.trunks import group_norm

NORMS: dict[str, Callable[..., nn.Module]] = {
    "frozen": FrozenBatchNorm2d,
    "batch": nn.BatchNorm2d,
    "group": group_norm,
}
STAGES = (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))


def build_backbone(config: BackboneConfig, pretrained: bool) -> BackboneWithFPN:
    """ResNet-FPN giving maps "0".."3" (P2..P5) and "pool" (P6), `config.fpn_channels` wide.

    Args:
        config: depth, norm, weights and frozen stages.
        pretrained: whether to fetch `config.weights`; False where a checkpoint will fill the layers.
    """
    from_scratch = config.weights is None
    body: Any = torchvision.models.get_model(
        config.name, weights=None, norm_layer=NORMS[config.norm], zero_init_residual=from_scratch
    )
    if pretrained and config.weights is not None:
        _load(body, config.name, config.weights)
    for stage in STAGES[: 5 - config.trainable_stages]:
        for layer in stage:
            getattr(body, layer).requires_grad_(False)
    widths = [body.fc.in_features // 2**i for i in (3, 2, 1, 0)]
    return BackboneWithFPN(
        body,
        return_layers={f"layer{i + 1}": str(i) for i in range(4)},
        in_channels_list=widths,
        out_channels=config.fpn_channels,
        extra_blocks=LastLevelMaxPool(),
        norm_layer=group_norm if config.norm == "group" else None,
    )


def _load(body: nn.Module, name: str, weights: str) -> None:
    """Fill the ResNet with ImageNet weights, from torchvision or from a file.

    Raises:
        DoubleheadError: the weights cannot be fetched or read, or are of another network.
    """
    if weights == "imagenet":
        entry = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
        try:
            state = entry.get_state_dict(progress=True, check_hash=True)
        except (OSError, RuntimeError) as error:
            raise DoubleheadError(
                f"ImageNet weights could not be downloaded from {entry.url} ({error}); fetch that file by hand and "
                "give its path as model.backbone.weights, or set model.backbone.weights=null to train from scratch"
            ) from error
    else:
        state = _read(Path(weights))
    state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    try:
        missing, unexpected = body.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise DoubleheadError(f"model.backbone.weights={weights}: these are not weights of a {name}") from error
    missing = [k for k in missing if not k.startswith("fc.") and not k.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise DoubleheadError(
            f"model.backbone.weights={weights}: these are not weights of a {name} with this norm "
            f"(missing: {missing[:3]}, left over: {unexpected[:3]})"
        )


def _read(path: Path) -> dict[str, Tensor]:
    """A state dict from a .safetensors or .pth file; code in a pickle never runs."""
    if not path.is_file():
        raise DoubleheadError(f"model.backbone.weights={path}: there is no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
            raise ValueError("it holds no state dict")
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise DoubleheadError(f"model.backbone.weights={path}: cannot be read as weights ({reason})") from error
    return state
