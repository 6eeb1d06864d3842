"""Heat maps over photos: evidence for a label in red, against it in blue."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

STRONGEST = 0.75  #: opacity of the strongest evidence


def overlay(picture: Image.Image, heat: NDArray[np.float32]) -> Image.Image:
    """Lay a map [height, width] over a picture of that size.

    Colours diverge from zero (RdBu), and what is near zero lets the greyed picture through.
    """
    from matplotlib import colormaps

    limit = float(np.abs(heat).max()) or 1.0
    relative = heat / limit
    colours = colormaps["RdBu_r"](0.5 + relative / 2)[..., :3] * 255
    grey = np.asarray(picture.convert("L").convert("RGB"), dtype=np.float64)
    opacity = STRONGEST * np.abs(relative)[..., None]
    return Image.fromarray(((1 - opacity) * grey + opacity * colours).astype(np.uint8))
