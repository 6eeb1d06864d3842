"""Atomic writes: complete or not at all, never through a link, with the usual permissions."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from mltr.errors import MltrError
from mltr.files.writing import check_target, text_writer, write_atomically, write_together


@pytest.fixture
def umask() -> Iterator[None]:
    previous = os.umask(0o027)
    yield
    os.umask(previous)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return mode and content of each entry of a folder, without following links."""
    return {
        path.name: (path.lstat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in folder.iterdir()
    }


def test_links_are_refused_or_followed_as_requested(tmp_path: Path) -> None:
    victim, link, dangling = tmp_path / "victim", tmp_path / "a.txt", tmp_path / "b.txt"
    victim.write_text("precious")
    link.symlink_to(victim)
    dangling.symlink_to("new")
    before = state(tmp_path)
    for path, leads in ((link, f"to {victim}"), (dangling, "to new")):
        with pytest.raises(MltrError, match=f"can't write {path}: it is a link that leads {leads}"):
            write_atomically(path, text_writer("mine"))
    assert state(tmp_path) == before
    for path in (link, dangling):
        write_atomically(path, text_writer("mine"), follow_links=True)
    assert victim.read_text() == (tmp_path / "new").read_text() == "mine"
    assert link.is_symlink() and dangling.is_symlink()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(MltrError, match="leads in a loop"):
        write_atomically(tmp_path / "loop", text_writer("mine"), follow_links=True)


def test_only_files_are_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    before = state(tmp_path)
    for name, kind in (("pipe", "a pipe"), ("folder", "a folder")):
        with pytest.raises(MltrError, match=f"{name}: {kind} is in its place"):
            write_atomically(tmp_path / name, text_writer("mine"))
    assert state(tmp_path) == before
    with pytest.raises(MltrError, match="/dev/null: a device is in its place"):
        check_target("/dev/null")


def test_names_of_temporary_files_cannot_be_foreseen(tmp_path: Path) -> None:
    seen = []

    def write(path: Path) -> None:
        assert path.parent == tmp_path
        assert path.suffix == ".txt"
        seen.append(path.name)
        path.write_text("mine")

    for _ in range(3):
        write_atomically(tmp_path / "a.txt", write)
    assert len(set(seen)) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_the_longest_of_names_can_be_written(tmp_path: Path) -> None:
    for name in ("a" * 251 + ".txt", "a." + "b" * 253):
        write_atomically(tmp_path / name, text_writer("mine"))
        assert (tmp_path / name).read_text() == "mine"


@pytest.mark.usefixtures("umask")
def test_new_files_have_the_mode_of_any_other(tmp_path: Path) -> None:
    def private(path: Path) -> None:
        """Replace the given file by a new, private one, as some libraries do."""
        path.unlink()
        os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))

    write_together({tmp_path / "a": text_writer(""), tmp_path / "b": private})
    assert mode(tmp_path / "a") == mode(tmp_path / "b") == 0o640


@pytest.mark.parametrize("kept", [0o600, 0o664])
def test_a_replaced_file_keeps_its_mode_and_owner(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "a"
    path.write_text("before")
    path.chmod(kept)
    if os.geteuid() == 0:
        os.chown(path, 12345, 23456)
    before = path.stat()
    write_atomically(path, text_writer("after"))
    after = path.stat()
    assert path.read_text() == "after"
    assert after.st_ino != before.st_ino
    assert (after.st_mode, after.st_uid, after.st_gid) == (
        before.st_mode, before.st_uid, before.st_gid,
    )  # fmt: skip


def test_a_failure_leaves_the_previous_file_and_nothing_else(tmp_path: Path) -> None:
    def fails(path: Path) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    (tmp_path / "a").write_text("before")
    with pytest.raises(MltrError, match="a \\(the previous one is untouched\\): No space left"):
        write_together({tmp_path / "b": text_writer("b"), tmp_path / "a": fails})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "before"}


def test_weights_can_be_read_by_whoever_reads_their_config(tmp_path: Path) -> None:
    from torch import nn

    from mltr.data import Preprocess
    from mltr.weights.bundle import save_bundle

    save_bundle(
        tmp_path, model=nn.Linear(1, 1), name="timm/resnet18", overrides={}, classes=("a",),
        preprocess=Preprocess(32),
    )  # fmt: skip
    assert mode(tmp_path / "model.safetensors") == mode(tmp_path / "config.json")
