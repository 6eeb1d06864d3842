"""Labels that imply others, in what is measured: the probabilities and labels of `mltr predict`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from making import TINY_ON_PHOTOS, write_photos
from scipy.special import expit
from sklearn.metrics import average_precision_score, f1_score, precision_recall_fscore_support

from mltr.cli import main
from mltr.diagnosis.figures import Subject
from mltr.evaluation.aims import parse_aim
from mltr.evaluation.predictions import Predictions
from mltr.evaluation.thresholds import fit
from mltr.weights.bundle import update_config

CLASSES = ("animal", "car", "dog", "puppy")
TREE = {"puppy": "dog", "dog": "pet", "pet": "animal"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("implied")
    photos = write_photos(folder / "photos", 48)
    (folder / "tree.yaml").write_text("sunset: sea\n")
    options = [f"--data.hierarchy={folder / 'tree.yaml'}", "--data.test_fraction=0.5"]
    words = ["train", "scratch", str(photos), "--out", str(folder / "run"), *options]
    assert main([*words, *TINY_ON_PHOTOS]) == 0
    return folder / "run"


def figures_of(command: str, run: Path, *options: str) -> Any:
    out = run.parent / "figures.json"
    assert main([command, str(run), "--json", str(out), *options]) == 0
    return json.loads(out.read_text())


def predicted(run: Path, *options: str) -> tuple[Any, Any, Any]:
    """Return probabilities and decisions of `mltr predict` for the test photos, and the labels."""
    names = json.loads((run / "splits.json").read_text())["test"]
    photos = [str(run.parent / "photos" / name) for name in names]
    out = run.parent / "tags.parquet"
    command = ["predict", str(run), *photos, "--out", str(out), "--overwrite", "--engine", "torch"]
    assert main([*command, *options]) == 0
    rows = pq.read_table(out).to_pylist()
    probs = np.array([[row["sea"], row["sunset"]] for row in rows])
    decided = np.array([[name in row["labels"] for name in ("sea", "sunset")] for row in rows])
    table = (run.parent / "photos" / "labels.csv").read_text().split()[1:]
    given = {name: (int(sea), int(sunset)) for name, sea, sunset in (r.split(",") for r in table)}
    # A sunset implies the sea.
    return probs, decided, np.array([(max(given[name]), given[name][1]) for name in names])


@pytest.mark.parametrize("views", [(), ("--views", "mirror")])
def test_evaluate_measures_what_predict_writes(run: Path, views: tuple[str, ...]) -> None:
    update_config(run, {"thresholds": None})
    probs, _, targets = predicted(run, *views)
    # Half of the sunsets reach their threshold, and hardly any sea its own.
    limits = [float(np.quantile(probs[:, 0], 0.95)), float(np.median(probs[:, 1]))]
    update_config(run, {"thresholds": limits})
    probs, decided, targets = predicted(run, *views)
    assert (probs[:, 0] >= probs[:, 1]).all()
    assert (decided[:, 0] & (probs[:, 0] < limits[0])).sum() > 5
    for options in ((), ("--rerun",)) if not views else (views,):
        found = figures_of("evaluate", run, *options)
        own = found["at_own_thresholds"]
        assert own["of1"] == pytest.approx(f1_score(targets, decided, average="micro"))
        shares = precision_recall_fscore_support(targets, decided, average=None, zero_division=0)
        for k, name in enumerate(("sea", "sunset")):
            ap = average_precision_score(targets[:, k], probs[:, k])
            assert found["per_class"][name]["ap"] == pytest.approx(ap)
            values = [own["per_class"][name][key] for key in ("precision", "recall", "f1")]
            assert values == pytest.approx([share[k] for share in shares[:3]])
    if not views:  # the last figures of training are the same
        assert json.loads((run / "metrics.json").read_text())["map"] == found["map"]


def test_calibrate_and_diagnose_decide_as_predict_does(run: Path) -> None:
    found = figures_of("calibrate", run, "--aim", "recall=0.9", "--min-positives", "2")
    _, decided, targets = predicted(run)
    precision, recall, f1, _ = precision_recall_fscore_support(
        targets, decided, average=None, zero_division=0
    )
    for k, name in enumerate(("sea", "sunset")):
        after = found["per_class"][name]["after"]
        assert after == pytest.approx({"precision": precision[k], "recall": recall[k], "f1": f1[k]})
    subject = Subject.open(str(run), "test")
    np.testing.assert_array_equal(subject.scored(20, 0).predicted, decided)


@pytest.mark.parametrize("text", ["precision=0.8", "recall=0.9"])
def test_an_aim_holds_with_what_is_implied(text: str) -> None:
    """Of thresholds alone it wouldn't: a dog that is found is an animal whatever its threshold."""
    generator = np.random.default_rng(0)
    logits = generator.normal(-1, 2, (2000, 4))
    probs = expit(logits).astype(np.float32)
    targets = (generator.random(logits.shape) < probs).astype(np.int8)
    targets[:, 2] |= targets[:, 3]
    targets[:, 0] |= targets[:, 2]
    names = tuple(map(str, range(len(probs))))
    val = Predictions(probs, targets, names, CLASSES, hierarchy=TREE)
    fitted = fit(val, parse_aim(text), "none", 10)
    assert all(fitted.reached)
    raised = probs.copy()
    raised[:, 2] = np.maximum(raised[:, 2], raised[:, 3])
    raised[:, 0] = np.maximum(raised[:, 0], raised[:, 2])
    decided = raised >= fitted.thresholds
    decided[:, 2] |= decided[:, 3]
    decided[:, 0] |= decided[:, 2]
    kind, level = text.split("=")
    shares = precision_recall_fscore_support(targets, decided, average=None)
    assert (shares[("precision", "recall").index(kind)] >= float(level)).all()
