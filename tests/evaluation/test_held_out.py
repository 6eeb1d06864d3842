"""Figures are of held-out images, also where splits have images of the same names."""

from __future__ import annotations

from pathlib import Path

import pytest
from making import TINY_ON_PHOTOS, write_image

from mltr.cli import main


def test_folders_of_splits_may_have_the_same_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, run = tmp_path / "photos", str(tmp_path / "run")
    for place, split in enumerate(("train", "val", "test")):
        for label, first in (("cat", 0), ("dog", 20)):
            for number in range(12):
                write_image(
                    photos / split / label / f"{number}.png", seed=50 * place + first + number
                )
    assert main(["train", "scratch", str(photos), *TINY_ON_PHOTOS, "--out", run]) == 0
    assert main(["calibrate", run, "--min-positives", "3"]) == 0
    # Not so if what was trained on is a split of another name now.
    (photos / "val").rename(photos / "valid")
    (photos / "train").rename(photos / "val")
    (photos / "valid").rename(photos / "train")
    (photos / "train" / "cat" / "0.png").unlink()
    assert main(["calibrate", run, "--min-positives", "3"]) == 1
    assert "have the names of training images of this run" in capsys.readouterr().err
