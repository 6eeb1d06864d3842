"""`mltr calibrate` for a tagger with categories: thresholds of its own, and those of others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import f1_score
from small_taggers import NAMES, write_wd

import mltr
from mltr.cli import main
from mltr.weights.bundle import read_config

SEA, SKY, SUNSET, WHALE = (NAMES.index(n) for n in ("sea", "blue_sky", "sunset", "moby_dick"))


@pytest.fixture
def tagger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("mltr.evaluation.thresholds.RESAMPLES", 5)
    words = ["--threshold", "general=0.3,character=0.001"]
    out = tmp_path / "tagger"
    assert (
        main(["convert", "tagger", str(write_wd(tmp_path / "wd")), "--out", str(out), *words]) == 0
    )
    return out


def write_labels(root: Path, count: int = 60) -> list[str]:
    """Write photos of noise, and a table in which sunsets are few and whales fewer."""
    root.mkdir()
    rng = np.random.default_rng(5)
    rows = ["path,sea,blue sky,sunset,Moby Dick"]
    for number in range(count):
        level = int(rng.integers(0, 156))
        pixels = rng.integers(level, level + 100, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
        is_bright = int(level + rng.normal(0, 30) > 78)
        row = (number, is_bright, 1 - is_bright, int(number % 10 == 0), int(number % 20 == 0))
        rows.append("{}.png,{},{},{},{}".format(*row))
    (root / "labels.csv").write_text("\n".join(rows))
    return ["--data.root", str(root), "--data.workers", "0", "--data.test_fraction", "0.2"]


def calibrate(tagger: Path, *options: str) -> Any:
    out = tagger.parent / "figures.json"
    command = ["calibrate", str(tagger), "--min-positives", "8", "--json", str(out)]
    assert main([*command, *options]) == 0
    return json.loads(out.read_text())


@pytest.mark.parametrize("scaling", ["shared", "platt", "none"])
def test_a_category_with_few_labels_keeps_its_decisions(
    tagger: Path, scaling: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_labels(tagger.parent / "own")
    photos = sorted((tagger.parent / "own").glob("*.png"))
    before, old = mltr.load(tagger), read_config(tagger)
    figures = calibrate(tagger, *data, "--scaling", scaling)
    origins = {name: row["threshold_is"] for name, row in figures["per_class"].items()}
    assert origins == {
        "sea": "own", "blue_sky": "own", "sunset": "shared", "moby_dick": "kept",
    }  # fmt: skip
    printed = " ".join(capsys.readouterr().out.split())
    assert "best for those of its category together" in printed
    assert "decides as before" in printed and "the thresholds that it had" in printed
    after = mltr.load(tagger)
    whales = [
        [found.probs[WHALE] >= found.thresholds[WHALE] for found in one(list(photos))]
        for one in (before, after)
    ]
    assert whales[0] == whales[1] and 0 < sum(whales[0]) < len(photos)
    # The figures before are those of the thresholds that the tagger had.
    rows = {name: row["threshold_before"] for name, row in figures["per_class"].items()}
    assert list(rows.values()) == pytest.approx([0.3, 0.3, 0.3, 0.001])
    # Again from the start, and back.
    first = (tagger / "config.json").read_bytes()
    calibrate(tagger, *data, "--scaling", "platt", "--aim", "recall=0.7")
    calibrate(tagger, *data, "--scaling", scaling)
    assert (tagger / "config.json").read_bytes() == first
    assert main(["calibrate", str(tagger), "--reset"]) == 0
    assert read_config(tagger) == old


def test_few_labels_share_the_threshold_of_their_category(tagger: Path) -> None:
    """Which is the best for all decisions on general tags, and not on whales."""
    figures = calibrate(tagger, *write_labels(tagger.parent / "own"), "--scaling", "none")
    threshold = figures["category_thresholds"].pop("general")
    assert figures["category_thresholds"] == {} and figures["shared_threshold"] is None
    after = mltr.load(tagger)
    assert after.thresholds[SUNSET] == np.float32(threshold)
    from mltr.evaluation.open_tagger import open_tagger

    val = open_tagger(tagger, ["--data.root", str(tagger.parent / "own"), "--data.workers=0",
                               "--data.test_fraction=0.2"]).score("val")  # fmt: skip
    probs, targets = val.probs[:, :3].ravel(), val.targets[:, :3].ravel()
    best = max(f1_score(targets, probs >= level) for level in np.unique(probs))
    assert f1_score(targets, probs >= np.float32(threshold)) == pytest.approx(best)
