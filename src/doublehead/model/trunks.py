"""The two trunks of the paper (section 4.1, figure 5): fully connected, and convolutional in blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from doublehead.model.norms import NORMS, Norm
from doublehead.model.parts import ConvFCHeadConfig, ConvHeadConfig, FCHeadConfig


class Trunk(nn.Module):
    """Base class of trunks: RoI features to one vector per proposal, the input of a branch's predictors.

    Subclasses are constructed with (channels, resolution, config, norm): channels and side of the RoI features, the
    trunk's settings, and the name of a norm in NORMS.

    Attributes:
        width: width of the vectors.
    """

    width: int

    def in_parts(self, size: int | None) -> None:
        """Limit how many RoIs are processed at once; None: no limit. Trunks without large maps ignore it."""

    @property
    def compilable(self) -> nn.Module:
        """The part to compile: it has no control flow that depends on the number of RoIs."""
        return self

    def by_position(self, rois: Tensor) -> Tensor | None:
        """Split the output by position: (N, channels, 7, 7) to (N, 49, K). None: not available."""
        return None

    def weights_by_position(self) -> Tensor | None:
        """Return the weights of each position, (1, 49, K). None: positions share their weights."""
        return None


class FCHead(Trunk):
    """The fc-head: flatten, then fully connected layers with ReLU. Every position has its own weights."""

    def __init__(self, channels: int, resolution: int, config: FCHeadConfig, norm: str = "batch") -> None:
        super().__init__()
        self.channels, self.width = channels, config.width
        inputs = [channels * resolution**2] + [config.width] * (config.layers - 1)
        layers = [nn.Linear(i, config.width) for i in inputs]
        for layer in layers:
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)
        self.layers = nn.ModuleList(layers)

    def forward(self, rois: Tensor) -> Tensor:
        """RoI features (N, channels, 7, 7) to (N, width)."""
        x = rois.flatten(1)
        for layer in self.layers:
            x = functional.relu(layer(x))
        return x

    def by_position(self, rois: Tensor) -> Tensor:
        """Contribution of each position to the first layer. Their sum plus the bias is its output before ReLU."""
        return torch.einsum("ncp,ocp->npo", rois.flatten(2), self._first_layer())

    def weights_by_position(self) -> Tensor:
        """Weights of the first layer by position, (1, 49, channels x width)."""
        return self._first_layer().flatten(0, 1).T[None]

    def _first_layer(self) -> Tensor:
        """Weights of the first layer as (width, channels, 49): `flatten` puts channels first."""
        weight = self.layers[0].weight
        assert isinstance(weight, Tensor)
        return weight.unflatten(1, (self.channels, -1))


class ConvFCHead(FCHead):
    """Convolutions of 3x3 with norm and ReLU, then an fc-head (Wu and He, *Group Normalization*, section 4.2)."""

    def __init__(self, channels: int, resolution: int, config: ConvFCHeadConfig, norm: str = "batch") -> None:
        super().__init__(config.conv_width, resolution, config)
        inputs = [channels] + [config.conv_width] * (config.convs - 1)
        self.convs = nn.Sequential(
            *(
                nn.Sequential(_conv(i, config.conv_width, 3), NORMS[norm](config.conv_width), nn.ReLU(inplace=True))
                for i in inputs
            )
        )

    def forward(self, rois: Tensor) -> Tensor:
        """RoI features (N, channels, 7, 7) to (N, width)."""
        return super().forward(self.convs(rois))

    def by_position(self, rois: Tensor) -> Tensor:
        """As in the fc-head, applied after the convolutions."""
        return super().by_position(self.convs(rois))


class ConvHead(Trunk):
    """The conv-head: a list of blocks, then global average pooling. Weights are shared over positions.

    Attributes:
        at_once: maximum RoIs processed at once; None: all.
    """

    at_once: int | None = None

    def __init__(self, channels: int, resolution: int, config: ConvHeadConfig, norm: str = "batch") -> None:
        super().__init__()
        self.width = config.width
        make_norm = NORMS[norm]

        def block(kind: str) -> nn.Module:
            if kind == "up":
                return UpBlock(channels, config.width, make_norm)
            if kind == "bottleneck":
                return BottleneckBlock(config.width, config.bottleneck_width, make_norm, config.zero_init)
            return NonLocalBlock(config.width, config.non_local_width, config.non_local_groups, make_norm)

        self.blocks = nn.Sequential(*(block(kind) for kind in config.blocks))

    def forward(self, rois: Tensor) -> Tensor:
        """RoI features (N, channels, 7, 7) to (N, width)."""
        if self.at_once is None or len(rois) <= self.at_once:
            return self.feature_map(rois).mean((2, 3))
        return torch.cat([self.feature_map(part).mean((2, 3)) for part in rois.split(self.at_once)])

    def feature_map(self, rois: Tensor) -> Tensor:
        """The output before pooling, (N, width, 7, 7)."""
        return self.blocks(rois)

    def by_position(self, rois: Tensor) -> Tensor:
        """The output before pooling, (N, 49, width): what the paper's figure 4 correlates over positions."""
        return self.feature_map(rois).flatten(2).transpose(1, 2)

    def in_parts(self, size: int | None) -> None:
        """Limit how many RoIs are processed at once; None: no limit."""
        self.at_once = size

    @property
    def compilable(self) -> nn.Module:
        """The blocks, which take any number of RoIs."""
        return self.blocks


