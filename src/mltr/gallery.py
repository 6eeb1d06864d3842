"""Pictures to look at: photos with bars for their labels, as one image or as a page.

If the truth is known, a label is right (green), wrong (red), or missed (an outline). Each also has
its own sign, for readers who can't distinguish red from green.
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from PIL import Image, ImageDraw, ImageFont, ImageOps

from mltr.files.writing import text_writer, write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOTS = 130  #: per inch of a figure

Verdict = Literal["right", "wrong", "missed", "open"]

SIGNS: dict[Verdict, str] = {"right": "✓", "wrong": "✗", "missed": "○", "open": ""}
# Fill and ink of a bar on a light ground; the page has a second set for dark grounds.
COLOURS: dict[Verdict, tuple[str, str]] = {
    "right": ("#bfe5c8", "#14532d"),
    "wrong": ("#f9c9c4", "#8c1d18"),
    "missed": ("#ffffff", "#6b7280"),
    "open": ("#c9dcfb", "#1e3a6e"),
}
PAGE, CARD, TRACK, FAINT = "#dde1e7", "#ffffff", "#eff1f4", "#6b7484"


class Tile(NamedTuple):
    """One picture of a gallery."""

    image: Image.Image
    predicted: Sequence[tuple[str, float]]  #: labels with their probabilities, best first
    truth: Sequence[str] | None = None  #: None: unknown
    caption: str = ""


class Tag(NamedTuple):
    """One label under a picture, and what became of it."""

    name: str
    prob: float | None  #: None: not predicted
    verdict: Verdict


def judge(predicted: Sequence[tuple[str, float]], truth: Sequence[str] | None) -> list[Tag]:
    """Mark each predicted label as right or wrong, then append the missed labels."""
    if truth is None:
        return [Tag(name, prob, "open") for name, prob in predicted]
    tags = [Tag(name, prob, "right" if name in truth else "wrong") for name, prob in predicted]
    found = {name for name, _ in predicted}
    return tags + [Tag(name, None, "missed") for name in truth if name not in found]


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans at `size` pixels, out of matplotlib, which brings it along."""
    import matplotlib

    return ImageFont.truetype(
        str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size
    )


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Break text into lines of at most `width` pixels: between words, or else within one."""

    def fits(line: str) -> bool:
        return font.getlength(line.rstrip()) <= width

    # Control characters have no shape, and some upset the layout of text.
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
    """Lays out one tile: measures with the same code that draws, so nothing can be clipped."""

    def __init__(self, tile: int) -> None:
        self.tile = tile
        self.pad = max(6, tile // 24)
        size = max(10, tile // 18)
        self.font = _font(size)
        self.small = _font(max(9, tile // 22))
        self.line = round(size * 1.35)
        self.gap = max(3, size // 3)

    def tag_lines(self, tag: Tag) -> tuple[list[str], str]:
        """Return the wrapped name of a tag, with its sign, and the words at its right end."""
        right = "missed" if tag.prob is None else f"{tag.prob:.0%}"
        inner = self.tile - 4 * self.pad - self.small.getlength(right) - self.gap
        return _wrap(f"{SIGNS[tag.verdict]} {tag.name}".strip(), self.font, inner), right

    def height(self, tile: Tile) -> int:
        """Height of the whole card in pixels."""
        tags = judge(tile.predicted, tile.truth)
        rows = sum(len(self.tag_lines(tag)[0]) * self.line + 2 * self.gap for tag in tags)
        if not tags:
            rows = self.line + self.gap
        caption = len(self.caption_lines(tile)) * self.line
        return self.tile + caption + rows + 2 * self.pad

    def caption_lines(self, tile: Tile) -> list[str]:
        """Return the wrapped caption."""
        inner = self.tile - 2 * self.pad
        return _wrap(tile.caption, self.small, inner) if tile.caption else []

    def card(self, tile: Tile) -> Image.Image:
        """Draw the photo, whole, with its caption and tags below."""
        card = Image.new("RGB", (self.tile, self.height(tile)), CARD)
        draw = ImageDraw.Draw(card)
        draw.rectangle((0, 0, self.tile - 1, self.tile - 1), fill=TRACK)
        photo = ImageOps.contain(tile.image.convert("RGB"), (self.tile, self.tile))
        card.paste(photo, ((self.tile - photo.width) // 2, (self.tile - photo.height) // 2))
        y = self.tile + self.pad
        for line in self.caption_lines(tile):
            draw.text((self.pad, y), line, fill=FAINT, font=self.small)
            y += self.line
        tags = judge(tile.predicted, tile.truth)
        for tag in tags:
            y = self._draw_tag(draw, tag, y)
        if not tags:
            draw.text((self.pad, y), "no label", fill=FAINT, font=self.font)
        return card

    def _draw_tag(self, draw: ImageDraw.ImageDraw, tag: Tag, y: int) -> int:
        """Draw a bar as long as the probability with the name on it; return where the next goes."""
        lines, right = self.tag_lines(tag)
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
            draw.text((left + self.pad, middle), line, fill=ink, font=self.font, anchor="lm")
            middle += self.line
        draw.text((end - self.pad, (y + bottom) / 2), right, fill=ink, font=self.small, anchor="rm")
        return bottom + self.gap


def contact_sheet(
    items: Iterable[Tile | tuple[Image.Image, Sequence[tuple[str, float]], Sequence[str] | None]],
    columns: int = 5,
    tile: int = 240,
) -> Image.Image:
    """Return one RGB picture of all items, `columns` in a row, each `tile` pixels wide.

    An item is a `Tile`, or its first three fields. Photos are shown whole, never cropped, and
    each row is as high as its longest list of labels.
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


