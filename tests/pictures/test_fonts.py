"""Letters that DejaVu Sans lacks are drawn in a font that has them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.font_manager import fontManager
from PIL import Image, ImageDraw, ImageFont

from mltr.diagnosis import display
from mltr.evaluation import curves
from mltr.evaluation.predictions import Predictions
from mltr.pictures import fonts, gallery
from mltr.pictures.fonts import Lettering, default_file, families_for, file_for

pytestmark = pytest.mark.pictures

STIX = str(Path(mpl.get_data_path()) / "fonts" / "ttf" / "STIXGeneral.ttf")
ONLY_STIX = "ᶁ"  # which DejaVu Sans lacks


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    """Look for fonts anew, and leave matplotlib's own as they were."""
    for cached in (file_for, fonts._installed, fonts._tell_lack):
        cached.cache_clear()
    with mpl.rc_context({"font.family": ["sans-serif"]}):
        yield
    for cached in (file_for, fonts._installed, fonts._tell_lack):
        cached.cache_clear()


@pytest.fixture
def few_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only fonts that are part of matplotlib, as on a bare machine."""
    own = str(Path(mpl.get_data_path()))
    kept = [font for font in fontManager.ttflist if font.fname.startswith(own)]
    monkeypatch.setattr(fontManager, "ttflist", kept)


def test_each_letter_has_the_first_font_that_has_it(few_fonts: None) -> None:
    assert file_for("a") == file_for("é") == file_for("\n") == default_file()
    assert Path(file_for(ONLY_STIX)).name.startswith("STIX")
    assert families_for("sea") == ["DejaVu Sans"]
    assert families_for(f"sea {ONLY_STIX}") == ["DejaVu Sans", "STIXGeneral"]


def test_a_text_of_two_fonts_is_its_parts_side_by_side(few_fonts: None) -> None:
    plain, other = ImageFont.truetype(default_file(), 20), ImageFont.truetype(STIX, 20)
    text = f"a{ONLY_STIX}b"
    length = plain.getlength("a") + other.getlength(ONLY_STIX) + plain.getlength("b")
    assert Lettering(20).getlength(text) == length
    drawn, expected = (Image.new("L", (80, 30)) for _ in range(2))
    Lettering(20).draw(ImageDraw.Draw(drawn), (2, 3), text, "white")
    pen = ImageDraw.Draw(expected)
    pen.text((2, 3), "a", fill="white", font=plain)
    pen.text((2 + plain.getlength("a"), 3), ONLY_STIX, fill="white", font=other)
    pen.text((2 + length - plain.getlength("b"), 3), "b", fill="white", font=plain)
    assert np.array_equal(np.asarray(drawn), np.asarray(expected))


def test_letters_that_no_font_has_are_told_once(
    few_fonts: None,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
) -> None:
    names = [gallery.as_drawn(name) for name in ("海", "空", "sea")]
    figure, axes = gallery.pyplot().subplots()
    axes.set_yticks(range(3), names)
    gallery.write_figure(tmp_path / "figure.png", figure)
    gallery.contact_sheet([(Image.new("RGB", (9, 9)), [("海", 0.5)], None)])
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "no font of this machine has some letters of these names"
    ]
    assert not list(recwarn)


def test_figures_take_the_same_fonts(few_fonts: None) -> None:
    names = tuple(f"{ONLY_STIX} {k}" for k in range(30))
    targets = np.eye(30, dtype=np.int8)
    predictions = Predictions(targets.astype(np.float32), targets, images=names, classes=names)
    (bars,) = curves.draw_average_precision(predictions).axes
    matrix = display.draw_matrix(np.eye(3), names[:3], (0, 1), "viridis", ("a", "b"), "title")
    for axes in (bars, matrix.axes[0]):
        for label in axes.get_yticklabels():
            assert label.get_fontfamily()[-2:] == ["DejaVu Sans", "STIXGeneral"]
