"""Text in pictures: in DejaVu Sans, and where that lacks a letter in another font that has it."""

from __future__ import annotations

import logging
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from PIL import ImageFont

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

log = logging.getLogger(__name__)

OF_BOXES = "Last Resort"  #: how the name of a font begins that has a box for every letter


class Lettering:
    """Text of one size in pixels, whatever its letters."""

    def __init__(self, size: int) -> None:
        self.size = size

    def getlength(self, text: str) -> float:
        """Return the width of a text in pixels."""
        return sum(font.getlength(part) for part, font in self._parts(text))

    def draw(
        self,
        draw: ImageDraw,
        place: tuple[float, float],
        text: str,
        fill: str,
        anchor: Literal["la", "lm"] = "la",
    ) -> None:
        """Draw a text, from its left end on."""
        x, y = place
        for part, font in self._parts(text):
            draw.text((x, y), part, font=font, fill=fill, anchor=anchor)
            x += font.getlength(part)

    def _parts(self, text: str) -> list[tuple[str, ImageFont.FreeTypeFont]]:
        parts = groupby(text, key=file_for)
        return [("".join(letters), _open(file, self.size)) for file, letters in parts]


@cache
def _open(file: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size)


@cache
def default_file() -> str:
    """Return the file of DejaVu Sans, which is part of matplotlib."""
    import matplotlib

    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


@cache
def file_for(letter: str) -> str:
    """Return the file of an installed font with a letter; DejaVu Sans also if there is none."""
    if not letter.isprintable() or _has(default_file(), letter):
        return default_file()
    found = next((file for file in _installed() if _has(file, letter)), None)
    if found is None:
        _tell_lack()
    return found or default_file()


def families_for(text: str) -> list[str]:
    """Return the names of the fonts that have its letters, as matplotlib wants them."""
    files = dict.fromkeys(file_for(letter) for letter in text)
    names = [_installed()[file] for file in files if file != default_file()]
    return ["DejaVu Sans", *dict.fromkeys(names)]


@cache
def _installed() -> dict[str, str]:
    """Return the family of each font that matplotlib finds, by its file."""
    from matplotlib.font_manager import fontManager

    fonts = fontManager.ttflist
    return {font.fname: font.name for font in fonts if not font.name.startswith(OF_BOXES)}


def _has(file: str, letter: str) -> bool:
    return ord(letter) in _letters(file)


@cache
def _letters(file: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(file).get_charmap())
    except (OSError, RuntimeError):  # gone since matplotlib looked, or damaged
        return frozenset()


@cache
def _tell_lack() -> None:
    """Say once that there are letters that can't be drawn."""
    log.warning(
        "no font of this machine has some letters of these names: they are drawn as boxes; install "
        "one that has them, such as Noto Sans CJK"
    )
