"""Prediction from Python and by the command: right, in order, clear about what is broken."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from making import save_untrained
from PIL import Image
from torch import Tensor, nn

import mltr
from mltr.data import read_folder
from mltr.data.images import open_image
from mltr.data.preprocess import Preprocess
from mltr.data.readers.keywords import read_keywords
from mltr.errors import BrokenImage, MltrError, UsageError
from mltr.predict import command as predict
from mltr.predict.predictor import Prediction, Predictor, predict_paths
from mltr.predict.results import errors_path
from mltr.predict.tagging import choose_classes
from mltr.weights.bundle import TorchNetwork, load_bundle, update_config
from mltr.weights.metadata import Calibration

CLASSES = ("sea", "sunset", "tree", "path")
COLOURS = ["navy", "orange", "green", "white", "black", "red", "teal"]


class MeanColour(nn.Module):
    """Logits that tell what the image was: 10 x (red, green, blue) - 5, and a constant."""

    def forward(self, images: Tensor) -> Tensor:
        means = images.mean(dim=(2, 3)) * 10 - 5
        return torch.cat([means, torch.zeros(len(images), 1)], dim=1)


@pytest.fixture
def predictor() -> Predictor:
    thresholds = np.full(4, 0.5, np.float32)
    preprocess = Preprocess(image_size=8)
    network = TorchNetwork(MeanColour(), torch.device("cpu"))
    return Predictor(network, CLASSES, preprocess, thresholds, 4)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that nobody trained, but with decided opinions."""
    return save_untrained(
        tmp_path_factory.mktemp("run"),
        CLASSES,
        sharpness=20,
        preprocess=Preprocess(image_size=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.3)),
        thresholds=[0.3, 0.4, 0.5, 0.6],
    )


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Seven pictures, two of them in a folder below."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    noise = np.random.default_rng(0)
    for number, colour in enumerate(COLOURS):
        pixels = np.array(Image.new("RGB", (40 + number, 30), colour)) // 2
        pixels += noise.integers(0, 120, pixels.shape, np.uint8)
        name = f"{number}.png" if number < 5 else f"below/{number}.jpg"
        Image.fromarray(pixels).save(folder / name)
    return folder


def by_hand(bundle: Path, path: Path) -> np.ndarray:
    """The probabilities of one image, computed with none of this module."""
    parts = load_bundle(bundle)
    with torch.no_grad():
        logits = parts.model(torch.from_numpy(parts.preprocess(open_image(path)))[None])
    return (1 / (1 + np.exp(-logits.double().numpy())))[0]


def command(*words: object) -> int:
    parser = argparse.ArgumentParser()
    predict.add_arguments(parser)
    return predict.run(parser.parse_args([str(word) for word in words]))


def json_rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# From Python.


def test_every_kind_of_image_gives_the_same(bundle: Path, photos: Path) -> None:
    predictor = mltr.load(bundle)
    path = photos / "1.png"
    with Image.open(path) as file:
        image = file.copy()
    kinds = [path, str(path), path.read_bytes(), image, np.array(image), image.convert("RGBA")]
    expected = by_hand(bundle, path)
    for found in [*predictor(kinds), *map(predictor, kinds)]:
        assert found.probs.dtype == np.float32
        np.testing.assert_allclose(found.probs, expected, rtol=1e-4)


def test_grey_arrays_and_turned_photos(predictor: Predictor) -> None:
    grey = np.full((20, 30), 128, np.uint8)
    np.testing.assert_array_equal(
        predictor(grey).probs, predictor(np.stack([grey] * 3, axis=2)).probs
    )
    upright = Image.new("RGB", (8, 4), "red")
    exif = upright.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    stream = io.BytesIO()
    upright.save(stream, "PNG", exif=exif)
    assert predictor.read(stream.getvalue()).shape == (8, 8, 3)
    with Image.open(stream) as file:
        np.testing.assert_array_equal(predictor(file).probs, predictor(stream.getvalue()).probs)