class UpBlock(nn.Module):
    """Widens the RoI features (figure 6a): 3x3 and 1x1, beside a 1x1 skip."""

    def __init__(self, channels: int, width: int, norm: Norm) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(channels, channels, 3), norm(channels)
        self.conv2, self.norm2 = _conv(channels, width, 1), norm(width)
        self.skip, self.skip_norm = _conv(channels, width, 1), norm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to (N, width, H, W)."""
        y = _relu(self.norm1(self.conv1(x)))
        return _relu(self.norm2(self.conv2(y)) + self.skip_norm(self.skip(x)))


class BottleneckBlock(nn.Module):
    """The residual bottleneck (figure 6b): 1x1 down, 3x3, 1x1 up.

    With `zero_init` its last norm, or where it has none its last convolution, is initialised to zero (Goyal et al.,
    *Accurate, Large Minibatch SGD*, section 5.1), so that it starts as the identity (followed by ReLU).
    """

    def __init__(self, width: int, inner: int, norm: Norm, zero_init: bool = False) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(width, inner, 1), norm(inner)
        self.conv2, self.norm2 = _conv(inner, inner, 3), norm(inner)
        self.conv3, self.norm3 = _conv(inner, width, 1), norm(width)
        if zero_init:
            last = self.conv3 if isinstance(self.norm3, nn.Identity) else self.norm3
            nn.init.zeros_(last.weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, H, W) to the same shape."""
        y = _relu(self.norm1(self.conv1(x)))
        y = _relu(self.norm2(self.conv2(y)))
        return _relu(x + self.norm3(self.conv3(y)))


class NonLocalBlock(nn.Module):
    """Attention over the positions of one RoI (figure 6c), as dot product without softmax, in groups.

    It starts as the identity (followed by ReLU): the output convolution is initialised to zero.
    """

    def __init__(self, width: int, inner: int, groups: int, norm: Norm) -> None:
        super().__init__()
        self.groups = groups
        self.theta = nn.Conv2d(width, inner, 1)
        self.phi = nn.Conv2d(width, inner, 1)
        self.g = nn.Conv2d(width, inner, 1)
        self.out = nn.Conv2d(inner, width, 1)
        self.norm = norm(width)
        for layer in (self.theta, self.phi, self.g):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, H, W) to the same shape."""
        height, width = x.shape[2:]
        three = (self.theta, self.phi, self.g)
        weight, bias = torch.cat([p.weight for p in three]), torch.cat([p.bias for p in three])  # type: ignore[misc]
        projected = functional.conv2d(x, weight, bias)  # one large product instead of three
        # Each (N, groups, inner / groups, H W).
        theta, phi, g = (p.unflatten(1, (self.groups, -1)).flatten(3) for p in projected.chunk(3, 1))
        theta = theta / (height * width)  # before the product, which could pass what float16 holds
        f = theta.transpose(2, 3) @ phi  # (N, groups, H W, H W)
        y = (f @ g.transpose(2, 3)).transpose(2, 3)
        return _relu(x + self.norm(self.out(y.flatten(1, 2).unflatten(2, (height, width)))))


def _relu(x: Tensor) -> Tensor:
    """In-place ReLU for tensors that nothing else reads: allocating memory costs more than the ReLU itself."""
    return functional.relu(x, inplace=True)


def _conv(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    with torch.no_grad():
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer
