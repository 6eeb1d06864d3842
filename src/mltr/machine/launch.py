"""What `torchrun` and `accelerate launch` tell each process that they start."""

from __future__ import annotations

import os


def launched_processes() -> int:
    """Return how many processes were started together, this one included."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched_rank() -> int:
    """Return the number of this process among them; the main one, 0, writes, logs and prints."""
    return int(os.environ.get("RANK", "0"))
