"""Devices that are not there, and the precision that a device computes in."""

from __future__ import annotations

import pytest
import torch

from doublehead.common import device
from doublehead.common.device import pick_device, pick_precision
from doublehead.common.errors import DoubleheadError


@pytest.mark.parametrize(("cards", "found"), [(1, "only 1 CUDA device found"), (2, "only 2 CUDA devices found")])
def test_the_sentence_says_how_many_cards_there_are(monkeypatch, cards, found):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    with pytest.raises(DoubleheadError) as error:
        pick_device("cuda:3")
    assert str(error.value).startswith(f'Device "cuda:3" is not available: {found}.')


def test_the_sentence_keeps_the_cause_of_torch(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)

    def fail(*args, **kwargs):
        raise RuntimeError("CUDA error: device is busy\nCompile with ...")

    monkeypatch.setattr(torch, "empty", fail)
    with pytest.raises(DoubleheadError, match="CUDA error: device is busy"):
        pick_device("cuda")


@pytest.mark.parametrize("name", ["mps", "meta", "xpu:0"])
def test_devices_of_other_kinds_are_refused(name):
    with pytest.raises(DoubleheadError, match=f'Device "{name}" is not supported: use cpu or cuda'):
        pick_device(name)


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, None)])
def test_auto_takes_no_emulated_bf16(monkeypatch, native, expected):
    """Cards before Ampere say that they support it, unless asked without emulation."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert pick_precision("auto", torch.device("cuda", 0)) is expected


@pytest.mark.parametrize(("factor", "expected"), [(0.5, torch.bfloat16), (2.0, None)])
def test_auto_takes_bf16_on_cpus_where_it_is_faster(monkeypatch, factor, expected):
    clock = 0.0

    class Timed(torch.Tensor):
        def __matmul__(self, other):
            nonlocal clock
            clock += factor if self.dtype == torch.bfloat16 else 1
            return self

    ones = torch.ones
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch, "ones", lambda *sides, dtype: ones(1, 1, dtype=dtype).as_subclass(Timed))
    monkeypatch.setattr(device, "thread_time", lambda: clock)
    device._cpu_gains_by_bf16.cache_clear()
    assert pick_precision("auto", torch.device("cpu")) is expected
    device._cpu_gains_by_bf16.cache_clear()


def test_auto_is_fp32_on_cpus_without_bf16(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    device._cpu_gains_by_bf16.cache_clear()
    assert pick_precision("auto", torch.device("cpu")) is None
    device._cpu_gains_by_bf16.cache_clear()
