"""Choice of device and number format."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from math import inf
from time import thread_time

import torch

from doublehead.common.errors import DoubleheadError

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
SIDE, ROUNDS = 512, 10
"""Side of the matrices multiplied to compare bf16 with float32 on CPUs, and repetitions."""
KINDS = ("cpu", "cuda")
"""Supported kinds of devices. MPS, for example, lacks float64, which NMS needs."""


def pick_device(name: str = "auto") -> torch.device:
    """Return the device of a name; `auto` is CUDA if a card is available, else the CPU.

    Raises:
        DoubleheadError: the device is unknown, not supported or not available; the sentence says why.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DoubleheadError(f'Device "{name}" is unknown: use auto, cpu, cuda or a card such as cuda:1.') from error
    if device.type not in KINDS:
        raise DoubleheadError(f'Device "{name}" is not supported: use {" or ".join(KINDS)}.')
    cause = _cause(device)
    if cause:
        raise DoubleheadError(f'Device "{name}" is not available: {cause}. Use --device auto or cpu.')
    return device


def _cause(device: torch.device) -> str:
    """Why a device cannot be used; "" if it can."""
    if device.type == "cuda" and not torch.cuda.is_available():
        return "no CUDA device found" if torch.version.cuda else "this PyTorch is built without CUDA"
    count = torch.cuda.device_count() if device.type == "cuda" else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        return f"only {count} CUDA device{'s' * (count != 1)} found"
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return ""


def pick_precision(name: str, device: torch.device) -> torch.dtype | None:
    """Return the type to autocast to, or None for float32.

    `auto` is bf16 on CUDA cards that support it natively, and on CPUs that do and multiply matrices faster in it.

    Raises:
        DoubleheadError: the precision is unknown.
    """
    if name not in ("auto", *PRECISIONS):
        raise DoubleheadError(f"precision {name} is not known; use {', '.join(PRECISIONS)} or auto")
    if name == "auto":
        name = "bf16" if (_cuda_has_bf16() if device.type == "cuda" else _cpu_gains_by_bf16()) else "fp32"
    return PRECISIONS[name]


def _cuda_has_bf16() -> bool:
    return torch.cuda.is_bf16_supported(including_emulation=False)  # cards before Ampere emulate it, slowly


@cache
def _cpu_gains_by_bf16() -> bool:
    """Multiply matrices in both: among processors with AVX512-BF16, some are twice as fast in bf16, others half."""
    if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return False
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # and its own time alone: other processes may be at work
    try:
        matrices = {precision: torch.ones(SIDE, SIDE, dtype=precision) for precision in (torch.float32, torch.bfloat16)}
        seconds = dict.fromkeys(matrices, inf)
        for _ in range(ROUNDS):
            for precision, matrix in matrices.items():
                began = thread_time()
                matrix @ matrix
                seconds[precision] = min(seconds[precision], thread_time() - began)
        return seconds[torch.bfloat16] < seconds[torch.float32]
    finally:
        torch.set_num_threads(threads)


@contextmanager
def float32_by_default() -> Iterator[None]:
    """Build modules and draw random numbers as under torch's own default type, whatever the program has set.

    The default belongs to the whole process: this is for what one thread does alone. What computes names its types.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
