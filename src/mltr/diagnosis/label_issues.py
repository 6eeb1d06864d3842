"""Finds likely label errors with cleanlab, from out-of-sample probabilities.

C. Northcutt, L. Jiang, I. Chuang, "Confident Learning" (arXiv 1911.00068). For multi-label data:
A. Thyagarajan, E. Snorrason, C. Northcutt, J. Mueller, "Identifying Incorrect Annotations in
Multi-Label Classification Data" (arXiv 2211.13895).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import nn

from mltr.config.recipe import load_recipe
from mltr.config.schema import SPLITS, Config
from mltr.data.records import Labels, Record, Split, Splits
from mltr.data.stratify import stratified_split
from mltr.errors import UsageError, counted
from mltr.evaluation.open_run import OpenRun, trained_on
from mltr.evaluation.predictions import Predictions, load_predictions
from mltr.predict.features import as_embedder
from mltr.predict.predictor import Prediction, predict_paths
from mltr.runs.folder import RunFolder
from mltr.terminal import make_console
from mltr.weights.metadata import RECIPE_FILE

log = logging.getLogger(__name__)

Floats = NDArray[np.float32]

BATCH = 64
PROBE_FOLDS = 5
PENALTY = 10.0  #: L2 penalty of a probe; from 1 to 100 results on MIML are the same
MAX_STEPS = 500  #: maximum iterations of a probe's solver

PROBES = (
    f"logistic regressions on the run's features, {PROBE_FOLDS} folds; the features were learnt "
    "from these labels, so an error that the network has memorised may stay hidden"
)
NETWORKS = "{} networks with the run's recipe, each trained on the other folds"
OWN = "the run itself, which was not trained on them"


@dataclass(frozen=True)
class Issue:
    """A label that may be wrong."""

    row: int  #: index of the image in the audit
    class_index: int
    given: int  #: the given label, 1 or 0
    probability: float  #: probability of the class
    score: float  #: improbability of the given label, 0..1
    likely: bool  #: whether cleanlab counts it as an error

    @property
    def suggested(self) -> int:
        """The suggested label: the opposite of the given one."""
        return 1 - self.given

    @property
    def kind(self) -> str:
        """The kind of error: ``wrong`` or ``missing``."""
        return "wrong" if self.given else "missing"


@dataclass(frozen=True)
class Audit:
    """Issues with the K labels of N images."""

    classes: tuple[str, ...]
    splits: tuple[str, ...]  #: the split of each image, N names
    records: tuple[Record, ...]  #: N records
    targets: Labels  #: [N, K]; -1 in all classes for a broken image
    issues: tuple[Issue, ...]  #: every scored label, likely errors first, then by score
    methods: tuple[str, ...]  #: sources of the probabilities, in words
    errors: tuple[str, ...]  #: one message per broken image

    @property
    def likely(self) -> list[Issue]:
        """The labels that cleanlab counts as errors."""
        return [issue for issue in self.issues if issue.likely]

    @property
    def not_judged(self) -> list[str]:
        """Classes of which no label could be scored."""
        judged = {issue.class_index for issue in self.issues}
        return [name for k, name in enumerate(self.classes) if k not in judged]


def audit(
    run: OpenRun,
    names: Sequence[str] = SPLITS,
    *,
    has_learnt: Callable[[str, Record], bool] = lambda split, record: split == "train",
    folds: int = 0,
    folder: Path | None = None,
) -> Audit:
    """Score the labels of some splits by probabilities of models that weren't trained on them.

    `has_learnt(split, record)` tells whether the run was trained on an image. If not, the run
    itself scores it. Otherwise cross-validated logistic regressions on the run's features do; or,
    with `folds` of at least 2, that many networks, each trained with the run's recipe on the other
    folds, in subfolders of `folder`.
    """
    images = [(name, record) for name in names for record in run.split(name)]
    classes = run.bundle.classes
    learnt = np.array([has_learnt(*image) for image in images], np.bool_)
    targets = np.full((len(images), len(classes)), -1, np.int8)
    issues: list[Issue] = []
    methods: list[str] = []
    errors: list[str] = []
    for rows in (np.flatnonzero(learnt), np.flatnonzero(~learnt)):
        if not len(rows):
            continue
        part = Split(classes, [images[row][1] for row in rows], "audit")
        if not learnt[rows[0]]:
            found, method = run.predict(part, _to_device(run.bundle.model)), OWN
        elif folds:
            assert folder is not None
            found, method = _network_probs(run, part, folds, folder), NETWORKS.format(folds)
        else:
            found, method = _probe_probs(run, part), PROBES
        targets[rows] = found.targets
        issues += _find(found, rows)
        where = dict.fromkeys(images[row][0] for row in rows)
        methods.append(f"{', '.join(where)} ({counted(len(rows), 'image')}): {method}")
        errors += found.errors
    issues.sort(key=lambda issue: (not issue.likely, -issue.score))
    splits, records = zip(*images, strict=True)
    return Audit(classes, splits, records, targets, tuple(issues), tuple(methods), tuple(errors))


def _find(found: Predictions, rows: NDArray[np.int64]) -> list[Issue]:
    """Return an issue for every scored label; `rows` holds the images' indices in the audit."""
    likely, scores = find_label_issues(found.probs, found.targets)
    return [
        Issue(
            int(rows[i]),
            int(k),
            int(found.targets[i, k]),
            float(found.probs[i, k]),
            float(scores[i, k]),
            bool(likely[i, k]),
        )
        for i, k in zip(*np.nonzero(np.isfinite(scores)), strict=True)
    ]


