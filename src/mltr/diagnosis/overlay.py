"""Heat maps over photos: evidence for a label in red, against it in blue."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mltr.diagnosis.explain import Explanation

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


def save_overlays(
    folder: Path, path: Path, picture: Image.Image, found: Sequence[Explanation]
) -> Path:
    """Write the picture and a map for each label, in a row, as PNG; return where.

    Pictures of the same name from other folders get a number.
    """
    from mltr.gallery import Tile, contact_sheet, write_picture

    tiles = [Tile(picture, [(one.label, one.prob) for one in found], caption=path.name)]
    tiles += [
        Tile(overlay(picture, one.heat), [(one.label, one.prob)], caption="red: for, blue: against")
        for one in found
    ]
    target = folder / f"{path.stem}.png"
    number = 2
    while target.exists():
        target = folder / f"{path.stem}-{number}.png"
        number += 1
    write_picture(target, contact_sheet(tiles, columns=min(len(tiles), 4)))
    return target
