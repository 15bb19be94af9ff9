"""The thread that runs the model: what it keeps of a batch that failed, and errors that last."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch

from doublehead.common.faults import is_lasting
from doublehead.deploy.server.batcher import Batcher


class Memory:
    """What a batch allocates."""


def test_nothing_of_a_failed_batch_is_kept_while_its_images_are_tried_again() -> None:
    kept: list[weakref.ref[Memory]] = []
    alive_at_retry: list[bool] = []

    def run(images: Any, choices: Any) -> list[Any]:
        if len(images) > 1:
            memory = Memory()
            kept.append(weakref.ref(memory))
            raise torch.OutOfMemoryError("out of memory")
        gc.collect()
        alive_at_retry.append(kept[0]() is not None)
        return ["answer"]

    batcher = Batcher(run, 3, 5.0, lambda size, seconds: None)
    promises = [batcher.submit(torch.zeros(3, 4, 4), None) for _ in range(3)]
    assert [promise.result(10) for promise in promises] == ["answer"] * 3
    assert alive_at_retry == [False] * 3
    batcher.close()


def test_an_error_of_the_device_that_lasts_is_remembered() -> None:
    calls = []

    def run(images: Any, choices: Any) -> list[Any]:
        calls.append(len(images))
        raise RuntimeError("CUDA error: device-side assert triggered")

    batcher = Batcher(run, 2, 5.0, lambda size, seconds: None)
    promises = [batcher.submit(torch.zeros(3, 4, 4), None) for _ in range(2)]
    for promise in promises:
        with pytest.raises(RuntimeError, match="device-side assert"):
            promise.result(10)
    assert "device-side assert" in batcher.broken
    assert calls == [2]  # trying again would meet the same
    batcher.close()


@pytest.mark.parametrize(
    ("error", "lasting"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered"), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), False),
        (RuntimeError("CUDA error: out of memory"), False),
        (ValueError("an image of no size"), False),
    ],
)
def test_which_errors_last(error: Exception, lasting: bool) -> None:
    assert is_lasting(error) == lasting