def test_labels_are_those_at_or_above_their_threshold_best_first(predictor: Predictor) -> None:
    found = predictor(Image.new("RGB", (9, 9), (255, 204, 0)))
    assert [name for name, _ in found.labels] == ["sea", "sunset", "path"]  # path is 0.5 exactly
    assert found.labels[0][1] == pytest.approx(1 / (1 + np.exp(-5.0)))
    assert [name for name, _ in found.top(2)] == ["sea", "sunset"]
    assert [name for name, _ in found.top(9)] == ["sea", "sunset", "path", "tree"]
    predictor.thresholds[:] = (1, 0.9, 0, 0.6)
    again = predictor(Image.new("RGB", (9, 9), (255, 204, 0)))
    assert [name for name, _ in again.labels] == ["sunset", "tree"]
    assert [name for name, _ in found.labels] == ["sea", "sunset", "path"]


def test_thresholds_are_those_of_the_bundle_or_one_half(bundle: Path, tmp_path: Path) -> None:
    np.testing.assert_allclose(mltr.load(bundle).thresholds, [0.3, 0.4, 0.5, 0.6])
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((bundle / name).read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"thresholds": None}))
    np.testing.assert_array_equal(mltr.load(tmp_path).thresholds, [0.5] * 4)


def test_probabilities_are_calibrated(bundle: Path, predictor: Predictor, tmp_path: Path) -> None:
    predictor.calibration = Calibration("platt", (0.5, 1, 2, 1), (0, 0.25, 0, 3))
    found = predictor(Image.new("RGB", (9, 9), (255, 204, 0)))
    logits = np.array([5, 3, -5, 0]) * (0.5, 1, 2, 1) + (0, 0.25, 0, 3)
    np.testing.assert_allclose(found.probs, 1 / (1 + np.exp(-logits)), rtol=1e-5)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((bundle / name).read_bytes())
    assert mltr.load(tmp_path).calibration is None
    entry = {"method": "temperature", "scale": [0.5] * 4, "shift": [0.0] * 4}
    update_config(tmp_path, {"calibration": entry})
    assert mltr.load(tmp_path).calibration == Calibration("temperature", (0.5,) * 4, (0.0,) * 4)


@pytest.mark.parametrize("count", [0, 1, 4, 11])
def test_a_list_keeps_its_order_over_batches(predictor: Predictor, count: int) -> None:
    images = [Image.new("RGB", (10, 10), (20 * k, 0, 0)) for k in range(count)]
    found = predictor(images)
    expected = [1 / (1 + np.exp(5 - 200 * k / 255)) for k in range(count)]
    np.testing.assert_allclose([p.probs[0] for p in found], expected, rtol=1e-5)


def test_logits_are_what_the_model_says(bundle: Path) -> None:
    predictor = mltr.load(bundle)
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        expected = predictor.model(images).numpy()
    np.testing.assert_array_equal(predictor.network(images.numpy()), expected)


@pytest.mark.parametrize(
    ("image", "told"),
    [
        ("nowhere.jpg", "nowhere.jpg: no such file"),
        (b"not an image", "not an image"),
        (b"", "memory"),
        (np.zeros((4, 4, 3), np.float32), r"array of float32 \[4, 4, 3\]"),
        (np.zeros((3, 5, 5), np.uint8), "expected uint8"),
        (np.zeros((0, 4, 3), np.uint8), "expected uint8"),
        (np.zeros((2, 4, 4, 3), np.uint8), "expected uint8"),
    ],
)
def test_a_broken_image_is_named(predictor: Predictor, image: Any, told: str) -> None:
    with pytest.raises(BrokenImage, match=told):
        predictor(image)
    with pytest.raises(BrokenImage, match=f"image 2 of 2: .*{told}"):
        predictor([Image.new("RGB", (4, 4)), image])


