"""Describes the three problems of a diagnosis in words, for the screen and the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mltr.diagnosis.bottlenecks import BUCKETS, MIN_IMAGES

SHOWN = 12  #: maximum pairs in a table
NAMED = 8  #: maximum pairs in a sentence


@dataclass(frozen=True)
class Problem:
    """One of the three problems, in words and figures."""

    title: str
    measure: str  #: definition of the figures
    verdict: str  #: conclusion from the figures
    headings: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    remarks: Sequence[str] = ()  #: sentences below the table


def describe_problems(figures: dict[str, Any]) -> list[Problem]:
    """Describe small objects, similar objects and usual company from the figures of `diagnose`."""
    return [
        _describe_sizes(figures["small_objects"]),
        _describe_confusions(figures["similar_objects"]),
        _describe_company(figures["company"]),
    ]


def percent(figure: dict[str, Any] | None, signed: bool = False) -> str:
    """Return a figure in percent with its interval, or a dash if there is none."""
    if figure is None or not math.isfinite(figure["value"]):
        return "-"
    sign = "+" if signed else ""
    shown = f"{100 * figure['value']:{sign}.1f}"
    if not math.isfinite(figure["low"]):
        return shown
    return f"{shown} ({100 * figure['low']:{sign}.1f}..{100 * figure['high']:{sign}.1f})"


def _share(figure: dict[str, Any] | None) -> str:
    return "-" if figure is None else f"{100 * figure['value']:.1f}"


def _describe_sizes(sizes: dict[str, Any] | None) -> Problem:
    title = "Small objects"
    if sizes is None:
        return Problem(title, "", "The source has no boxes, so object sizes are unknown.")
    low, high = sizes["edges"]
    measure = f"Small: below {low:.0f} pixels; large: from {high:.0f} ({sizes['edges_from']})."
    gap = sizes["gap"]
    remarks = []
    if gap is None:
        verdict = f"Too few to compare: no class has {MIN_IMAGES} images of each size."
    elif not sizes["is_significant"]:
        verdict = f"No significant difference: AP {percent(gap, True)} from small to large."
    else:
        how = "worse" if gap["value"] > 0 else "better"
        verdict = (
            f"Small objects are recognised {how}: AP {percent(gap, True)} from small to large."
        )
        if gap["value"] > 0:
            remarks.append(f"Largest differences: {_worst_sizes(sizes)}.")
    headings = ("largest object", "mean AP", "mean recall", "cases")
    rows = []
    for bucket in BUCKETS:
        ap, recall = sizes["ap"][bucket], sizes["recall"][bucket]
        cases = "-" if ap is None else str(ap["images"])
        rows.append((bucket, percent(ap), percent(recall), cases))
    return Problem(title, measure, verdict, headings, rows, remarks)


def _worst_sizes(sizes: dict[str, Any]) -> str:
    gaps = {
        name: found["large"]["ap"]["value"] - found["small"]["ap"]["value"]
        for name, found in sizes["classes"].items()
        if {"small", "large"} <= set(found)
    }
    leading = sorted(gaps, key=lambda name: -gaps[name])[:5]
    return ", ".join(f"{name} ({100 * gaps[name]:+.0f})" for name in leading if gaps[name] > 0)


def _describe_confusions(found: dict[str, Any]) -> Problem:
    title = "Similar objects"
    measure = "b predicted where only a is present; for pairs that rarely occur together."
    pairs = found["pairs"]
    if not pairs:
        return Problem(
            title,
            measure,
            f"No pair of classes rarely occurs together and has {MIN_IMAGES} images.",
        )
    significant = [f"{pair['a']} → {pair['b']}" for pair in pairs if pair["is_significant"]]
    verdict = "None is significant, corrected for the number of pairs."
    if significant:
        named = ", ".join(significant[:NAMED]) + (", ..." if len(significant) > NAMED else "")
        verdict = f"{len(significant)} significant, corrected for the number of pairs: {named}."
    rows = [
        (
            f"{pair['a']} → {pair['b']}",
            _share(pair["where_a"]),
            _share(pair["elsewhere"]),
            percent(pair["excess"], True),
            str(pair["where_a"]["images"]),
            "yes" if pair["is_significant"] else "no",
        )
        for pair in pairs[:SHOWN]
    ]
    return Problem(
        title,
        measure,
        f"{verdict} Mean excess: {percent(found['mean_excess'], True)}.",
        ("a → b", "with a", "elsewhere", "excess", "images", "significant"),
        rows,
        [
            f"AP of {name} against only {', '.join(entry['look_alikes'])}: {percent(entry['ap'])}."
            for name, entry in found["against_look_alikes"].items()
        ],
    )


def _describe_company(found: dict[str, Any]) -> Problem:
    title = "Usual company"
    measure = (
        "b usually occurs with a in training. Recall of a: with b / without. "
        "Absent b predicted: with a / with neither."
    )
    if not found["pairs"]:
        return Problem(title, measure, "No class usually occurs with another.")
    means = [
        (found["mean_recall_gap"], "Recall of a, with b minus without"),
        (found["mean_excess"], "Absent b predicted, with a minus with neither"),
    ]
    leans = any(figure is not None and figure["low"] > 0 for figure, _ in means)
    rows = [
        (
            f"{pair['a']}, {pair['b']}",
            f"{100 * pair['conditional']:.0f}",
            f"{_share(pair['recall_with'])} / {_share(pair['recall_without'])}",
            percent(pair["recall_gap"], True),
            f"{_share(pair['company_seen'])} / {_share(pair['company_elsewhere'])}",
            percent(pair["excess"], True),
        )
        for pair in found["pairs"][:SHOWN]
    ]
    return Problem(
        title,
        measure,
        f"Labels {'lean' if leans else 'do not lean'} on their usual company"
        f"{'' if leans else ' beyond noise'}.",
        ("a, b", "P(b|a)", "recall of a", "gap", "absent b predicted", "excess"),
        rows,
        [
            f"{words}, on average: {percent(figure, True)}{_noise(figure)}."
            for figure, words in means
            if figure is not None
        ],
    )


def _noise(figure: dict[str, Any]) -> str:
    return "" if figure["low"] > 0 or figure["high"] < 0 else "; within noise"
