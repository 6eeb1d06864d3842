"""Galleries: photos with their labels as bars, in one image or an HTML page.

If the truth is known, a label is right (green), wrong (red), or missed (an outline). Each also has
its own sign, for readers who can't distinguish red from green.
"""

from __future__ import annotations

import base64
import io
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from PIL import Image, ImageDraw, ImageOps

from mltr.files.writing import text_writer, write_atomically
from mltr.pictures.fonts import Lettering, families_for

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOTS = 130  #: resolution of a figure in dots per inch

Verdict = Literal["right", "wrong", "missed", "open"]

SIGNS: dict[Verdict, str] = {"right": "✓", "wrong": "✗", "missed": "○", "open": ""}
# Fill and text colours of a bar on a light background; the page has another set for dark ones.
COLOURS: dict[Verdict, tuple[str, str]] = {
    "right": ("#bfe5c8", "#14532d"),
    "wrong": ("#f9c9c4", "#8c1d18"),
    "missed": ("#ffffff", "#6b7280"),
    "open": ("#c9dcfb", "#1e3a6e"),
}
PAGE, CARD, TRACK, FAINT = "#dde1e7", "#ffffff", "#eff1f4", "#6b7484"


class Tag(NamedTuple):
    """A label below a picture, with its verdict."""

    name: str
    prob: float | None  #: probability; None if not predicted
    verdict: Verdict

    @property
    def words(self) -> str:
        """The probability in percent, or ``missed``."""
        return "missed" if self.prob is None else f"{self.prob:.0%}"


class Tile(NamedTuple):
    """One picture of a gallery."""

    image: Image.Image
    predicted: Sequence[tuple[str, float]]  #: labels with probabilities, best first
    truth: Sequence[str] | None = None  #: true labels; None if unknown
    caption: str = ""

    def tags(self) -> list[Tag]:
        """Return the predicted labels with their verdicts, then the missed labels."""
        return judge(self.predicted, self.truth)


def judge(predicted: Sequence[tuple[str, float]], truth: Sequence[str] | None) -> list[Tag]:
    """Mark each predicted label as right or wrong, then append the missed labels."""
    if truth is None:
        return [Tag(name, prob, "open") for name, prob in predicted]
    tags = [Tag(name, prob, "right" if name in truth else "wrong") for name, prob in predicted]
    found = {name for name, _ in predicted}
    return tags + [Tag(name, None, "missed") for name in truth if name not in found]


def _wrap(text: str, font: Lettering, width: float) -> list[str]:
    """Break text into lines of at most `width` pixels, between words if possible."""

    def fits(line: str) -> bool:
        return font.getlength(line.rstrip()) <= width

    # Control characters have no glyph, and some break the layout of text.
    visible = "".join(letter if letter.isprintable() else " " for letter in text)
    lines = [""]
    for word in re.findall(r"[^\s_/]+[_/]*\s*|[_/]+\s*", visible):
        if fits(lines[-1] + word):
            lines[-1] += word
        elif fits(word):
            lines.append(word)
        else:
            for letter in word:
                if lines[-1] and not fits(lines[-1] + letter):
                    lines.append("")
                lines[-1] += letter
    return [line.rstrip() for line in lines if line.strip()] or [""]


