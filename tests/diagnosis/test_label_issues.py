"""Likely label errors: cleanlab per class, on out-of-sample probabilities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cleanlab.multilabel_classification.filter import find_multilabel_issues_per_class
from cleanlab.multilabel_classification.rank import get_label_quality_scores_per_class
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

import mltr
from mltr.diagnosis.label_issues import cross_validated, find_label_issues
from mltr.network.features import compute_features


def make_labels(seed: int, count: int = 120, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities that fit most labels, and the labels."""
    generator = np.random.default_rng(seed)
    targets = (generator.random((count, classes)) < 0.3).astype(np.int8)
    probs = np.clip(0.7 * targets + 0.3 * generator.random((count, classes)), 0.01, 0.99)
    flipped = generator.random(targets.shape) < 0.05
    return probs.astype(np.float32), np.where(flipped, 1 - targets, targets).astype(np.int8)


def test_equals_cleanlab_where_every_label_is_known() -> None:
    probs, targets = make_labels(0)
    likely, scores = find_label_issues(probs, targets)
    labels = [list(map(int, np.flatnonzero(row == 1))) for row in targets]
    exact = probs.astype(np.float64)
    expected = find_multilabel_issues_per_class(labels, exact, filter_by="low_self_confidence")
    assert np.array_equal(likely, np.asarray(expected))
    assert likely.any()
    quality = get_label_quality_scores_per_class(labels, exact)
    assert scores == pytest.approx(1 - np.asarray(quality), abs=1e-6)


@given(seed=st.integers(0, 1000), share=st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_unknown_labels_are_never_issues(seed: int, share: float) -> None:
    probs, targets = make_labels(seed, count=30)
    targets[np.random.default_rng(seed).random(targets.shape) < share] = -1
    likely, scores = find_label_issues(probs, targets)
    assert not likely[targets < 0].any()
    for i, k in np.ndindex(*targets.shape):
        column = targets[:, k]
        if targets[i, k] < 0 or not ((column == 1).any() and (column == 0).any()):
            assert np.isnan(scores[i, k])
        else:
            of_given = probs[i, k] if targets[i, k] == 1 else 1 - probs[i, k]
            assert scores[i, k] == pytest.approx(1 - of_given, abs=1e-6)


def test_what_is_unknown_changes_no_verdict_of_the_others() -> None:
    probs, targets = make_labels(1)
    gaps = targets.copy()
    gaps[::3, 0] = -1
    kept = np.arange(len(targets)) % 3 != 0
    likely, scores = find_label_issues(probs, gaps)
    expected = find_label_issues(probs[kept], targets[kept])
    assert np.array_equal(likely[kept, 0], expected[0][:, 0])
    assert np.array_equal(scores[kept, 0], expected[1][:, 0])


@pytest.mark.parametrize(
    "column", [[0, 0, 0, 0], [1, 1, 1, 1], [-1, -1, -1, -1], [1, -1, 1, -1], [0]]
)
def test_a_class_with_one_kind_of_label_is_not_judged(column: list[int]) -> None:
    targets = np.array([column], np.int8).T
    likely, scores = find_label_issues(np.full(targets.shape, 0.9, np.float32), targets)
    assert not likely.any()
    assert np.isnan(scores).all()
    features = np.random.default_rng(0).random((len(column), 3)).astype(np.float32)
    assert np.isnan(cross_validated(features, targets)).all()


def test_no_probability_comes_from_the_own_label() -> None:
    """Each image has its own feature, so a model that was trained on its label memorises it."""
    targets = np.random.default_rng(0).integers(0, 2, (200, 1)).astype(np.int8)
    probs = cross_validated(np.eye(200, dtype=np.float32), targets)
    assert abs(roc_auc_score(targets[:, 0], probs[:, 0]) - 0.5) < 0.1


def test_what_the_features_tell_is_learnt_from_known_labels() -> None:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(300, 8)).astype(np.float32)
    truth = (features[:, :3] > 0).astype(np.int8)
    targets = truth.copy()
    targets[::2, 1] = -1
    targets[:, 2] = [1, *[0] * 299]  # a single positive
    probs = cross_validated(features, targets)
    assert roc_auc_score(truth[:, 0], probs[:, 0]) > 0.97
    assert np.array_equal(np.isnan(probs[:, 1]), targets[:, 1] < 0)
    assert roc_auc_score(truth[1::2, 1], probs[1::2, 1]) > 0.97
    assert np.isnan(probs[:, 2]).all()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mltr_nano", {"image_size": 32, "depths": [1], "conv_depths": [0]}),
        ("timm/resnet10t", {}),
        ("timm/vit_tiny_patch16_224", {"image_size": 32}),
    ],
)
def test_the_features_are_what_the_classifier_sees(name: str, options: dict) -> None:
    model = mltr.create_model(name, 6, **options).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        features = compute_features(model, images)[1]
        classifier = model.get_classifier() if name.startswith("timm/") else model.head
        logits = torch.nn.functional.linear(features, classifier.weight, classifier.bias)
        assert torch.allclose(logits, model(images), atol=1e-5)
