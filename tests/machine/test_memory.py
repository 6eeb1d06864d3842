"""Freed memory stays with the process, so that reusing it causes no page faults."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

BLOCKS = """
import resource, sys
from mltr.machine.memory import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else False

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(100_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(kept, faults())
"""


def second_block(mode: str, **environment: str) -> tuple[bool, int]:
    """Return whether memory is kept, and the page faults of allocating a freed block again."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", BLOCKS, mode],
        env=plain | environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


def test_a_freed_block_is_used_again_without_a_page_fault():
    kept, faults = second_block("keep")
    if not kept:
        pytest.skip("this C library isn't glibc")
    assert faults < 100
    assert second_block("leave")[1] > 10_000


def test_what_the_environment_says_is_left_alone():
    assert second_block("keep", MALLOC_MMAP_THRESHOLD_="65536") == (
        False,
        pytest.approx(24_400, rel=0.1),
    )
