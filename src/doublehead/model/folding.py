"""Folding of norms with fixed statistics into the preceding convolutions, in any network.

A forward pass finds the norm of each convolution: a norm is folded if its input is the tensor that a convolution
returned, and nothing else reads that tensor. Names and nesting of the modules do not matter.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torchvision.ops import FrozenBatchNorm2d

from doublehead.model.norms import BatchRenorm, FrozenNorm

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d, FrozenNorm, BatchRenorm)
"""Exact types: a subclass may do more than normalise."""


class _Watch(TorchFunctionMode):
    """Record in a forward pass what each convolution returns, and what reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[nn.Module] = Counter()
        self.outputs: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # by id; held, so that no other gets it
        self.norms: dict[int, list[nn.Module]] = {}  # by the id of their input
        self.others: set[int] = set()  # what is read outside of a norm
        self.within = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.within:
            self.read((args, kwargs))
        return func(*args, **(kwargs or {}))

    def read(self, values: Any) -> None:
        """Record tensors that are read by anything but a norm."""
        self.others |= {id(leaf) for leaf in tree_leaves(values) if id(leaf) in self.outputs}

    def convolved(self, conv: nn.Module, args: Any, output: Tensor) -> None:
        """After a convolution."""
        assert isinstance(conv, nn.Conv2d)
        self.calls[conv] += 1
        self.outputs[id(output)] = conv, output

    def enter(self, norm: nn.Module, args: Any) -> None:
        """Before a norm."""
        self.calls[norm] += 1
        self.within += 1
        self.norms.setdefault(id(args[0]), []).append(norm)

    def leave(self, norm: nn.Module, args: Any, output: Tensor) -> None:
        """After a norm."""
        self.within -= 1

    def pairs(self) -> list[tuple[nn.Conv2d, nn.Module]]:
        """Pairs of a convolution and the norm that alone reads its output."""
        return [
            (conv, norms[0])
            for key, (conv, _) in self.outputs.items()
            if key not in self.others
            and len(norms := self.norms.get(key, [])) == 1
            and self.calls[conv] == self.calls[norms[0]] == 1
        ]


def fold_norms(module: nn.Module, *inputs: Tensor) -> None:
    """Fold norms with fixed statistics into the preceding convolutions. Outputs stay the same.

    Args:
        module: network in inference mode.
        inputs: small inputs for one forward pass.
    """
    watch, hooks = _Watch(), []
    for layer in module.modules():
        if type(layer) is nn.Conv2d:
            hooks.append(layer.register_forward_hook(watch.convolved))
        elif type(layer) in NORMS and getattr(layer, "running_var", None) is not None:
            hooks += [layer.register_forward_pre_hook(watch.enter), layer.register_forward_hook(watch.leave)]
    with torch.no_grad(), watch:
        watch.read(module(*inputs))
    for hook in hooks:
        hook.remove()
    folded = {norm for conv, norm in watch.pairs() if _fold(conv, norm)}
    for parent in list(module.modules()):
        for name, child in parent._modules.items():
            if child in folded:
                parent._modules[name] = nn.Identity()


def _fold(conv: nn.Conv2d, norm: Any) -> bool:
    """Fold a norm into a convolution, if it has as many channels and no hooks that change its weights."""
    if conv.out_channels != len(norm.running_var) or conv._forward_pre_hooks or conv._forward_hooks:
        return False
    statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    weight, bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics)
    conv.weight, conv.bias = weight.requires_grad_(False), bias.requires_grad_(False)
    return True
