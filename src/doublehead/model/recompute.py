"""Gradient checkpointing: activations inside blocks are recomputed in the backward pass instead of being stored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def recomputed(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Context that stores only the inputs of blocks and runs them again in the backward pass (Chen et al. 2016).

    A `Sequential` counts as its children. Single operations are not recomputed: this would save no memory, and an
    in-place operation would change the stored input.

    Args:
        layers: parts of a model that run in sequence.
    """
    blocks = [block for layer in layers for block in (layer if isinstance(layer, nn.Sequential) else [layer])]
    blocks = [block for block in blocks if any(True for _ in block.children())]
    for block in blocks:
        block.forward = partial(_checkpointed, block, block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # the class's own again: a copy of the model must not call this block


def _checkpointed(block: nn.Module, forward: Any, *inputs: Any) -> Any:
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=partial(_contexts, block))


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), same_buffers(block)  # the first pass updates the statistics


@contextmanager
def same_buffers(module: nn.Module) -> Iterator[None]:
    """Context in which forward passes leave running statistics of a module unchanged."""
    before = [buffer.clone() for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(module.buffers(), before, strict=True):
                buffer.copy_(value)
