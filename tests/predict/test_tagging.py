"""Tagging at volume: what is done stays done, each image once, whatever happens on the way."""

from __future__ import annotations

import csv
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from making import count_done, save_untrained, write_image
from predicting import CLASSES, MeanColour, command, names_in, rows_of

from mltr.errors import MltrError, UsageError
from mltr.predict import journal, progress
from mltr.predict.inputs import Inputs, Survey
from mltr.predict.interruptions import Interruptions


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(7):
        write_image(tmp_path / "photos" / f"{number // 3}" / f"{number}.png", seed=number)
    return tmp_path / "photos"


# Going on.


def test_only_what_is_new_or_changed_is_predicted(
    network: MeanColour, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tags.jsonl"
    command(photos, "--out", out)
    before = rows_of(out)
    network.seen = 0
    command(photos, "--out", out)
    assert (network.seen, rows_of(out)) == (0, before)
    assert "continuing: 7 of 7 images are done" in capsys.readouterr().err
    os.utime(photos / "0/0.png", (0, 0))  # touched
    (photos / "0/1.png").rename(photos / "0/1 of May.png")  # moved
    (photos / "1/3.png").unlink()
    write_image(photos / "1/4.png", seed=100)  # changed
    write_image(photos / "1/new.png", seed=101)
    command(photos, "--out", out)
    assert network.seen == 2
    names = ["0.png", "1 of May.png", "2.png", "4.png", "5.png", "new.png", "6.png"]
    assert names_in(out) == names
    fresh = tmp_path / "fresh.jsonl"
    command(photos, "--out", fresh)
    assert rows_of(out) == rows_of(fresh)


def test_options_need_no_new_prediction_but_another_model_does(
    network: MeanColour, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tags.csv"
    command(photos, "--out", out, "--threshold", 1)
    assert {row["labels"] for row in rows_of(out)} == {""}
    network.seen = 0
    command(photos, "--out", out, "--threshold", 0, "--only", "red")
    assert {row["labels"] for row in rows_of(out)} == {"red"}
    assert list(rows_of(out)[0]) == ["path", "labels", "probs", "error", "red"]
    assert network.seen == 0
    network.fingerprint = "second"
    command(photos, "--out", out)
    assert network.seen == 7
    assert "tags.csv is from another model: starting from the beginning" in capsys.readouterr().err
    command(photos, "--out", out, "--overwrite")
    assert network.seen == 14


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_a_run_that_failed_goes_on(
    network: MeanColour, photos: Path, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / f"tags.{form}"
    network.stops_after, network.stop = 4, RuntimeError("out of memory")
    with pytest.raises(RuntimeError):
        command(photos, "--out", out)
    assert not out.exists()
    network.stops_after = float("inf")
    command(photos, "--out", out)
    assert network.seen == 7
    assert names_in(out) == [f"{number}.png" for number in range(7)]
    expected = tmp_path / f"expected.{form}"
    command(photos, "--out", expected)
    assert rows_of(out) == rows_of(expected)


@pytest.mark.parametrize(
    ("stop", "raised"), [(KeyboardInterrupt, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_an_interruption_spares_the_output_of_an_earlier_run(
    network: MeanColour,
    photos: Path,
    tmp_path: Path,
    stop: Any,
    raised: type[BaseException],
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "tags.csv"
    network.stops_after, network.stop = 4, stop
    with pytest.raises(raised):
        command(photos, "--out", out)
    assert 2 <= len(rows_of(out)) <= 4
    assert (
        "the results so far are written; repeat the command to continue" in capsys.readouterr().err
    )
    network.stops_after = float("inf")
    command(photos, "--out", out)
    content = out.read_bytes()
    write_image(photos / "0" / "00.png", seed=50)
    network.stops_after = 0
    with pytest.raises(raised):
        command(photos, "--out", out)
    assert out.read_bytes() == content
    assert "tags.csv is unchanged" in capsys.readouterr().err


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C as in a terminal, even if these tests run in the background, which ignores it."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.mark.usefixtures("ctrl_c")
def test_signals_are_noted_while_files_are_written_and_raised_where_images_are_awaited() -> None:
    interruptions = Interruptions()
    with interruptions.taken():
        signal.raise_signal(signal.SIGTERM)  # in the middle of a row
        with pytest.raises(SystemExit, match="143"), interruptions.raised():
            pytest.fail("the signal came before")
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)  # the second one, anywhere
    with Interruptions(writes_files=False).taken(), pytest.raises(SystemExit):
        signal.raise_signal(signal.SIGTERM)


def test_what_a_background_job_ignores_stays_ignored() -> None:
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruptions().taken():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, previous)


def test_a_journal_that_cannot_be_used(network: MeanColour, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "tags.csv"
    path = tmp_path / "tags.csv.journal"
    with (
        journal.Journal(path, "another process's"),
        pytest.raises(UsageError, match=r"another mltr predict is writing .*tags.csv.journal"),
    ):
        command(photos, "--out", out)
    path.write_bytes(b"no database" * 100)
    with pytest.raises(
        MltrError, match=r"tags.csv.journal: .*delete it to start from the beginning"
    ):
        command(photos, "--out", out)
    assert path.read_bytes() == b"no database" * 100


def test_images_that_cannot_be_read_are_listed(
    network: MeanColour, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(30):
        (photos / f"{number:02d}.jpg").write_bytes(b"broken")
    out, errors = tmp_path / "tags.parquet", tmp_path / "tags.parquet.errors.csv"
    assert command(photos, "--out", out) == 1
    with errors.open(newline="") as file:
        listed = list(csv.DictReader(file))
    assert [row["path"] for row in listed] == sorted(map(str, photos.glob("*.jpg")))
    assert all("not an image" in row["error"] for row in listed)
    assert [row for row in rows_of(out) if row["error"]] and len(rows_of(out)) == 37
    told = capsys.readouterr().err
    assert "30 of 37 images can't be read" in told
    assert f"and 10 more: see {errors}" in told
    write_image(photos / "00.jpg")  # mended
    assert command(photos, "--out", out) == 1
    assert sum(bool(row["error"]) for row in rows_of(out)) == 29
    for broken in photos.glob("*.jpg"):
        broken.unlink()
    assert command(photos, "--out", out) == 0
    assert not errors.exists()
    for number in range(3):  # nothing else is in the table
        (tmp_path / "broken").mkdir(exist_ok=True)
        (tmp_path / "broken" / f"{number}.jpg").write_bytes(b"broken")
    assert command(tmp_path / "broken", "--out", tmp_path / "none.parquet") == 1
    rows = rows_of(tmp_path / "none.parquet")
    assert len(rows) == 3 and all(row["red"] is None and row["error"] for row in rows)


# Sidecars.


def test_images_with_sidecars_are_not_opened_again(
    network: MeanColour, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command(photos, "--sidecars", "--xmp")
    assert network.seen == 7
    (photos / "0/0.txt").unlink()
    (photos / "0/1.txt").write_text("")  # as a power cut leaves it
    (photos / "0/2.png.xmp").unlink()
    capsys.readouterr()
    command(photos, "--sidecars", "--xmp")
    out, err = capsys.readouterr()
    assert network.seen == 10
    assert len(out.splitlines()) == 3
    assert "skipped, as they have sidecars already: 4 images;" in err
    assert "kept" not in err
    assert len(list(photos.glob("*/*.txt"))) == len(list(photos.glob("*/*.png.xmp"))) == 7
    assert (photos / "0/1.txt").stat().st_size
    command(photos, "--sidecars", "--overwrite")
    assert network.seen == 17


def test_sidecars_that_are_missing_come_from_the_journal(
    network: MeanColour, photos: Path, tmp_path: Path
) -> None:
    command(photos, "--sidecars", "--out", tmp_path / "tags.csv")
    before = {path: path.read_text() for path in photos.glob("*/*.txt")}
    for path in list(before)[:3]:
        path.unlink()
    command(photos, "--sidecars", "--out", tmp_path / "tags.csv")
    assert network.seen == 7
    assert {path: path.read_text() for path in photos.glob("*/*.txt")} == before


def test_photos_are_never_touched(network: MeanColour, photos: Path, tmp_path: Path) -> None:
    def state() -> dict[Path, tuple[bytes, int]]:
        return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in photos.glob("*/*.png")}

    before = state()
    command(photos, "--sidecars", "--xmp", "--xmp-naming", "photo.xmp", "--out", tmp_path / "a.csv")
    assert state() == before
    assert (photos / "0/0.xmp").is_file()
    assert not (photos / "0/0.png.xmp").exists()


# Finding images.


def test_folders_are_walked_as_far_as_needed(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    scandir = os.scandir

    def watched(folder: str) -> Any:
        opened.append(folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", watched)
    paths = iter(Inputs([str(photos)]))
    assert next(paths) == photos / "0" / "0.png"
    assert opened == [str(photos), str(photos / "0")]
    assert [photos / "0" / "0.png", *paths] == sorted(photos.rglob("*.png"))


def test_images_named_twice_come_once(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos)
    words = ["1/4.png", str(photos), "../photos/0", "0/../1", "*/*.png"]
    found = list(Inputs(words))
    assert found[0] == Path("1/4.png")
    assert Counter(path.name for path in found) == Counter(f"{k}.png" for k in range(7))
    survey = Survey(Inputs(words))
    survey.check(60)
    assert survey.total == 7


def test_a_folder_that_cannot_be_read_is_reported(
    photos: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scandir = os.scandir

    def refusing(folder: str) -> Any:
        if str(folder).endswith("1"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    assert [path.name for path in Inputs([str(photos)])] == ["0.png", "1.png", "2.png", "6.png"]
    assert f"{photos / '1'}: can't read this folder (Permission denied)" in caplog.text


# Progress.


def test_without_a_terminal_a_line_now_and_then(
    network: MeanColour,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(progress, "LINE_S", 0.0)
    with caplog.at_level(logging.INFO, "mltr"):
        command(photos, "--out", tmp_path / "tags.csv")
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split(" images")[0] for line in lines] == [f"{k} of 7" for k in range(1, 8)]


def test_what_progress_says() -> None:
    assert progress.describe(1200, 5000, 24.1) == "1,200 of 5,000 images, 24.1/s, 0:02:38 left"
    assert progress.describe(1200, None, 24.1) == "1,200 images, 24.1/s"


def test_predicting_needs_no_torch() -> None:
    code = "import sys, mltr.predict.tagging; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# The command itself, killed and measured.


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network that nobody trained."""
    return save_untrained(tmp_path_factory.mktemp("run"), CLASSES, thresholds=[0.0, 0.4, 0.5])


def write_many(folder: Path, count: int) -> list[Path]:
    return [write_image(folder / f"{k // 500:03d}" / f"{k:05d}.bmp", seed=k) for k in range(count)]


def start(*words: object) -> subprocess.Popen[str]:
    # One engine throughout: on a slow machine the job would be long enough to try others.
    command = [sys.executable, "-m", "mltr", "predict", *map(str, words), "--engine", "torch"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl"])
def test_killed_at_three_random_moments(bundle: Path, tmp_path: Path, form: str) -> None:
    """Every image exactly once, in order, and the same as without a kill; sidecars are complete."""
    paths = write_many(tmp_path / "photos", 5000)
    out = tmp_path / f"tags.{form}"
    words = (bundle, tmp_path / "photos", "--out", out, "--sidecars", "--batch-size", 8)
    done = []
    for moment in sorted(random.Random(form).sample(range(300, 4700), 3)):
        process = start(*words)
        while sum(1 for _ in tmp_path.glob("photos/*/*.txt")) < moment:
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not out.exists()
        done.append(count_done(tmp_path / f"tags.{form}.journal"))
    assert done == sorted(done)
    assert 0 < done[-1] < 5000
    process = start(*words)
    _, told = process.communicate()
    assert process.returncode == 0
    assert f"continuing: {done[-1]:,} of 5,000 images are done" in told
    rows = rows_of(out)
    assert [row["path"] for row in rows] == [str(path) for path in paths]
    expected = tmp_path / f"expected.{form}"
    _, told = start(bundle, tmp_path / "photos", "--out", expected).communicate()
    assert "continuing" not in told
    for row, other in zip(rows, rows_of(expected), strict=True):
        assert row["labels"] == other["labels"]
        numbers = [(row[name], other[name]) for name in CLASSES if name in row]
        assert all(float(one) == pytest.approx(float(two), abs=1e-5) for one, two in numbers)
        labels = "; ".join(row["labels"]) if isinstance(row["labels"], list) else row["labels"]
        text = Path(row["path"]).with_suffix(".txt").read_text()
        assert text == labels.replace("; ", ", ") + "\n"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_memory_is_flat(bundle: Path, tmp_path: Path) -> None:
    """Ten times the images, named twice and with sidecars to check: no more memory."""
    code = (
        "import resource, sys; from mltr.cli import main; main(sys.argv[1:]); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = []
    for count in (2_000, 20_000):
        photos = tmp_path / str(count)
        first = write_image(photos / "00000.bmp", (8, 8))
        for number in range(1, count):
            (photos / f"{number:05d}.bmp").write_bytes(first.read_bytes() + b"%d" % number)
        words = (
            "predict",
            bundle,
            photos,
            photos / "*.bmp",
            "--out",
            tmp_path / f"{count}.parquet",
        )
        command = [sys.executable, "-c", code, *map(str, words), "--sidecars", "--engine", "torch"]
        found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        peaks.append(int(found.stdout) / 1024)
        assert pq.read_metadata(tmp_path / f"{count}.parquet").num_rows == count
    assert peaks[1] < peaks[0] + 30, f"{peaks} MiB"
    print(f"peak memory: {peaks[0]:.0f} MiB for 2,000 images, {peaks[1]:.0f} MiB for 20,000")
