"""The figures of `mltr diagnose`: of one run, or of two that are compared."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mltr.data.records import same_image
from mltr.diagnosis import bottlenecks as measures
from mltr.diagnosis.bottlenecks import BUCKETS, COCO_EDGES, Company, Estimate, Scored
from mltr.errors import MltrError
from mltr.evaluation.open_run import OpenRun, open_scored, scores_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mltr.data.records import Split
    from mltr.evaluation.predictions import Predictions

log = logging.getLogger(__name__)

#: Figures that are compared between two runs: description, and whether less is better.
HEADLINES = {
    "map": ("map, all objects", False),
    "ap_small": ("AP of small objects", False),
    "ap_large": ("AP of large objects", False),
    "size_gap": ("AP of large minus small objects", True),
    "recall_small": ("recall of small objects", False),
    "mean_confusion": ("excess false positives with a similar object", True),
    "recall_gap": ("recall with minus without the usual company", True),
    "company_excess": ("excess false positives of absent company", True),
}


class Subject:
    """The scores of a run on a split, with its thresholds and the co-occurrence of its classes."""

    def __init__(
        self,
        predictions: Predictions,
        split: Split,
        train_targets: NDArray[np.int8],
        thresholds: NDArray[np.float64],
        edges: tuple[float, float] | None,
    ) -> None:
        self.predictions, self.split = predictions, split
        self.thresholds, self.edges = thresholds, edges
        self.company = measures.measure_company(train_targets)

    @classmethod
    def open(
        cls,
        folder: str,
        split: str,
        overrides: Sequence[str] = (),
        views: tuple[str, ...] = (),
    ) -> Subject:
        """Open a run and its scores of a split; raises `MltrError` as `of` does."""
        opened = open_scored(folder, overrides)
        return cls.of(opened, scores_of(folder, split, overrides, views=views), split)

    @classmethod
    def of(cls, opened: OpenRun, predictions: Predictions, split: str) -> Subject:
        """Combine a run with its scores; raises `MltrError` if these are for other images."""
        chosen = opened.split(split)
        if predictions.images != tuple(record.name for record in chosen):
            raise MltrError(
                f"{opened.path}: its saved predictions are for other images than the data has now; "
                "give the data with --data.root DIR to score its images again"
            )
        return cls(
            predictions, chosen, opened.splits.train.targets, _thresholds(opened), _edges(opened)
        )

    def scored(self, resamples: int, seed: int) -> Scored:
        """Return decisions and resamples; raises `MltrError` if no label is known."""
        probs, targets = self.predictions.probs, self.predictions.targets
        if not (targets >= 0).any():
            raise MltrError("every label of these images is unknown: nothing can be measured")
        return Scored.of(probs, targets, self.limits, resamples, seed)

    @property
    def limits(self) -> NDArray[np.float32]:
        """What each probability must reach: [K], or [N, K] by a hierarchy."""
        return self.predictions.limits(self.thresholds)


def _thresholds(opened: OpenRun) -> NDArray[np.float64]:
    own = opened.bundle.thresholds
    return np.full(len(opened.bundle.classes), 0.5) if own is None else np.array(own)


def _edges(opened: OpenRun) -> tuple[float, float] | None:
    """Return COCO's size limits for photos, or None (terciles) for the small demo scenes."""
    return None if opened.config.data.format == "scenes" else COCO_EDGES


def diagnose(subject: Subject, resamples: int = 500, seed: int = 0) -> dict[str, Any]:
    """Return all figures as plain values; `small_objects` is None if there are no boxes."""
    scored = subject.scored(resamples, seed)
    classes = subject.predictions.classes
    return {
        "images": len(subject.predictions.images),
        "classes": list(classes),
        "level": measures.LEVEL,
        "resamples": resamples,
        "small_objects": _describe_sizes(subject, scored),
        "similar_objects": _describe_confusions(scored, subject.company, classes),
        "company": _describe_dependences(scored, subject.company, classes),
    }


def _plain(estimate: Estimate | None) -> dict[str, Any] | None:
    if estimate is None:
        return None
    low, high = estimate.interval()
    return {"value": estimate.value, "low": low, "high": high, "images": estimate.images}


def _significant(estimate: Estimate | None) -> bool:
    return estimate is not None and estimate.is_significant


def _describe_sizes(subject: Subject, scored: Scored) -> dict[str, Any] | None:
    records = subject.split.records
    if not any(record.boxes for record in records):
        return None
    classes = subject.predictions.classes
    sizes = measures.measure_sizes(
        scored, measures.largest_areas(records, len(classes)), subject.edges
    )
    return {
        "edges": list(sizes.edges),
        "edges_from": "terciles of these objects" if subject.edges is None else "COCO",
        "images": sizes.images,
        "ap": {bucket: _plain(sizes.mean_ap.get(bucket)) for bucket in BUCKETS},
        "recall": {bucket: _plain(sizes.mean_recall.get(bucket)) for bucket in BUCKETS},
        "gap": _plain(sizes.gap),
        "is_significant": _significant(sizes.gap),
        "classes": {
            name: {
                bucket: {"ap": _plain(found), "recall": _plain(sizes.recall[k][bucket])}
                for bucket, found in sizes.ap[k].items()
            }
            for k, name in enumerate(classes)
        },
    }


