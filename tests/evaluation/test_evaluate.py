"""`mltr evaluate`: figures of saved predictions, other sources, and errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from making import save_untrained
from sklearn.metrics import average_precision_score, f1_score, precision_score

import mltr
from mltr.cli import main
from mltr.config.recipe import to_yaml
from mltr.config.schema import Config, DataConfig, ScenesConfig
from mltr.data import Preprocess, read_scenes
from mltr.evaluation.predictions import (
    Predictions,
    load_predictions,
    predict_split,
    save_predictions,
)

pytestmark = pytest.mark.pictures

CLASSES = ("cat", "dog", "a very long name of a class", "rare")


@pytest.fixture
def saved(tmp_path: Path) -> Predictions:
    generator = np.random.default_rng(0)
    targets = (generator.random((50, 4)) < (0.5, 0.3, 0.2, 0)).astype(np.int8)
    targets[3, 1] = -1
    probs = np.clip(targets * 0.4 + generator.random((50, 4)) * 0.6, 0, 1).astype(np.float32)
    names = tuple(f"{i}.jpg" for i in range(50))
    predictions = Predictions(probs, targets, names, CLASSES, ("7.jpg: the file is empty",))
    save_predictions(tmp_path / "predictions.npz", predictions)
    return predictions


def test_predictions_survive_the_file(saved: Predictions, tmp_path: Path) -> None:
    again = load_predictions(tmp_path / "predictions.npz")
    assert np.array_equal(again.probs, saved.probs)
    assert np.array_equal(again.targets, saved.targets)
    assert (again.images, again.classes, again.errors) == (
        saved.images, saved.classes, saved.errors,
    )  # fmt: skip


def test_evaluate_equals_sklearn_on_the_saved_predictions(
    saved: Predictions, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "figures.json"
    assert main(["evaluate", str(tmp_path), "--json", str(out)]) == 0
    figures = json.loads(out.read_text())
    aps, decided, truths = [], [], []
    for k in range(3):
        known = saved.targets[:, k] >= 0
        truth, probs = saved.targets[known, k], saved.probs[known, k]
        aps.append(average_precision_score(truth, probs))
        row = figures["per_class"][CLASSES[k]]
        assert row["ap"] == pytest.approx(aps[-1])
        assert row["precision"] == pytest.approx(precision_score(truth, probs >= 0.5))
        assert row["support"] == truth.sum()
        decided.append(probs >= 0.5)
        truths.append(truth)
    assert figures["map"] == pytest.approx(np.mean(aps))
    rare = saved.probs[:, 3] >= 0.5
    overall = f1_score(np.concatenate([*truths, 0 * rare]), np.concatenate([*decided, rare]))
    assert figures["of1"] == pytest.approx(overall)
    assert figures["classes_without_positives"] == ["rare"]
    assert figures["per_class"]["rare"]["ap"] is None
    printed = capsys.readouterr().out
    assert "no positives, so left out of every mean: rare" in printed
    assert "7.jpg: the file is empty" in printed
    for name in ("precision_recall.png", "average_precision.png"):
        assert (tmp_path / name).stat().st_size > 5000


def test_json_to_standard_output_is_only_json(saved: Predictions, tmp_path: Path, capsys) -> None:
    assert main(["evaluate", str(tmp_path), "--json", "-"]) == 0
    assert "map" in json.loads(capsys.readouterr().out)


def test_a_threshold_of_choice(saved: Predictions, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    assert main(["evaluate", str(tmp_path), "--threshold", "0.3", "--json", str(out)]) == 0
    expected = mltr.metrics.evaluate(saved.probs, saved.targets, 0.3)
    assert json.loads(out.read_text())["cr"] == pytest.approx(expected["cr"])
    assert main(["evaluate", str(tmp_path), "--threshold", "3"]) == 2


def write_scenes_run(folder: Path, seed: int = 0) -> None:
    overrides = {"image_size": 32, "depths": [1], "conv_depths": [0]}
    scenes = ScenesConfig(train=8, val=4, test=6, side=32, seed=seed)
    save_untrained(folder, read_scenes(scenes).test.classes, overrides)
    config = Config(data=DataConfig(format="scenes", scenes=scenes, workers=0))
    (folder / "config.yaml").write_text(to_yaml(config))


def test_the_network_runs_again_or_on_other_data(tmp_path: Path) -> None:
    write_scenes_run(tmp_path)
    bundle = mltr.load(tmp_path)
    scenes = ScenesConfig(train=8, val=4, test=6, side=32)
    splits = read_scenes(scenes)
    for arguments, split in (
        ([], splits.test),
        (["--split", "val"], splits.val),
        (["--data.scenes.seed", "5"], read_scenes(ScenesConfig(8, 4, 6, 32, seed=5)).test),
    ):
        out = tmp_path / "figures.json"
        command = ["evaluate", str(tmp_path), "--rerun", "--json", str(out), *arguments]
        assert main(command) == 0
        expected = predict_split(bundle.model, split, Preprocess(32))
        figures = json.loads(out.read_text())
        assert figures["images"] == len(split)
        assert figures["map"] == pytest.approx(
            mltr.metrics.evaluate(expected.probs, expected.targets)["map"], abs=1e-5
        )


def test_data_with_other_classes_is_refused(tmp_path: Path, capsys) -> None:
    write_scenes_run(tmp_path)
    photos = tmp_path / "photos"
    photos.mkdir()
    from making import write_image

    rows = []
    for index in range(30):
        write_image(photos / f"{index}.png")
        rows.append(f"{index}.png,{index % 2}")
    (photos / "labels.csv").write_text("path,sea\n" + "\n".join(rows))
    command = ["evaluate", str(tmp_path), "--data.format=table", f"--data.root={photos}"]
    assert main(command) == 1
    assert "knows 10 classes (zero, one, two, ...) and the data has 1" in capsys.readouterr().err


def test_other_images_leave_the_curves_of_the_run_alone(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    write_scenes_run(run)
    assert main(["evaluate", str(run)]) == 0
    before = (run / "precision_recall.png").read_bytes()
    other = ["--data.scenes.seed=7", "--data.scenes.test=9"]
    assert main(["evaluate", str(run), *other]) == 0
    assert (run / "precision_recall.png").read_bytes() == before
    assert main(["evaluate", str(run), *other, "--out", str(tmp_path / "other")]) == 0
    assert (tmp_path / "other" / "precision_recall.png").is_file()


def test_what_is_not_there_or_damaged(tmp_path: Path, capsys) -> None:
    assert main(["evaluate", str(tmp_path / "none")]) == 1
    assert "no such run folder" in capsys.readouterr().err
    (tmp_path / "predictions.npz").write_bytes(b"PK half a file")
    assert main(["evaluate", str(tmp_path)]) == 1
    assert "predictions.npz is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("classes", [1, 80])
def test_curves_for_one_and_for_many_classes(tmp_path: Path, classes: int) -> None:
    from mltr.evaluation.curves import save_curves

    generator = np.random.default_rng(1)
    targets = generator.integers(0, 2, (20, classes)).astype(np.int8)
    predictions = Predictions(
        generator.random((20, classes)).astype(np.float32), targets,
        tuple(map(str, range(20))), tuple(f"class {k}" for k in range(classes)),
    )  # fmt: skip
    assert all(path.is_file() for path in save_curves(tmp_path / "new", predictions))
    nothing = Predictions(predictions.probs, 0 * targets, predictions.images, predictions.classes)
    assert all(path.is_file() for path in save_curves(tmp_path / "new", nothing))


def test_each_split_has_its_own_curves(small_run: Path) -> None:
    curves = {path: path.read_bytes() for path in small_run.glob("*_*.png")}
    assert len(curves) == 2
    assert main(["evaluate", str(small_run), "--split", "val"]) == 0
    assert main(["evaluate", str(small_run), "--split", "train"]) == 0
    assert all(path.read_bytes() == content for path, content in curves.items())
    for name in ("precision_recall", "average_precision"):
        assert (small_run / f"{name}_val.png").is_file()
        assert (small_run / f"{name}_train.png").is_file()
