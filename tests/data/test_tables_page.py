"""Tables from end to end: the rows of the docs' page, an epoch of training, paths, and size."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from making import TINY_ON_PHOTOS
from tables import (
    HEADER,
    LABELS,
    ONE_HOT,
    RIGHT,
    ROWS,
    answers,
    counts,
    named,
    write_rows,
)

from mltr.cli import main

# -- the page ----------------------------------------------------------------------------------

SPACED = {"sea": "open sea", "sky": "sky"}
#: The tables of the rows of docs/data.md, in their order.
PAGE: list[bytes | str | pa.Table] = [
    answers(HEADER, "yes", "no"),
    answers(HEADER, "x", ""),
    answers(HEADER, "1", "-1"),
    answers(HEADER, "1", "-1").replace("p0.jpg,-1", "p0.jpg,0"),
    answers(HEADER, "1", "-1").replace("p0.jpg,-1", "p0.jpg,0"),
    named(lambda own: "|".join(own)),
    named(lambda own: " ".join(own)),
    named(lambda own: SPACED[own[0]] if own else ""),
    named(lambda own: f'"{own}"'),
    named(lambda own: f'"{[int(name in own) for name in RIGHT]}"'),
    named(lambda own: str(len(own) % 2), header="path,label_id"),
    named(lambda own: "1", header="path,label_id"),
    "\n".join(["path,label", *(f"{name},{label}" for name, own in ROWS for label in own or [""])]),
    "\n".join(["photo,label1,label2", *(f"{n},{','.join([*own, '', ''][:2])}" for n, own in ROWS)]),
    "\n".join(["tags,file", *(f"{'|'.join(own)},{name}" for name, own in ROWS)]),
    answers(HEADER, "1", "0").replace("path", "image_id").replace(".jpg", ""),
    "\n".join(
        [
            ",path,sea,sky,comment,width",
            *(f"{i},p{i}.jpg,{a},{b},nice,64{i}" for i, (a, b) in enumerate(ONE_HOT)),
        ]
    ),
    "\n".join(
        [
            "path,sea,sky,split",
            *(
                f"p{i}.jpg,{a},{b},{('train', 'val', 'test')[i % 3]}"
                for i, (a, b) in enumerate(ONE_HOT)
            ),
        ]
    ),
    answers("Foto;Küste;sky", "1", "0", ";").encode("cp1252"),
    answers(HEADER.replace(",", "\t"), "1", "0", "\t").encode("utf-16"),
    named(lambda own: ("sea", "Sea")[len(own) % 2] if own else ""),
    pa.table({"path": [name for name, _ in ROWS], "labels": LABELS}),
]


def rows_of_the_page() -> list[tuple[str, str]]:
    """Return what to type and what will be seen, by the table of docs/data.md on tables."""
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text("utf-8")
    section = page.partition("### A table")[2].partition("###")[0]
    return re.findall(r"^\|.*\| `(mltr [^`]*)` \| `([^`]*)` \|$", section, re.MULTILINE)


def test_every_row_of_the_page_has_its_table() -> None:
    assert len(rows_of_the_page()) == len(PAGE) > 20


@pytest.mark.parametrize("index", range(len(PAGE)))
def test_rows_of_the_page(index: int, photos: Path, capsys) -> None:
    command, words = rows_of_the_page()[index]
    content = PAGE[index]
    if isinstance(content, pa.Table):
        pq.write_table(content, photos / "labels.parquet")
    else:
        content = content.encode() if isinstance(content, str) else content
        (photos / "labels.csv").write_bytes(content)
    (photos / "names.txt").write_text("sea\nsky\n")
    arguments = shlex.split(command)[1:]
    code = main([str(photos) if word == "PHOTOS" else word for word in arguments] + ["--quick"])
    output = capsys.readouterr()
    assert code == 2 * words.startswith("set ")
    assert words in output.err + output.out


# -- training ----------------------------------------------------------------------------------

TRAINED: dict[str, tuple[str | bytes, list[str], str]] = {
    "German Excel": (
        answers("Foto;sea;sky", "1", "0", ";").replace("\n", ";schön\n").encode("cp1252"),
        [],
        "columns separated by semicolons, in which it reads 'schön'; photos from 'Foto'",
    ),
    "names": (
        named(lambda own: " ".join(own)),
        ["--data.separator=space"],
        "labels separated by spaces",
    ),
    "VOC": (
        answers(HEADER, "1", "-1").replace("p0.jpg,-1", "p0.jpg,0"),
        ["--data.absent=-1"],
        "-1 = absent, 0 = unknown",
    ),
}


@pytest.mark.parametrize("name", TRAINED)
def test_an_epoch_of_training(name: str, photos: Path, caplog) -> None:
    content, options, words = TRAINED[name]
    (photos / "labels.csv").write_bytes(content.encode() if isinstance(content, str) else content)
    run = photos.parent / "run"
    options = [*TINY_ON_PHOTOS, *options, "--data.test_fraction=0.3", "--data.val_fraction=0.3"]
    assert main(["train", "scratch", str(photos), "--out", str(run), *options]) == 0
    assert json.loads((run / "config.json").read_text())["classes"] == ["sea", "sky"]
    first, second = (
        record.getMessage() for record in caplog.records if "understood" in record.name
    )
    assert words in first + second


# -- what is large -----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_large_table_is_read_within_seconds(tmp_path: Path) -> None:
    """100,000 rows of 1,000 classes, in a process of its own to see its memory."""

    rows, classes = 100_000, 1_000
    generator = np.random.default_rng(0)
    names = ",".join(f"class {index}" for index in range(classes))
    with (tmp_path / "labels.csv").open("wb") as file:
        file.write(f"path,{names}\n".encode())
        for start in range(0, rows, 1000):
            cells = np.full((1000, 2 * classes), ord(","), np.uint8)
            cells[:, ::2] = ord("0") + (generator.random((1000, classes)) < 0.01)
            file.writelines(
                b"%06d.jpg,%s\n" % (start + i, row[:-1].tobytes()) for i, row in enumerate(cells)
            )
    for index in range(rows):
        (tmp_path / f"{index:06d}.jpg").touch()
    program = (
        "import resource, sys, time\n"
        "from mltr.data import read_csv\n"
        "start = time.process_time()\n"
        "split = read_csv(sys.argv[1])\n"
        "print(len(split), len(split.classes), time.process_time() - start,\n"
        "      resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "labels.csv")]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found_rows, found_classes, seconds, gigabytes = map(float, output.split())
    assert (found_rows, found_classes) == (rows, classes)
    assert seconds < 10  # 3 on a core of its own
    assert gigabytes < 1


def test_paths_on_the_command_line_are_found_from_the_current_folder(
    photos: Path, monkeypatch
) -> None:
    rows = [f"{name},{'|'.join(own)}" for name, own in ROWS]
    write_rows(photos, "path,tags", rows)
    tables = photos.parent / "tables"
    tables.mkdir()
    (photos / "labels.csv").rename(tables / "mine.csv")
    (tables / "names.txt").write_text("sky\nsea\n")
    monkeypatch.chdir(photos.parent)
    classes = ("--classes", "tables/names.txt")
    for source in (
        ("photos", "--labels", "tables/mine.csv"),
        ("tables/mine.csv", "--images", "photos"),
        ("tables/mine.csv", "--images", "../photos"),
    ):
        out = photos.parent / "report.json"
        assert main(["data", *source, *classes, "--quick", "--json", str(out)]) == 0
        (report,) = json.loads(out.read_text("utf-8")).values()
        assert counts(report) == RIGHT
        assert report["classes"] == ["sky", "sea"]
    run = photos.parent / "run"
    options = ["--data.images=photos", "--data.classes=tables/names.txt", *TINY_ON_PHOTOS]
    train = ["train", "scratch", "tables/mine.csv", "--out", str(run), *options]
    assert main(train) == 0
    monkeypatch.chdir("/")
    assert main(["evaluate", str(run)]) == 0
