"""Memory of the process."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of `mallopt`, from malloc.h."""
MOST = 2**31 - 1


def keep_freed_memory() -> None:
    """Keep freed memory for the next allocation instead of returning it to the system; only glibc supports this.

    By default glibc requests each block of over 32 MB from the system, which clears its pages one by one. The process
    no longer shrinks.
    """
    set_parameter = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_parameter is not None:
        set_parameter(M_MMAP_MAX, 0)
        set_parameter(M_TRIM_THRESHOLD, MOST)
