"""What memory there is; freed memory stays, so that reusing it causes no page faults."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mltr.machine.memory import memory_bytes

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


@pytest.mark.parametrize(
    ("own", "file"),
    [("0::/job/step", "memory.max"), ("4:memory:/job/step", "memory/memory.limit_in_bytes")],
)
def test_the_memory_of_a_job_is_its_limit(own: str, file: str, tmp_path: Path) -> None:
    everything = memory_bytes(tmp_path, tmp_path / "absent")
    (tmp_path / "cgroup").write_text(f"1:cpu:/\n{own}\n")
    assert memory_bytes(tmp_path, tmp_path / "cgroup") == everything > 0
    folder, name = (tmp_path / file).parent, Path(file).name
    for place, limit in (("", everything + 1), ("job", 2_000_000_000), ("job/step", "max")):
        (folder / place).mkdir(parents=True, exist_ok=True)
        (folder / place / name).write_text(f"{limit}\n")
    assert memory_bytes(tmp_path, tmp_path / "cgroup") == min(everything, 2_000_000_000)
