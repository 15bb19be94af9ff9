"""Norms are found by what they read, whatever the modules are called and however they nest."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from doublehead.model.folding import fold_norms
from doublehead.model.norms import FrozenNorm


def norm(channels: int = 4, kind: type[nn.Module] = nn.BatchNorm2d) -> nn.Module:
    """With statistics as after training."""
    layer = kind(channels)
    for value in layer.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + 0.5)
    return layer


def conv(inputs: int = 4, outputs: int = 4, **more: object) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **more)  # type: ignore[arg-type]


class Named(nn.Module):
    """Called before it is made, under odd names, one norm for each convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.b_before_a = norm(6, FrozenBatchNorm2d)
        self.deep = nn.ModuleDict({"x": nn.ModuleList([nn.Sequential(conv(4, 6, bias=False))])})
        self.last = nn.Sequential(nn.ReLU(), conv(6, 4, groups=2), norm(), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.b_before_a(self.deep["x"][0](x)))  # type: ignore[index]


class Twice(nn.Module):
    """One convolution with a norm for each level, as some heads share it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norms = conv(), nn.ModuleList([norm(), norm()])

    def forward(self, x: Tensor) -> Tensor:
        return sum(n(self.conv(x)) for n in self.norms)  # type: ignore[return-value]


class SharedNorm(Twice):
    """One norm after two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.norms, self.conv2 = norm(), conv()  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return self.norms(self.conv(x)) + self.norms(self.conv2(x))


class ReadTwice(Twice):
    """The convolution's output also goes around the norm."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norms[0](y) + y


class Returned(Twice):
    """The convolution's output leaves the network too."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        y = self.conv(x)
        return self.norms[0](y), y


class TwoNames(Twice):
    """The same norm is a part of two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([norm()])
        self.again = self.norms[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.conv(x))


class ChangedBetween(Twice):
    def forward(self, x: Tensor) -> Tensor:
        return self.norms[0](self.conv(x).relu_())


class NormThenAct(nn.BatchNorm2d):
    """As timm's: the norm has the activation in itself."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class Standardised(nn.Conv2d):
    """A convolution that computes its weights anew: what is folded into them would be lost."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


CASES = {
    "odd names": (Named, 0),
    "two names": (TwoNames, 0),
    "a convolution called twice": (Twice, 2),
    "a norm called twice": (SharedNorm, 1),
    "read twice": (ReadTwice, 2),
    "returned": (Returned, 2),
    "changed between": (ChangedBetween, 2),
    "a norm with an activation": (lambda: nn.Sequential(conv(), norm(kind=NormThenAct)), 1),
    "weights computed anew": (lambda: nn.Sequential(Standardised(4, 4, 3, padding=1), norm()), 1),
    "the batch's own statistics": (
        lambda: nn.Sequential(conv(), nn.BatchNorm2d(4, track_running_stats=False)),
        1,
    ),
    "norm before convolution": (lambda: nn.Sequential(norm(), conv()), 1),
}


@pytest.mark.parametrize("case", CASES)
def test_what_can_be_folded_is_and_the_network_computes_the_same(case: str) -> None:
    torch.manual_seed(0)
    build, left = CASES[case]
    network = build().double().eval()
    x = torch.randn(2, 4, 9, 7, dtype=torch.float64)
    with torch.no_grad():
        before = network(x)
        fold_norms(network, torch.zeros(1, 4, 8, 8, dtype=torch.float64))
        torch.testing.assert_close(network(x), before)
    assert sum(isinstance(m, (nn.BatchNorm2d, FrozenBatchNorm2d)) for m in network.modules()) == left
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_frozen_norms_are_torchvisions_and_keep_the_type_of_their_input():
    own, theirs = (norm(6, kind) for kind in (FrozenNorm, FrozenBatchNorm2d))
    theirs.load_state_dict(own.state_dict())
    x = torch.randn(2, 6, 5, 4, requires_grad=True)
    torch.testing.assert_close(own(x), theirs(x))
    gradients = [torch.autograd.grad(f(x).square().sum(), x) for f in (own, theirs)]
    torch.testing.assert_close(*gradients)
    assert own(x.bfloat16()).dtype == torch.bfloat16
