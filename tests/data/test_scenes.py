"""The demo's scenes: deterministic, with the three problems planted."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mltr.config.schema import DataConfig, ScenesConfig
from mltr.data import Splits, open_splits, read_scenes
from mltr.data.readers.scenes import COMPANIONS, LOOK_ALIKES, P_COMPANION


@pytest.fixture(scope="module")
def scenes() -> Splits:
    return read_scenes(ScenesConfig(train=1500, val=20, test=50))


def test_the_same_seed_gives_the_same_scenes(scenes: Splits) -> None:
    again = open_splits(
        DataConfig(format="scenes", scenes=ScenesConfig(train=30, val=5, test=5))
    ).train
    for index in range(30):  # and not by how many there are
        assert np.array_equal(again[index].labels, scenes.train[index].labels)
        assert np.array_equal(again[index].image.load(), scenes.train[index].image.load())
    other = read_scenes(ScenesConfig(train=30, val=5, test=5, seed=1)).train
    assert not np.array_equal(other.targets, again.targets)


def test_pictures_and_boxes(scenes: Splits) -> None:
    sides = []
    side = ScenesConfig().side
    for record in scenes.test:
        image = record.image.load()
        assert (image.mode, image.size) == ("RGB", (side, side))
        assert 1 <= len(record.boxes) <= 5
        assert {box.class_index for box in record.boxes} == set(np.flatnonzero(record.labels))
        for box in record.boxes:
            assert 0 <= box.x < box.x + box.width <= side
            assert 0 <= box.y < box.y + box.height <= side
            assert 0 < box.area <= box.width * box.height
            sides.append(box.height)
    assert max(sides) > 2.5 * min(sides)  # small objects among large ones


@settings(deadline=None, max_examples=15)
@given(st.integers(32, 160), st.integers(0, 2**31))
def test_any_side_and_seed(side: int, seed: int) -> None:
    for split in read_scenes(ScenesConfig(train=2, val=2, test=2, side=side, seed=seed)):
        for record in split:
            scene = pickle.loads(pickle.dumps(record.image))  # as a worker gets it
            assert np.array_equal(scene.load(), record.image.load())
            assert scene.load().size == (side, side)
            for box in record.boxes:
                assert 0 <= box.x < box.x + box.width <= side
                assert 0 <= box.y < box.y + box.height <= side


def test_only_the_handwriting_tells_the_label(scenes: Splits) -> None:
    """Another digit in the same square changes nothing outside it: no canvas gives a label away."""
    donors = [placed for record in scenes.train for placed in record.image.objects]
    for record in list(scenes.test)[:20]:
        scene = record.image
        for number, placed in enumerate(scene.objects):
            donor = next(d for d in donors if d.digit != placed.digit)
            swapped = replace(placed, digit=donor.digit, source=donor.source)
            objects = (*scene.objects[:number], swapped, *scene.objects[number + 1 :])
            before = np.asarray(scene.load())
            after = np.asarray(replace(scene, objects=objects).load())
            changed = (before != after).any(-1)
            rows, columns = np.nonzero(changed)
            assert placed.y <= rows.min() <= rows.max() < placed.y + placed.side
            assert placed.x <= columns.min() <= columns.max() < placed.x + placed.side


def test_a_box_is_where_the_digit_is(scenes: Splits) -> None:
    """Inside the box the picture changes abruptly, on the empty canvas it does not."""
    for record in list(scenes.test)[:20]:
        grey = np.asarray(record.image.load().convert("L"), dtype=float)
        edges = np.abs(np.diff(grey, axis=1))
        outside = np.ones_like(edges, bool)
        for box in record.boxes:
            rows = slice(int(box.y), int(box.y + box.height))
            columns = slice(max(0, int(box.x) - 2), int(box.x + box.width) + 1)
            outside[rows, columns] = False
            assert edges[rows, columns].max() > 15
        assert np.percentile(edges[outside], 95) < 15


def test_companions_come_together_and_look_alikes_do_not(scenes: Splits) -> None:
    targets = scenes.train.targets.astype(float)
    together = targets.T @ targets
    share = together / together.diagonal()[:, None]
    for first, second in COMPANIONS.items():
        assert share[first, second] == pytest.approx(P_COMPANION, abs=0.08)
        assert share[first, second] > targets[:, second].mean() + 0.2
    for first, second in LOOK_ALIKES:
        assert share[first, second] < 0.1
    assert targets.mean(0).min() > 0.15


def test_no_handwriting_is_in_two_splits(scenes: Splits) -> None:
    sources = [
        {placed.source for record in split for placed in record.image.objects} for split in scenes
    ]
    assert not sources[0] & sources[1]
    assert not sources[0] & sources[2]
    assert not sources[1] & sources[2]
