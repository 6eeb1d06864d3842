"""Settings of the C library's allocator."""

from __future__ import annotations

import ctypes
import os

# Constants from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_SETTINGS = (
    "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_ARENA_MAX"
)  # fmt: skip


def keep_freed_memory(of_all_threads: bool = False) -> bool:
    """Make glibc keep freed memory for reuse; return whether it will.

    By default glibc returns freed blocks above 32 MB to the system at once. The next training step
    on a CPU then faults them in again page by page, which slows down the matrix products that fill
    them (docs/performance.md says by how much). The process keeps its peak size but never exceeds
    it. `of_all_threads` is for networks that run in another thread than the main one: those share
    its memory, as far as they are started later, rather than have arenas of at most 64 MB. Does
    nothing with other C libraries, or if the environment already sets one of
    MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_MAX_, MALLOC_MMAP_THRESHOLD_ and MALLOC_ARENA_MAX.
    """
    if any(name in os.environ for name in _SETTINGS):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc; Windows has no CDLL(None)
        return False
    if of_all_threads:
        mallopt(_ARENA_MAX, 1)
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, -1))