def test_a_photo_that_breaks_while_it_is_decoded(predictor: Predictor, tmp_path: Path) -> None:
    Image.effect_noise((200, 200), 90).save(tmp_path / "cut.png")
    content = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    with Image.open(tmp_path / "cut.png") as lazy, pytest.raises(BrokenImage, match=r"cut\.png"):
        predictor(lazy)


def test_what_is_no_image_at_all(predictor: Predictor) -> None:
    with pytest.raises(UsageError, match="int; give a path"):
        predictor(7)


def test_loading_says_what_is_wrong(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(MltrError, match="no such folder"):
        mltr.load(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="batch_size"):
        mltr.load(bundle, batch_size=0)
    with pytest.raises(UsageError, match="'gpu' can't be used here"):
        mltr.load(bundle, device="gpu")
    with pytest.raises(UsageError, match="'cuda:99' can't be used here"):
        mltr.load(bundle, device="cuda:99")


def test_streaming_holds_few_batches(predictor: Predictor, photos: Path) -> None:
    """However slow the consumer, images are read no further ahead than three batches."""
    asked = []

    def endless() -> Any:
        while True:
            asked.append(threading.get_ident())
            yield photos / ("0.png" if len(asked) % 3 else "missing.png")

    stream = predict_paths(predictor, endless(), workers=2)
    for number in range(1, 30):
        path, found = next(stream)
        assert isinstance(found, BrokenImage) == (number % 3 == 0) == (path.name == "missing.png")
        assert len(asked) <= number + 4 * predictor.batch_size
    stream.close()


# The command.


def test_json_lines(bundle: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(bundle, photos) == 0  # not a terminal: JSON lines by default
    rows = json_rows(capsys.readouterr().out)
    # Folders come with those below, sorted.
    assert [Path(row["path"]) for row in rows] == sorted(photos.rglob("*.*g"))
    for row in rows:
        probs = by_hand(bundle, Path(row["path"]))
        expected = {
            name: prob
            for name, prob, threshold in zip(CLASSES, probs, (0.3, 0.4, 0.5, 0.6), strict=True)
            if prob >= threshold
        }
        assert dict(zip(row["labels"], row["probs"], strict=True)) == pytest.approx(
            expected, abs=2e-5
        )
        assert row["probs"] == sorted(row["probs"], reverse=True)
    assert len({tuple(row["labels"]) for row in rows}) > 1  # else this test shows little


def test_csv_and_parquet_say_the_same(bundle: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "broken.jpg").write_bytes(b"oh no")
    for name in ("a.csv", "a.parquet", "a.jsonl", "a.json", "a.tsv"):
        assert command(bundle, photos, "--out", tmp_path / name) == 1
    with (tmp_path / "a.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    table = pq.read_table(tmp_path / "a.parquet")
    rows = json_rows((tmp_path / "a.jsonl").read_text())
    assert json.loads((tmp_path / "a.json").read_text()) == rows
    with (tmp_path / "a.tsv").open(newline="") as file:
        assert list(csv.DictReader(file, delimiter="\t")) == lines
    columns = ["path", "labels", "probs", "error", "sea", "sunset", "tree", "class:path"]
    assert list(lines[0]) == table.column_names == columns
    for line, record, row in zip(lines, table.to_pylist(), rows, strict=True):
        assert line["path"] == record["path"] == row["path"]
        if "error" in row:
            assert line["error"] == record["error"] == row["error"]
            assert "broken.jpg" in row["error"]
            assert (line["sea"], record["sea"], record["labels"]) == ("", None, [])
            continue
        assert line["labels"] == "; ".join(record["labels"]) == "; ".join(row["labels"])
        assert (line["error"], record["error"]) == ("", None)
        probs = by_hand(bundle, Path(row["path"]))
        np.testing.assert_allclose([float(line[name]) for name in columns[4:]], probs, atol=2e-5)
        np.testing.assert_allclose([record[name] for name in columns[4:]], probs, atol=2e-5)
        np.testing.assert_allclose(record["probs"], row["probs"], atol=2e-5)
    assert sum("error" in row for row in rows) == 1


def test_the_table(bundle: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "below" / "[red]x.jpg").write_bytes(b"")
    assert command(bundle, photos, "--format", "table", "--threshold", "0") == 1
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert len(lines) == 8
    assert sum(line.count("%") for line in lines) == 7 * 4
    assert "[red]x.jpg" in out
    assert "can't be read" in out
    assert "1 of 8 images can't be read:" in err
    assert "[red]x.jpg: the file is empty" in err
    command(bundle, photos / "0.png", "--format", "table", "--threshold", "1")
    assert "no label" in capsys.readouterr().out


def test_broken_images_are_reported_and_the_others_written(
    bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "zero.jpg").touch()
    (photos / "text.png").write_text("this is no PNG")
    assert command(bundle, photos, "--json", tmp_path / "out.jsonl") == 1
    err = capsys.readouterr().err
    assert "9 images -> " in err
    assert "2 of 9 images can't be read" in err
    assert "zero.jpg: the file is empty" in err
    assert "text.png: not an image" in err
    assert len(json_rows((tmp_path / "out.jsonl").read_text())) == 9


def test_thresholds_top_and_classes(
    bundle: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def labels(*options: object) -> list[list[str]]:
        assert command(bundle, photos, *options) == 0
        return [row["labels"] for row in json_rows(capsys.readouterr().out)]

    everything = labels("--threshold", 0)
    assert all(sorted(row) == sorted(CLASSES) for row in everything)
    assert labels("--top", 2) == [row[:2] for row in everything]
    assert labels("--top", 2, "--threshold", 1) == [[]] * 7
    assert labels("--top", 1, "--threshold", 0) == [row[:1] for row in everything]
    few = labels("--threshold", 0, "--only", "sea, tree", "--only", "path", "--exclude", "tree")
    assert few == [[name for name in row if name in ("sea", "path")] for row in everything]


def test_a_class_with_a_comma_in_its_name() -> None:
    classes = ("tench, Tinca tinca", "cock", "hen")
    assert choose_classes(classes, ["tench, Tinca tinca", "cock,hen"], ["hen"]) == [0, 1]


def test_paths_come_as_files_folders_patterns_and_lists(
    bundle: Path,
    photos: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def names(*words: object) -> list[str]:
        command(bundle, *words)
        return [Path(row["path"]).name for row in json_rows(capsys.readouterr().out)]

    (photos / "notes.txt").write_text("not an image")
    (photos / ".hidden.png").write_bytes((photos / "0.png").read_bytes())
    assert names(photos / "3.png", photos / "below") == ["3.png", "5.jpg", "6.jpg"]
    assert names(photos / "*[12].png", photos / "1.png") == ["1.png", "2.png"]
    assert names(photos / "**" / "*.jpg") == ["5.jpg", "6.jpg"]
    monkeypatch.chdir(photos)
    assert names("below/6.jpg", "./below/6.jpg", photos / "below") == ["6.jpg", "5.jpg"]
    for separator in ("\n", "\0", "\r\n"):
        stdin = io.TextIOWrapper(io.BytesIO(separator.join(["2.png", "0.png", ""]).encode()))
        monkeypatch.setattr("sys.stdin", stdin)
        assert names("-") == ["2.png", "0.png"]


def test_names_that_are_not_utf8_stay_apart(bundle: Path, photos: Path, tmp_path: Path) -> None:
    names = [b"caf\xe9.png", b"caf\xe8.png", rb"caf\xe9.png", b"caf\xc3\xa9.png"]
    written = [r"caf\xe8.png", r"caf\xe9.png", r"caf\\xe9.png", "caf\u00e9.png"]
    folder = tmp_path / "odd"
    folder.mkdir()
    try:
        for name in names:
            (folder / os.fsdecode(name)).write_bytes((photos / "0.png").read_bytes())
        (folder / "bad\udce9.jpg").write_bytes(b"broken")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    for form in ("jsonl", "json", "csv", "tsv", "parquet", "table"):
        assert command(bundle, folder, "--format", form, "--out", tmp_path / form) == 1
    lines = json_rows((tmp_path / "jsonl").read_text(encoding="utf-8"))
    assert {Path(row["path"]).name for row in lines} == {*written, r"bad\xe9.jpg"}
    table = pq.read_table(tmp_path / "parquet").to_pylist()
    assert [row["path"] for row in table] == [row["path"] for row in lines]
    odd = folder.rename(tmp_path / os.fsdecode(b"odd\xff"))
    assert command(bundle, odd, "--sidecars") == 1
    assert len(list(odd.glob("*.txt"))) == len(names)


def test_line_breaks_in_names_break_no_row(bundle: Path, photos: Path, tmp_path: Path) -> None:
    names = ["a\rb.png", "c\nd.png", "e\r\nf.png"]
    folder = tmp_path / "odd"
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes((photos / "0.png").read_bytes())
    assert command(bundle, folder, "--out", tmp_path / "tags.csv") == 0
    with (tmp_path / "tags.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert sorted(Path(row["path"]).name for row in rows) == names
    assert {len(row) for row in rows} == {len(rows[0])}


def test_sidecars_can_be_read_back_and_never_overwrite(
    bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "2.txt").write_text("my own tag")
    (photos / "zero.png").touch()
    out = tmp_path / "out.jsonl"
    assert command(bundle, photos, "--sidecars", "--json", out) == 1
    assert "kept as they were: 1 sidecar (" in capsys.readouterr().err
    assert (photos / "2.txt").read_text() == "my own tag"
    assert not (photos / "zero.txt").exists()
    rows = {
        Path(row["path"]).relative_to(photos).as_posix(): row for row in json_rows(out.read_text())
    }
    (photos / "2.txt").unlink()
    split = read_folder(photos, classes=CLASSES)
    assert {record.name for record in split} == set(rows) - {"2.png", "zero.png"}
    for record in split:
        chosen = {name for name, label in zip(CLASSES, record.labels, strict=True) if label}
        assert chosen == set(rows[record.name]["labels"])
    (photos / "1.txt").write_text("my own tag")
    command(bundle, photos, "--sidecars", "--overwrite", "--json", out)
    assert (photos / "1.txt").read_text() == ", ".join(rows["1.png"]["labels"]) + "\n"


def test_a_contact_sheet(bundle: Path, photos: Path, tmp_path: Path) -> None:
    for name in ("sheet.jpg", "sheet.png"):
        assert command(bundle, photos, "--sheet", tmp_path / name) == 0
        with Image.open(tmp_path / name) as sheet:
            sheet.load()
            assert sheet.width > 5 * 240  # five tiles of this size in a row
            assert sheet.height > 2 * 240


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["{photos}", "--threshold", "1.5"], "--threshold 1.5 must lie in 0..1"),
        (["{photos}", "--threshold", "nan"], "--threshold"),
        (["{photos}", "--threshold", "0,1"], "names that of all classes twice; decimals have a"),
        (["{photos}", "--xmp-naming", "photo.xmp"], "--xmp-naming needs --xmp"),
        (["{photos}", "--top", "0"], "--top 0"),
        (["{photos}", "--batch-size", "0"], "--batch-size 0"),
        (["{photos}", "--workers", "-1"], "--workers -1"),
        (["{photos}", "--only", "sunse"], "'sunse' among the 4 .* did you mean 'sunset'"),
        (["{photos}", "--exclude", "sea,sunset,tree,path"], "leave no class"),
        (["{photos}", "--json", "-", "--format", "csv"], "--json FILE means"),
        (["{photos}", "--format", "parquet"], "needs --out"),
        (["{photos}", "--sheet", "sheet.pdf"], "sheet.pdf: the name must end in .jpg"),
        (["{photos}", "--sheet", "{photos}/0.png"], "0.png is one of the images"),
        (["{photos}/0.png", "--json", "{photos}/../photos/0.png"], "is one of the images"),
        (["{photos}", "--out", "{photos}/tags"], r"tags: the name must end in \.jsonl, .*\.tsv, "),
        (["{photos}", "--out", "{photos}/tags.xlsx"], r"the name must end in .*unless --format"),
        (["{photos}", "--out", "{photos}/tags.txt"], r"the name must end in .*unless --format"),
        (["{photos}/nowhere.jpg"], "no such file or folder: .*nowhere.jpg"),
        (["{photos}/*.webp"], "no images in .*webp"),
        (["{photos}/empty"], "no images in .*empty"),
    ],
)
def test_wrong_usage_is_reported_before_anything_is_done(
    bundle: Path, photos: Path, words: list[str], told: str
) -> None:
    (photos / "empty").mkdir()
    before = files_in(photos)
    with pytest.raises(UsageError, match=told):
        command(bundle, *[word.format(photos=photos) for word in words])
    assert files_in(photos) == before


def test_a_sidecar_is_of_the_first_photo_of_its_name_alone(
    bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "0.jpg").write_bytes((photos / "0.png").read_bytes())
    (photos / "1.jpg").write_bytes((photos / "1.png").read_bytes())
    out = tmp_path / "out.csv"
    for _ in range(2):
        assert command(bundle, photos, "--sidecars", "--overwrite", "--out", out) == 1
        with errors_path(out).open() as file:
            told = {Path(row["path"]).name: row["error"] for row in csv.DictReader(file)}
        assert set(told) >= {"0.png", "1.png"}
        owner = f"{photos / '0.txt'} is the sidecar of {photos / '0.jpg'}"
        assert told["0.png"] == f"{owner}: rename one of the two"
    assert (photos / "0.txt").read_text()
    capsys.readouterr()
    assert command(bundle, photos, "--sidecars") == 1  # also where all have been written before
    assert f"{owner}: rename one of the two" in capsys.readouterr().err


def test_commas_stay_in_their_label(bundle: Path, photos: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((bundle / name).read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["classes"][1] = "sun, set"
    (tmp_path / "config.json").write_text(json.dumps(config))
    words = ["--sidecars", "--xmp", "--threshold", "0", "--only", "sun, set"]
    assert command(tmp_path, photos / "1.png", *words) == 0
    assert (photos / "1.txt").read_text() == '"sun, set"\n'
    assert read_folder(photos).classes == ("sun, set",)
    assert read_keywords(photos)[""].classes == ("sun, set",)


def test_a_failing_run_leaves_the_previous_results(
    bundle: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.csv"
    out.write_text("yesterday's")

    def fails(self: Predictor, pixels: np.ndarray) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Predictor, "predict_batch", fails)
    with pytest.raises(RuntimeError):
        command(bundle, photos, "--out", out)
    assert out.read_text() == "yesterday's"
    assert not list(tmp_path.glob(".tmp*"))


def test_an_interruption_keeps_what_is_done(
    bundle: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    predict_batch, calls = Predictor.predict_batch, []

    def interrupted(self: Predictor, pixels: np.ndarray) -> list[Prediction]:
        calls.append(len(pixels))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return predict_batch(self, pixels)

    monkeypatch.setattr(Predictor, "predict_batch", interrupted)
    out = tmp_path / "out.parquet"
    with pytest.raises(KeyboardInterrupt):
        command(bundle, photos, "--batch-size", 2, "--out", out)
    assert pq.read_table(out).num_rows == 4
    assert "interrupted after 4 images" in capsys.readouterr().err
