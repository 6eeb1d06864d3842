"""Settings of the C library's allocator."""

from __future__ import annotations

import ctypes
import os

# Constants from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_")


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory for reuse; return whether it will.

    By default glibc returns freed blocks above 32 MB to the system at once. The next training step
    on a CPU then faults them in again page by page, which slows down the matrix products that fill
    them (docs/performance.md says by how much). The process keeps its peak size but never exceeds
    it. Does nothing with other C libraries, or if the environment already sets one of
    MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_MAX_ and MALLOC_MMAP_THRESHOLD_.
    """
    if any(name in os.environ for name in _SETTINGS):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc; Windows has no CDLL(None)
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, -1))
