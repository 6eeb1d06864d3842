"""The loop trains for whatever objective it is given: here for the slope of a line."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from making import TINY
from torch import Tensor, nn

from mltr.config.recipe import find_recipe, load_recipe
from mltr.data.loading import Batch
from mltr.data.sources import open_splits
from mltr.runs.folder import open_run
from mltr.training.learner import Learner
from mltr.training.objective import Objective
from mltr.training.train import train_for

SLOPE = 3.0


class Points:
    """Two batches an epoch of points on the line, in the place of images and labels."""

    def __len__(self) -> int:
        return 2

    def epoch(self, epoch: int, start_batch: int = 0, side: Any = None) -> Iterator[Batch]:
        for number in range(start_batch, 2):
            x = torch.arange(1.0, 5.0)[:, None] + number
            yield Batch(x, SLOPE * x, torch.arange(4), [], torch.zeros(4, dtype=torch.bool))

    def close(self) -> None:
        """There is nothing to end."""


class Slope(Objective):
    judged_by, is_mean = "val_score", True

    def build_network(self) -> nn.Module:
        network = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(network.weight)
        return network

    def load_training(self) -> Any:
        return Points()

    def losses(
        self, forward: Any, images: Tensor, targets: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        errors = (forward(images) - targets).square().flatten()
        return errors, torch.ones_like(errors)

    def score(self, model: Any) -> float:
        return -abs(float(model.weight.detach()) - SLOPE)

    def score_words(self, row: dict[str, Any]) -> list[str]:
        return [f"off by {-row['val_score']:.3f}"]

    def draw(self, model: Any) -> None:
        (self.run.folder.path / "line.txt").write_text(str(model.weight.item()))

    def finish(self, learner: Learner, quiet: bool) -> dict[str, Any]:
        self.write_bundle(learner.whole)
        return {"slope": learner.whole.weight.item(), "epoch": self.run.progress.best_epoch + 1}

    def write_bundle(self, whole: Any, **about: Any) -> None:
        (self.run.folder.path / "slope.txt").write_text(str(whole.weight.item()))

    def next_command(self) -> str:
        return "draw the line"


class Interrupted(Slope):
    """Ctrl-C falls into the fourth validation."""

    def score(self, model: Any) -> float:
        if self.run.progress.epoch == 3:
            signal.raise_signal(signal.SIGINT)
        return super().score(model)


def test_the_loop_learns_judges_resumes_and_ends_as_the_objective_says(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The steps overshoot, so that the best epoch, whose error is least, isn't the last."""
    caplog.set_level("INFO", "mltr")

    def learn(kind: type[Slope], name: str, resume: bool = False) -> dict[str, Any]:
        options = [*TINY, "--train.epochs=30", "--train.stop_epoch=10"]
        options += ["--train.lr=0.5", "--train.weight_decay=0", "--train.clip_grad=0"]
        config = load_recipe(find_recipe("scenes_nano"), [*options, "--train.ema_decay=0"])
        folder = open_run(tmp_path / name, config, resume=resume, overwrite=False)
        return train_for(kind, config, open_splits(config.data), folder, resume=resume)

    figures = learn(Slope, "whole")
    log = (tmp_path / "whole" / "log.jsonl").read_text()
    errors = [-json.loads(line)["val_score"] for line in log.splitlines()]
    assert len(errors) == 10
    best = int(np.argmin(errors))
    assert best < 9
    assert figures["epoch"] == best + 1
    assert abs(figures["slope"] - SLOPE) == pytest.approx(errors[best])
    assert float((tmp_path / "whole" / "slope.txt").read_text()) == figures["slope"]
    last = float((tmp_path / "whole" / "line.txt").read_text())
    assert abs(last - SLOPE) == pytest.approx(errors[-1])
    assert f"off by {errors[-1]:.3f}" in caplog.text
    assert caplog.messages[-1] == "next: draw the line"

    with pytest.raises(KeyboardInterrupt):
        learn(Interrupted, "cut")
    assert "resume with: mltr train" in caplog.text
    assert learn(Slope, "cut", resume=True) == figures
    assert float((tmp_path / "cut" / "line.txt").read_text()) == last
