"""Measures of the paper's three problems: small objects, similar objects, usual company.

The problems are from arXiv 2106.06195, section 1; the measures are ours, defined in
docs/protocols.md. All are pure functions of scores, labels and boxes. Confidence intervals come
from bootstrap resamples of the images. All figures share the same resamples, so differences are
paired.

Shapes: N images, K classes, R resamples.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import false_discovery_control, fisher_exact, norm

from mltr.data.records import Record

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

log = logging.getLogger(__name__)

LEVEL = 0.95  #: confidence level of every interval
COCO_EDGES = (32.0**2, 96.0**2)  #: areas in pixels between small, medium and large objects
BUCKETS = ("small", "medium", "large")
MOST_PAIRED = 100  #: classes among which confusions are looked for: 9,900 pairs
MIN_IMAGES = 10  #: minimum number of images behind a figure
SELDOM = 0.5  #: maximum lift of classes that rarely occur together and may be confused
LIKELY = 0.5  #: minimum P(b|a) of a companion b of a
LIFT = 1.5  #: minimum P(b|a) / P(b) of a companion b of a


@dataclass(frozen=True)
class Estimate:
    """A figure with its value on each resample of the images."""

    value: float
    samples: Floats  #: [R]; nan if a resample has no image to measure
    images: int  #: number of images behind the figure; of two groups, that of the smaller one

    def interval(self) -> tuple[float, float]:
        """Return the bias-corrected bootstrap interval at `LEVEL` (Efron, 1981).

        Drawing images twice raises average precision slightly. The correction shifts the
        percentiles by the share of resamples below the figure itself.
        """
        known = self.samples[np.isfinite(self.samples)]
        if not len(known) or not np.isfinite(self.value):
            return float("nan"), float("nan")
        below = (np.sum(known < self.value) + np.sum(known == self.value) / 2) / len(known)
        bias = norm.ppf(np.clip(below, 1 / len(known), 1 - 1 / len(known)))
        tails = norm.cdf(2 * bias + norm.ppf([(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
        low, high = np.quantile(known, tails)
        return float(low), float(high)

    @property
    def is_significant(self) -> bool:
        """Whether the figure differs significantly from zero: zero is outside the interval."""
        low, high = self.interval()
        return low > 0 or high < 0

    def __sub__(self, other: Estimate) -> Estimate:
        images = min(self.images, other.images)
        return Estimate(self.value - other.value, self.samples - other.samples, images)


def mean_of(estimates: Sequence[Estimate]) -> Estimate | None:
    """Return the unweighted mean of figures, or None if there are none."""
    if not estimates:
        return None
    value = float(np.mean([estimate.value for estimate in estimates]))
    stacked = np.stack([estimate.samples for estimate in estimates])
    with np.errstate(invalid="ignore"):
        counts = np.isfinite(stacked).sum(axis=0)
        sums = np.nansum(stacked, axis=0)
    samples = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    return Estimate(value, samples, sum(estimate.images for estimate in estimates))


@dataclass(frozen=True)
class Scored:
    """Scores, labels and decisions of N images, and bootstrap resamples of the images."""

    probs: Floats  #: [N, K]
    targets: NDArray[np.int8]  #: [N, K]: 1, 0, or -1 for unknown
    predicted: Bools  #: [N, K]
    weights: Floats  #: [R, N]: how many times each image is drawn

    @classmethod
    def of(
        cls,
        probs: NDArray[np.float32],
        targets: NDArray[np.int8],
        limits: NDArray[np.float32],
        resamples: int,
        seed: int,
    ) -> Scored:
        """Decide at the limits [K] or [N, K] and draw resamples; N and the seed determine those."""
        count = len(probs)
        generator = np.random.default_rng(seed)
        drawn = generator.multinomial(count, np.full(count, 1 / count), size=resamples)
        return cls(probs.astype(np.float64), targets, probs >= limits, drawn.astype(np.float64))

    def rate(self, of: Bools, among: Bools) -> Estimate:
        """Return the share of the images `among` [N] that are also `of` [N]."""
        hits, all_of_them = (of & among).astype(np.float64), among.astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            value = hits.sum() / all_of_them.sum()
            samples = (self.weights @ hits) / (self.weights @ all_of_them)
        return Estimate(float(value), samples, int(among.sum()))

    def mean_average_precision(self) -> Estimate | None:
        """Return the mean AP of the classes with positives, as `mltr.metrics` defines it."""
        present, absent = self.targets == 1, self.targets == 0
        return mean_of(
            [
                self.average_precision(k, present[:, k], absent[:, k])
                for k in range(present.shape[1])
                if present[:, k].any()
            ]
        )

    def average_precision(self, k: int, positive: Bools, negative: Bools) -> Estimate:
        """Return the AP of class k with the given positives and negatives [N], ignoring others.

        Tied scores share a threshold, as in `mltr.metrics`.
        """
        rows = np.flatnonzero(positive | negative)
        rows = rows[np.argsort(-self.probs[rows, k], kind="stable")]
        scores = self.probs[rows, k]
        ends = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)) if len(rows) else rows
        is_positive = positive[rows].astype(np.float64)
        values = _precision_area(np.ones((1, len(rows))), is_positive, ends)
        samples = _precision_area(self.weights[:, rows], is_positive, ends)
        return Estimate(float(values[0]), samples, int(positive.sum()))


def _precision_area(weights: Floats, is_positive: Floats, ends: NDArray[np.int64]) -> Floats:
    """Return AP [R] of rows in descending order of score, drawn `weights` [R, rows] times."""
    if not len(ends):
        return np.full(len(weights), np.nan)
    hits = np.cumsum(weights * is_positive, axis=1)[:, ends]
    shown = np.cumsum(weights, axis=1)[:, ends]
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(shown > 0, hits / shown, 0.0)
        gained = np.diff(hits, axis=1, prepend=0.0)
        area: Floats = (precision * gained).sum(axis=1) / hits[:, -1]
    return area


# -- small objects -----------------------------------------------------------------------------


def largest_areas(records: Sequence[Record], num_classes: int) -> Floats:
    """Return the area in pixels of each image's largest object per class: [N, K], nan for none."""
    areas = np.full((len(records), num_classes), np.nan)
    for row, record in enumerate(records):
        for box in record.boxes or ():
            areas[row, box.class_index] = np.fmax(areas[row, box.class_index], box.area)
    return areas


