"""`mltr data`: what a source holds, and what is wrong with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from making import write_image

from mltr.cli import main

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
