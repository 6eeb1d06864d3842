"""`mltr data`: what a source holds, and what is wrong with it."""

from __future__ import annotations

import itertools
import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from making import write_image

from mltr.cli import main
from mltr.data.describe import describe as figures_of
from mltr.data.records import Record, Split, Splits

pytestmark = pytest.mark.pictures


def describe(tmp_path: Path, *arguments: str) -> dict:
    out = tmp_path / "report.json"
    assert main(["data", *map(str, arguments), "--json", str(out)]) == 0
    (report,) = json.loads(out.read_text()).values()
    return report


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    lines = ["path,sea,sky,never,split"]
    for index in range(12):
        write_image(folder / f"{index}.png", (40, 30))
        split = ("train", "train", "val", "test")[index % 4]
        lines.append(f"{index}.png,{index % 2},1,0,{split}")
    (folder / "labels.csv").write_text("\n".join(lines))
    return folder


def test_counts(photos: Path, tmp_path: Path) -> None:
    report = describe(tmp_path, photos)
    train = report["splits"]["train"]
    assert (train["images"], train["labels"], train["cardinality"]) == (6, 9, 1.5)
    assert train["density"] == 0.5
    assert report["labels"]["sky"] == {"train": 6, "val": 3, "test": 3}
    assert report["empty_classes"] == ["never"]
    pair = report["co_occurrence"][0]
    assert (pair["a"], pair["b"], pair["p_b_given_a"], pair["images"]) == ("sea", "sky", 1.0, 3)
    assert report["broken"] == report["duplicates"] == report["leaks"] == []


@given(arrays(np.int8, (6, 4), elements=st.sampled_from([-1, 0, 1])))
def test_shares_of_pairs_are_those_of_a_plain_count(labels: np.ndarray) -> None:
    split = Split(tuple("abcd"), [Record(f"{i}", b"", row) for i, row in enumerate(labels)])
    found = {
        (pair["a"], pair["b"]): (pair["p_b_given_a"], pair["p_b"], pair["images"])
        for pair in figures_of(Splits(split, split, split), open_images=False)["co_occurrence"]
    }
    expected = {}
    for a, b in itertools.permutations(range(4), 2):
        both = sum(row[a] == row[b] == 1 for row in labels)
        if both:
            share = both / sum(row[a] == 1 for row in labels)
            expected["abcd"[a], "abcd"[b]] = (share, sum(row[b] == 1 for row in labels) / 6, both)
    assert found == expected


def test_pairs_of_many_classes_take_little_memory() -> None:
    classes = tuple(map(str, range(20_000)))
    records = []
    for index in range(3):
        records.append(Record(f"{index}", b"", np.zeros(20_000, np.int8)))
        records[-1].labels[[index, 19_999]] = 1
    split = Split(classes, records)
    tracemalloc.start()
    figures = figures_of(Splits(split, split, split), open_images=False)
    assert tracemalloc.get_traced_memory()[1] < 100e6  # a full table of pairs has 3.2e9 bytes
    tracemalloc.stop()
    assert [pair["a"] for pair in figures["co_occurrence"]] == ["0", "1", "2", *["19999"] * 3]


def test_what_is_wrong_is_found(photos: Path, tmp_path: Path, capsys) -> None:
    shutil.copy(photos / "0.png", photos / "3.png")  # a training image in the test
    pixels = np.asarray(__import__("PIL.Image").Image.open(photos / "1.png"))
    __import__("PIL.Image").Image.fromarray(pixels).save(photos / "5.png", compress_level=1)
    (photos / "4.png").write_bytes(b"broken")
    (photos / "8.png").unlink()
    report = describe(tmp_path, photos)
    assert report["duplicates"] == [["train: 0.png", "test: 3.png"]]
    assert report["near_duplicates"] == [["train: 1.png", "train: 5.png"]]
    assert report["leaks"] == [["train: 0.png", "test: 3.png"]]
    assert len(report["broken"]) == 1
    assert "4.png: not an image" in report["broken"][0]
    assert report["notes"]["train"]["missing_files_dropped"] == 1
    printed = capsys.readouterr().out
    assert "1 broken image:" in printed
    assert "no training image has: never" in printed


