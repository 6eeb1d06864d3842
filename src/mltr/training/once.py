"""One look at each image, for networks that don't learn: what they say is computed once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from mltr.data.loading import ImageDataset, make_loader
from mltr.terminal import make_console

BATCH = 32  #: photos that go through a network at once

Note = Callable[[Tensor, NDArray[np.int64]], object]


@torch.inference_mode()
def look_once(
    dataset: ImageDataset, note: Note, workers: int, device: torch.device, epoch: int = 0
) -> dict[int, str]:
    """Give all images to `note`, as [B, 3, S, S] with their places in the split [B].

    They are varied as in `epoch`. Returns what is wrong with which image; such a one is zeros.
    """
    loader = make_loader(dataset, BATCH, workers=workers, device=device)
    console = make_console(stderr=True)
    errors: dict[int, str] = {}
    for batch in track(
        loader.epoch(epoch), dataset.split.name, len(loader), console=console, transient=True,
        disable=not console.is_terminal,
    ):  # fmt: skip
        note(batch.images, batch.indices.numpy())
        broken = batch.indices[batch.broken].tolist()
        errors |= dict(zip(broken, batch.errors, strict=True))
    return errors
