"""`mltr pretrain`: train on photos without labels, by reconstructing masked parts.

This is masked image modelling like SimMIM (arXiv 2111.09886): random cells of an image are masked,
the network sees a learned token in their place, and one linear layer predicts their pixels from the
final map. The loss is the absolute error of the masked pixels. A cell is as large as one pixel of
the final map.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mltr.training import train

if TYPE_CHECKING:
    from mltr.config.schema import Config
    from mltr.runs.folder import RunFolder

add_arguments = train.add_arguments


def run(args: argparse.Namespace, overrides: Sequence[str] = ()) -> int:
    """Pretrain from a recipe."""
    return train.run_recipe(args, overrides, pretrain)


def pretrain(
    config: Config, folder: RunFolder, *, resume: bool = False, quiet: bool = False
) -> dict[str, Any]:
    """Pretrain on the images of a source; their labels, if any, are ignored.

    The folder becomes a bundle without classes, for `model.init` of a training. Returns what
    metrics.json holds. Raises `MltrError` like `train`, and `UsageError` for a network that is no
    MlTr or an image size that its stages don't divide.
    """
    from mltr.data.sources import open_images
    from mltr.training.hidden_pixels import HiddenPixels

    splits = open_images(config.data)
    return train.train_for(HiddenPixels, config, splits, folder, resume=resume, quiet=quiet)