@dataclass(frozen=True)
class SizeFigures:
    """AP and recall of each class by the size of its largest object."""

    edges: tuple[float, float]  #: areas in pixels between small and medium, medium and large
    ap: dict[int, dict[str, Estimate]]  #: AP by class index and bucket
    recall: dict[int, dict[str, Estimate]]  #: recall by class index and bucket
    images: dict[str, int]  #: number of positives by bucket, over all classes
    mean_ap: dict[str, Estimate]  #: mean over the classes that have both small and large
    mean_recall: dict[str, Estimate]  #: likewise

    @property
    def gap(self) -> Estimate | None:
        """Mean AP of large objects minus that of small ones."""
        if not self.mean_ap:
            return None
        return self.mean_ap["large"] - self.mean_ap["small"]


def measure_sizes(scored: Scored, areas: Floats, edges: tuple[float, float] | None) -> SizeFigures:
    """Measure AP and recall by object size, with the terciles of all areas as default `edges`.

    The positives of a bucket are the images whose largest object of the class has that size. Its
    negatives are all images without the class; other positives are ignored.
    """
    known = areas[np.isfinite(areas)]
    if edges is None:
        low, high = np.percentile(known, [100 / 3, 200 / 3])
        edges = (float(low), float(high))
    bounds = (0.0, *edges, np.inf)
    ap: dict[int, dict[str, Estimate]] = {}
    recall: dict[int, dict[str, Estimate]] = {}
    images = dict.fromkeys(BUCKETS, 0)
    for k in range(areas.shape[1]):
        present, absent = scored.targets[:, k] == 1, scored.targets[:, k] == 0
        ap[k], recall[k] = {}, {}
        for number, bucket in enumerate(BUCKETS):
            size = areas[:, k]
            of_size = present & (size >= bounds[number]) & (size < bounds[number + 1])
            images[bucket] += int(of_size.sum())
            if of_size.sum() >= MIN_IMAGES and absent.any():
                ap[k][bucket] = scored.average_precision(k, of_size, absent)
                recall[k][bucket] = scored.rate(scored.predicted[:, k], of_size)
    both = [k for k in ap if {"small", "large"} <= set(ap[k])]
    return SizeFigures(edges, ap, recall, images, _means(ap, both), _means(recall, both))


