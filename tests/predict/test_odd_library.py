"""Odd photos, odd neighbours, odd places: each costs its own row, or one clear line."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import predicting
import pytest
from making import write_image
from predicting import MeanColour, command, rows_of

from mltr.data import read_csv
from mltr.errors import MltrError, UsageError
from mltr.files.locks import locked_folder, locked_output
from mltr.predict.inputs import Inputs
from mltr.predict.journal import Journal, stamp_of

LONGEST = 255  #: bytes in a name


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(4):
        write_image(tmp_path / "photos" / f"{number}.png", seed=number)
    return tmp_path / "photos"


# Neighbours.


def link_to_a_victim(path: Path) -> None:
    path.symlink_to(path.parents[1] / "victim")


NEIGHBOURS: dict[str, tuple[Callable[[Path], object], str]] = {
    "folder": (Path.mkdir, "a folder is in its place"),
    "pipe": (os.mkfifo, "a pipe is in its place"),
    "loop": (lambda path: path.symlink_to(path.name), "it is a link"),
    "link": (link_to_a_victim, "it is a link"),
    "giant": (lambda path: (path.touch(), os.truncate(path, 10**12)), "has more than 16,000,000"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("options", [["--sidecars"], ["--xmp"], ["--sidecars", "--overwrite"]])
@pytest.mark.parametrize("odd", NEIGHBOURS)
def test_an_odd_neighbour_costs_its_own_row_alone(
    network: MeanColour, photos: Path, tmp_path: Path, odd: str, options: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    make, told = NEIGHBOURS[odd]
    (tmp_path / "victim").write_text("precious")
    name = "1.png.xmp" if "--xmp" in options else "1.txt"
    make(photos / name)
    before = (photos / name).lstat()
    out = tmp_path / "tags.jsonl"
    for words in ([], ["--out", out], ["--out", out]):  # alone, with the network, from the journal
        assert command(photos, *options, *words) == 1
        err = capsys.readouterr().err
        assert "not written: 1 sidecar:" in err
        assert told in err
    rows = {Path(row["path"]).name: row for row in rows_of(out)}
    assert [told in row.get("error", "") for row in rows.values()] == [False, True, False, False]
    assert "labels" in rows["1.png"]
    with Path(f"{out}.errors.csv").open(newline="") as file:
        assert [Path(row["path"]).name for row in csv.DictReader(file)] == ["1.png"]
    for number in (0, 2, 3):
        assert (photos / name.replace("1", str(number), 1)).stat().st_size
    after = (photos / name).lstat()
    assert (after.st_mode, after.st_size, after.st_ino) == (
        before.st_mode, before.st_size, before.st_ino,
    )  # fmt: skip
    assert (tmp_path / "victim").read_text() == "precious"
    assert not [path for path in photos.iterdir() if path.name.startswith(".")]


def test_links_are_followed_if_asked_for(network: MeanColour, photos: Path, tmp_path: Path) -> None:
    for name in ("there.txt", "there.csv"):
        (tmp_path / name).touch()
    (photos / "1.txt").symlink_to("../there.txt")
    (tmp_path / "tags.csv").symlink_to("there.csv")
    with pytest.raises(MltrError, match=r"tags\.csv: it is a link that leads to there\.csv"):
        command(photos, "--out", tmp_path / "tags.csv")
    assert command(photos, "--out", tmp_path / "tags.csv", "--sidecars", "--follow-links") == 0
    assert (photos / "1.txt").is_symlink() and (tmp_path / "tags.csv").is_symlink()
    assert (tmp_path / "there.txt").read_text()
    assert len(rows_of(tmp_path / "there.csv")) == 4


def test_planted_temporary_names_lead_nowhere(
    network: MeanColour, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "victim").write_text("precious")
    for name in (".tmp-1.txt", ".tmp-1.png.xmp", ".tmp-tags.csv"):
        (photos / name).symlink_to("../victim")
    command(photos, "--sidecars", "--xmp", "--out", photos / "tags.csv")
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_name_too_long_for_a_sidecar(network: MeanColour, photos: Path, tmp_path: Path) -> None:
    long = "a" * (LONGEST - len(".png"))
    write_image(photos / "b.png").rename(photos / f"{long}.png")
    out = tmp_path / "tags.csv"
    assert command(photos, "--sidecars", "--out", out) == 0  # photo.txt has the same length
    assert command(photos, "--xmp", "--out", out) == 1
    errors = [row["error"] for row in rows_of(out) if row["error"]]
    assert len(errors) == 1
    assert "File name too long" in errors[0]
    assert len(list(photos.glob("*.txt"))) == 5
    assert len(list(photos.glob("*.xmp"))) == 4


def test_an_xmp_file_keeps_its_mode_and_owner(network: MeanColour, photos: Path) -> None:
    command(photos, "--xmp", "--threshold", 0, "--only", "red")
    path = photos / "1.png.xmp"
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 12345, 23456)
    before = path.stat()
    command(photos, "--xmp", "--threshold", 0, "--overwrite")
    after = path.stat()
    assert b"blue" in path.read_bytes()
    assert [getattr(after, f"st_{what}") for what in ("mode", "uid", "gid")] == [
        getattr(before, f"st_{what}") for what in ("mode", "uid", "gid")
    ]


# Photos.


@pytest.mark.timeout(60)
def test_odd_photos_cost_their_own_rows_alone(
    network: MeanColour, photos: Path, tmp_path: Path
) -> None:
    """A giant isn't hashed from end to end, and a pipe is not waited for."""
    with (photos / "giant.jpg").open("wb") as file:
        file.truncate(50 * 10**9)
    (photos / "half.jpg").write_bytes(b"no image" + bytes(900_000_000 // 64))
    os.truncate(photos / "half.jpg", 900_000_000)  # small enough, but no image
    (photos / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(photos / "pipe.jpg")
    out = tmp_path / "tags.jsonl"
    start = time.monotonic()
    words = [photos, photos / "pipe.jpg", "--out", out, "--top", 1]
    assert command(*words) == 1
    assert time.monotonic() - start < 20
    errors = {Path(row["path"]).name: row.get("error") for row in rows_of(out)}
    assert set(errors) == {*(f"{k}.png" for k in range(4)), "giant.jpg", "half.jpg", "loop.jpg",
                           "pipe.jpg"}  # fmt: skip
    assert [name for name, error in errors.items() if not error] == [
        "0.png", "1.png", "2.png", "3.png",
    ]  # fmt: skip


def test_folders_deeper_than_python_calls(tmp_path: Path) -> None:
    top = folder = tmp_path / "top"
    try:
        for _ in range(1500):
            folder.mkdir()
            folder = folder / "d"
        write_image(top / "1.png")
        shutil.copy(top / "1.png", folder.parent / "2.png")
        assert list(Inputs([str(top)])) == [top / "1.png", folder.parent / "2.png"]
    finally:  # pytest's own tidying up would call itself too often
        subprocess.run(["rm", "-rf", top], check=True)


def test_names_that_no_file_can_have(
    network: MeanColour, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    with pytest.raises(UsageError, match="no such file or folder: aaaa"):
        Inputs(["a" * 5000])
    lines = ["a" * 5000, "b" * 300 + ".parquet", "/", "..", str(photos / "1.png")]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(lines).encode())))
    assert command("-", "--sidecars", "--json", tmp_path / "tags") == 1
    errors = [bool(row.get("error")) for row in map(json.loads, (tmp_path / "tags").open())]
    assert errors == [True, True, True, True, False]


# Outputs.


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_an_output_that_is_no_file_stays_and_leaves_no_journal(
    network: MeanColour, photos: Path, tmp_path: Path, make: Callable[[Path], object]
) -> None:
    out = tmp_path / "tags.csv"
    make(out)
    before = out.lstat().st_mode
    for words in (["--out", out], ["--json", out], ["--sheet", out.with_suffix(".png")]):
        if "--sheet" in words:
            make(out.with_suffix(".png"))
        with pytest.raises(MltrError, match="is in its place"):
            command(photos, *words)
    assert out.lstat().st_mode == before
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "tags.csv", "tags.png"}
    assert network.seen == 0


