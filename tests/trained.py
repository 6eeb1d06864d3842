"""What training leaves in a run's folder, and an interruption in its midst."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from making import TINY
from safetensors.torch import load_file

from mltr.cli import main
from mltr.data.loading import Batch
from mltr.training import step


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def same_weights(first: Path, second: Path) -> bool:
    a, b = weights(first), weights(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoint").glob("epoch-*"))


def progress(run: Path) -> dict[str, object]:
    """Where the latest checkpoint of a run stands."""
    state = torch.load(checkpoints(run)[-1] / "part-0.pt", weights_only=True)
    return state["shared"]["progress"]


def interrupt_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Send Ctrl-C after so many steps."""
    original, steps = step.Stepper.take, 0

    def step_and_interrupt(self: step.Stepper, batch: Batch) -> step.Wishes:
        nonlocal steps
        asked = original(self, batch)
        steps += 1
        if steps == number:
            os.kill(os.getpid(), signal.SIGINT)
        return asked

    monkeypatch.setattr(step.Stepper, "take", step_and_interrupt)


def train_photos(folder: Path, out: Path, *arguments: str) -> int:
    """Train on a folder of photos, for an epoch; return the command's exit code."""
    options = [a for a in TINY if "scenes" not in a]
    data = ["--data.root", str(folder), "--data.labels=labels.csv", "--data.images="]
    return main(
        ["train", "miml_nano", *data, "--out", str(out), *options, "--train.epochs=1", *arguments]
    )
