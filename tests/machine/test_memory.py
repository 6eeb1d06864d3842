"""Freed memory stays with the process, so that reusing it causes no page faults."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

BLOCKS = """
import resource, sys
from concurrent.futures import ThreadPoolExecutor
from mltr.machine.memory import keep_freed_memory
kept = sys.argv[1] != "leave" and keep_freed_memory(of_all_threads=sys.argv[1] == "keep-all")

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(100_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def in_a_thread():
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(faults).result()

where = in_a_thread if sys.argv[2:] else faults
where()
print(kept, where())
"""


def second_block(*mode: str, **environment: str) -> tuple[bool, int]:
    """Return whether memory is kept, and the page faults of allocating a freed block again."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", BLOCKS, *mode],
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


def test_so_is_one_that_another_thread_has_freed():
    kept, faults = second_block("keep-all", "in a thread")
    if not kept:
        pytest.skip("this C library isn't glibc")
    assert faults < 100
    assert second_block("leave", "in a thread")[1] > 10_000


def test_what_the_environment_says_is_left_alone():
    assert second_block("keep", MALLOC_MMAP_THRESHOLD_="65536") == (
        False,
        pytest.approx(24_400, rel=0.1),
    )
