"""How many threads a network runs on."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def told_threads() -> int:
    """Return how many threads OMP_NUM_THREADS sets for a network, 0 if it sets none."""
    outermost = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(outermost) if outermost.isdecimal() else 0


@contextmanager
def on_one_thread() -> Iterator[None]:
    """Have torch, if it is imported, compute on the calling thread alone, within the context.

    For what is done before another thread runs the network. OpenMP gives each thread that computes
    on several cores helpers of its own, which stay. GNU's lets helpers wait busily only as long as
    there are no more threads than cores, and a network is faster with that.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def settle_threads() -> None:
    """Fix how many threads torch, if it is imported, has when called from this thread.

    Otherwise MKL is free to give helpers up between products. Together with `on_one_thread`, this
    makes `mltr predict` with PyTorch 1.1 times as fast.
    """
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(torch.get_num_threads())
