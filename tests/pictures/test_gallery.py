"""Sheets and pages: nothing is lost, clipped, or interpreted as HTML."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mltr.errors import MltrError
from mltr.pictures.gallery import COLOURS, Tile, contact_sheet, judge, write_page

pytestmark = pytest.mark.pictures

PHOTO = Image.new("RGB", (60, 40), (10, 20, 30))
TAGS = st.lists(st.tuples(st.text(max_size=90), st.floats(0, 1)), max_size=6)


def count(sheet: Image.Image, colour: str) -> int:
    """Return the number of pixels of exactly this colour."""
    wanted = [int(colour[start : start + 2], 16) for start in (1, 3, 5)]
    return int((np.array(sheet) == wanted).all(axis=2).sum())


def test_each_label_is_right_wrong_missed_or_open() -> None:
    assert [tuple(tag) for tag in judge([("a", 0.9), ("b", 0.6)], ["c", "a"])] == [
        ("a", 0.9, "right"),
        ("b", 0.6, "wrong"),
        ("c", None, "missed"),
    ]
    assert [tag.verdict for tag in judge([("a", 0.9)], None)] == ["open"]
    assert judge([], []) == []


def test_verdicts_have_their_colours() -> None:
    sheet = contact_sheet([(PHOTO, [("cat", 0.9), ("dog", 0.5)], ["cat", "bird"])])
    right, wrong = (count(sheet, COLOURS[verdict][0]) for verdict in ("right", "wrong"))
    assert right > 1.5 * wrong > 0  # bars as long as the probabilities, 0.9 and 0.5
    assert count(sheet, COLOURS["missed"][1]) > 100  # the outline
    assert count(sheet, COLOURS["open"][0]) == 0
    unknown = contact_sheet([(PHOTO, [("cat", 0.9)], None)])
    assert count(unknown, COLOURS["open"][0]) > 0
    assert count(unknown, COLOURS["right"][0]) == 0


@pytest.mark.parametrize(
    ("number", "columns", "tiles_wide", "tiles_high"),
    [(1, 5, 1, 1), (5, 5, 5, 1), (6, 5, 5, 2), (3, 1, 1, 3)],
)
def test_tiles_stand_in_rows(number: int, columns: int, tiles_wide: int, tiles_high: int) -> None:
    sheet = contact_sheet([(PHOTO, [("cat", 0.9)], None)] * number, columns, tile=100)
    assert tiles_wide * 100 < sheet.width < tiles_wide * 125 + 25
    assert tiles_high * 100 < sheet.height < tiles_high * 160 + 25


def test_photos_are_shown_whole() -> None:
    """The four corners of the photo keep their colours, whatever its shape."""
    for width, height in ((400, 100), (100, 400), (8, 8), (700, 700)):
        photo = Image.new("RGB", (width, height), "#102030")
        for x in (0, width - width // 8):
            for y in (0, height - height // 8):
                photo.paste("#ff00ff", (x, y, x + width // 8, y + height // 8))
        pixels = np.array(contact_sheet([(photo, [], None)], tile=160)).astype(int)
        pink = (abs(pixels - (255, 0, 255)).sum(axis=2) < 60).nonzero()
        tall, wide = (int(axis.max() - axis.min() + 1) for axis in pink)
        assert wide / tall == pytest.approx(width / height, rel=0.1)
        assert max(wide, tall) == pytest.approx(160, abs=8)


def test_long_names_and_many_labels_make_a_tile_higher_never_clipped() -> None:
    short = contact_sheet([(PHOTO, [("cat", 0.9)], None)])
    long = contact_sheet([(PHOTO, [("a_name_that_goes_on_and_on " * 4, 0.9)], None)])
    many = contact_sheet([(PHOTO, [(f"label {k}", 0.9) for k in range(40)], None)])
    assert short.width == long.width == many.width
    assert short.height < long.height < many.height
    # Only white and the card's rounded frame along the right and lower edges.
    for sheet in (long, many):
        pixels = np.array(sheet)
        margin = 20
        edge = pixels[margin + 250 : -margin - 10, -margin - 6 : -margin - 2]
        assert (edge == 255).all()


@settings(max_examples=40, deadline=None)
@given(predicted=TAGS, truth=st.none() | st.lists(st.text(max_size=30), max_size=3))
def test_any_text_can_be_drawn(predicted: list[tuple[str, float]], truth: list[str] | None) -> None:
    sheet = contact_sheet([Tile(PHOTO, predicted, truth, "caption")], tile=80)
    assert sheet.mode == "RGB"


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_any_kind_of_image_can_be_shown(mode: str, tmp_path: Path) -> None:
    image = PHOTO.convert(mode)
    contact_sheet([(image, [], None)])
    write_page(tmp_path / "page.html", "title", {}, [Tile(image, [])], [])


class Page(HTMLParser):
    """Collects the elements of a page as a browser would find them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        self.links += [str(value) for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def a_png() -> bytes:
    stream = io.BytesIO()
    PHOTO.save(stream, "PNG")
    return stream.getvalue()


def test_a_page_holds_everything_and_fetches_nothing(tmp_path: Path) -> None:
    tile = Tile(PHOTO.resize((900, 600)), [("cat", 0.934), ("dog", 0.5)], ["cat", "bird"], "a.jpg")
    write_page(
        tmp_path / "page.html",
        "A run",
        {"test map": "0.951"},
        [tile] * 3,
        [("Loss", a_png())],
        intro="What it saw.",
    )
    page = Page(tmp_path / "page.html")
    text = " ".join(page.words)
    for words in (
        "A run",
        "What it saw.",
        "test map",
        "0.951",
        "✓ cat",
        "93%",
        "✗ dog",
        "50%",
        "○ bird",
        "missed",
        "a.jpg",
        "Loss",
    ):
        assert words in text
    assert len(page.images) == 4
    assert all(link.startswith("data:image/") for link in page.links)
    assert not re.search(r"https?:|@import|url\(|<script", (tmp_path / "page.html").read_text())
    assert "prefers-color-scheme: dark" in text
    assert page.images[0]["alt"] == "a.jpg; predicted: cat, dog"
    kind, content = str(page.images[0]["src"]).split(",")
    with Image.open(io.BytesIO(base64.b64decode(content))) as inlined:
        assert inlined.format == "JPEG"
        assert "jpeg" in kind
        assert inlined.size == (360, 240)


def test_a_page_takes_no_text_for_html(tmp_path: Path) -> None:
    evil = "\"><script>alert('x')</script><img src=x onerror=alert(1)>&amp;"
    tile = Tile(PHOTO, [(evil, 0.9)], [evil, evil + "2"], evil)
    write_page(tmp_path / "p.html", evil, {evil: evil}, [tile], [(evil, a_png())], intro=evil)
    page = Page(tmp_path / "p.html")
    assert "script" not in page.tags
    assert len(page.images) == 2
    assert set().union(*page.images) <= {"src", "alt", "loading"}
    assert sum(evil in data for data in page.words) == 9


def test_an_unjudged_page_has_no_legend(tmp_path: Path) -> None:
    write_page(tmp_path / "p.html", "t", {}, [Tile(PHOTO, [("cat", 0.9)]), Tile(PHOTO, [])], [])
    text = " ".join(Page(tmp_path / "p.html").words)
    assert "missed" not in text.split("</style>")[-1].split("}")[-1]
    assert "no label" in text


def test_a_page_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MltrError, match=r"can't write .*page\.html"):
        write_page(tmp_path / "file" / "page.html", "t", {}, [], [])
