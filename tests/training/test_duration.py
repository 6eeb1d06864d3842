"""A run that is given minutes, on a machine whose clock the test turns."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from making import TINY, TINY_ON_PHOTOS, train, write_photos
from trained import checkpoints

from mltr.cli import main
from mltr.config.recipe import find_recipe, load_recipe
from mltr.config.schema import DataConfig
from mltr.data.sources import open_splits
from mltr.runs.folder import RunFolder
from mltr.training.labels import Labels
from mltr.training.train import train_for
from mltr.training.trainer import Trainer

MINUTES = 1
OPTIONS = [
    *TINY, "--data.scenes.val=8", "--data.scenes.test=8", "--train.batch_size=4", "--train.lr=1e-3",
    f"--train.minutes={MINUTES}",
]  # fmt: skip


class Machine:
    """Says how long setting up, a step and an image of validation take."""

    def __init__(self, step_s: Callable[[float], float], image_s: float = 0.05) -> None:
        self.now, self.step_s, self.image_s = 1000.0, step_s, image_s
        self.began, self.sides = self.now, list[int]()  # one of each step
        self.power = 2.0  # of an image's side that a step's time goes with

    @property
    def spent(self) -> float:
        return self.now - self.began

    def train(self, monkeypatch: pytest.MonkeyPatch, out: Path, *options: str, **more: Any) -> None:
        machine = self

        class Timed(Labels):
            def load_training(self) -> Any:
                machine.now += 5
                return super().load_training()

            def losses(self, forward: Any, images: torch.Tensor, *args: Any) -> Any:
                machine.sides.append(images.shape[-1])
                share = (images.shape[-1] / self.run.preprocess.image_size) ** machine.power
                machine.now += machine.step_s(machine.spent) * share
                return super().losses(forward, images, *args)

            def predict(self, model: Any, split: Any, cached: bool = True) -> Any:
                machine.now += machine.image_s * len(split)
                return super().predict(model, split, cached)

        monkeypatch.setattr("mltr.training.run.perf_counter", lambda: machine.now)
        config = load_recipe(find_recipe("scenes_nano"), [*OPTIONS, *options])
        train_for(Timed, config, open_splits(config.data), RunFolder(out), **more)


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("step_s", "image_s"),
    [
        (lambda spent: 1.0, 0.05),
        (lambda spent: 1.0 if spent < 30 else 2.0, 0.05),  # others came to work, too
        (lambda spent: 2.0 if spent < 30 else 1.0, 0.05),
        (lambda spent: 5.0 if spent < 15 else 1.0, 0.05),  # everything is new at first
        (lambda spent: 6.0, 0.5),  # there is time for less than an epoch
        (lambda spent: 1.0, 0.3),  # validation takes as long as an epoch
    ],
)
def test_the_whole_run_takes_its_minutes(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    step_s: Callable[[float], float],
    image_s: float,
) -> None:
    machine = Machine(step_s, image_s)
    machine.train(monkeypatch, tmp_path / "run")
    # Half a step, at most, remains or is too much, and drawing a few images isn't counted.
    about = 0.05 * 60 * MINUTES + step_s(50) / 2 + 8 * image_s
    assert machine.spent == pytest.approx(60 * MINUTES, abs=about)
    rates = [row["lr"] for row in rows(tmp_path / "run")]
    falling = rates[rates.index(max(rates)) :]
    assert falling == sorted(falling, reverse=True)
    assert rates[-1] < 0.05 * 1e-3 or len(machine.sides) < 20
    assert "val_map" in rows(tmp_path / "run")[-1]
    validations = sum("val_map" in row for row in rows(tmp_path / "run"))
    assert 2 * 8 * image_s * (validations - 2) < 0.12 * machine.spent  # raw and averaged weights


def test_a_slow_first_step_leaves_the_warm_up_its_steps(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    slow = iter([True])  # while a network is compiled
    machine = Machine(lambda spent: 20.0 if next(slow, False) else 0.5, 0.02)
    machine.train(monkeypatch, tmp_path / "run", "--train.warmup", "0.25")
    rates = [row["lr"] for row in rows(tmp_path / "run")]
    assert len(rates) > 4 and rates[0] < 0.8e-3


@pytest.mark.parametrize("power", [2.0, 1.0])  # small images cost less, or not that much less
def test_images_grow_with_the_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, power: float
) -> None:
    machine = Machine(lambda spent: 1.0)
    machine.power = power
    machine.train(
        monkeypatch, tmp_path / "run", "--model.image_size=64", "--train.min_size=32",
        "--augment.mixup=0", "--augment.cutmix=0",
    )  # fmt: skip
    assert machine.spent == pytest.approx(60 * MINUTES, abs=0.05 * 60 * MINUTES + 1)
    sides = machine.sides
    assert (sides[0], sides[-1], sides) == (32, 64, sorted(sides))
    whole = sides.count(64) / len(sides)  # a quarter, if small images cost what is thought
    assert 0.15 < whole < 0.4
    assert rows(tmp_path / "run")[-1]["lr"] < 0.1 * 1e-3


def test_a_resumed_run_has_the_time_that_remained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = ("--train.save_minutes=0", "--train.keep=1000")
    machine = Machine(lambda spent: 1.0)
    machine.train(monkeypatch, tmp_path / "whole", *options)
    kept = len(checkpoints(tmp_path / "whole")) // 2
    cut = Path(shutil.copytree(tmp_path / "whole", tmp_path / "cut"))
    (cut / "metrics.json").unlink()
    for path in checkpoints(cut)[kept:]:
        shutil.rmtree(path)
    state = torch.load(checkpoints(cut)[-1] / "part-0.pt", weights_only=True)["shared"]["progress"]
    before = state["seconds"] + state["setup_seconds"]
    again = Machine(lambda spent: 1.0)
    again.train(monkeypatch, cut, *options, resume=True)
    assert before + again.spent == pytest.approx(60 * MINUTES, rel=0.05)
    # Exact until the remaining time is divided anew, which is after a step.
    whole, resumed = checkpoints(tmp_path / "whole")[kept], checkpoints(cut)[kept]
    assert whole.name == resumed.name
    first, second = (
        torch.load(path / "part-0.pt", weights_only=True)["shared"]["model"]
        for path in (whole, resumed)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_opening_and_shrinking_photos_is_preparation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, found = write_photos(tmp_path / "photos"), {}
    slow = {"s": 0.0}

    def open_slowly(config: DataConfig) -> Any:
        slow["s"] += 1000
        return open_splits(config)

    def fit(trainer: Trainer) -> None:
        trainer.run.begin_seconds()
        found["setup_s"] = trainer.run.progress.setup_seconds
        found["files"] = len(list((tmp_path / "cache").rglob("*.u8")))
        raise KeyboardInterrupt

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("mltr.data.sources.open_splits", open_slowly)
    for module in ("train", "run"):
        clock = f"mltr.training.{module}.perf_counter"
        monkeypatch.setattr(clock, lambda: time.perf_counter() + slow["s"])
    monkeypatch.setattr(Trainer, "fit", fit)
    options = [*TINY_ON_PHOTOS, "--data.cache=true", "--data.base_size=40", "--train.minutes=1"]
    out = tmp_path / "run"
    assert main(["train", "scratch", str(photos), "--out", str(out), *options]) == 130
    assert found["setup_s"] > 1000
    assert found["files"] == 3  # of training, validation and test


def test_by_the_real_clock(tmp_path: Path) -> None:
    began = time.perf_counter()
    assert train(tmp_path / "run", "--train.minutes=0.05") == 0
    assert 2 < time.perf_counter() - began < 15
    assert np.isfinite(json.loads((tmp_path / "run" / "metrics.json").read_text())["map"])


def test_minutes_cant_be_combined_with_an_epoch_to_stop_at(tmp_path: Path, capsys) -> None:
    assert train(tmp_path / "run", "--train.minutes=1", "--train.stop_epoch=1") == 2
    assert "train.minutes and train.stop_epoch" in capsys.readouterr().err


@pytest.mark.parametrize(("images", "epochs"), [(20, 100), (1600, 15), (14_400, 5), (10**6, 3)])
def test_epochs_that_suit_the_number_of_images(images: int, epochs: int) -> None:
    from mltr.training.build import suitable_epochs

    assert suitable_epochs(images) == epochs
