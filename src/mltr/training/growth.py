"""Images that grow during a training: early on, small ones teach as much in less time.

As in progressive resizing, and the progressive learning of EfficientNetV2 (arXiv 2104.00298), but
with the augmentation left as it is.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from torch import nn

from mltr.errors import UsageError
from mltr.network.features import check_image_size

log = logging.getLogger(__name__)

STEP = 32  #: pixels by which images grow at a time: networks pad other sides, and gain little
GROWN_AT = 0.75  #: share of a run after which images have their full size
FIXED = 0.2  #: share of a step's time that small images don't save (measured: nano, one core)
PARTS = 64  #: into which the rest of a run is divided for the mean of its work


@dataclass(frozen=True)
class Growth:
    """From `first` to `full` pixels; constant if `first` is 0 or not below `full`.

    >>> [Growth(64, 128).side(share) for share in (0, 0.3, 0.6, 0.9)]
    [64, 64, 96, 128]
    """

    first: int
    full: int

    @property
    def grows(self) -> bool:
        """Whether images grow at all."""
        return 0 < self.first < self.full

    def side(self, share: float) -> int:
        """Return the image side in pixels when so large a share of the run is done."""
        if not self.grows or share >= GROWN_AT:
            return self.full
        grown = (self.full - self.first) * max(share, 0.0) / GROWN_AT
        return self.first + int(grown) // STEP * STEP

    def work(self, share: float) -> float:
        """Return the time of a step there, in steps with images of full size."""
        return FIXED + (1 - FIXED) * (self.side(share) / self.full) ** 2

    def mean_work(self, share: float = 0.0) -> float:
        """Return the mean of that from a share of the run to its end.

        >>> Growth(0, 128).mean_work()
        1.0
        """
        parts = ((part + 0.5) / PARTS for part in range(PARTS))
        return sum(self.work(share + (1 - share) * part) for part in parts) / PARTS


def growth_for(network: nn.Module, first: int, full: int) -> Growth:
    """Return how a network's images grow; not at all where it forbids that, which is told."""
    growth = Growth(first, full)
    try:
        if growth.grows:
            for side in range(first, full, STEP):
                check_image_size(network, side, "train.min_size")
    except UsageError as error:
        log.warning("images have their full size from the start: %s", error)
        return Growth(0, full)
    return growth
