"""Sharing a labelled set out in proportion."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mltr.data import stratified_split


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 120), st.integers(1, 60), st.integers(0, 10**6),
    st.sampled_from([(0.5, 0.5), (0.8, 0.2), (0.7, 0.2, 0.1)]),
)  # fmt: skip
def test_every_row_once_and_sizes_to_the_image(
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
        assert abs(len(part) - fraction * count) < 1


@pytest.mark.parametrize(
    ("labels", "each", "fractions", "sizes"),
    [
        (40, 5, (0.9, 0.1), (180, 20)),  # each label alone would have nothing held out
        (40, 3, (0.8, 0.2), (96, 24)),  # each alone would give a third
        (2, 4, (0.8, 0.2), (6, 2)),
        (7, 1, (0.5, 0.5), (4, 3)),
    ],
)
def test_remainders_are_carried_from_label_to_label(
    labels: int, each: int, fractions: tuple[float, ...], sizes: tuple[int, ...]
) -> None:
    targets = np.eye(labels, dtype=np.int8).repeat(each, axis=0)
    for seed in range(5):
        parts = stratified_split(targets, fractions, seed)
        assert tuple(map(len, parts)) == sizes
        for part, fraction in zip(parts, fractions, strict=True):
            assert np.abs(targets[part].sum(0) - fraction * each).max() < 1


def test_rare_labels_do_not_take_the_place_of_frequent_ones() -> None:
    """40 labels of 3 images, which can't be divided in five, beside one of 280."""
    targets = np.zeros((400, 41), np.int8)
    targets[:120, :40] = np.eye(40, dtype=np.int8).repeat(3, axis=0)
    targets[120:, 40] = 1
    held_out = targets[stratified_split(targets, (0.8, 0.2))[1]]
    assert len(held_out) == 80
    assert abs(held_out[:, 40].sum() - 56) <= 1
    assert held_out[:, :40].sum(0).max() == 1


@pytest.mark.parametrize(("labels", "most"), [(5, 1), (20, 1.5), (80, 3)])
def test_labels_that_come_together_are_shared_out_to_the_image(labels: int, most: float) -> None:
    generator = np.random.default_rng(labels)
    targets = (generator.random((1000, labels)) < 0.3 * generator.random(labels)).astype(np.int8)
    for seed in range(3):
        parts = stratified_split(targets, (0.9, 0.1), seed)
        assert [len(part) for part in parts] == [900, 100]
        assert np.abs(targets[parts[1]].sum(0) - 0.1 * targets.sum(0)).max() <= most


def test_rare_labels_reach_every_part() -> None:
    generator = np.random.default_rng(0)
    targets = np.zeros((1000, 20), np.int8)
    for label in range(20):
        targets[generator.choice(1000, 10 + 20 * label, replace=False), label] = 1
    parts = stratified_split(targets, (0.8, 0.1, 0.1))
    for part, fraction in zip(parts, (0.8, 0.1, 0.1), strict=True):
        assert targets[part].sum(0) == pytest.approx(fraction * targets.sum(0), abs=1.01)
        assert targets[part].sum(0).min() >= 1


def test_training_gets_an_image_of_every_label_while_it_has_room() -> None:
    """A long tail: half of the labels have one or two images."""
    generator = np.random.default_rng(0)
    targets = np.zeros((300, 60), np.int8)
    for label in range(60):
        count = 1 + label % 2 if label < 30 else 5 * (label - 25)
        targets[generator.choice(300, count, replace=False), label] = 1
    for seed in range(5):
        train, test = stratified_split(targets, (0.8, 0.2), seed)
        assert (len(train), len(test)) == (240, 60)
        assert targets[train].sum(0).min() >= 1


def test_another_seed_gives_other_parts() -> None:
    targets = np.eye(4, dtype=np.int8).repeat(20, axis=0)
    first, second = (stratified_split(targets, (0.5, 0.5), seed)[0] for seed in (0, 1))
    assert not np.array_equal(first, second)


def test_fractions_must_sum_to_one() -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        stratified_split(np.zeros((4, 1), np.int8), (0.5, 0.1))