# -- cleanlab ----------------------------------------------------------------------------------


def find_label_issues(probs: Floats, targets: Labels) -> tuple[NDArray[np.bool_], Floats]:
    """Return which labels [N, K] cleanlab counts as errors, and each label's improbability [N, K].

    `probs` [N, K] come from a model that wasn't trained on these labels. Improbability is 1 minus
    cleanlab's quality score of a label (self-confidence). It is NaN for unknown labels, for NaN
    probabilities, and in classes whose known labels are all the same. Like cleanlab's multi-label
    functions, this treats each class separately, with the images whose label is known.
    """
    likely = np.zeros(targets.shape, np.bool_)
    scores = np.full(targets.shape, np.nan, np.float32)
    for k in range(targets.shape[1]):
        rows = np.flatnonzero((targets[:, k] >= 0) & np.isfinite(probs[:, k]))
        if len(set(targets[rows, k])) == 2:
            likely[rows, k], scores[rows, k] = _judge(probs[rows, k], targets[rows, k])
    return likely, scores


def _judge(probs: Floats, targets: Labels) -> tuple[Any, Any]:
    """Return cleanlab's decisions and scores for one class, both [N]."""
    from cleanlab.multilabel_classification.filter import find_multilabel_issues_per_class
    from cleanlab.multilabel_classification.rank import get_label_quality_scores_per_class

    labels = [[0] if target == 1 else [] for target in targets]  # a single class, with index 0
    column = probs.astype(np.float64)[:, None]
    # Takes the worst labels by score, as many as the confident joint counts. On MIML with flipped
    # labels, 57 % of these were flips, against 49 % with cleanlab's default.
    found = find_multilabel_issues_per_class(
        labels, column, filter_by="low_self_confidence", n_jobs=1
    )
    quality = get_label_quality_scores_per_class(labels, column)
    return np.asarray(found)[:, 0], 1 - np.asarray(quality)[:, 0]


# -- probabilities -----------------------------------------------------------------------------


def _probe_probs(run: OpenRun, part: Split) -> Predictions:
    features, targets, errors = _features(run, part)
    names = tuple(record.name for record in part)
    probs = cross_validated(features, targets)
    return Predictions(probs, targets, names, part.classes, tuple(errors))


