"""Figures are of held-out images, also where splits have images of the same names."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from making import TINY_ON_PHOTOS, write_image

from mltr.cli import main
from mltr.config.recipe import load_recipe, to_yaml


def test_folders_of_splits_may_have_the_same_names(tmp_path: Path) -> None:
    photos, run = tmp_path / "photos", str(tmp_path / "run")
    for place, split in enumerate(("train", "val", "test")):
        for label, first in (("cat", 0), ("dog", 20)):
            for number in range(12):
                write_image(
                    photos / split / label / f"{number}.png", seed=50 * place + first + number
                )
    assert main(["train", "scratch", str(photos), *TINY_ON_PHOTOS, "--out", run]) == 0
    assert main(["calibrate", run, "--min-positives", "3"]) == 0


def evaluated(run: Path, *options: str) -> int:
    out = run.parent / "figures.json"
    assert main(["evaluate", str(run), "--json", str(out), "--rerun", *options]) == 0
    images: int = json.loads(out.read_text())["images"]
    return images


def test_a_run_keeps_its_test_images_when_its_source_changes(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog
) -> None:
    photos, recipe = small_run.parent / "photos", small_run / "config.yaml"
    config = load_recipe(recipe)
    recipe.write_text(to_yaml(replace(config, data=replace(config.data, root=str(photos)))))
    names = json.loads((small_run / "splits.json").read_text())
    count = len(names["test"])
    assert evaluated(small_run) == count
    table = photos / "labels.csv"
    with table.open("a") as file:
        for number in range(20, 30):
            write_image(photos / f"{number}.png", (40, 30), seed=number)
            file.write(f"\n{number}.png,{number % 2},1")
    assert evaluated(small_run) == count
    assert f"10 images that came after {small_run} was trained: left out" in caplog.text
    assert main(["diagnose", str(small_run), "--resamples", "20"]) == 0
    gone = names["test"][0]
    table.write_text("\n".join(x for x in table.read_text().splitlines() if x[: len(gone)] != gone))
    assert evaluated(small_run) == count - 1
    capsys.readouterr()
    assert main(["evaluate", str(small_run), "--data.split_seed", "5"]) == 1
    assert f"images have the names of training images of {small_run}" in capsys.readouterr().err
    # In another source, images of the same names may be different ones.
    other = shutil.copytree(photos, tmp_path / "other")
    assert evaluated(small_run, "--data.root", str(other)) > 0
    assert "make sure that they are different images" in caplog.text
