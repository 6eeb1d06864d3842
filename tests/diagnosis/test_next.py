"""`mltr next`: what it chooses, and that the answers train."""

from __future__ import annotations

import csv
import json
import os
import shlex
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import TINY_ON_PHOTOS, write_image
from PIL import Image

from mltr.cli import main
from mltr.config.recipe import load_recipe, to_yaml
from mltr.data import open_splits
from mltr.diagnosis.choose import SHORTLIST, choose, farthest_first, uncertainty

# Choosing.


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 1000))
def test_the_farthest_are_those_of_a_naive_search(size: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(size, 4)).astype(np.float32)
    scores = rng.random(size).astype(np.float32)
    unit = [vector / np.linalg.norm(vector) for vector in features]
    expected = [int(np.argmax(scores))]
    while len(expected) < min(count, size):
        gains = {
            row: scores[row] * min(np.sum((unit[row] - unit[other]) ** 2) for other in expected)
            for row in set(range(size)) - set(expected)
        }
        expected.append(max(gains, key=lambda row: gains[row]))
    assert farthest_first(features, scores, count).tolist() == expected


def test_a_label_near_its_threshold_makes_an_image_uncertain() -> None:
    probs = np.array([[0.01, 0.99], [0.5, 0.0], [0.3, 0.1], [0.0, 1.0]], np.float32)
    assert np.allclose(uncertainty(probs), [0.02, 1, 0.6, 0], atol=1e-6)
    assert np.allclose(uncertainty(probs, [0.3, 0.0]), [1 / 30, 0.5 / 0.7, 1, 0], atol=1e-5)
    assert choose(probs, np.eye(4, dtype=np.float32), 2).tolist() == [1, 2]
    assert choose(probs, np.eye(4, dtype=np.float32), 9).tolist() == [1, 2, 0, 3]


def test_copies_and_sure_images_come_last() -> None:
    features = np.random.default_rng(0).normal(size=(12, 16)).repeat(5, axis=0).astype(np.float32)
    probs = np.full((60, 1), 0.5, np.float32)
    probs[:5] = 1e-6
    chosen = choose(probs, features, 60) // 5
    assert sorted(chosen) == sorted([*range(12)] * 5)
    assert len(set(chosen[:11])) == 11
    assert 0 not in chosen[:11]
    assert SHORTLIST * 12 < 60 - 5
    assert 0 not in choose(probs, features, 12) // 5


# From photos to a table, and from the table to a run.