def cross_validated(features: Floats, targets: Labels) -> Floats:
    """Return cross-validated probabilities [N, K] of logistic regressions on features [N, C].

    They are NaN where a label of `targets` [N, K] is unknown, and in classes with fewer than two
    known positives or two known negatives.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probs = np.full(targets.shape, np.nan, np.float32)
    for k in range(targets.shape[1]):
        rows = np.flatnonzero(targets[:, k] >= 0)
        positives = int((targets[rows, k] == 1).sum())
        count = min(PROBE_FOLDS, positives, len(rows) - positives)
        if count < 2:
            continue
        probe = make_pipeline(
            StandardScaler(), LogisticRegression(C=1 / PENALTY, max_iter=MAX_STEPS)
        )
        divided = StratifiedKFold(count, shuffle=True, random_state=0)
        probs[rows, k] = cross_val_predict(
            probe, features[rows], targets[rows, k], cv=divided, method="predict_proba"
        )[:, 1]
    return probs


def _features(run: OpenRun, part: Split) -> tuple[Floats, Labels, list[str]]:
    """Return pooled features [N, C], labels [N, K], and one message per broken image."""
    embedder = as_embedder(run.bundle, _to_device(run.bundle.model), BATCH)
    features = np.zeros((len(part), len(embedder.classes)), np.float32)
    targets = part.targets.copy()
    errors: list[str] = []
    console = make_console(stderr=True)
    images = track(
        predict_paths(embedder, (record.image for record in part)),
        "features",
        len(part),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    for row, (_, found) in enumerate(images):
        if isinstance(found, Prediction):
            features[row] = found.probs
        else:
            targets[row] = -1
            errors.append(str(found))
    return features, targets, errors


def _to_device(model: nn.Module) -> torch.device:
    """Move a network to the accelerator, if there is one."""
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    model.to(device)
    return device


def _without_knowledge(config: Config, part: Split) -> Config:
    """Return a recipe whose network starts from weights that have seen none of these images.

    In the place of a run that was trained on them come the weights that this one started from.
    Raises `UsageError` for a teacher that was.
    """
    if trained_on(config.train.teacher, part):
        raise UsageError(
            f"--folds: train.teacher {config.train.teacher} was trained on these images, so no "
            "fold would be new to its student: leave --folds out, or give --train.teacher="
        )
    init = config.model.init
    while trained_on(init, part):
        init = load_recipe(Path(init) / RECIPE_FILE).model.init
    if init != config.model.init:
        log.info(
            "each fold starts from %s: %s was trained on these images",
            init or "random weights", config.model.init,
        )  # fmt: skip
    return replace(config, model=replace(config.model, init=init))


def _network_probs(run: OpenRun, part: Split, folds: int, folder: Path) -> Predictions:
    """Return predictions of networks trained on the other folds, each in its own run folder."""
    from mltr.training.train import train_on

    if folds > len(part):
        raise UsageError(f"--folds {folds}: there are only {len(part)} images to split")
    config = _without_knowledge(run.config, part)
    probs = np.full((len(part), len(part.classes)), np.nan, np.float32)
    targets = np.full(probs.shape, -1, np.int8)
    errors: list[str] = []
    fold_rows = stratified_split(part.targets, [1 / folds] * folds)
    for number, rows in enumerate(fold_rows, start=1):
        others = np.setdiff1d(np.arange(len(part)), rows)
        splits = Splits(part.subset(others, "train"), run.splits.val, part.subset(rows, "test"))
        target = RunFolder(folder / f"fold{number}")
        target.path.mkdir(parents=True, exist_ok=True)
        train_on(config, splits, target, quiet=True)
        found = load_predictions(target.predictions)
        probs[rows], targets[rows] = found.probs, found.targets
        errors += found.errors
    names = tuple(record.name for record in part)
    return Predictions(probs, targets, names, part.classes, tuple(errors))
