"""Heat maps over photos: red is evidence for a label, blue against it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

HEAT_MAP_SIDE = 1024  #: longest side of a heat map in pixels
STRONGEST = 0.75  #: opacity of the strongest evidence


def overlay(picture: Image.Image, heat: NDArray[np.float32]) -> Image.Image:
    """Overlay a picture with a map [height, width], to whose size it is scaled.

    Colours diverge from zero (RdBu). Opacity grows with the absolute value, over the picture in
    grey.
    """
    from matplotlib import colormaps

    limit = float(np.abs(heat).max()) or 1.0
    relative = heat / limit
    colours = colormaps["RdBu_r"](0.5 + relative / 2)[..., :3] * 255
    scaled = picture.convert("L").resize(heat.shape[::-1], reducing_gap=3.0)
    grey = np.asarray(scaled, dtype=np.float64)[..., None]
    opacity = STRONGEST * np.abs(relative)[..., None]
    return Image.fromarray(((1 - opacity) * grey + opacity * colours).astype(np.uint8))
