"""Sharing a labelled set out in proportion."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mltr.data import stratified_split


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 120), st.integers(1, 8), st.integers(0, 10**6),
    st.sampled_from([(0.5, 0.5), (0.8, 0.2), (0.7, 0.2, 0.1)]),
)  # fmt: skip
def test_every_row_once_and_fractions_about_right(
    count: int, classes: int, seed: int, fractions: tuple[float, ...]
) -> None:
    generator = np.random.default_rng(seed)
    targets = (generator.random((count, classes)) < generator.random(classes)).astype(np.int8)
    targets[generator.random(targets.shape) < 0.1] = -1
    parts = stratified_split(targets, fractions, seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(count))
    again = stratified_split(targets, fractions, seed)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    for part, fraction in zip(parts, fractions, strict=True):
        assert abs(len(part) - fraction * count) <= classes + 1


def test_rare_labels_reach_every_part() -> None:
    generator = np.random.default_rng(0)
    targets = np.zeros((1000, 20), np.int8)
    for label in range(20):
        targets[generator.choice(1000, 10 + 20 * label, replace=False), label] = 1
    parts = stratified_split(targets, (0.8, 0.1, 0.1))
    for part, fraction in zip(parts, (0.8, 0.1, 0.1), strict=True):
        share = targets[part].sum(0) / targets.sum(0)
        assert share == pytest.approx(np.full(20, fraction), abs=0.04)
        assert targets[part].sum(0).min() >= 1


def test_another_seed_gives_other_parts() -> None:
    targets = np.eye(4, dtype=np.int8).repeat(20, axis=0)
    first, second = (stratified_split(targets, (0.5, 0.5), seed)[0] for seed in (0, 1))
    assert not np.array_equal(first, second)


def test_fractions_must_sum_to_one() -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        stratified_split(np.zeros((4, 1), np.int8), (0.5, 0.1))
