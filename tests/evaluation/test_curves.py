"""Pictures of precision and recall: what is drawn, and what they say of it."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from mltr.evaluation import curves
from mltr.evaluation.predictions import Predictions

pytestmark = pytest.mark.pictures


def drawn(classes: list[str], monkeypatch: pytest.MonkeyPatch, most: int) -> tuple[int, str]:
    """Return the number of curves drawn, and the words of the picture."""
    monkeypatch.setattr(curves, "MOST_CURVES", most)
    rng = np.random.default_rng(0)
    targets = (rng.random((40, len(classes))) < 0.5).astype(np.int8)
    predictions = Predictions(
        rng.random(targets.shape, np.float32),
        targets,
        images=tuple(map(str, range(40))),
        classes=tuple(classes),
    )
    axes = Figure().add_subplot()
    curves.draw_precision_recall(axes, predictions)
    legend = axes.get_legend()
    assert legend is not None
    words = [axes.get_title(loc="left"), *(text.get_text() for text in legend.get_texts())]
    return len(axes.lines), "; ".join(words)


def test_names_that_matplotlib_would_hide_are_in_the_legend(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines, words = drawn(["_night", "sea"], monkeypatch, most=300)
    assert lines == 3  # the last of all decisions together
    assert "_night; sea; all decisions together" in words


def test_of_very_many_classes_the_most_frequent_are_drawn_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines, words = drawn(["a", "b", "c", "d"], monkeypatch, most=2)
    assert lines == 3
    assert "over all thresholds, 2 most frequent classes" in words


def test_of_very_many_classes_the_worst_and_the_best_have_bars() -> None:
    targets = np.eye(200, dtype=np.int8)
    probs = np.where(targets == 1, np.linspace(0, 1, 200), 0.5).astype(np.float32)
    names = tuple(f"class {k}" for k in range(200))
    predictions = Predictions(probs, targets, images=names, classes=names)
    figure = curves.draw_average_precision(predictions)
    (axes,) = figure.axes
    assert len(axes.patches) == 80
    assert axes.get_title(loc="left").endswith(": the 40 best and the 40 worst of 200")
    assert figure.get_figheight() < 25
