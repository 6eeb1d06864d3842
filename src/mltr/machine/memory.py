"""How much memory a process may have, and settings of the C library's allocator."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")

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


def memory_bytes(groups: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """Return this machine's memory, or what its container or job may have, if that is less.

    Linux tells the limit in `memory.max` of the process's control group and of those above it, or,
    in version 1, in `memory.limit_in_bytes`.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        lines = own.read_text().splitlines()
    except OSError:  # another system
        return memory
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers in ("", "memory"):
            top = groups / controllers
            file = "memory.limit_in_bytes" if controllers else "memory.max"
            place = top / name.lstrip("/")
            for folder in (place, *place.parents):
                if folder.is_relative_to(top):
                    memory = min(memory, _limit(folder / file) or memory)
    return memory


def _limit(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # not there, or `max`
        return None