def test_classes_without_negatives_are_warned_about(photos: Path, tmp_path: Path, capsys) -> None:
    table = photos / "labels.csv"
    table.write_text(table.read_text().replace(",0", ","))
    report = describe(tmp_path, photos, "--quick")
    assert report["classes_without_negatives"] == ["sea", "sky", "never"]
    printed = " ".join(capsys.readouterr().out.split())
    assert "NO TRAINING IMAGE IS A KNOWN NEGATIVE FOR: sea, sky, never" in printed
    assert "set --data.missing negative" in printed
    report = describe(tmp_path, photos, "--quick", "--missing", "negative")
    assert report["classes_without_negatives"] == ["sky"]  # which every image has
    assert report["splits"]["train"]["unknown_cells"] == 0


def test_quick_opens_nothing(photos: Path, tmp_path: Path) -> None:
    (photos / "4.png").write_bytes(b"broken")
    assert "broken" not in describe(tmp_path, photos, "--quick")


def test_pictures_and_several_sources(photos: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert main(["data", str(photos), f"table:{photos}/labels.csv", "--out", str(out)]) == 0
    assert (out / "photos" / "labels.png").stat().st_size > 5000
    assert "labels.csv" in capsys.readouterr().out
    copy = shutil.copytree(photos, tmp_path / "copy" / photos.name)
    assert main(["data", str(photos), str(copy), "--quick", "--out", str(out)]) == 0
    assert (out / "photos-2" / "labels.png").is_file()


def test_names_of_broken_files_act_on_no_terminal(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    (photos / "\x1b]0;x.png").write_bytes(b"broken")
    with (photos / "labels.csv").open("a") as file:
        file.write("\n\x1b]0;x.png,1,1,0,train\n")
    assert main(["data", str(photos)]) == 0
    printed = capsys.readouterr().out
    assert "\x1b]0;" not in printed
    assert r"\x1b]0;x.png" in printed


def test_real_sources(shared: Path, tmp_path: Path) -> None:
    report = describe(tmp_path, shared / "data" / "coco_mini")
    assert sum(split["images"] for split in report["splits"].values()) == 159
    assert report["splits"]["test"]["with_boxes"] == 79
    options = ("--labels", "miml_labels_1.csv", "--quick")
    report = describe(tmp_path, shared / "data" / "miml", *options)
    assert sum(report["labels"]["sea"].values()) == 580


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "no such file"),
        (["cocoa:nowhere"], "no format 'cocoa'; did you mean 'coco'"),
        (["scenes", "--val_fraction", "2"], "between 0 and 1"),
    ],
)
def test_mistakes_are_named(arguments: list[str], words: str, capsys) -> None:
    assert main(["data", *arguments]) in (1, 2)
    assert words in capsys.readouterr().err


def test_what_was_understood_is_reported(photos: Path, tmp_path: Path, capsys, caplog) -> None:
    report = describe(tmp_path, photos, "--quick")
    understood = report["understood"]
    assert understood["files"] == ["labels.csv"]
    uses = {"path": "photos", "sea": "labels", "sky": "labels", "never": "labels"}
    assert understood["columns"] == uses | {"split": "split"}
    first, second = capsys.readouterr().out.splitlines()[:2]
    assert first == (
        "table: labels.csv, in utf-8, columns separated by commas; photos from 'path', "
        "labels from 3 columns ('sea', 'sky', 'never'), split from 'split'"
    )
    assert second.startswith("images: 6 train, 3 val, 3 test; 3 classes")
    assert (
        main(["shard", str(photos), "--out", str(tmp_path / "shards"), "--data.missing=negative"])
        == 0
    )
    assert "images: 6 train, 3 val, 3 test; 3 classes" in caplog.text
