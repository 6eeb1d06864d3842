"""The three measures agree with naive loops and scikit-learn, and find faults planted in scores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from mltr.data.records import Box, Record
from mltr.diagnosis.bottlenecks import (
    Estimate,
    Scored,
    largest_areas,
    mean_of,
    measure_company,
    measure_confusions,
    measure_dependences,
    measure_sizes,
)

PATH = b"no picture is needed here"


def scored(probs: np.ndarray, targets: np.ndarray, resamples: int = 50, seed: int = 0) -> Scored:
    thresholds = np.full(probs.shape[1], 0.5)
    return Scored.of(probs.astype(np.float32), targets.astype(np.int8), thresholds, resamples, seed)


@given(st.integers(3, 40), st.integers(0, 10_000))
@settings(deadline=None, max_examples=40)
def test_average_precision_of_resamples_equals_scikit_learn(count: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    probs = generator.integers(0, 6, (count, 1)) / 6  # with ties
    targets = generator.integers(-1, 2, (count, 1))
    targets[:2, 0] = (1, 0)
    data = scored(probs, targets, resamples=5, seed=seed)
    positive, negative = targets[:, 0] == 1, targets[:, 0] == 0
    found = data.average_precision(0, positive, negative)
    rows = positive | negative
    shown = data.probs[rows, 0]
    assert found.value == pytest.approx(average_precision_score(positive[rows], shown))
    assert found.images == positive.sum()
    for weights, sample in zip(data.weights, found.samples, strict=True):
        if (weights[positive] > 0).any():
            expected = average_precision_score(positive[rows], shown, sample_weight=weights[rows])
            assert sample == pytest.approx(expected)
        else:
            assert np.isnan(sample)


def test_resamples_draw_as_many_images_and_the_same_for_a_seed() -> None:
    probs, targets = np.zeros((30, 2)), np.zeros((30, 2))
    first, again, other = (scored(probs, targets, seed=seed).weights for seed in (1, 1, 2))
    assert (first.sum(axis=1) == 30).all()
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_rate_is_a_share_and_its_interval_is_that_of_the_binomial() -> None:
    generator = np.random.default_rng(0)
    hits = generator.random(2000) < 0.3
    data = scored(hits[:, None].astype(float), np.ones((2000, 1)), resamples=1000)
    found = data.rate(data.predicted[:, 0], np.ones(2000, bool))
    low, high = found.interval()
    spread = 1.96 * np.sqrt(0.3 * 0.7 / 2000)
    assert found.value == hits.mean()
    assert high - low == pytest.approx(2 * spread, rel=0.15)
    assert low < found.value < high


def test_means_leave_out_what_a_resample_did_not_measure() -> None:
    nan = np.nan
    mean = mean_of([
        Estimate(0.2, np.array([0.1, nan, nan]), 5), Estimate(0.4, np.array([0.3, 0.5, nan]), 7)
    ])  # fmt: skip
    assert mean is not None
    assert mean.value == pytest.approx(0.3)
    np.testing.assert_allclose(mean.samples, [0.2, 0.5, nan])
    assert mean.images == 12
    assert mean_of([]) is None


def test_the_largest_object_of_a_class_gives_the_size() -> None:
    labels = np.array([1, 1], np.int8)
    boxes = (Box(0, 0, 0, 3, 3, 9.0), Box(0, 0, 0, 5, 5, 25.0), Box(1, 0, 0, 2, 2, 4.0))
    records = [Record(PATH, "a", labels, boxes), Record(PATH, "b", labels, ())]
    np.testing.assert_array_equal(largest_areas(records, 2), [[25, 4], [np.nan, np.nan]])


def planted(count: int = 3000, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Six classes: 0 and 1 look alike, 3 usually occurs with 2, 4 is small or large, 5 is plain."""
    generator = np.random.default_rng(seed)
    targets = (generator.random((count, 6)) < 0.3).astype(np.int8)
    targets[targets[:, 0] == 1, 1] *= generator.random((targets[:, 0] == 1).sum()) < 0.1
    with_2 = targets[:, 2] == 1
    targets[with_2, 3] = generator.random(with_2.sum()) < 0.8
    probs = np.clip(0.8 * targets + 0.1 + 0.15 * generator.standard_normal(targets.shape), 0, 1)
    areas = np.where(
        targets == 1, generator.choice([100.0, 5000.0, 50000.0], targets.shape), np.nan
    )
    return probs, targets, areas


def test_without_faults_nothing_is_reported() -> None:
    probs, targets, areas = planted()
    data, company = scored(probs, targets, resamples=300), measure_company(targets)
    sizes = measure_sizes(data, areas, (1024, 9216))
    assert sizes.gap is not None
    assert abs(sizes.gap.value) < 0.01
    assert not [pair for pair in measure_confusions(data, company).pairs if pair.is_significant]
    dependences = measure_dependences(data, company)
    assert dependences.mean_gap is not None
    assert abs(dependences.mean_gap.value) < 0.02


