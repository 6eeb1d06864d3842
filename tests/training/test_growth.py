"""Images that grow while a network learns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from making import TINY, train
from torch import nn

from mltr.cli import main
from mltr.training.growth import Growth, growth_for

shares = st.floats(0, 1)


@given(first=st.integers(1, 300), full=st.integers(1, 300), share=shares, later=shares)
def test_sides_grow_in_steps(first: int, full: int, share: float, later: float) -> None:
    growth = Growth(first, full)
    share, later = sorted((share, later))
    assert min(first, full) <= growth.side(share) <= growth.side(later) <= full
    assert (growth.side(share) - first) % 32 == 0 or growth.side(share) == full
    assert growth.side(0) == min(first, full)
    assert growth.side(0.75) == full


@given(first=st.integers(16, 128), share=st.floats(0, 0.99))
def test_the_work_that_is_left(first: int, share: float) -> None:
    growth = Growth(first, 128)
    steps = [share + (1 - share) * (step + 0.5) / 5000 for step in range(5000)]
    pixels = sum((growth.side(step) / 128) ** 2 for step in steps) / len(steps)
    assert growth.mean_work(share) == pytest.approx(0.2 + 0.8 * pixels, abs=0.02)


def test_constant_images_are_all_the_work() -> None:
    assert Growth(0, 96).mean_work() == Growth(96, 96).mean_work(0.3) == 1
    assert Growth(0, 96).side(0) == Growth(128, 96).side(0) == 96


class Picky(nn.Module):
    """Takes all sides but one on the way."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.shape[-1] == 96:
            raise ValueError("not 96")
        return images


def test_every_size_on_the_way_is_tried(caplog: pytest.LogCaptureFixture) -> None:
    assert growth_for(Picky(), 64, 128) == Growth(0, 128)
    assert "train.min_size 96 doesn't suit this network: not 96" in caplog.text
    assert growth_for(Picky(), 36, 128) == Growth(36, 128)


def test_a_network_of_one_size_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = [option for option in TINY if "overrides" not in option]
    network = ["--model.name=timm/vit_tiny_patch16_224", "--train.min_size=16"]
    run = ["train", "scenes_nano", f"--out={tmp_path / 'run'}", *options, "--train.epochs=1"]
    assert main([*run, *network]) == 0
    assert "full size from the start: train.min_size 16 doesn't suit" in caplog.text


def test_a_run_that_stops_early_ends_at_full_size(tmp_path: Path) -> None:
    sizes = ["--model.image_size=64", "--train.min_size=32", "--train.epochs=8"]
    assert train(tmp_path / "run", *sizes, "--train.stop_epoch=4") == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").open()]
    assert [row["image_size"] for row in rows][::3] == [32, 64]
