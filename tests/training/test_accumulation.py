"""A step of several batches is the step of one large batch: the same gradient, clipped alike.

Adam's first moment after step n is 0.9 of the one before plus 0.1 of the clipped gradient: it shows
the size of a gradient, to which Adam's own steps are blind. A learning rate of nearly nothing keeps
the weights where they are, so that the gradients of two runs are comparable.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from making import ENVIRONMENT, TORCHRUN, write_image

from mltr.cli import main

CLIP = 0.01  #: below the norm of every gradient here
OPTIONS = [
    "--data.cache=false", "--data.workers=0", "--data.base_size=32", "--model.image_size=32",
    "--model.overrides.depths=[0,1]", "--model.overrides.conv_depths=[0,0]",
    "--model.overrides.conv_stem=false", "--model.drop_path=0", "--augment.mixup=0",
    "--augment.cutmix=0", "--loss.name=asl", "--train.epochs=1", "--train.precision=fp32",
    "--train.lr=1e-12", "--train.save_minutes=0", "--train.keep=100",
]  # fmt: skip


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 training photos, of which ever fewer cells are known."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    lines = ["path,a,b,c,split"]
    for index in range(24):
        write_image(folder / f"{index}.png")
        cells = [str(value) if rng.random() > index / 40 else "" for value in rng.integers(0, 2, 3)]
        part = "train" if index < 20 else "val" if index < 22 else "test"
        lines.append(",".join([f"{index}.png", *cells, part]))
    path = folder / "labels.csv"
    path.write_text("\n".join(lines))
    return path


def gradients(table: Path, run: Path, *options: str, processes: int = 1) -> list[torch.Tensor]:
    """Train for an epoch; return the gradient of each step."""
    arguments = ["train", "scratch", f"--data.root={table}", "--out", str(run), *OPTIONS, *options]
    if processes == 1:
        assert main(arguments) == 0
    else:
        command = [*TORCHRUN, str(processes), "-m", "mltr", *arguments]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
    moments: dict[int, torch.Tensor] = {0: torch.zeros(())}
    for path in sorted((run / "checkpoint").glob("epoch-*")):
        shared = torch.load(path / "part-0.pt", weights_only=True)["shared"]
        state = shared["optimizer"]["state"]
        moments[shared["progress"]["step"]] = torch.cat(
            [state[index]["exp_avg"].double().flatten() for index in sorted(state)]
        )
    return [10 * moments[step] - 9 * moments[step - 1] for step in sorted(moments) if step]


def clipped(gradient: torch.Tensor) -> torch.Tensor:
    assert gradient.norm() > CLIP
    return gradient * CLIP / gradient.norm()


@pytest.fixture(scope="module")
def expected(table: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list]:
    """From the gradients of the five single batches: what steps of four and of one should be."""
    runs, plain = tmp_path_factory.mktemp("runs"), ["--train.batch_size=4", "--train.clip_grad=0"]
    sums = gradients(table, runs / "sum", *plain, "--loss.reduction=sum")
    means = gradients(table, runs / "mean", *plain, "--loss.reduction=mean")
    counts = [float(s.norm() / m.norm()) for s, m in zip(sums, means, strict=True)]
    assert counts == pytest.approx([round(count) for count in counts], abs=1e-3)
    assert len({round(count) for count in counts}) > 1  # so a mean of means would be wrong
    steps = (slice(0, 4), slice(4, 5))
    return {
        "sum": [sum(sums[step]) for step in steps],
        "mean": [sum(sums[step]) / round(sum(counts[step])) for step in steps],
    }


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_parts_equal_the_whole(table: Path, tmp_path: Path, expected, reduction: str) -> None:
    options = ["--train.batch_size=4", "--train.accumulation=4", f"--loss.reduction={reduction}"]
    free = gradients(table, tmp_path / "free", *options, "--train.clip_grad=0")
    bound = gradients(table, tmp_path / "bound", *options, f"--train.clip_grad={CLIP}")
    assert len(free) == len(bound) == 2
    for step, whole in enumerate(expected[reduction]):
        torch.testing.assert_close(free[step], whole, rtol=0, atol=1e-6 * float(whole.norm()))
        torch.testing.assert_close(bound[step], clipped(whole), rtol=0, atol=1e-6 * CLIP)


def test_two_processes_clip_the_gradients_of_the_whole_batch(
    table: Path, tmp_path: Path, expected
) -> None:
    bound = gradients(
        table, tmp_path / "run", "--train.batch_size=4", "--train.accumulation=4",
        "--loss.reduction=mean", f"--train.clip_grad={CLIP}", processes=2,
    )  # fmt: skip
    for gradient, whole in zip(bound, expected["mean"], strict=True):
        torch.testing.assert_close(gradient, clipped(whole), rtol=0, atol=1e-6 * CLIP)
