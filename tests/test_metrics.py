"""Metrics against published projects' numbers, scikit-learn, torchmetrics and naive loops."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics.functional.classification as tm
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_metrics import naive_average_precision, naive_top3
from sklearn.metrics import (
    average_precision_score,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)
from sklearn.metrics import precision_recall_curve as sklearn_curve

from mltr.metrics import (
    average_precision,
    evaluate,
    is_single_label,
    per_class,
    precision_recall_curve,
    top_accuracy,
)

NAMES = ["cp", "cr", "cf1", "cf1_mean", "op", "or", "of1"]


def random_case(
    seed: int, n: int = 60, k: int = 7, unknown: float = 0.0, decimals: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    targets = (generator.random((n, k)) < generator.uniform(0.05, 0.6, k)).astype(np.int8)
    probs = np.clip(generator.normal(0.35 + 0.3 * targets, 0.25), 0, 1).round(decimals)
    targets[generator.random((n, k)) < unknown] = -1
    return probs.astype(np.float32), targets


@pytest.fixture(scope="module")
def parity(shared: Path) -> dict[str, Any]:
    cases = json.loads((shared / "parity" / "metrics.json").read_text())
    inputs = np.load(shared / "parity" / "metrics_inputs.npz")
    probs = (inputs["score_code"] / 2**23).astype(np.float32)
    return {"cases": cases, "probs": probs, "targets": inputs["targets"].astype(np.int8)}


# -- published projects' numbers ---------------------------------------------------------------


def check_decisions(ours: dict[str, float], theirs: dict[str, float], suffix: str = "") -> None:
    for name in ("CP", "CR", "CF1", "OP", "OR", "OF1"):
        assert ours[name.lower() + suffix] == pytest.approx(theirs[name], abs=1e-6), name


def test_parity_main(parity: dict[str, Any]) -> None:
    case = parity["cases"]["cases"]["main"]
    ours = evaluate(parity["probs"], parity["targets"])
    ap = case["average_precision"]
    assert ours["map"] == pytest.approx(ap["sklearn"]["mAP"], abs=1e-9)
    assert ours["map"] == pytest.approx(ap["csra"]["mAP"], abs=1e-6)
    assert 100 * ours["map"] == pytest.approx(ap["asl"]["mAP_percent"], abs=1e-4)
    assert 100 * ours["map_voc2010"] == pytest.approx(ap["q2l"]["mAP_percent"], abs=1e-6)
    classes = per_class(parity["probs"], parity["targets"])
    assert classes["ap"] == pytest.approx(ap["sklearn"]["per_class"], abs=1e-9)
    assert 100 * classes["ap_voc2010"] == pytest.approx(ap["q2l"]["per_class_percent"], abs=1e-6)
    for threshold in (0.5, 0.8):
        ours = evaluate(parity["probs"], parity["targets"], threshold)
        theirs = case["precision_recall_f1"][f"threshold_{threshold}"]
        check_decisions(ours, theirs["csra"])
        assert 100 * ours["cf1_mean"] == pytest.approx(
            theirs["asl"]["mean_of_class_F1_percent"], abs=1e-4
        )
    ours = evaluate(parity["probs"], parity["targets"])
    check_decisions(ours, case["precision_recall_f1"]["top3"]["csra"], "_top3")


def test_parity_ties(parity: dict[str, Any]) -> None:
    case = parity["cases"]["cases"]["ties"]
    probs = np.round(parity["probs"].astype(np.float64), 2).astype(np.float32)
    ours = evaluate(probs, parity["targets"])
    ap = case["average_precision"]
    assert ours["map"] == pytest.approx(ap["sklearn"]["mAP"], abs=1e-9)
    bounds = ap["order_bounds_among_tied_scores"]
    assert bounds["mAP_percent_positives_last"] <= 100 * ours["map"]
    assert 100 * ours["map"] <= bounds["mAP_percent_positives_first"]
    for threshold in (0.5, 0.8):  # 74 and 33 scores equal the threshold
        theirs = case["precision_recall_f1"][f"threshold_{threshold}"]["csra"]
        check_decisions(evaluate(probs, parity["targets"], threshold), theirs)


def test_parity_difficult(parity: dict[str, Any]) -> None:
    case = parity["cases"]["difficult"]
    difficult = torch.rand(500, 20, generator=torch.Generator().manual_seed(23)) < 0.05
    targets = np.where(difficult.numpy(), -1, parity["targets"])
    ours = evaluate(parity["probs"], targets)
    ap = case["average_precision"]["csra (type voc07)"]
    assert ours["map"] == pytest.approx(ap["mAP"], abs=1e-9)
    decisions = case["precision_recall_f1"]
    check_decisions(ours, decisions["threshold_0.5"]["csra (type voc07)"])
    check_decisions(ours, decisions["top3"]["csra (type voc07)"], "_top3")


@pytest.mark.parametrize("name", ["zero_positive_class", "empty_class", "no_predicted_class"])
def test_parity_degenerate_classes(parity: dict[str, Any], name: str) -> None:
    """Peers count a class without positives as 0; we leave it out of the mean: 19 of 20 classes."""
    probs, targets = parity["probs"].copy(), parity["targets"].copy()
    counted = 20
    if name != "no_predicted_class":
        targets[:, 3] = 0
        counted = 19
    if name == "no_predicted_class":
        probs[:, 5] *= 0.25
    if name == "empty_class":
        probs[:, 3] *= 0.25
    case = parity["cases"]["cases"][name]
    ours = evaluate(probs, targets)
    theirs = case["precision_recall_f1"]["threshold_0.5"]["sklearn"]
    macro = case["average_precision"]["sklearn"]["mAP"]
    assert ours["map"] == pytest.approx(macro * 20 / counted, abs=1e-9)
    assert ours["cr"] == pytest.approx(theirs["CR"] * 20 / counted, abs=1e-9)
    assert ours["cf1_mean"] == pytest.approx(theirs["mean_of_class_F1"] * 20 / counted, abs=1e-9)
    for key in ("OP", "OR", "OF1"):
        assert ours[key.lower()] == pytest.approx(theirs[key], abs=1e-9)


# -- independent references --------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.2]), st.integers(1, 6))
def test_equals_sklearn_and_naive_loops(seed: int, unknown: float, decimals: int) -> None:
    probs, targets = random_case(seed, unknown=unknown, decimals=decimals)
    ours, classes = evaluate(probs, targets), per_class(probs, targets)
    aps, rows = [], []
    for k in range(probs.shape[1]):
        known = targets[:, k] >= 0
        scores, truth = probs[known, k], targets[known, k]
        assert classes["support"][k] == truth.sum()
        assert classes["known"][k] == known.sum()
        if truth.sum() == 0:
            assert math.isnan(classes["ap"][k])
            continue
        aps.append(average_precision_score(truth, scores))
        assert classes["ap"][k] == pytest.approx(aps[-1], abs=1e-9)
        assert classes["ap"][k] == pytest.approx(naive_average_precision(scores, truth), abs=1e-9)
        assert average_precision(scores, truth) == classes["ap"][k]
        curve = precision_recall_curve(probs[:, k], targets[:, k])
        for own, reference in zip(curve, sklearn_curve(truth, scores)[:2], strict=True):
            assert own == pytest.approx(reference[-2::-1])  # which ends at a recall of 0
        rows.append(
            precision_recall_fscore_support(
                truth, scores >= np.float32(0.5), average="binary", zero_division=0
            )[:3]
        )
    if not aps:
        assert math.isnan(ours["map"])
        return
    precision, recall, f1 = np.mean(rows, axis=0)
    assert ours["map"] == pytest.approx(np.mean(aps), abs=1e-9)
    assert (ours["cp"], ours["cr"], ours["cf1_mean"]) == pytest.approx((precision, recall, f1))
    assert ours["map_voc2010"] >= ours["map"] - 1e-12
    for name, value in naive_top3(probs, targets, 0.5).items():
        assert ours[f"{name}_top3"] == pytest.approx(value, abs=1e-9, nan_ok=True), name


def test_equals_torchmetrics() -> None:
    probs, targets = random_case(3, n=300, decimals=2)
    p, t = torch.from_numpy(probs), torch.from_numpy(targets).long()
    expected = tm.multilabel_average_precision(p, t, num_labels=7, average="macro")
    assert evaluate(probs, targets)["map"] == pytest.approx(expected.item(), abs=1e-6)
    off = float(np.float32(0.505))  # between scores, as torchmetrics counts strictly above
    ours = evaluate(probs, targets, off)
    for name, function in (("cp", tm.multilabel_precision), ("cr", tm.multilabel_recall)):
        expected = function(p, t, num_labels=7, average="macro", threshold=off)
        assert ours[name] == pytest.approx(expected.item(), abs=1e-6)
    expected = tm.multilabel_f1_score(p, t, num_labels=7, average="micro", threshold=off)
    assert ours["of1"] == pytest.approx(expected.item(), abs=1e-6)


# -- properties --------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6))
def test_order_of_images_and_scale_of_scores_do_not_matter(seed: int) -> None:
    probs, targets = random_case(seed, decimals=2)
    shuffled = np.random.default_rng(seed).permutation(len(probs))
    whole, other = evaluate(probs, targets), evaluate(probs[shuffled], targets[shuffled])
    assert whole == pytest.approx(other, nan_ok=True)
    squared = evaluate(probs.astype(np.float64) ** 2, targets)
    assert squared["map"] == pytest.approx(whole["map"], nan_ok=True)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6))
def test_an_unknown_image_is_as_good_as_none(seed: int) -> None:
    probs, targets = random_case(seed)
    targets[::3] = -1
    kept = np.arange(len(probs)) % 3 != 0
    assert evaluate(probs, targets) == pytest.approx(
        evaluate(probs[kept], targets[kept]), nan_ok=True
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_torch_and_numpy_agree(dtype: torch.dtype) -> None:
    probs, targets = random_case(5)
    tensor = torch.from_numpy(probs).to(dtype)
    ours = evaluate(tensor, torch.from_numpy(targets))
    assert ours == evaluate(tensor.float().numpy(), targets)
    assert list(ours) == ["map", "map_voc2010", *NAMES, *(f"{name}_top3" for name in NAMES)]


def test_a_threshold_for_each_class() -> None:
    probs, targets = random_case(6)
    thresholds = np.linspace(0.2, 0.8, 7)
    classes = per_class(probs, targets, thresholds)
    for k in range(7):
        alone = per_class(probs[:, k : k + 1], targets[:, k : k + 1], float(thresholds[k]))
        for name in classes:
            assert classes[name][k] == pytest.approx(alone[name][0], nan_ok=True), name


def test_a_threshold_for_each_cell() -> None:
    probs, targets = random_case(8, unknown=0.1)
    limits = np.random.default_rng(8).random(probs.shape).astype(probs.dtype)
    decided = (probs >= limits).astype(probs.dtype)
    found, alone = evaluate(probs, targets, limits), evaluate(decided, targets)
    for name in ("cp", "cr", "cf1", "cf1_mean", "op", "or", "of1"):
        assert found[name] == alone[name]
        assert found[f"{name}_top3"] == pytest.approx(naive_top3(probs, targets, limits)[name])


@pytest.mark.parametrize("threshold", [0.5, np.linspace(0, 1, 420).reshape(60, 7)])
def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch, threshold: object) -> None:
    probs, targets = random_case(7, unknown=0.1)
    whole = evaluate(probs, targets, threshold)
    monkeypatch.setattr("mltr.metrics._BLOCK_CELLS", 128)
    assert evaluate(probs, targets, threshold) == whole


@pytest.mark.parametrize(
    ("probs", "targets", "words"),
    [
        (np.zeros((3, 2)), np.zeros((2, 2)), "the same shape"),
        (np.zeros(3), np.zeros(3), "the same shape"),
        (np.zeros((0, 2)), np.zeros((0, 2)), "at least one image"),
        (np.full((3, 2), np.nan), np.zeros((3, 2)), "no nan"),
        (np.full((3, 2), 1.5), np.zeros((3, 2)), r"0\.\.1"),
        (np.zeros((3, 2)), np.full((3, 2), 2), "1, 0 or -1"),
    ],
)
def test_wrong_arrays_are_refused(probs: np.ndarray, targets: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        evaluate(probs, targets)


def test_wrong_threshold_is_refused() -> None:
    with pytest.raises(ValueError, match="one per class"):
        evaluate(np.zeros((3, 2)), np.zeros((3, 2)), [0.5] * 3)


def test_nothing_known_is_nan_not_a_crash() -> None:
    ours = evaluate(np.full((2, 2), 0.5), np.full((2, 2), -1))
    assert math.isnan(ours["map"])
    assert ours["op"] == 0


# -- one label an image ------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 12), st.integers(1, 40))
def test_top_accuracy_is_that_of_scikit_learn_and_torchmetrics(seed: int, k: int, n: int) -> None:
    generator = np.random.default_rng(seed)
    probs, labels = generator.dirichlet(np.ones(k), n), generator.integers(0, k, n)
    targets = np.eye(k, dtype=np.int8)[labels]
    for top in (1, 2):
        expected = top_k_accuracy_score(labels, probs, k=top, labels=range(k))
        assert top_accuracy(probs, targets, top) == pytest.approx(expected)
        theirs = tm.multiclass_accuracy(
            torch.from_numpy(probs), torch.from_numpy(labels), k, average="micro", top_k=top
        )
        assert top_accuracy(probs, targets, top) == pytest.approx(float(theirs))
    assert top_accuracy(probs, targets, k) == 1


def test_top_accuracy_of_ties_and_broken_images() -> None:
    same = np.full((3, 4), 0.25)
    targets = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [-1, -1, -1, -1]], np.int8)
    assert is_single_label(targets)
    assert top_accuracy(same, targets, 1) == 0.5  # constant scores aren't always right
    assert top_accuracy(same, targets, 2) == 1
    assert np.isnan(top_accuracy(same, np.full_like(targets, -1)))
    targets[0, 1] = 1
    assert not is_single_label(targets)
    with pytest.raises(ValueError, match="exactly one label"):
        top_accuracy(same, targets)
    assert not is_single_label([[1, 0, 0], [1, 1, -1]])  # the second has two for certain