def test_companions_are_those_of_their_own_output(
    network: MeanColour, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "tags.errors.csv").write_text("my own notes")
    (tmp_path / "other.csv.errors.csv").write_text("my own notes, too")
    (photos / "bad.jpg").write_bytes(b"bad")
    command(photos, "--out", tmp_path / "tags.csv")
    command(photos, "--out", tmp_path / "other.csv")
    (photos / "bad.jpg").unlink()
    command(photos, "--out", tmp_path / "tags.parquet")
    command(photos, "--out", tmp_path / "other.csv")
    assert "bad.jpg" in (tmp_path / "tags.csv.errors.csv").read_text()
    assert (tmp_path / "tags.errors.csv").read_text() == "my own notes"
    assert (tmp_path / "other.csv.errors.csv").read_text() == "my own notes, too"
    command(photos, "--out", tmp_path / "tags.csv")
    assert not (tmp_path / "tags.csv.errors.csv").exists()


def test_cells_are_no_formulas_and_read_back_as_they_were(
    network: MeanColour, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from predicting import as_predictor

    classes = ("=HYPERLINK(1)", "-2+3", "'@x")
    predictor = as_predictor(network)
    predictor.classes = classes
    monkeypatch.setattr("mltr.predict.predictor.load", lambda *_: predictor)
    monkeypatch.chdir(photos)
    for number, name in enumerate(("=1+1.png", "+cmd.png", "-x.png", "@y.png")):
        Path(f"{number}.png").rename(name)
    Path("=bad.jpg").write_bytes(b"bad")
    names = ["=1+1.png", "+cmd.png", "@y.png", "=bad.jpg"]
    for out in ("tags.csv", "tags.tsv"):
        command(*names, "./-x.png", "--out", out, "--threshold", 0)
        with Path(out).open(newline="") as file:
            cells = [c for row in csv.reader(file, delimiter=",\t"[out == "tags.tsv"]) for c in row]
        assert "'=1+1.png" in cells and "'=HYPERLINK(1)" in cells and "''@x" in cells
        assert not [cell for cell in cells if cell[:1] in ("=", "+", "-", "@")]
    with Path("tags.csv.errors.csv").open(newline="") as file:
        assert [cell[:9] for cell in list(csv.reader(file))[1]] == ["'=bad.jpg"] * 2
    with Path("tags.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    with Path("labels.csv").open("w", newline="") as file:  # as someone labels what was predicted
        csv.writer(file).writerows(
            [[header[0], *header[4:]], *([row[0], "1", "0", "-1"] for row in rows)]
        )
    split = read_csv("labels.csv", absent=0)
    assert split.classes == classes
    assert [record.name for record in split] == [*names, "-x.png"]
    assert split[0].labels.tolist() == [1, 0, -1]


def test_what_reaches_a_terminal_does_nothing_there(
    network: MeanColour, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = "a\x1b]0;owned\x07\x1b[2J\x9b31m\nb"
    (photos / "1.png").rename(photos / f"{hostile}.png")
    (photos / f"{hostile}.jpg").write_bytes(b"bad")
    (photos / f"{hostile}.txt").mkdir()
    shown = r"a\x1b]0;owned\x07\x1b[2J\x9b31m\nb"
    for words in (["--format", "table"], ["--format", "jsonl"], ["--out", tmp_path / "tags.csv"]):
        assert command(photos / f"{hostile}.png", photos / "2.png", *words, "--sidecars") == 1
        assert command(photos / f"{hostile}.jpg", *words) == 1
        out, err = capsys.readouterr()
        assert not {"\x1b", "\x07", "\x9b"} & set(out + err)
        assert f"{shown}.jpg: not an image" in err
        assert f"{shown}.txt: a folder" in err
    with pytest.raises(UsageError):
        command(tmp_path / hostile)


# Journal.


def test_damage_in_the_journal_gives_no_wrong_value(tmp_path: Path) -> None:
    paths = [write_image(tmp_path / f"{k}.png", (8, 8), seed=k) for k in range(40)]
    random_probs = np.random.default_rng(0).random((40, 5), dtype=np.float32)
    truth = dict(zip(paths, random_probs, strict=True))
    with Journal(tmp_path / "sound", "first") as journal:
        for path in paths:
            stamp = stamp_of(path)
            assert stamp is not None
            journal.add(stamp, truth[path])
    content = (tmp_path / "sound").read_bytes()
    outcomes = {"right": 0, "anew": 0, "told": 0}
    for seed in range(60):
        chance = random.Random(seed)
        damaged = bytearray(content)
        for _ in range(chance.choice((1, 4, 20))):
            damaged[chance.randrange(4096, len(damaged))] = chance.randrange(256)
        path = tmp_path / f"damaged{seed}"
        path.write_bytes(damaged)
        try:
            with Journal(path, "first") as journal:
                for image in paths:
                    stamp, probs = journal.find(image)
                    if probs is None:
                        assert stamp is not None
                        journal.add(stamp, truth[image])
                        outcomes["anew"] += 1
                    else:
                        np.testing.assert_array_equal(probs, truth[image])
                        outcomes["right"] += 1
        except MltrError as error:
            assert "delete it to start from the beginning" in str(error)
            outcomes["told"] += 1
    assert outcomes["right"] > 1000
    assert outcomes["anew"] > 20


def test_a_blob_of_another_length_is_predicted_anew(
    network: MeanColour, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import sqlite3

    out = tmp_path / "tags.csv"
    command(photos, "--out", out)
    expected = out.read_bytes()
    connection = sqlite3.connect(f"{out}.journal")
    with connection:
        connection.execute(
            "UPDATE images SET probs = x'0011' WHERE CAST(path AS TEXT) LIKE '%1.png'"
        )
        connection.execute(
            "UPDATE images SET probs = zeroblob(12) WHERE CAST(path AS TEXT) LIKE '%2.png'"
        )
    connection.close()
    network.seen = 0
    assert command(photos, "--out", out) == 0
    assert network.seen == 2
    assert out.read_bytes() == expected
    assert "tags.csv.journal is damaged: its records" in capsys.readouterr().err
    command(photos, "--out", out)
    assert network.seen == 2
    assert "damaged" not in capsys.readouterr().err


def test_a_database_of_something_else_is_left_alone(
    network: MeanColour, photos: Path, tmp_path: Path
) -> None:
    import sqlite3

    path = tmp_path / "tags.csv.journal"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE images (mine)")
    before = path.read_bytes()
    with pytest.raises(UsageError, match="is a database of another program"):
        command(photos, "--out", tmp_path / "tags.csv")
    assert path.read_bytes() == before


# Two at a time.


def test_two_predictions_over_one_output_or_library(
    network: MeanColour, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "tags.csv"
    out.parent.mkdir()
    told = r"is being written by `.*` \(process \d+ on .*, since "
    with locked_output(out):
        with pytest.raises(MltrError, match=f"tags.csv {told}"):
            command(photos, "--out", out)
        assert command(photos, "--out", tmp_path / "other.csv") == 0
    with locked_folder(photos):
        for words in ([photos], [photos / "1.png"]):
            with pytest.raises(MltrError, match=f"photos {told}"):
                command(*words, "--sidecars")
        assert command(photos, "--out", out) == 0  # writes nothing there
    assert command(photos, "--sidecars", "--out", out) == 0
    assert not [path.name for path in photos.iterdir() if path.suffix == ".lock"]


# Odd environments, in processes of their own.


PREDICT = f"{sys.executable} {predicting.__file__} run"


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["bash", "-c", f"{PREDICT} {line}"], capture_output=True, env=os.environ | environment
    )


def test_odd_environments_give_output_or_one_line(photos: Path, tmp_path: Path) -> None:
    (photos / "0.png").rename(photos / "é☃.png")
    for name in ("1.png", "2.png", "3.png"):
        (photos / name).unlink()
    path = str(photos / "é☃.png")
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    rows = [json.loads(shell(f"{photos}", **env).stdout)["path"] for env in ({}, plain)]
    assert rows == [path, path]
    found = shell(f"{photos} --format csv --out -", PYTHONIOENCODING="cp1252")
    assert path in found.stdout.decode()
    found = shell(f"{photos} --format table", PYTHONIOENCODING="ascii")
    assert (found.returncode, found.stderr) == (0, b"next: mltr serve run\n")
    found = shell(f"{photos} >&-")
    assert found.returncode == 0
    assert found.stderr.startswith(b"mltr: standard output is closed\n")
    found = shell(f"{photos} > /dev/full")
    assert found.returncode == 1
    assert found.stderr.startswith(b"mltr: error: standard output: No space left on device")
    assert found.stderr.count(b"\n") == 1
    found = shell(f"{photos} --out {tmp_path}/tags.csv 2>&-")
    assert (found.returncode, found.stdout) == (0, b"")
    found = shell(f"{photos} --out /proc/tags.csv")
    assert found.returncode == 1
    assert found.stderr.startswith(b"mltr: error: can't write to /proc: ")
    assert found.stderr.count(b"\n") == 1


@pytest.fixture
def everyones() -> Iterator[Path]:
    """A folder that every user may enter, as may no other of a test."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="mltr-tests-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs to be root")
def test_a_library_that_is_partly_read_only(everyones: Path) -> None:
    """As a user who may write in one folder, not in another, and not read one of the files."""
    tmp_path = everyones
    for folder in ("closed", "open"):
        write_image(tmp_path / "photos" / folder / "1.png")
    (tmp_path / "photos" / "open" / "1.png.xmp").write_text("<secret/>")
    (tmp_path / "photos" / "open" / "1.png.xmp").chmod(0o600)
    write_image(tmp_path / "photos" / "open" / "2.png").chmod(0o000)
    (tmp_path / "photos" / "open").chmod(0o777)
    words = [*PREDICT.split(), tmp_path / "photos", "--sidecars", "--xmp"]
    found = subprocess.run(
        ["setpriv", "--reuid", "65534", "--clear-groups", *words], capture_output=True, text=True
    )
    rows = [json.loads(row) for row in found.stdout.splitlines()]
    errors = {Path(row["path"]).relative_to(tmp_path / "photos").as_posix(): row.get("error", "")
              for row in rows}  # fmt: skip
    assert found.returncode == 1
    assert errors["closed/1.png"].count("Permission denied") == 2
    assert "1.png.xmp: Permission denied" in errors["open/1.png"]
    assert "not allowed to read the file" in errors["open/2.png"]
    assert (tmp_path / "photos" / "open" / "1.txt").is_file()
    assert "unexpected" not in found.stderr