def _describe_confusions(
    scored: Scored, company: Company, classes: Sequence[str]
) -> dict[str, Any]:
    found = measures.measure_confusions(scored, company)
    return {
        "mean_excess": _plain(found.mean_excess),
        "is_significant": _significant(found.mean_excess),
        "pairs": [
            {
                "a": classes[pair.a],
                "b": classes[pair.b],
                "where_a": _plain(pair.where_a),
                "elsewhere": _plain(pair.elsewhere),
                "excess": _plain(pair.excess),
                "is_significant": pair.is_significant,
            }
            for pair in found.pairs
        ],
        "against_look_alikes": {
            classes[b]: {
                "look_alikes": [classes[a] for a in found.look_alikes[b]],
                "ap": _plain(ap),
            }
            for b, ap in found.against.items()
        },
        "matrix": found.excess.tolist(),
    }


def _describe_dependences(
    scored: Scored, company: Company, classes: Sequence[str]
) -> dict[str, Any]:
    found = measures.measure_dependences(scored, company)
    return {
        "mean_recall_gap": _plain(found.mean_gap),
        "mean_excess": _plain(found.mean_excess),
        "is_significant": _significant(found.mean_gap) or _significant(found.mean_excess),
        "pairs": [
            {
                "a": classes[pair.a],
                "b": classes[pair.b],
                "conditional": float(company.conditional[pair.a, pair.b]),
                "recall_with": _plain(pair.recall_with),
                "recall_without": _plain(pair.recall_without),
                "recall_gap": _plain(pair.gap),
                "recall_is_significant": _significant(pair.gap),
                "company_seen": _plain(pair.company_seen),
                "company_elsewhere": _plain(pair.company_elsewhere),
                "excess": _plain(pair.excess),
                "excess_is_significant": _significant(pair.excess),
            }
            for pair in found.pairs
        ],
        "matrix": company.conditional.tolist(),
    }


# -- two runs ----------------------------------------------------------------------------------


def compare(first: Subject, second: Subject, resamples: int = 500, seed: int = 0) -> dict[str, Any]:
    """Return the headline figures of two runs and the paired differences, second minus first.

    If their labels differ, as after an audit, those of the second run are used for both. Raises
    `MltrError` unless both were scored on the same classes and image files; names may differ.
    """
    a, b = first.predictions, second.predictions
    places = {same_image(record): row for row, record in enumerate(second.split)}
    rows_of_b = [places.get(same_image(record), -1) for record in first.split]
    if a.classes != b.classes or sorted(rows_of_b) != list(range(len(b.images))):
        raise MltrError(
            f"the runs can't be compared: the first has {len(a.images)} images of "
            f"{len(a.classes)} classes, the second {len(b.images)} of {len(b.classes)}, and they "
            "differ; choose two runs on the same source"
        )
    targets = b.targets[rows_of_b]
    corrected = int((a.targets != targets).sum())
    if corrected:
        log.info("%d labels differ: those of the second run are used for both", corrected)
    first.predictions = replace(a, targets=targets)
    second.predictions = replace(
        a, targets=targets, probs=b.probs[rows_of_b], hierarchy=b.hierarchy
    )
    second.split = first.split
    # The second's pairs and sizes for both, too: figures over other ones can't be compared.
    first.company, first.edges = second.company, second.edges
    found = [_headlines(subject, resamples, seed) for subject in (first, second)]
    rows = {}
    for name, (_, less_is_better) in HEADLINES.items():
        ours, theirs = found[0].get(name), found[1].get(name)
        if ours is None or theirs is None:
            continue
        difference = theirs - ours
        better = "neither, within noise"
        if difference.is_significant:
            better = "second" if (difference.value < 0) == less_is_better else "first"
        rows[name] = {
            "first": _plain(ours),
            "second": _plain(theirs),
            "difference": _plain(difference),
            "better": better,
        }
    return {"images": len(a.images), "level": measures.LEVEL, "headlines": rows}


def _headlines(subject: Subject, resamples: int, seed: int) -> dict[str, Estimate | None]:
    scored = subject.scored(resamples, seed)
    found: dict[str, Estimate | None] = {"map": scored.mean_average_precision()}
    if any(record.boxes for record in subject.split):
        areas = measures.largest_areas(subject.split.records, len(subject.predictions.classes))
        sizes = measures.measure_sizes(scored, areas, subject.edges)
        found |= {
            "ap_small": sizes.mean_ap.get("small"),
            "ap_large": sizes.mean_ap.get("large"),
            "size_gap": sizes.gap,
            "recall_small": sizes.mean_recall.get("small"),
        }
    dependences = measures.measure_dependences(scored, subject.company)
    return found | {
        "mean_confusion": measures.measure_confusions(scored, subject.company, 0).mean_excess,
        "recall_gap": dependences.mean_gap,
        "company_excess": dependences.mean_excess,
    }