def _means(figures: dict[int, dict[str, Estimate]], classes: list[int]) -> dict[str, Estimate]:
    means = {}
    for bucket in BUCKETS:
        mean = mean_of([figures[k][bucket] for k in classes if bucket in figures[k]])
        if mean is not None:
            means[bucket] = mean
    return means


# -- co-occurrence -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Company:
    """Co-occurrence of classes in the training images."""

    conditional: Floats  #: [K, K]: P(b|a) in row a, column b; nan if a never occurs
    lift: Floats  #: [K, K]: P(b|a) / P(b)
    seldom: Bools  #: [K, K]: pairs that rarely occur together and may be confused
    companions: list[tuple[int, int]]  #: pairs (a, b) in which b usually occurs with a


def measure_company(train_targets: NDArray[np.int8]) -> Company:
    """Measure the co-occurrence of classes [N, K]; unknown labels are ignored."""
    positive = (train_targets == 1).astype(np.float64)
    known = (train_targets >= 0).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        conditional = (positive.T @ positive) / (positive.T @ known)
        base = positive.sum(axis=0) / known.sum(axis=0)
        lift = conditional / base
    other = ~np.eye(positive.shape[1], dtype=bool)
    with np.errstate(invalid="ignore"):
        seldom = other & (lift <= SELDOM) & (lift.T <= SELDOM)
        likely = other & (conditional >= LIKELY) & (lift >= LIFT)
    pairs = [(int(a), int(b)) for a, b in np.argwhere(likely)]
    pairs.sort(key=lambda pair: -conditional[pair])
    return Company(conditional, lift, seldom, pairs)


# -- similar objects ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Confusion:
    """Predictions of b where only a is present, for one pair."""

    a: int
    b: int
    where_a: Estimate  #: false-positive rate of b on images with a but not b
    elsewhere: Estimate  #: false-positive rate of b on images with neither
    excess: Estimate  #: the first minus the second
    is_significant: bool  #: whether it is significant over all pairs (Benjamini-Hochberg at 5%)


@dataclass(frozen=True)
class ConfusionFigures:
    """Pairs of classes that the network confuses."""

    excess: Floats  #: [K, K], row a, column b; nan if not measured
    pairs: list[Confusion]  #: significant pairs first, then by excess
    mean_excess: Estimate | None  #: mean over all measured pairs
    against: dict[int, Estimate]  #: AP of b with only images of its look-alikes as negatives
    look_alikes: dict[int, list[int]]  #: classes a that are significantly confused with b, by b


def measure_confusions(scored: Scored, company: Company, shown: int = 30) -> ConfusionFigures:
    """Measure all pairs that rarely occur together and have enough images; keep `shown`.

    Of very many classes these are the pairs among the `MOST_PAIRED` with the most images, since
    there are as many pairs as the square of that.
    """
    K = scored.targets.shape[1]
    present, absent = scored.targets == 1, scored.targets == 0
    rate, excess, p_values = {}, np.full((K, K), np.nan), {}
    looked_at = np.zeros(K, bool)
    looked_at[np.argsort(-present.sum(axis=0), kind="stable")[:MOST_PAIRED]] = True
    if K > MOST_PAIRED:
        log.info("confusions: among the %d most frequent of %s classes", MOST_PAIRED, f"{K:,}")
    for a, b in np.argwhere(company.seldom & looked_at & looked_at[:, None]):
        with_a, without_a = present[:, a] & absent[:, b], absent[:, a] & absent[:, b]
        if with_a.sum() < MIN_IMAGES or without_a.sum() < MIN_IMAGES:
            continue
        seen = scored.predicted[:, b]
        counts = [
            [int((seen & among).sum()), int((~seen & among).sum())] for among in (with_a, without_a)
        ]
        rate[a, b] = (with_a, without_a)
        excess[a, b] = counts[0][0] / sum(counts[0]) - counts[1][0] / sum(counts[1])
        p_values[a, b] = fisher_exact(counts, alternative="greater").pvalue
    corrected = false_discovery_control(list(p_values.values())) if p_values else []
    significant = {pair for pair, p in zip(p_values, corrected, strict=True) if p < 1 - LEVEL}
    order = sorted(rate, key=lambda pair: (pair not in significant, -excess[pair]))
    pairs = [_confusion(scored, a, b, (a, b) in significant, *rate[a, b]) for a, b in order[:shown]]
    look_alikes: dict[int, list[int]] = {}
    for a, b in order:
        if (a, b) in significant:
            look_alikes.setdefault(int(b), []).append(int(a))
    return ConfusionFigures(
        excess, pairs, _mean_excess(scored, rate), _against(scored, look_alikes), look_alikes
    )