def test_small_objects_are_found_to_be_the_problem() -> None:
    probs, targets, areas = planted()
    small = (targets[:, 4] == 1) & (areas[:, 4] < 1024)
    probs[small, 4] *= 0.4
    sizes = measure_sizes(scored(probs, targets, resamples=300), areas, (1024, 9216))
    ap = {k: {bucket: figure.value for bucket, figure in sizes.ap[k].items()} for k in sizes.ap}
    assert ap[4]["small"] < ap[4]["large"] - 0.2
    assert abs(ap[3]["small"] - ap[3]["large"]) < 0.02
    assert sizes.gap is not None
    assert sizes.gap.is_significant
    assert sizes.images["small"] == (np.nan_to_num(areas, nan=1e9) < 1024).sum()
    assert sizes.recall[4]["small"].value < 0.2


def test_look_alikes_lead_the_list_and_are_the_only_significant_ones() -> None:
    probs, targets, _ = planted()
    generator = np.random.default_rng(5)
    mistaken = (targets[:, 0] == 1) & (targets[:, 1] == 0) & (generator.random(len(probs)) < 0.15)
    probs[mistaken, 1] = 0.9
    found = measure_confusions(scored(probs, targets, resamples=300), measure_company(targets))
    first = found.pairs[0]
    assert (first.a, first.b) == (0, 1)
    assert first.is_significant
    assert [pair.is_significant for pair in found.pairs[1:]] == [False] * (len(found.pairs) - 1)
    expected = mistaken.sum() / ((targets[:, 0] == 1) & (targets[:, 1] == 0)).sum()
    assert first.where_a.value == pytest.approx(expected, abs=0.02)
    assert first.excess.interval()[0] > 0.05
    assert found.look_alikes == {1: [0]}
    assert found.against[1].value < 0.9
    assert np.isnan(found.excess[0, 5])  # they occur together as often as by chance
    assert found.excess[0, 1] == pytest.approx(first.excess.value)


def test_a_label_guessed_from_its_company_is_found() -> None:
    probs, targets, _ = planted()
    alone = (targets[:, 2] == 1) & (targets[:, 3] == 0)
    probs[alone, 3] = 0.9  # the absent companion is predicted
    probs[alone, 2] *= 0.55  # the label is missed without its companion
    company = measure_company(targets)
    assert company.companions[0] == (2, 3)
    assert company.conditional[2, 3] == pytest.approx(0.8, abs=0.03)
    found = measure_dependences(scored(probs, targets, resamples=300), company)
    pair = found.pairs[0]
    assert (pair.a, pair.b) == (2, 3)
    for figure, least in ((pair.gap, 0.4), (pair.excess, 0.9)):
        assert figure is not None
        assert figure.is_significant
        assert figure.value > least
    assert pair.gap is not None
    assert pair.gap.images == alone.sum()


def test_unknown_labels_count_neither_way() -> None:
    probs, targets, areas = planted(600)
    hidden = np.random.default_rng(1).random(targets.shape) < 0.2
    masked = np.where(hidden, -1, targets)
    nonsense = np.where(hidden, 1 - probs, probs)
    for measure in (
        lambda data: measure_sizes(data, areas, (1024, 9216)).mean_ap["small"].value,
        lambda data: measure_confusions(data, measure_company(masked)).excess[0, 1],
        lambda data: measure_dependences(data, measure_company(masked)).pairs[0].recall_with.value,
    ):
        # Only the measured class is masked, so the scores of masked labels make no difference.
        first, second = (measure(scored(p, masked)) for p in (probs, nonsense))
        assert first == pytest.approx(second)


@pytest.mark.parametrize("count", [1, 5])
def test_too_few_images_give_no_figures(count: int) -> None:
    probs, targets = np.full((count, 2), 0.7), np.ones((count, 2))
    data, company = scored(probs, targets), measure_company(targets.astype(np.int8))
    sizes = measure_sizes(data, np.full((count, 2), 50.0), (32.0, 96.0))
    assert sizes.gap is None
    confusions, dependences = measure_confusions(data, company), measure_dependences(data, company)
    assert confusions.pairs == []
    assert confusions.mean_excess is None
    assert dependences.mean_gap is None


def test_intervals_of_average_precision_hold_the_truth_as_often_as_they_say() -> None:
    """Intervals of many small samples contain the population's AP, known from a large sample."""
    generator = np.random.default_rng(0)

    def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
        targets = generator.random((count, 1)) < 0.3
        return np.clip(
            0.4 + 0.2 * targets + 0.15 * generator.standard_normal((count, 1)), 0, 1
        ), targets

    truth = average_precision_score(*(part[:, 0] for part in reversed(draw(200_000))))
    held = []
    for seed in range(200):
        probs, targets = draw(300)
        data = scored(probs, targets, resamples=200, seed=seed)
        low, high = data.average_precision(0, targets[:, 0], ~targets[:, 0]).interval()
        held.append(low <= truth <= high)
    assert 0.89 <= np.mean(held) <= 0.99
