"""Thresholds for an aim, and scaling of probabilities, fitted to scores of held-out images.

* A class's threshold is the best for the aim on these images, halfway between two scores. For F1
  and costs it is the mean of the best thresholds of 50 resamples (bagging, Breiman 1996), which
  has less variance. A precision or recall is reached on these images themselves.
* A class with few positives, or no negative, gets a shared threshold, the best for the decisions of
  all classes together; with categories, of those of its own. If they have few positives as well, it
  decides as before.
* Platt scaling (1999) fits a factor and a shift, with smoothed targets: here to the decisions of
  all classes together (`shared`), or to those of each class (`platt`), where classes with few
  positives keep the shared ones. Temperature scaling (Guo et al. 2017, arXiv 1706.04599) is a
  factor alone: it can't undo the bias of losses such as asl, whose probabilities are too high.
  None of them changes the order of the images.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mltr.data.hierarchy import ancestors
from mltr.errors import MltrError
from mltr.evaluation.aims import Aim
from mltr.predict.thresholds import ALL

if TYPE_CHECKING:
    from mltr.evaluation.predictions import Predictions
    from mltr.weights.metadata import Calibration

log = logging.getLogger(__name__)

Floats = NDArray[np.floating[Any]]
Labels = NDArray[np.int8]

RESAMPLES = 50
OWN, SHARED, KEPT = "own", "shared", "kept"  #: origins of a threshold
LOWEST = 1e-6  #: minimum of a threshold when averaging logits
MIN_SCALE = 0.01  #: minimum factor; with a smaller one the logits carry no information


@dataclass(frozen=True)
class Fitted:
    """Fitted thresholds and calibration."""

    aim: Aim
    scaling: str  #: one of `SCALING_CHOICES`; none if none could be fitted
    calibration: Calibration | None
    thresholds: Floats  #: float32 [K]
    before: Floats  #: float32 [K]: thresholds on uncalibrated probabilities, in use before
    shared: dict[str, float]  #: shared thresholds, by category; `ALL` if there are none
    origins: tuple[str, ...]  #: [K]: `OWN`, `SHARED` or `KEPT`
    reached: tuple[bool, ...]  #: [K]: whether the threshold reaches the aim on these images


def fit(
    val: Predictions,
    aim: Aim,
    scaling: str,
    min_positives: int,
    categories: Sequence[str] | None = None,
    before: Sequence[float] | None = None,
) -> Fitted:
    """Fit a calibration and then thresholds to uncalibrated predictions of held-out images.

    `categories` [K] are kinds of classes; `before` [K] are the thresholds to keep, on uncalibrated
    probabilities, where a category has too few positives (default: 0.5). Raises `MltrError` if
    there are fewer than `min_positives` positive labels in total, or no negative one.
    """
    from mltr.evaluation.predictions import as_predicted, logits_of
    from mltr.predict.predictor import fill_thresholds
    from mltr.weights.metadata import to_probs

    K = len(val.classes)
    positives, negatives = (val.targets == 1).sum(0), (val.targets == 0).sum(0)
    if positives.sum() < min_positives or negatives.sum() == 0:
        raise MltrError(
            f"{len(val.images)} validation images with {positives.sum()} positive and "
            f"{negatives.sum()} negative labels are too few to calibrate on: at least "
            f"{min_positives} (--min-positives) and 1 are needed. Hold out more with "
            "data.val_fraction"
        )
    enough = (positives >= min_positives) & (negatives > 0)
    calibration = None
    if scaling != "none":
        calibration = fit_scaling(scaling, logits_of(val.probs), val.targets, enough)
    probs = as_predicted(val, calibration).probs
    known = val.targets >= 0
    kept = fill_thresholds(before, K)
    thresholds = kept.copy() if calibration is None else to_probs(logits_of(kept), calibration)
    reached, origins = [True] * K, [KEPT] * K
    kinds = categories or [ALL] * K
    shared = _share(aim, probs, val.targets, kinds, min_positives)
    above = ancestors(val.classes, val.hierarchy)
    decided = np.zeros(probs.shape, np.bool_)
    # Children first: what they imply is predicted whatever its threshold.
    for k in sorted(range(K), key=lambda k: -len(above.get(k, ()))):
        rows = known[:, k]
        if enough[k]:
            scores = np.where(decided[rows, k], np.float32(1), probs[rows, k])
            thresholds[k], reached[k] = bagged_threshold(aim, scores, val.targets[rows, k])
            origins[k] = OWN
        elif kinds[k] in shared:
            thresholds[k], reached[k] = shared[kinds[k]]
            origins[k] = SHARED
        decided[:, [k, *above.get(k, ())]] |= probs[:, [k]] >= thresholds[k]
    scaling = "none" if calibration is None else calibration.method
    return Fitted(
        aim,
        scaling,
        calibration,
        thresholds,
        kept,
        {kind: threshold for kind, (threshold, _) in shared.items()},
        tuple(origins),
        tuple(reached),
    )


def _share(
    aim: Aim, probs: Floats, targets: Labels, kinds: Sequence[str], min_positives: int
) -> dict[str, tuple[float, bool]]:
    """Return the best threshold of each kind of class with enough labels, as `choose_threshold`."""
    found = {}
    for kind in dict.fromkeys(kinds):
        cells = (targets >= 0) & (np.array(kinds) == kind)
        truths = targets[cells]
        if truths.sum() >= min_positives and not truths.all():
            found[kind] = choose_threshold(aim, probs[cells], truths)
    return found


def choose_threshold(aim: Aim, probs: Floats, truths: Labels) -> tuple[float, bool]:
    """Return the best threshold for scores [n] with truths [n] of 1 and 0, both present.

    The second value tells whether the aim is reached; if not, the threshold comes closest to it.
    """
    from sklearn.metrics import roc_curve

    false_rate, hit_rate, steps = roc_curve(truths, probs, drop_intermediate=False)
    positives = int((truths == 1).sum())
    hits = np.rint(hit_rate * positives)
    false_alarms = np.rint(false_rate * (len(truths) - positives))
    values, reached = aim.values(hits, false_alarms, positives)
    # The first step, above all scores, predicts nothing.
    first = 0 if steps[1] < 1 else 1
    best = first + int(np.argmax(values[first:]))
    upper = np.float32(min(steps[best], 1))
    lower = np.float32(steps[best + 1]) if best + 1 < len(steps) else np.float32(0)
    middle = np.float32((np.float64(upper) + np.float64(lower)) / 2)
    return float(middle if lower < middle else upper), reached


def bagged_threshold(aim: Aim, probs: Floats, truths: Labels) -> tuple[float, bool]:
    """Choose a threshold like `choose_threshold`, with less variance for F1 and costs.

    It is the mean, in logits, of the best thresholds of resamples, drawn with a fixed seed.
    """
    if aim.kind in ("precision", "recall"):
        return choose_threshold(aim, probs, truths)
    generator = np.random.default_rng(0)
    found = []
    for _ in range(RESAMPLES):
        rows = generator.integers(len(truths), size=len(truths))
        if 0 < truths[rows].sum() < len(truths):
            found.append(choose_threshold(aim, probs[rows], truths[rows])[0])
    if not found:  # no resample has both positives and negatives
        return choose_threshold(aim, probs, truths)
    chosen = np.clip(found, LOWEST, 1 - LOWEST)
    mean = np.log(chosen / (1 - chosen)).mean()
    return float(np.float32(1 / (1 + np.exp(-mean)))), True


def fit_scaling(
    method: str, logits: Floats, targets: Labels, enough: NDArray[np.bool_]
) -> Calibration | None:
    """Return the calibration of logits [N, K]; by Platt, classes without `enough` [K] share one.

    Returns None, with a warning, if no order-preserving scaling increases the likelihood.
    """
    from mltr.weights.metadata import Calibration

    known = targets >= 0
    shared = _fit_sigmoid(logits[known], targets[known], shift=method != "temperature")
    unchanged = (1.0, 0.0)
    lines = [shared if shared[0] >= MIN_SCALE else unchanged] * logits.shape[1]
    if method == "platt":
        for k in np.flatnonzero(enough):
            rows = known[:, k]
            scale, shift = _fit_sigmoid(logits[rows, k], targets[rows, k], shift=True)
            if scale >= MIN_SCALE:
                lines[k] = (scale, shift)
    if all(line == unchanged for line in lines):
        log.warning("no %s scaling improves the fit; the probabilities are unchanged", method)
        return None
    return Calibration(method, tuple(s for s, _ in lines), tuple(s for _, s in lines))


def _fit_sigmoid(logits: Floats, truths: Labels, shift: bool) -> tuple[float, float]:
    """Fit ``sigmoid(scale * logit + shift)`` to truths of 1 and 0 by maximum likelihood.

    Platt's smoothed targets keep the scale finite even if the logits separate the truths.
    """
    from sklearn.linear_model import LogisticRegression

    positive = truths == 1
    count = positive.sum()
    target = np.where(positive, (count + 1) / (count + 2), 1 / (len(truths) - count + 2))
    model = LogisticRegression(C=np.inf, fit_intercept=shift, solver="newton-cholesky", tol=1e-8)
    inputs = np.concatenate([logits, logits]).astype(np.float64)[:, None]
    labels = np.repeat([1, 0], len(truths))
    model.fit(inputs, labels, sample_weight=np.concatenate([target, 1 - target]))
    return float(model.coef_[0, 0]), float(model.intercept_[0]) if shift else 0.0