@pytest.fixture
def pool(small_run: Path) -> Path:
    """The run's 20 photos, 12 others, one of which is there twice, and one with an odd name."""
    photos = small_run.parent / "photos"
    recipe = small_run / "config.yaml"
    config = load_recipe(recipe)
    recipe.write_text(to_yaml(replace(config, data=replace(config.data, root=str(photos)))))
    for number in range(12):
        write_image(photos / f"new {number} & more.png", (40, 30), seed=100 + number)
    Image.open(photos / "new 3 & more.png").save(photos / "copy.png")
    write_image(photos / os.fsdecode(b"not \xff utf-8.png"), (40, 30), seed=200)
    return photos


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_table_is_filled_and_the_answers_train(
    small_run: Path, pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, labels = tmp_path / "next.csv", tmp_path / "labels.csv"
    assert main(["next", str(small_run), str(pool), "--count", "30", "--out", str(out)]) == 0
    rows = read(out)
    names = [Path(row["path"]).name for row in rows]
    assert len(names) == 12
    assert all(name.startswith("new") or name == "copy.png" for name in names)
    assert {"copy.png", "new 3 & more.png"} - set(names)
    assert list(rows[0]) == ["path", "sea", "sunset"]
    predicted = tmp_path / "predicted.jsonl"
    assert main(["predict", str(small_run), str(pool), "--out", str(predicted)]) == 0
    guesses = {
        str(Path(row["path"]).resolve()): row["labels"]
        for row in map(json.loads, predicted.read_text().splitlines())
    }
    for row in rows:
        assert [name for name in ("sea", "sunset") if row[name] == "1"] == sorted(
            guesses[row["path"]]
        )
    assert (tmp_path / "next.html").read_text().count("<figure>") == 12
    tasks = json.loads((tmp_path / "next.label-studio.json").read_text())
    files = [parse_qs(urlsplit(task["data"]["image"]).query)["d"][0] for task in tasks]
    assert [f"/{file}" for file in files] == [row["path"] for row in rows]
    interface = ElementTree.parse(tmp_path / "next.label-studio.xml")
    assert [tag.get("value") for tag in interface.iter("Choice")] == ["sea", "sunset"]

    for row in rows:
        row["sea"], row["sunset"] = "1", ""
    rows[1]["sunset"] = "-1"  # as good as empty
    rows[0]["sea"] = ""  # can't be told
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    recipe = small_run / "config.yaml"  # whose own empty cells are negatives, not the answers'
    recipe.write_text(recipe.read_text().replace("missing: unknown", "missing: negative"))
    assert "missing: negative" in recipe.read_text()
    capsys.readouterr()
    assert main(["next", str(small_run), "--answers", str(out), "--out", str(labels)]) == 0
    told = capsys.readouterr().out
    assert "11 photos added to the" in told
    command = next(line for line in told.splitlines() if "mltr train" in line)
    run = tmp_path / "again"
    assert main([*shlex.split(command)[1:], *TINY_ON_PHOTOS, "--out", str(run)]) == 0
    before = open_splits(load_recipe(small_run / "config.yaml").data)
    after = open_splits(load_recipe(run / "config.yaml").data)
    assert [len(split) for split in after] == [
        len(before.train) + 11, len(before.val), len(before.test),
    ]  # fmt: skip
    added = [record for record in after.train if Path(record.name).name in names]
    assert np.array_equal([record.labels for record in added], [[1, -1]] * 11)
    again = tmp_path / "again.csv"
    assert main(["next", str(run), str(pool), "--out", str(again)]) == 0
    assert len(read(again)) <= 2


def test_an_export_of_label_studio_joins_the_run(
    small_run: Path, pool: Path, tmp_path: Path
) -> None:
    out, export, labels = (tmp_path / name for name in ("next.csv", "export.json", "labels.csv"))
    assert main(["next", str(small_run), str(pool), "--out", str(out)]) == 0
    tasks = json.loads((tmp_path / "next.label-studio.json").read_text())
    for number, task in enumerate(tasks):
        del task["predictions"]
        choices = {"from_name": "labels", "to_name": "image", "type": "choices"}
        given = choices | {"value": {"choices": [["sunset"], ["sea", "sunset"]][number % 2]}}
        task["annotations"] = [{"result": [given]}] if number else []
    export.write_text(json.dumps(tasks))
    command = ["next", str(small_run), str(pool), "--answers", str(export), "--out", str(labels)]
    assert main(command) == 0
    found = {row["path"]: (row["sea"], row["sunset"]) for row in read(labels)}
    rows = read(out)
    assert rows[0]["path"] not in found
    for number, row in enumerate(rows[1:], start=1):
        assert found[row["path"]] == ("01"[number % 2], "1")


def test_an_interrupted_choice_continues(
    small_run: Path, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from mltr.predict.features import Scorer

    out = tmp_path / "next.csv"
    command = ["next", str(small_run), str(pool), "--out", str(out), "--batch-size", "4"]
    whole, seen = Scorer.predict_batch, []

    def stop(self: Scorer, pixels: np.ndarray) -> list:
        seen.append(len(pixels))
        if sum(seen) > 16:
            raise KeyboardInterrupt
        return whole(self, pixels)

    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "predict_batch", stop)
        assert main(command) == 130
    assert not out.exists()
    assert "next.csv is not written; repeat the command to continue" in capsys.readouterr().err
    assert main(command) == 0
    assert "continuing: " in capsys.readouterr().err
    assert len(read(out)) == 12


def test_impossible_requests_are_reported_in_one_line(
    small_run: Path, pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = str(small_run), str(tmp_path / "next.csv")
    (tmp_path / "old.csv").write_text("path,sea\n")
    (tmp_path / "my.html").write_text("an album")
    own = pool / "0.png"
    (tmp_path / "own.csv").write_text(f"path,sea,sunset\n{own},1,0\n")
    (tmp_path / "gone.csv").write_text(f"path,sea,sunset\n{pool / 'copy.png'},1,0\ngone.png,1,0\n")
    (tmp_path / "typo.csv").write_text(f"path,see,sunset\n{pool / 'copy.png'},1,0\n")
    (tmp_path / "odd.csv").write_text(f"path,sea,sunset\n{pool / 'copy.png'},perhaps,0\n")
    (tmp_path / "bare.csv").write_text(f"path,sea,sunset\n{pool / 'copy.png'},,\n")
    answers = ["next", run, "--out", out, "--answers"]
    for words, message in (
        (["next", run, str(pool), "--out", "next.txt"], "must end in .csv"),
        (["next", run, str(pool), "--out", str(tmp_path / "old.csv")], "may be what you wrote"),
        (["next", run, str(pool), "--out", str(tmp_path / "my.csv")], "my.html exists"),
        (["next", run, "--out", out], "give the photos"),
        (["next", run, str(pool), "--out", out, "--count", "0"], "at least 1"),
        (["next", run, str(own), "--out", out], "has no labels yet"),
        (["next", str(tmp_path), str(pool), "--out", out], "model.safetensors"),
        ([*answers, str(tmp_path / "none.csv")], "no such table or export"),
        ([*answers, str(tmp_path / "own.csv")], "the run has labels of"),
        ([*answers, str(tmp_path / "gone.csv")], "no such photo: gone.png"),
        ([*answers, str(tmp_path / "typo.csv")], "did you mean 'sea'"),
        ([*answers, str(tmp_path / "odd.csv")], "perhaps"),
        ([*answers, str(tmp_path / "bare.csv")], "no photo has an answer"),
    ):
        assert main(words) in (1, 2), words
        error = capsys.readouterr().err.splitlines()
        assert message in error[-1], words
        assert not Path(out).exists()
