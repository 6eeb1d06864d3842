"""Locks on run folders and outputs: messages name the holder, and stale locks are removed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from making import train, write_image

from mltr.cli import main
from mltr.errors import MltrError
from mltr.files.locks import locked_folder, locked_output

HOLD = """
import sys, time
from pathlib import Path
from mltr.files.locks import locked_folder
sys.argv = ["mltr", "train", "scratch"]
with locked_folder(Path({!r})):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Start another process that holds the folder `run`."""
    code = HOLD.format(str(tmp_path / "run"))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        yield other
        other.kill()


def test_a_second_training_in_a_folder_names_the_first(
    holder: subprocess.Popen[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    for options in ([], ["--auto-resume"], ["--overwrite"]):
        assert train(run, *options) == 1
        told = capsys.readouterr().err
        assert f"{run} is being written by `mltr train scratch` (process {holder.pid} on " in told
        assert told.count("\n") == 1
    assert [path.name for path in run.iterdir()] == [".lock"]


@pytest.mark.parametrize(
    "command", [["shard", "photos"], ["data", "get", "voc2007"], ["demo", "--quick"]]
)
def test_other_commands_that_fill_a_folder_wait_for_nobody_either(
    holder: subprocess.Popen[str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, command: list[str],
) -> None:  # fmt: skip
    for index in range(20):
        write_image(tmp_path / "photos" / "ab"[index % 2] / f"{index}.png")
    monkeypatch.chdir(tmp_path)
    assert main([*command, "--out", "run"]) == 1
    assert f"run is being written by `mltr train scratch` (process {holder.pid}" in (
        capsys.readouterr().err
    )
    assert [path.name for path in Path("run").iterdir()] == [".lock"]


def test_a_killed_holder_no_longer_counts_even_before_its_parent_has_noticed(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
    with locked_folder(tmp_path / "run"):
        assert (tmp_path / "run" / ".lock").is_file()
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


def change(lock: Path, **fields: object) -> None:
    lock.write_text(json.dumps(json.loads(lock.read_text()) | fields))


def test_another_process_of_the_same_number_is_another(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    change(tmp_path / "run" / ".lock", started=1.0)
    with locked_folder(tmp_path / "run"):
        pass


def test_a_lock_of_another_machine_counts_as_long_as_it_is_renewed(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    lock = tmp_path / "run" / ".lock"
    change(lock, place="elsewhere", host="node7", process=1)
    told = pytest.raises(MltrError, match=r"process 1 on node7.*try again in 1[12]\d s")
    with told, locked_folder(tmp_path / "run"):
        pass
    long_ago = time.time() - 121
    os.utime(lock, (long_ago, long_ago))
    with locked_folder(tmp_path / "run"):
        assert json.loads(lock.read_text())["process"] == os.getpid()


def test_what_a_lock_says_reaches_a_terminal_in_one_harmless_line(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    change(tmp_path / "run" / ".lock", command="mltr \x1b[2J\n" + 500 * "x", host="a\nb\x1b")
    with pytest.raises(MltrError) as told, locked_folder(tmp_path / "run"):
        pass
    assert str(told.value).isprintable()
    assert len(str(told.value)) < 400


@pytest.mark.parametrize("content", ["", "{", "[]", '{"process": 1}'])
def test_a_lock_cut_off_by_a_crash_holds_for_a_moment(tmp_path: Path, content: str) -> None:
    lock = tmp_path / ".table.csv.lock"
    lock.write_text(content)
    with pytest.raises(MltrError, match="just started"), locked_output(tmp_path / "table.csv"):
        pass
    os.utime(lock, (1, 1))
    with locked_output(tmp_path / "table.csv"):
        pass
    assert not list(tmp_path.iterdir())


def test_of_many_that_find_an_abandoned_lock_one_gets_it_at_a_time(tmp_path: Path) -> None:
    holders, most = [], []

    def hold(number: int) -> None:
        try:
            with locked_output(tmp_path / "table.csv"):
                holders.append(number)
                time.sleep(0.05)
                most.append(len(holders))
                holders.remove(number)
        except MltrError:
            pass

    for _ in range(20):
        lock = tmp_path / ".table.csv.lock"
        lock.write_text("")
        os.utime(lock, (1, 1))
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(hold, range(8)))
        assert not list(tmp_path.iterdir())
    assert len(most) >= 20
    assert set(most) == {1}


def test_a_training_that_fails_at_once_leaves_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", "--data.root=nowhere", "--data.format=coco") != 0
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").touch()
    assert train(tmp_path / "file") == 2
    assert "is a file; --out must be a folder" in capsys.readouterr().err


def test_a_name_that_is_no_text_is_refused_before_anything_is_trained(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / os.fsdecode(b"run\xff")) == 2
    assert "isn't valid UTF-8" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())
