"""The backbone: a body with feature maps of strides 4, 8, 16 and 32, and a feature pyramid on top."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from doublehead.common.errors import DoubleheadError
from doublehead.common.tables import imported
from doublehead.config import BackboneConfig, FPNConfig
from doublehead.model.norms import NORMS
from doublehead.model.parts import BACKBONES
from doublehead.model.recompute import recomputed
from doublehead.model.weights import read_weights

COUNTER = "num_batches_tracked"


class Body(nn.Module):
    """Base class of the networks in BACKBONES: images to feature maps of the row's strides, such as 4, 8, 16, 32.

    Subclasses are constructed with a BackboneConfig.

    Attributes:
        channels: channels of the maps.
        multiple: image sides are padded to a multiple of this.
    """

    channels: tuple[int, ...]
    multiple: int = 32

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images (N, 3, H, W) to feature maps, largest first."""
        raise NotImplementedError

    def stages(self) -> list[list[nn.Module]]:
        """Return the layers of the five stages, stem first, which `trainable_stages` freezes."""
        raise NotImplementedError

    def load(self, weights: str) -> None:
        """Load weights into the body.

        Args:
            weights: a name that the body supports, such as `imagenet`, or a path.

        Raises:
            DoubleheadError: the weights cannot be downloaded or read, or belong to another network.
        """
        raise NotImplementedError


class Backbone(nn.Module):
    """A body with torchvision's feature pyramid: maps "0".."3" (P2..P5), or one per map of the body, and "pool" (P6).

    Args:
        config: the body, its weights and frozen stages.
        fpn: channels and norm of the pyramid.
        pretrained: whether to load `config.weights`; False if a checkpoint will be loaded.

    Attributes:
        recompute: whether to use gradient checkpointing in the body, which saves memory in training.

    Raises:
        DoubleheadError: the weights cannot be downloaded or read, or do not fit.
    """

    def __init__(self, config: BackboneConfig, fpn: FPNConfig, pretrained: bool) -> None:
        super().__init__()
        self.recompute = False
        self.body: Body = imported(BACKBONES[config.name].body)(config)
        if pretrained and config.weights is not None:
            self.body.load(config.weights)
        stages = self.body.stages()
        for stage in stages[: len(stages) - config.trainable_stages]:
            for layer in stage:
                layer.requires_grad_(False)
        self.fpn = FeaturePyramidNetwork(
            list(self.body.channels), fpn.channels, LastLevelMaxPool(), _pyramid_norm(config, fpn)
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised images (N, 3, H, W), padded to `body.multiple`, to maps of strides such as 4, 8, 16, 32 and 64."""
        again = self.recompute and self.training and torch.is_grad_enabled()
        with recomputed(chain(*self.body.stages())) if again else nullcontext():
            maps = self.body(images)
        return self.fpn({str(i): features for i, features in enumerate(maps)})


def _pyramid_norm(config: BackboneConfig, fpn: FPNConfig) -> Any:
    name = ("group" if config.norm == "group" else "none") if fpn.norm == "auto" else fpn.norm
    return None if name == "none" else NORMS[name]


def read_file(weights: str) -> dict[str, Tensor]:
    """Read the weights in the file that `model.backbone.weights` names.

    Raises:
        DoubleheadError: the file is missing, damaged, or would run code.
    """
    try:
        state, _ = read_weights(Path(weights))
    except DoubleheadError as error:
        raise DoubleheadError(f"model.backbone.weights={error}") from error
    return state


def torchvisions_weights(model: str) -> dict[str, Tensor]:
    """Download torchvision's ImageNet weights of one of its models.

    Raises:
        DoubleheadError: they cannot be downloaded.
    """
    entry = torchvision.models.get_model_weights(model)["IMAGENET1K_V1"]
    try:
        return dict(entry.get_state_dict(progress=True, check_hash=True))
    except (OSError, RuntimeError) as error:
        raise DoubleheadError(
            f"ImageNet weights could not be downloaded from {entry.url} ({error}); fetch that file by hand and give "
            "its path as model.backbone.weights, or set model.backbone.weights=null to train from scratch"
        ) from error


def fill(body: nn.Module, state: dict[str, Tensor], weights: str, network: str) -> None:
    """Load weights into a body. All keys must match, except for batch counters.

    Args:
        body: the network to fill.
        state: weights under the body's keys.
        weights: value of `model.backbone.weights`, for messages.
        network: name of the expected network, for messages.

    Raises:
        DoubleheadError: the weights belong to another network.
    """
    wrong = f"model.backbone.weights={weights}: these are not weights of a {network}"
    state = {key: value for key, value in state.items() if not key.endswith(COUNTER)}
    try:
        missing, unexpected = body.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise DoubleheadError(wrong) from error
    missing = [key for key in missing if not key.endswith(COUNTER)]
    if missing or unexpected:
        raise DoubleheadError(f"{wrong} with this norm (missing: {missing[:3]}, unexpected: {unexpected[:3]})")
