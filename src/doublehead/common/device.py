"""Where to compute, and in which number format."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from doublehead.common.errors import DoubleheadError

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name; `auto` is CUDA where there is a card, else the CPU.

    Raises:
        DoubleheadError: there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise DoubleheadError(f"device {name} is not to be had here; use --device auto or cpu") from error
    return device


def pick_precision(name: str, device: torch.device) -> torch.dtype | None:
    """The type to autocast to, or None for plain float32.

    `auto` is bf16 where the device computes in it natively: recent CUDA cards, and CPUs with AVX512-BF16 or AMX.

    Raises:
        DoubleheadError: there is no such precision.
    """
    if name not in ("auto", *PRECISIONS):
        raise DoubleheadError(f"precision {name} is not known; use {', '.join(PRECISIONS)} or auto")
    if name == "auto":
        native = {"cuda": torch.cuda.is_bf16_supported, "cpu": _cpu_has_bf16}.get(device.type, lambda: False)()
        name = "bf16" if native else "fp32"
    return PRECISIONS[name]


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


def _cpu_has_bf16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
