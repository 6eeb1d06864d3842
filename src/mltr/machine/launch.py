"""Environment variables that `torchrun` and `accelerate launch` set in each process."""

from __future__ import annotations

import os


def launched_processes() -> int:
    """Return the number of processes launched together, including this one (the world size)."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def launched_rank() -> int:
    """Return the rank of this process. Rank 0 is the main process: it writes, logs and prints."""
    return int(os.environ.get("RANK") or 0)
