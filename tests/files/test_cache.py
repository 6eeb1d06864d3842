"""Caches evict the least recently used files first and never touch the user's own."""

from __future__ import annotations

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mltr.cli import main
from mltr.errors import MltrError
from mltr.files.cache import Cache, part_of


def filled(size: int):
    """Return a function that makes a file of `size` bytes."""

    def make(path: Path) -> None:
        part_of(path).write_bytes(bytes(size))
        part_of(path).replace(path)

    return make


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_files_longest_unused_make_room_and_foreign_ones_stay(tmp_path: Path) -> None:
    foreign = ["old.tar", "set/train-000000-0123456789ab.tar", "set/.x.lock", "squashed-24-00.u8"]
    for name in foreign:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(1000))
        age(tmp_path / name, 10_000)
    cache = Cache(tmp_path, 100)
    for number in range(3):
        cache.get(f"set/{number}.tar", 30, filled(30))
        age(tmp_path / "set" / f"{number}.tar", 100 - number)
    cache.get("set/0.tar", 30, filled(30))  # used again
    cache.get("other/3.tar", 40, filled(40))
    expected = {*foreign, "made.json", "set/0.tar", "set/2.tar", "other/3.tar"}
    assert names(tmp_path) == expected
    assert cache.kept()[0].path == tmp_path / "set" / "2.tar"
    assert cache.clear() == 100
    assert names(tmp_path) == set(foreign)


@pytest.mark.parametrize("record", [["../mine", "set/../../mine"], None, 3, {"x": "y"}])
def test_a_record_that_names_files_elsewhere_is_not_believed(
    tmp_path: Path, record: object
) -> None:
    folder, mine = tmp_path / "cache", tmp_path / "mine"
    folder.mkdir()
    mine.write_bytes(bytes(50))
    listed = dict.fromkeys([*record, str(mine)], 50) if isinstance(record, list) else record
    (folder / "made.json").write_text(json.dumps(listed))
    Cache(folder, 10).get("a", 10, filled(10))
    Cache(folder).clear()
    assert mine.stat().st_size == 50


def test_of_many_one_makes_a_file_and_no_locks_are_left(tmp_path: Path) -> None:
    made = []

    def make(path: Path) -> None:
        made.append(path)
        time.sleep(0.1)
        filled(10)(path)

    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(lambda _: Cache(tmp_path).get("a", 10, make), range(8)))
    assert paths == {tmp_path / "a"}
    assert len(made) == 1
    assert names(tmp_path) == {"a", "made.json"}


def test_what_is_being_made_is_not_deleted_and_what_was_given_up_is(tmp_path: Path) -> None:
    cache, begun, go_on = Cache(tmp_path, 100), threading.Event(), threading.Event()

    def slowly(path: Path) -> None:
        part_of(path).write_bytes(bytes(20))
        age(part_of(path), 10_000)
        begun.set()
        go_on.wait(20)
        filled(60)(path)

    thread = threading.Thread(target=cache.get, args=("slow", 60, slowly))
    thread.start()
    begun.wait(20)
    cache.get("next", 90, filled(90))
    assert part_of(tmp_path / "slow").is_file()
    cache.get("last", 30, filled(30))  # `slow` counts with its final 60 bytes, so `next` must go
    assert not (tmp_path / "next").exists()
    go_on.set()
    thread.join()
    assert names(tmp_path) == {"slow", "last", "made.json"}

    def broken(path: Path) -> None:
        part_of(path).write_bytes(bytes(20))
        raise MltrError("the server has gone")

    with pytest.raises(MltrError, match="has gone"):
        cache.get("half", 50, broken)
    assert part_of(tmp_path / "half").is_file()  # another attempt resumes from it
    age(part_of(tmp_path / "half"), 10_000)
    cache.get("new", 70, filled(70))
    assert not part_of(tmp_path / "half").exists()


def test_the_command_lists_and_deletes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["cache"]) == 0
    assert "0.0 MB in total" in capsys.readouterr().out
    folder = tmp_path / "mltr" / "photos"
    Cache(folder).get("squashed-24-ab.u8", 5_000_000, filled(5_000_000))
    (folder / "mine.u8").touch()
    assert main(["cache"]) == 0
    printed = capsys.readouterr().out
    assert "squashed-24-ab.u8" in printed
    assert "mine.u8" not in printed
    assert "5.0 MB in total; delete it with --clear" in printed
    assert main(["cache", "--clear"]) == 0
    assert "deleted 5.0 MB" in capsys.readouterr().out
    assert names(folder) == {"mine.u8"}
    assert main(["cache", "--clear", "--folder", str(folder)]) == 2
    assert "is not a cache" in capsys.readouterr().err
