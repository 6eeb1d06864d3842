"""`mltr diagnose` through the command: one run, two runs, and figures that can't be measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from making import TINY_ON_PHOTOS
from PIL import Image
from sklearn.metrics import average_precision_score

from mltr.cli import main
from mltr.evaluation.predictions import load_predictions, save_predictions

SCENES = ["--data.scenes.train", "400", "--data.scenes.val", "20", "--data.scenes.test", "500"]
QUICK = ["--train.epochs", "1", "--train.batch_size", "100", "--data.workers", "0"]
QUICK += ["--data.scenes.side", "32", "--model.image_size", "32", "--data.cache", "false"]
LOOK_ALIKES = [{"one", "seven"}, {"three", "eight"}, {"four", "nine"}]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", "scenes_nano", "--out", str(folder), *SCENES, *QUICK]) == 0
    return folder


def with_scores(source: Path, target: Path, change: Any) -> Path:
    """Copy a run and replace its scores by `change(targets, generator)`."""
    target.mkdir()
    for path in source.iterdir():
        if path.is_file():
            (target / path.name).write_bytes(path.read_bytes())
    found = load_predictions(source / "predictions.npz")
    probs = change(found.targets, np.random.default_rng(3)).astype(np.float32)
    save_predictions(target / "predictions.npz", type(found)(
        probs, found.targets, found.images, found.classes, found.errors
    ))  # fmt: skip
    return target


def good(targets: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    noise = 0.12 * generator.standard_normal(targets.shape)
    return np.clip(0.15 + 0.7 * (targets == 1) + noise, 0.01, 0.99)


def faulty(targets: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return scores that confuse look-alikes and predict absent companions."""
    probs = good(targets, generator)
    for a, b in ((1, 7), (7, 1), (3, 8), (8, 3), (4, 9), (9, 4)):
        alone = (targets[:, a] == 1) & (targets[:, b] == 0)
        probs[alone & (generator.random(len(probs)) < 0.2), b] = 0.9
    for a, b in ((2, 5), (6, 0)):
        alone = (targets[:, a] == 1) & (targets[:, b] == 0)
        probs[alone, b], probs[alone, a] = 0.9, 0.3
    return probs


def figures_of(arguments: list[str], tmp_path: Path) -> dict[str, Any]:
    assert main(["diagnose", *arguments, "--json", str(tmp_path / "out.json")]) == 0
    found: dict[str, Any] = json.loads((tmp_path / "out.json").read_text())
    return found


@pytest.mark.pictures
def test_planted_faults_are_found(run: Path, tmp_path: Path) -> None:
    bad = with_scores(run, tmp_path / "bad", faulty)
    found = figures_of([str(bad), "--out", str(tmp_path / "pictures")], tmp_path)
    confused = found["similar_objects"]["pairs"]
    assert all({pair["a"], pair["b"]} in LOOK_ALIKES for pair in confused[:6])
    assert all(pair["is_significant"] for pair in confused[:6])
    company = found["company"]["pairs"]
    assert {(pair["a"], pair["b"]) for pair in company[:2]} == {("two", "five"), ("six", "zero")}
    assert all(
        pair["excess_is_significant"] and pair["recall_is_significant"] for pair in company[:2]
    )
    for name in ("confusion", "similar", "company"):
        assert Image.open(tmp_path / "pictures" / f"{name}.png").size[0] > 300


def test_a_good_run_shows_no_problem(run: Path, tmp_path: Path, capsys: Any) -> None:
    sound = with_scores(run, tmp_path / "sound", good)
    capsys.readouterr()
    found = figures_of([str(sound)], tmp_path)
    text = capsys.readouterr().out
    assert not [pair for pair in found["similar_objects"]["pairs"] if pair["is_significant"]]
    assert "None is significant" in text
    assert "within noise" in text
    assert found["small_objects"]["edges_from"] == "terciles of these objects"