STYLE = """
:root { color-scheme: light dark; --page: #f4f5f7; --card: #fff; --ink: #1f2430; --faint: #697386;
  --track: #eceff3; --line: #dfe3e8; --right: #bfe5c8; --right-ink: #14532d; --wrong: #f9c9c4;
  --wrong-ink: #8c1d18; --open: #c9dcfb; --open-ink: #1e3a6e; --missed-ink: #6b7280; }
@media (prefers-color-scheme: dark) { :root { --page: #14161b; --card: #1e2128; --ink: #e7e9ee;
  --faint: #9aa3b2; --track: #2a2e37; --line: #2f343e; --right: #1f5c38; --right-ink: #c5f0d2;
  --wrong: #7a2620; --wrong-ink: #ffd3ce; --open: #2a4a80; --open-ink: #d5e4ff;
  --missed-ink: #a8b0bf; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem clamp(1rem, 4vw, 3rem) 4rem; max-width: 84rem;
  background: var(--page); color: var(--ink); line-height: 1.45;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.9rem; letter-spacing: -.02em; margin: 0 0 .4rem; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .9rem; }
p { margin: 0; color: var(--faint); max-width: 65ch; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: .8rem;
  margin: 1.6rem 0 0; }
dl div { background: var(--card); border: 1px solid var(--line); border-radius: .7rem;
  padding: .8rem 1rem; display: flex; flex-direction: column-reverse; min-width: 0; }
dt { color: var(--faint); font-size: .84rem; overflow-wrap: anywhere; }
dd { margin: 0; font-size: 1.45rem; font-weight: 600; font-variant-numeric: tabular-nums;
  overflow-wrap: anywhere; }
.figures { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: .7rem;
  overflow: hidden; min-width: 0; }
.figures img { width: 100%; display: block; background: #fff; }
.figures figcaption { padding: .6rem 1rem .8rem; color: var(--faint); font-size: .9rem; }
.tiles { display: grid; gap: 1rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 13rem), 1fr)); }
.tiles img { width: 100%; aspect-ratio: 1; object-fit: contain; display: block;
  background: var(--track); }
.tiles figcaption { padding: .6rem .7rem .7rem; }
.name { color: var(--faint); font-size: .8rem; overflow-wrap: anywhere; margin-bottom: .35rem; }
ul { list-style: none; margin: 0; padding: 0; display: grid; gap: .3rem; }
li { display: flex; gap: .4rem; padding: .18rem .55rem;
  border-radius: .4rem; font-size: .88rem; --fill: var(--open); color: var(--open-ink);
  background: linear-gradient(var(--fill) 0 0) 0 0 / var(--prob) 100% no-repeat var(--track); }
li span { overflow-wrap: anywhere; min-width: 0; }
li i { font-style: normal; flex: none; }
li b { margin-left: auto; font-weight: 500; font-variant-numeric: tabular-nums; flex: none; }
li.right { --fill: var(--right); color: var(--right-ink); }
li.wrong { --fill: var(--wrong); color: var(--wrong-ink); }
li.missed { background: none; outline: 1.5px dashed var(--missed-ink); outline-offset: -1.5px;
  color: var(--missed-ink); }
.key { display: flex; flex-wrap: wrap; gap: .5rem; margin-bottom: .9rem; }
.key li { padding: .15rem .8rem; }
"""


