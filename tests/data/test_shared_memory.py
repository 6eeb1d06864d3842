"""Where /dev/shm is small, as in containers: batches come all the same, and it is said."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from making import write_image

LOAD = """
import logging, resource, sys
from pathlib import Path
import numpy as np, torch
from mltr.data import ImageDataset, Preprocess, Record, Split, make_loader
logging.basicConfig(format="%(message)s")
paths = sorted(Path(sys.argv[1]).glob("*.png"))
records = [Record(path, path.name, np.array([1, -1], np.int8)) for path in paths]
records.append(Record(Path("gone.png"), "gone.png", np.ones(2, np.int8)))
dataset = ImageDataset(Split(("a", "b"), records), Preprocess(64))
plain = list(make_loader(dataset, 4))
if sys.argv[2] != "mounted":
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
loader = make_loader(dataset, 4, workers=2)
for epoch in range(2):
    for one, other in zip(plain, loader.epoch(epoch), strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.targets, other.targets)
        assert torch.equal(one.indices, other.indices)
        assert torch.equal(one.broken, other.broken)
        assert one.errors == other.errors
print("workers", loader.loader.num_workers)
"""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for index in range(22):
        write_image(tmp_path / f"{index}.png", seed=index)
    return tmp_path


def load(photos: Path, limit: str, *prefix: str) -> subprocess.CompletedProcess[str]:
    command = [*prefix, sys.executable, "-c", LOAD, str(photos), limit]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
@pytest.mark.parametrize(("limit", "warns"), [(10_000_000, False), (20_000, True)])
def test_images_that_find_no_shared_memory_come_through_pipes(
    photos: Path, limit: int, warns: bool
) -> None:
    """No file may be larger than the limit, also none in shared memory; a batch has 49 kB."""
    done = load(photos, str(limit))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "workers 2\n"
    assert done.stderr.count("/dev/shm is full: images come through pipes") == warns


def test_a_temporary_folder_of_a_long_name_slows_down_and_does_not_hang(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sockets, by which workers hand over memory, are files of at most 107 bytes in it."""
    folder = photos / ("long" * 30)
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    done = load(photos, str(10_000_000))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "workers 2\n"
    assert done.stderr.count("too long a name for sockets: images come through pipes") == 1


@pytest.mark.parametrize(
    ("size", "workers", "words"),
    [("64k", 0, "the main process loads the images"), ("200k", 2, "images come through pipes")],
)
def test_a_small_dev_shm_slows_down_and_does_not_hang(
    photos: Path, size: str, workers: int, words: str
) -> None:
    mount = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"'
    inside = ("unshare", "-rm", "sh", "-c", mount, "sh")
    if (
        not shutil.which("unshare")
        or subprocess.run([*inside, "true"], capture_output=True).returncode
    ):
        pytest.skip("needs a mount namespace of its own (unshare -rm)")
    done = load(photos, "mounted", *inside)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"workers {workers}\n"
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
