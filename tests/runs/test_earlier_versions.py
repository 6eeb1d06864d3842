"""Runs, bundles, checkpoints and exported files written by version 0.1 still load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import mltr
from mltr.cli import main

EARLIER = Path(__file__).parent / "written_by_0_1"


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    shutil.copytree(EARLIER, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_a_finished_run_is_evaluated_as_then(earlier: Path) -> None:
    then = json.loads((earlier / "finished" / "metrics.json").read_text())
    (earlier / "finished" / "predictions.npz").unlink()  # so that `evaluate` uses the weights
    assert main(["evaluate", str(earlier / "finished"), "--json", str(earlier / "now.json")]) == 0
    now = json.loads((earlier / "now.json").read_text())
    for name in ("map", "cf1", "of1"):
        assert now[name] == pytest.approx(then[name], abs=1e-4)


def test_its_saved_scores_are_read(earlier: Path) -> None:
    then = json.loads((earlier / "finished" / "metrics.json").read_text())
    assert main(["evaluate", str(earlier / "finished"), "--json", str(earlier / "now.json")]) == 0
    assert json.loads((earlier / "now.json").read_text())["map"] == pytest.approx(then["map"])


def test_bundle_and_exported_file_agree(earlier: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    bundle, exported = mltr.load(earlier / "finished"), mltr.load(earlier / "finished/model.onnx")
    assert bundle.classes == exported.classes
    assert np.allclose(bundle(picture).probs, exported(picture).probs, atol=1e-5)


def test_an_interrupted_run_goes_on(earlier: Path) -> None:
    run = earlier / "interrupted"
    assert main(["train", str(run / "config.yaml"), "--out", str(run), "--resume"]) == 0
    epochs = [json.loads(line)["epoch"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert epochs == [1, 2, 3, 4]
    assert json.loads((run / "metrics.json").read_text())["epochs"] == 4