class _Pen:
    """Lays out and draws tiles; the same code measures, so nothing is clipped."""

    def __init__(self, tile: int) -> None:
        self.tile = tile
        self.pad = max(6, tile // 24)
        size = max(10, tile // 18)
        self.font = Lettering(size)
        self.small = Lettering(max(9, tile // 22))
        self.line = round(size * 1.35)
        self.gap = max(3, size // 3)

    def tag_lines(self, tag: Tag) -> list[str]:
        """Return the wrapped name of a tag with its sign, leaving room for `words` at the right."""
        inner = self.tile - 4 * self.pad - self.small.getlength(tag.words) - self.gap
        return _wrap(f"{SIGNS[tag.verdict]} {tag.name}".strip(), self.font, inner)

    def height(self, tile: Tile) -> int:
        """Return the height of the card in pixels."""
        tags = tile.tags()
        rows = sum(len(self.tag_lines(tag)) * self.line + 2 * self.gap for tag in tags)
        if not tags:
            rows = self.line + self.gap
        caption = len(self.caption_lines(tile)) * self.line
        return self.tile + caption + rows + 2 * self.pad

    def caption_lines(self, tile: Tile) -> list[str]:
        """Return the wrapped caption."""
        inner = self.tile - 2 * self.pad
        return _wrap(tile.caption, self.small, inner) if tile.caption else []

    def card(self, tile: Tile) -> Image.Image:
        """Draw the whole photo with its caption and tags below."""
        card = Image.new("RGB", (self.tile, self.height(tile)), CARD)
        draw = ImageDraw.Draw(card)
        draw.rectangle((0, 0, self.tile - 1, self.tile - 1), fill=TRACK)
        photo = ImageOps.contain(tile.image.convert("RGB"), (self.tile, self.tile))
        card.paste(photo, ((self.tile - photo.width) // 2, (self.tile - photo.height) // 2))
        y = self.tile + self.pad
        for line in self.caption_lines(tile):
            self.small.draw(draw, (self.pad, y), line, fill=FAINT)
            y += self.line
        tags = tile.tags()
        for tag in tags:
            y = self._draw_tag(draw, tag, y)
        if not tags:
            self.font.draw(draw, (self.pad, y), "no label", fill=FAINT)
        return card

    def _draw_tag(self, draw: ImageDraw.ImageDraw, tag: Tag, y: int) -> int:
        """Draw the name over a bar of the probability's length; return the y of the next tag."""
        lines = self.tag_lines(tag)
        fill, ink = COLOURS[tag.verdict]
        left, end, bottom = self.pad, self.tile - self.pad, y + len(lines) * self.line + self.gap
        box, radius = (left, y, end, bottom), self.gap + 1
        if tag.prob is None:
            draw.rounded_rectangle(box, radius, fill=CARD, outline=ink, width=1)
        else:
            draw.rounded_rectangle(box, radius, fill=TRACK)
            filled = max(2 * radius, round((end - left) * tag.prob))
            draw.rounded_rectangle((left, y, left + filled, bottom), radius, fill=fill)
        middle = y + (self.gap + self.line) / 2
        for line in lines:
            self.font.draw(draw, (left + self.pad, middle), line, fill=ink, anchor="lm")
            middle += self.line
        start = end - self.pad - self.small.getlength(tag.words)
        self.small.draw(draw, (start, (y + bottom) / 2), tag.words, fill=ink, anchor="lm")
        return bottom + self.gap


def contact_sheet(
    items: Iterable[Tile | tuple[Image.Image, Sequence[tuple[str, float]], Sequence[str] | None]],
    columns: int = 5,
    tile: int = 240,
) -> Image.Image:
    """Return one RGB picture of all items, `columns` per row, each `tile` pixels wide.

    An item is a `Tile`, or a tuple of its first three fields. Photos aren't cropped, and each row
    is as high as its longest list of labels requires.
    """
    tiles = [Tile(*item) for item in items]
    columns = max(1, min(columns, len(tiles)))
    pen = _Pen(tile)
    margin = 2 * pen.pad
    cards = [pen.card(entry) for entry in tiles]
    rows = [cards[start : start + columns] for start in range(0, len(cards), columns)]
    heights = [max(card.height for card in row) for row in rows]
    sheet = Image.new(
        "RGB",
        (columns * (tile + margin) + margin, sum(heights) + margin * (len(rows) + 1)),
        PAGE,
    )
    y = margin
    for row, height in zip(rows, heights, strict=True):
        for column, card in enumerate(row):
            even = Image.new("RGB", (tile, height), CARD)
            even.paste(card)
            corners = Image.new("L", even.size)
            ImageDraw.Draw(corners).rounded_rectangle(
                (0, 0, tile - 1, height - 1), pen.pad, fill=255
            )
            sheet.paste(even, (margin + column * (tile + margin), y), corners)
        y += height + margin
    return sheet


def render(template: str, **content: Any) -> str:
    """Render one of the package's HTML templates, with all content escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mltr"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.globals["signs"] = SIGNS
    environment.filters |= {"inline_jpeg": inline_jpeg, "inline_png": inline_png}
    return environment.get_template(template).render(content)


def write_page(
    path: str | Path,
    title: str,
    headline: Mapping[str, str],
    tiles: Sequence[Tile],
    figures: Sequence[tuple[str, bytes]] = (),
    intro: str = "",
) -> None:
    """Write a self-contained HTML file.

    `headline` maps names to figures as text; `figures` are captions with PNG bytes. Raises
    `MltrError` if the file can't be written.
    """
    page = render(
        "gallery.html.j2",
        title=title,
        intro=intro,
        headline=headline.items(),
        tiles=tiles,
        judged=any(tile.truth is not None for tile in tiles),
        figures=figures,
    )
    write_atomically(path, text_writer(page))


def write_picture(path: Path, image: Image.Image) -> None:
    """Write a picture atomically, in the format of its extension."""
    write_atomically(path, lambda temporary: image.save(temporary))


def as_drawn(name: str) -> str:
    r"""Return a name for a text of matplotlib, which would take what is between ``$`` for formulas.

    Texts made from now on may have all of its letters.

    >>> as_drawn("$_$")
    '\\$_\\$'
    """
    import matplotlib as mpl

    mpl.rcParams["font.family"] = [*dict.fromkeys(mpl.rcParams["font.family"] + families_for(name))]
    return name.replace("$", r"\$")


def pyplot() -> Any:
    """Return matplotlib's pyplot, which draws into files; see `as_drawn` for names in figures."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    return plt


@contextmanager
def silent_fonts() -> Iterator[None]:
    """Keep matplotlib's own words about letters that no font has from the user, who was told."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        yield


def write_figure(path: Path, figure: Figure) -> None:
    """Write a matplotlib figure atomically and close it."""
    try:
        with silent_fonts():
            write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=DOTS))
    finally:
        pyplot().close(figure)


def inline_jpeg(image: Image.Image, side: int = 360) -> str:
    """Return an image as a data URL, with at most `side` pixels per side."""
    small = image.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def inline_png(png: bytes) -> str:
    """Return a PNG file's content as a data URL."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