def write_page(
    path: str | Path,
    title: str,
    headline: Mapping[str, str],
    tiles: Sequence[Tile],
    figures: Sequence[tuple[str, bytes]] = (),
    intro: str = "",
) -> None:
    """Write one self-contained HTML file: nothing is fetched when it is opened.

    `headline` maps a name to a figure as text; `figures` are captions with PNG bytes. Raises
    `MltrError` if the file can't be written.
    """
    parts = [f"<h1>{html.escape(title)}</h1>"]
    if intro:
        parts.append(f"<p>{html.escape(intro)}</p>")
    if headline:
        parts.append(f"<dl>{''.join(_headline_html(*entry) for entry in headline.items())}</dl>")
    if tiles:
        judged = any(tile.truth is not None for tile in tiles)
        parts += ["<h2>Predictions</h2>", KEY if judged else ""]
        parts.append(f'<div class="tiles">{"".join(map(tile_html, tiles))}</div>')
    if figures:
        parts.append("<h2>Figures</h2>")
        parts.append(f'<div class="figures">{"".join(_figure_html(*f) for f in figures)}</div>')
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )
    write_atomically(path, text_writer(page))


def _headline_html(name: str, figure: str) -> str:
    return f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(figure)}</dd></div>"


def _figure_html(caption: str, png: bytes) -> str:
    text = html.escape(caption)
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def tile_html(tile: Tile) -> str:
    """Return one picture with bars for its labels."""
    tags = judge(tile.predicted, tile.truth)
    names = ", ".join(tag.name for tag in tags if tag.prob is not None) or "no label"
    alt = html.escape(f"{tile.caption or 'Picture'}; predicted: {names}")
    caption = f'<div class="name">{html.escape(tile.caption)}</div>' if tile.caption else ""
    bars = "".join(map(_tag_html, tags)) or '<li class="missed"><span>no label</span></li>'
    return (
        f'<figure><img loading="lazy" src="{inline_jpeg(tile.image)}" alt="{alt}">'
        f"<figcaption>{caption}<ul>{bars}</ul></figcaption></figure>"
    )


def _tag_html(tag: Tag) -> str:
    words = "missed" if tag.prob is None else f"{tag.prob:.0%}"
    sign = f"<i>{SIGNS[tag.verdict]}</i>" if SIGNS[tag.verdict] else ""
    return (
        f'<li class="{tag.verdict}" style="--prob: {100 * (tag.prob or 0):.1f}%">'
        f"{sign}<span>{html.escape(tag.name)}</span><b>{words}</b></li>"
    )


_LEGEND: dict[Verdict, str] = {
    "right": "right",
    "wrong": "wrong: predicted, but not there",
    "missed": "missed: there, but not predicted",
}
KEY = (
    '<ul class="key">'
    + "".join(
        f'<li class="{verdict}" style="--prob: 100%">'
        f"<i>{SIGNS[verdict]}</i><span>{words}</span></li>"
        for verdict, words in _LEGEND.items()
    )
    + "</ul>"
)


def write_picture(path: Path, image: Image.Image) -> None:
    """Write a picture atomically, in the format given by its extension."""
    write_atomically(path, lambda temporary: image.save(temporary))


def write_figure(path: Path, figure: Figure) -> None:
    """Write a matplotlib figure in the same way, and close it."""
    import matplotlib.pyplot as plt

    try:
        write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=DOTS))
    finally:
        plt.close(figure)


def inline_jpeg(image: Image.Image, side: int = 360) -> str:
    """Return the image as a data URL, its longer side at most `side` pixels."""
    small = image.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
