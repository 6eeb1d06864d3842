"""What becomes of memory that a computation has done with."""

from __future__ import annotations

import ctypes
import os

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_")


def keep_freed_memory() -> bool:
    """Have the C library keep what this process frees, for its next step; tell whether it will.

    glibc gives blocks above 32 MB back to the system at once. A step of training on a CPU then
    takes them anew, page by page, which slows the products down that fill them (docs/performance.md
    says how much). The process stays as large as it ever was, no larger. Other C libraries
    are left alone, and so is what the environment sets.
    """
    if any(name in os.environ for name in _SETTINGS):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc; on Windows there is no CDLL(None)
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, -1))
