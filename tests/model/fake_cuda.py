"""CUDA tensors without values, on any machine: a tensor of another device fails among them as it would on a card."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import doublehead.model.postprocess  # noqa: F401  registers its operator, and torchvision's

FEW = 5
"""How many boxes NMS keeps."""


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Tensors made within are fakes, on the device that they are asked for."""
    with FakeTensorMode(allow_non_fake_inputs=False), _SomeValues():
        yield


def backward(loss: Tensor) -> None:
    """Walk the graph of a loss in Python: torch's own engine asks the driver of a card for a context."""
    given: dict[Any, dict[int, Tensor]] = {loss.grad_fn: {0: torch.ones_like(loss)}}
    for node in _in_order(loss.grad_fn):
        gradients = given.pop(node, {})
        if hasattr(node, "variable"):
            node.variable.grad = gradients[0]
            continue
        run = node if callable(node) else node.apply  # autograd functions written in Python have the latter
        found = run(*[gradients.get(i) for i in range(len(node._input_metadata))])
        found = found if isinstance(found, tuple) else (found,)
        for (target, i), gradient in zip(node.next_functions, found, strict=False):  # more: of what takes none
            if target is not None and gradient is not None:
                wanted = target._input_metadata[i]
                assert gradient.device == wanted.device
                gradient = gradient.sum_to_size(tuple(wanted.shape))
                sums = given.setdefault(target, {})
                sums[i] = sums[i] + gradient if i in sums else gradient


def _in_order(last: Any) -> list[Any]:
    """The nodes of a graph, each after all that it takes gradients from."""
    done, seen, path = [], {last}, [(last, iter(last.next_functions))]
    while path:
        node, rest = path[-1]
        following = next((n for n, _ in rest if n is not None and n not in seen), None)
        if following is None:
            done.append(node)
            path.pop()
        else:
            seen.add(following)
            path.append((following, iter(following.next_functions)))
    return done[::-1]


class _SomeValues(TorchDispatchMode):
    """Answers operators whose result depends on values, which fakes do not have."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _ANSWERS:
            return _ANSWERS[func](*args, **kwargs)
        if func in _INDEXING:
            return func(args[0], [part for index in args[1] for part in _places(index)], *args[2:], **kwargs)
        return func(*args, **kwargs)


def _indices(found: Tensor, *others: Any) -> Tensor:
    """As many indices as NMS might leave of these boxes."""
    return found.new_empty(min(len(found), FEW), dtype=torch.int64)


def _nonzero(x: Tensor) -> Tensor:
    """All of them, so that the parts of a mask find as many as the whole."""
    return x.new_empty((x.numel(), x.dim()), dtype=torch.int64)


def _number(x: Tensor) -> bool | int | float:
    return {torch.bool: True, torch.int64: 1}.get(x.dtype, 0.5)


def _places(index: Tensor | None) -> list[Tensor | None]:
    """A mask as indices, one for each of its dimensions."""
    if index is None or index.dtype != torch.bool:
        return [index]
    return list(_nonzero(index).unbind(1))


_ANSWERS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.nonzero.default: _nonzero,
    torch.ops.aten._local_scalar_dense.default: _number,
    torch.ops.torchvision.nms.default: _indices,
    torch.ops.doublehead.class_nms.default: _indices,
}
_INDEXING = (torch.ops.aten.index.Tensor,)