def _confusion(
    scored: Scored, a: int, b: int, is_significant: bool, with_a: Bools, without_a: Bools
) -> Confusion:
    where_a = scored.rate(scored.predicted[:, b], with_a)
    elsewhere = scored.rate(scored.predicted[:, b], without_a)
    return Confusion(int(a), int(b), where_a, elsewhere, where_a - elsewhere, is_significant)


def _mean_excess(
    scored: Scored, rate: dict[tuple[int, int], tuple[Bools, Bools]]
) -> Estimate | None:
    """Return the mean excess over all measured pairs, free of selection bias."""
    total = np.zeros(len(scored.weights))
    value, images = 0.0, 0
    for (_, b), (with_a, without_a) in rate.items():
        excess = scored.rate(scored.predicted[:, b], with_a) - scored.rate(
            scored.predicted[:, b], without_a
        )
        total += np.nan_to_num(excess.samples)
        value += excess.value
        images += int(with_a.sum())
    if not rate:
        return None
    return Estimate(value / len(rate), total / len(rate), images)


def _against(scored: Scored, look_alikes: dict[int, list[int]]) -> dict[int, Estimate]:
    found = {}
    for b, others in look_alikes.items():
        positive = scored.targets[:, b] == 1
        negative = (scored.targets[:, b] == 0) & (scored.targets[:, others] == 1).any(axis=1)
        if positive.sum() >= MIN_IMAGES:
            found[b] = scored.average_precision(b, positive, negative)
    return found


# -- high conditional probability --------------------------------------------------------------


@dataclass(frozen=True)
class Dependence:
    """Influence of the usual companion b on a, for one pair; None with too few images."""

    a: int
    b: int
    recall_with: Estimate | None  #: recall of a on images with b
    recall_without: Estimate | None  #: recall of a on images without b
    gap: Estimate | None  #: the first minus the second
    company_seen: Estimate | None  #: false-positive rate of b on images with a but not b
    company_elsewhere: Estimate | None  #: false-positive rate of b on images with neither
    excess: Estimate | None  #: the first minus the second


@dataclass(frozen=True)
class DependenceFigures:
    """Labels that are guessed from their usual company."""

    pairs: list[Dependence]  #: pairs in descending order of P(b|a)
    mean_gap: Estimate | None
    mean_excess: Estimate | None


def measure_dependences(scored: Scored, company: Company) -> DependenceFigures:
    """Measure every pair (a, b) in which b is the usual companion of a in training."""
    pairs = [_dependence(scored, a, b) for a, b in company.companions]
    gaps = [pair.gap for pair in pairs if pair.gap is not None]
    excesses = [pair.excess for pair in pairs if pair.excess is not None]
    return DependenceFigures(pairs, mean_of(gaps), mean_of(excesses))


def _dependence(scored: Scored, a: int, b: int) -> Dependence:
    targets, predicted = scored.targets, scored.predicted
    has_a, has_b = targets[:, a] == 1, targets[:, b] == 1
    no_a, no_b = targets[:, a] == 0, targets[:, b] == 0

    def rate(of: Bools, among: Bools) -> Estimate | None:
        return scored.rate(of, among) if among.sum() >= MIN_IMAGES else None

    recall_with = rate(predicted[:, a], has_a & has_b)
    recall_without = rate(predicted[:, a], has_a & no_b)
    seen, elsewhere = rate(predicted[:, b], has_a & no_b), rate(predicted[:, b], no_a & no_b)
    return Dependence(
        a, b, recall_with, recall_without, _difference(recall_with, recall_without),
        seen, elsewhere, _difference(seen, elsewhere),
    )  # fmt: skip


def _difference(first: Estimate | None, second: Estimate | None) -> Estimate | None:
    return None if first is None or second is None else first - second