def test_better_recall_without_company_is_no_leaning_on_it(
    run: Path, tmp_path: Path, capsys: Any
) -> None:
    def contrary(targets: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        probs = good(targets, generator)
        for a, b in ((2, 5), (5, 2), (6, 0), (0, 6)):
            probs[(targets[:, a] == 1) & (targets[:, b] == 1), a] = 0.3
        return probs

    odd = with_scores(run, tmp_path / "[red]odd", contrary)
    capsys.readouterr()
    found = figures_of([str(odd)], tmp_path)["company"]
    text = capsys.readouterr().out
    assert found["mean_recall_gap"]["high"] < 0
    assert "Labels do not lean on their usual company" in text
    assert "[red]odd" in text  # names aren't interpreted as markup


def test_two_runs_are_compared_in_pairs(run: Path, tmp_path: Path) -> None:
    sound = with_scores(run, tmp_path / "sound", good)
    bad = with_scores(run, tmp_path / "bad", faulty)
    rows = figures_of([str(bad), str(sound)], tmp_path)["headlines"]
    for name in ("mean_confusion", "recall_gap", "company_excess"):
        assert rows[name]["better"] == "second"
        difference = rows[name]["second"]["value"] - rows[name]["first"]["value"]
        assert rows[name]["difference"]["value"] == pytest.approx(difference)
        assert rows[name]["difference"]["high"] < 0
    for folder, side in ((bad, "first"), (sound, "second")):
        saved = load_predictions(folder / "predictions.npz")
        expected = average_precision_score(saved.targets, saved.probs, average="macro")
        assert rows["map"][side]["value"] == pytest.approx(expected)
    assert rows["map"]["better"] == "second"
    same = figures_of([str(sound), str(sound)], tmp_path)["headlines"]
    assert {row["better"] for row in same.values()} == {"neither, within noise"}


def test_runs_on_other_images_are_not_compared(run: Path, tmp_path: Path, capsys: Any) -> None:
    other = tmp_path / "other"
    more = ["--data.scenes.test", "60", "--data.scenes.seed", "1"]
    assert main(["train", "scenes_nano", "--out", str(other), *SCENES, *QUICK, *more]) == 0
    capsys.readouterr()
    assert main(["diagnose", str(run), str(other)]) == 1
    assert "can't be compared: the first has 500 images" in capsys.readouterr().err
    assert main(["diagnose", str(run), str(run), str(run)]) == 2
    assert main(["diagnose", str(run), "--resamples", "2"]) == 2
    assert main(["diagnose", str(run), str(run), "--out", str(run.parent / "pictures")]) == 2


def test_without_boxes_or_known_labels_it_says_so(run: Path, tmp_path: Path, capsys: Any) -> None:
    from making import write_image

    rows = ["path,sea,sunset"]
    for index in range(40):
        write_image(tmp_path / "photos" / f"{index}.png")
        rows.append(f"{index}.png,{index % 2},{index // 2 % 2}")
    (tmp_path / "photos" / "labels.csv").write_text("\n".join(rows))
    options = ["--data.root", str(tmp_path / "photos"), "--data.base_size", "32", *QUICK[:6]]
    options += ["--model.image_size", "32", "--data.cache", "false", "--train.batch_size", "8"]
    folder = tmp_path / "plain"
    assert main(["train", "scratch", "--out", str(folder), *options]) == 0
    capsys.readouterr()
    found = figures_of([str(folder)], tmp_path)
    assert found["small_objects"] is None
    assert "has no boxes" in capsys.readouterr().out
    blind = with_scores(folder, tmp_path / "blind", good)
    saved = load_predictions(blind / "predictions.npz")
    unknown = type(saved)(saved.probs, np.full_like(saved.targets, -1), saved.images, saved.classes)
    save_predictions(blind / "predictions.npz", unknown)
    assert main(["diagnose", str(blind)]) == 1
    assert "unknown" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_the_scenes_plant_is_found_in_a_trained_run(tmp_path: Path) -> None:
    """After a short training small digits score lower; look-alikes and companions come first."""
    options = ["--data.scenes.train", "4000", "--train.epochs", "8", "--train.precision", "fp32"]
    assert main(["train", "scenes_nano", "--out", str(tmp_path / "run"), *options]) == 0
    found = figures_of([str(tmp_path / "run")], tmp_path)
    sizes = found["small_objects"]
    assert sizes["ap"]["small"]["high"] < sizes["ap"]["large"]["low"]
    assert sizes["is_significant"]
    confused = found["similar_objects"]
    assert all({pair["a"], pair["b"]} in LOOK_ALIKES for pair in confused["pairs"][:6])
    company = found["company"]
    assert {(p["a"], p["b"]) for p in company["pairs"][:2]} == {("two", "five"), ("six", "zero")}
    assert company["mean_excess"]["low"] > 0


def test_a_run_on_the_audits_table_compares_with_the_first(
    small_run: Path, tmp_path: Path, capsys
) -> None:
    assert main(["audit", str(small_run), "--apply", "3"]) == 0
    table = small_run / "audit" / "corrected.csv"
    second = tmp_path / "second"
    assert main(["train", "scratch", str(table), *TINY_ON_PHOTOS, "--out", str(second)]) == 0
    capsys.readouterr()
    assert main(["diagnose", str(small_run), str(second), "--json", "-"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["images"] == json.loads((small_run / "metrics.json").read_text())["images"]
    assert main(["report", str(small_run)]) == 0
    page = (small_run / "report.html").read_text()
    assert "The audit lists" in page
    assert "issues.csv" in page
