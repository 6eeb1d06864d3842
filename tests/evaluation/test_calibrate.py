"""`mltr calibrate`: thresholds and probabilities fitted on held-out images; stored, used, reset."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit

import mltr
from mltr import cli, metrics
from mltr.config.recipe import to_yaml
from mltr.config.schema import Config, DataConfig, ScenesConfig
from mltr.data import Preprocess, read_scenes
from mltr.errors import MltrError, UsageError
from mltr.evaluation.aims import Aim, parse_aim
from mltr.evaluation.open_run import open_scored, scores_of
from mltr.evaluation.predictions import (
    Predictions,
    as_predicted,
    load_predictions,
    predict_split,
    save_predictions,
)
from mltr.evaluation.reliability import (
    GAINS,
    bootstrap_gains,
    calibration_error,
    measure,
    save_reliability,
    summarise,
)
from mltr.evaluation.thresholds import choose_threshold, fit
from mltr.weights.bundle import load_bundle, save_bundle

pytestmark = pytest.mark.pictures

F1 = Aim("f1")


def main(*words: object) -> int:
    return cli.main([str(word) for word in words])


def predictions(probs: Any, targets: Any) -> Predictions:
    probs, targets = np.asarray(probs, np.float32), np.asarray(targets, np.int8)
    names = tuple(f"{i}.jpg" for i in range(len(probs)))
    return Predictions(probs, targets, names, tuple(f"class {k}" for k in range(probs.shape[1])))


def true_to_its_word(
    count: int, classes: int = 2, sharpness: float = 1.0, shift: float = 0.0, seed: int = 0
) -> Predictions:
    """Draw labels with the probabilities of calibrated logits; the scores distort the logits."""
    generator = np.random.default_rng(seed)
    honest = generator.normal(-1, 2, (count, classes))
    targets = generator.random((count, classes)) < expit(honest)
    return predictions(expit(sharpness * honest + shift), targets)


# Thresholds.


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=2, max_size=12),
    st.sampled_from(["f1", "precision=0.7", "recall=0.6", "cost=1:4", "cost=3:1"]),
)
def test_no_other_threshold_does_better(rows: list[tuple[int, bool]], text: str) -> None:
    probs = np.array([score / 20 for score, _ in rows], np.float32)
    truths = np.array([truth for _, truth in rows], np.int8)
    if truths.all() or not truths.any():
        truths[0] = 1 - truths[0]
    aim = parse_aim(text)
    threshold, reached = choose_threshold(aim, probs, truths)
    assert 0 <= threshold <= 1
    candidates = [naive_value(aim, probs >= t, truths) for t in np.linspace(0, 1, 201)]
    assert naive_value(aim, probs >= np.float32(threshold), truths) == pytest.approx(
        max(candidates)
    )
    assert reached == (max(candidates) > -1)


def naive_value(aim: Aim, decided: np.ndarray, truths: np.ndarray) -> float:
    """Return the value of decisions; -2 to -1 if they miss the required precision or recall."""
    hits = sum(bool(d and t) for d, t in zip(decided, truths, strict=True))
    false_alarms = sum(bool(d and not t) for d, t in zip(decided, truths, strict=True))
    misses = sum(bool(t and not d) for d, t in zip(decided, truths, strict=True))
    if aim.kind == "f1":
        return 2 * hits / (2 * hits + false_alarms + misses)
    if aim.kind == "cost":
        return 100 - aim.false_alarm * false_alarms - aim.miss * misses
    precision, recall = hits / max(hits + false_alarms, 1), hits / (hits + misses)
    wanted, other = (precision, recall) if aim.kind == "precision" else (recall, precision)
    return other if wanted >= aim.level else wanted - 2


def test_a_threshold_lies_halfway_to_the_next_score() -> None:
    probs, truths = np.float32([0.1, 0.2, 0.6, 0.9]), np.int8([0, 0, 1, 1])
    assert choose_threshold(F1, probs, truths) == (pytest.approx(0.4), True)
    # No float32 lies between 1 and its predecessor.
    last = np.nextafter(np.float32(1), np.float32(0))
    threshold, _ = choose_threshold(F1, np.float32([last, 1]), np.int8([0, 1]))
    assert threshold == 1
    # One false alarm costs more than all hits save: predict nothing.
    threshold, _ = choose_threshold(parse_aim("cost=9:1"), np.float32([0.9, 0.8]), np.int8([0, 1]))
    assert 0.9 < threshold <= 1


def test_thresholds_of_honest_probabilities_are_those_of_theory() -> None:
    """For a cost it is FP / (FP + FN), for F1 half of the best F1 (Lipton et al. 2014)."""
    val = true_to_its_word(20_000)
    for text, theory in (("cost=1:1", 0.5), ("cost=1:4", 0.2), ("cost=3:1", 0.75)):
        fitted = fit(val, parse_aim(text), "none", 10)
        np.testing.assert_allclose(fitted.thresholds, theory, atol=0.04)
    fitted = fit(val, F1, "none", 10)
    best = metrics.per_class(val.probs, val.targets, fitted.thresholds)["f1"]
    np.testing.assert_allclose(fitted.thresholds, best / 2, atol=0.03)


@pytest.mark.parametrize("text", ["precision=0.8", "recall=0.9"])
def test_a_precision_or_recall_holds_on_the_images_it_was_fitted_to(text: str) -> None:
    val = true_to_its_word(300, classes=5)
    aim = parse_aim(text)
    fitted = fit(val, aim, "temperature", 10)
    after = as_predicted(val, fitted.calibration)
    values = metrics.per_class(after.probs, val.targets, fitted.thresholds)[aim.kind]
    assert (values >= aim.level).all()
    assert all(fitted.reached)


def test_an_aim_out_of_reach_is_reported_and_the_nearest_taken() -> None:
    val = predictions([[0.9], [0.8], [0.7], [0.6]], [[0], [1], [1], [0]])
    fitted = fit(val, parse_aim("precision=0.9"), "none", 1)
    assert fitted.reached == (False,)
    assert 0.6 < fitted.thresholds[0] < 0.7  # 2 of 3 are positive


def test_classes_with_few_positives_share_a_threshold() -> None:
    val = true_to_its_word(400, classes=4, seed=3)
    val.targets[:, 1] = 0
    val.targets[:9, 1] = 1
    val.targets[:, 2] = -1  # all unknown
    val.targets[:, 3] = 1  # all positive
    fitted = fit(val, F1, "platt", 10)
    assert fitted.origins == ("own", "shared", "shared", "shared")
    assert set(map(float, fitted.thresholds[1:])) == {np.float32(fitted.shared[""])}
    assert fitted.calibration is not None
    assert len(set(fitted.calibration.scale[1:])) == len(set(fitted.calibration.shift[1:])) == 1
    # The shared threshold is the best for all known decisions together.
    known = val.targets >= 0
    fitted = fit(val, F1, "none", 10)
    probs, truths = val.probs[known], val.targets[known]
    best = max(naive_value(F1, probs >= t, truths) for t in np.unique(probs))
    assert naive_value(F1, probs >= np.float32(fitted.shared[""]), truths) == best


def test_unknown_labels_change_nothing() -> None:
    val = true_to_its_word(300, classes=2)
    more = predictions(
        np.concatenate([val.probs, np.full((50, 2), 0.99)]),
        np.concatenate([val.targets, np.full((50, 2), -1)]),
    )
    for scaling in ("shared", "temperature", "platt"):
        one, other = (fit(p, F1, scaling, 10) for p in (val, more))
        np.testing.assert_array_equal(one.thresholds, other.thresholds)
        assert one.calibration == other.calibration


@pytest.mark.parametrize(
    ("targets", "told"),
    [
        (np.zeros((30, 2)), "0 positive and 60 negative"),
        (np.ones((30, 2)), "60 positive and 0 negative"),
        (np.full((30, 2), -1), "0 positive and 0 negative"),
        ([[1, 0]], "1 validation images with 1 positive"),
    ],
)
def test_too_little_to_learn_from_is_refused(targets: Any, told: str) -> None:
    targets = np.asarray(targets)
    val = predictions(np.full(targets.shape, 0.4), targets)
    with pytest.raises(MltrError, match=told) as caught:
        fit(val, F1, "temperature", 10)
    assert "--min-positives" in str(caught.value)


def test_one_class_and_one_image_of_each_kind_are_enough_if_wanted() -> None:
    fitted = fit(predictions([[0.3], [0.8]], [[0], [1]]), F1, "platt", 1)
    assert fitted.calibration is not None
    assert np.isfinite(fitted.calibration.scale + fitted.calibration.shift).all()
    assert fitted.thresholds.shape == (1,)


@pytest.mark.parametrize(
    ("text", "aim"),
    [
        ("f1", F1),
        ("precision=0.9", Aim("precision", 0.9)),
        ("recall=1", Aim("recall", 1.0)),
        ("cost=1:2.5", Aim("cost", false_alarm=1, miss=2.5)),
    ],
)
def test_aims_read_as_they_are_written(text: str, aim: Aim) -> None:
    assert parse_aim(text) == aim
    assert str(aim) == text


@pytest.mark.parametrize(
    "text",
    ["", "f2", "f1=1", "precision", "precision=0", "recall=1.1", "recall=x", "recall=nan", "cost=1",
     "cost=0:1", "cost=1:inf", "cost=1:2:3", "precison=0.9"],
)  # fmt: skip
def test_other_aims_are_refused_with_those_there_are(text: str) -> None:
    with pytest.raises(UsageError, match="cost=FP:FN"):
        parse_aim(text)


# Probabilities.


@pytest.mark.parametrize("sharpness", [0.3, 1, 4])
def test_temperature_undoes_too_sure_and_too_shy(sharpness: float) -> None:
    val = true_to_its_word(20_000, sharpness=sharpness)
    calibration = fit(val, F1, "temperature", 10).calibration
    assert calibration is not None
    np.testing.assert_allclose(calibration.scale, 1 / sharpness, rtol=0.06)
    assert calibration.shift == (0, 0)


def test_platt_undoes_a_shift_as_well() -> None:
    val = true_to_its_word(20_000, sharpness=2, shift=-3)
    calibration = fit(val, F1, "platt", 10).calibration
    assert calibration is not None
    np.testing.assert_allclose(calibration.scale, 0.5, rtol=0.06)
    np.testing.assert_allclose(calibration.shift, 1.5, atol=0.1)


@pytest.mark.parametrize("scaling", ["shared", "platt"])
def test_a_bias_of_all_classes_is_undone_where_each_has_few_positives(scaling: str) -> None:
    """As with the loss asl, whose probabilities are all too high."""
    val, test = (true_to_its_word(n, 4, shift=3, seed=n) for n in (40, 4000))
    fitted = fit(val, F1, scaling, 25)
    assert set(fitted.origins) == {"shared"}
    after = as_predicted(test, fitted.calibration)
    errors = [measure(p.probs, p.targets, 0.5, F1)["ece"] for p in (test, after)]
    assert errors[0] > 0.3
    assert errors[1] < 0.06


def test_temperature_is_the_likeliest() -> None:
    val = true_to_its_word(500, classes=3, sharpness=2.5, seed=5)
    calibration = fit(val, F1, "temperature", 10).calibration
    assert calibration is not None

    def loss(scale: float) -> float:
        probs = expit(scale * logit(val.probs.astype(np.float64)))
        return float(-np.log(np.where(val.targets == 1, probs, 1 - probs)).mean())

    # Platt's smoothed targets shift it by a few thousandths.
    grid = np.linspace(0.2, 0.8, 601)
    assert calibration.scale[0] == pytest.approx(grid[np.argmin([*map(loss, grid)])], abs=0.01)


@pytest.mark.parametrize("scaling", ["shared", "temperature", "platt"])
def test_perfectly_separated_classes_stay_finite(scaling: str) -> None:
    targets = np.arange(60).reshape(30, 2) % 3 == 0
    fitted = fit(predictions(targets, targets), F1, scaling, 5)
    assert fitted.calibration is not None
    assert np.isfinite(fitted.calibration.scale).all()
    assert (fitted.thresholds > 0.001).all() and (fitted.thresholds < 0.999).all()


@pytest.mark.parametrize("scaling", ["shared", "temperature", "platt"])
def test_scores_that_tell_the_contrary_keep_their_order(scaling: str, caplog) -> None:
    val = true_to_its_word(300)
    fitted = fit(predictions(1 - val.probs, val.targets), F1, scaling, 10)
    assert (fitted.calibration, fitted.scaling) == (None, "none")
    assert f"no {scaling} scaling improves" in caplog.text


def test_platt_fits_where_no_temperature_does() -> None:
    """All logits are above 0, as after training with an asymmetric loss."""
    val = true_to_its_word(2000, sharpness=0.5, shift=6)
    fitted = fit(val, F1, "temperature", 10)
    assert fitted.calibration is None
    platt = fit(val, F1, "platt", 10).calibration
    assert platt is not None
    np.testing.assert_allclose(platt.scale, 2, rtol=0.2)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 200), st.integers(0, 1000))
def test_calibration_error_equals_loops(count: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    probs = generator.random(count).round(2).astype(np.float32)
    truths = (generator.random(count) < probs).astype(np.int8)
    total = 0.0
    for b in range(15):
        # Closed on the right, as in scikit-learn.
        rows = [i for i, p in enumerate(map(float, probs)) if b / 15 < p <= (b + 1) / 15]
        rows += [i for i, p in enumerate(probs) if p == b == 0]
        if rows:
            total += abs(float(truths[rows].mean()) - float(probs[rows].mean())) * len(rows)
    assert calibration_error(probs, truths) == pytest.approx(total / count, abs=1e-6)


def test_calibration_error_equals_torchmetrics() -> None:
    from torchmetrics.functional.classification import binary_calibration_error

    val = true_to_its_word(1000, sharpness=3)
    probs, truths = val.probs[:, 0], val.targets[:, 0]
    # torchmetrics also uses the probability of class 1
    expected = binary_calibration_error(torch.tensor(probs), torch.tensor(truths).int(), n_bins=15)
    figures = measure(val.probs[:, :1], val.targets[:, :1], 0.5, F1)
    assert figures["ece"] == pytest.approx(float(expected), abs=1e-6)
    assert figures["ece_mean"] == pytest.approx(figures["ece"])


def test_measures_leave_out_what_is_unknown() -> None:
    probs = np.float32([[0.9, 0.2], [0.3, 0.7], [0.6, 0.5]])
    targets = np.int8([[1, -1], [0, -1], [-1, -1]])
    figures = measure(probs, targets, 0.5, parse_aim("cost=1:2"))
    assert figures["brier"] == pytest.approx((0.1**2 + 0.3**2) / 2)
    assert figures["ece"] == figures["ece_mean"] == pytest.approx((0.1 + 0.3) / 2)
    assert figures["cost_per_image"] == 0
    nothing = measure(probs, np.full((3, 2), -1, np.int8), 0.5, F1)
    assert np.isnan([nothing["ece"], nothing["brier"], nothing["cf1"]]).all()


def test_the_cost_counts_false_alarms_and_misses() -> None:
    figures = measure(
        np.float32([[0.9], [0.1], [0.2], [0.8]]), np.int8([[0], [1], [1], [1]]), 0.5,
        parse_aim("cost=3:5"),
    )  # fmt: skip
    assert figures["cost_per_image"] == (3 + 2 * 5) / 4


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_fast_sums_equal_the_metrics(seed: int) -> None:
    generator = np.random.default_rng(seed)
    targets = generator.integers(-1, 2, (9, 4)).astype(np.int8)
    probs = generator.random((9, 4)).astype(np.float32)
    decided = probs >= 0.5
    counts = [decided & (targets == 1), decided & (targets >= 0), targets == 1]
    found = summarise(np.stack([table.sum(0) for table in counts])[:, None].astype(np.float32))
    expected = metrics.evaluate(probs, targets)
    if (targets == 1).any():
        np.testing.assert_allclose(found[:, 0], [expected[name] for name in GAINS], atol=1e-9)


def test_the_interval_of_a_gain_holds_it_and_of_no_gain_is_nothing() -> None:
    test = true_to_its_word(300, sharpness=1, shift=-2)
    same = bootstrap_gains(test, test, np.full(2, 0.5))
    assert all(interval == [0, 0] for interval in same.values())
    thresholds = np.array([0.1, 0.1])
    before, after = (metrics.evaluate(test.probs, test.targets, t) for t in (0.5, thresholds))
    for name, (low, high) in bootstrap_gains(test, test, thresholds).items():
        assert low < after[name] - before[name] < high
        assert high - low < 0.3


# The command.


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a run of an untrained network with confident scores, saved for its test images."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    overrides = {"image_size": 32, "depths": [1], "conv_depths": [0]}
    scenes = ScenesConfig(train=8, val=40, test=24, side=32, seed=0)
    splits = read_scenes(scenes)
    model = mltr.create_model("mltr_nano", 10, **overrides)
    with torch.no_grad():
        model.get_parameter("head.weight").mul_(10)
        model.get_parameter("head.bias").copy_(-torch.linspace(0.2, 3, 10))
    preprocess = Preprocess(32)
    save_bundle(
        folder, model=model, name="mltr_nano", overrides=overrides, classes=splits.test.classes,
        preprocess=preprocess, extra={"data": "scenes"},
    )  # fmt: skip
    config = Config(data=DataConfig(format="scenes", scenes=scenes, workers=0))
    (folder / "config.yaml").write_text(to_yaml(config))
    names = {split.name: [record.name for record in split] for split in splits}
    (folder / "splits.json").write_text(json.dumps(names))
    (folder / "metrics.json").write_text(json.dumps({"best_epoch": 7, "epochs": 9}))
    save_predictions(folder / "predictions.npz", predict_split(model, splits.test, preprocess))
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy that run; with fewer resamples and panels, to save time."""
    monkeypatch.setattr("mltr.evaluation.thresholds.RESAMPLES", 5)
    monkeypatch.setattr("mltr.evaluation.reliability.MANY_CLASSES", 2)
    return shutil.copytree(finished, tmp_path / "run")


@pytest.mark.parametrize("scaling", ["shared", "temperature", "platt"])
def test_what_is_stored_is_what_every_prediction_uses(run: Path, scaling: str, capsys) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert main("calibrate", run, "--scaling", scaling, "--min-positives", 5) == 0
    printed = capsys.readouterr().out
    for words in ("24 test images", "fitted on 40 validation", "cf1", "ece", "chose the epoch (7)"):
        assert words in " ".join(printed.split())
    changed = {p.name for p in run.iterdir() if before.get(p.name) != p.read_bytes()}
    assert changed == {"config.json", "reliability.png"}

    opened = open_scored(run)
    bundle = opened.bundle
    assert bundle.calibration is not None and bundle.calibration.method == scaling
    expected = fit(opened.score_uncalibrated("val"), F1, scaling, 5)
    np.testing.assert_array_equal(np.float32(bundle.thresholds), expected.thresholds)
    # The saved scores of the split, the network's, and a single image's prediction.
    raw = load_predictions(run / "predictions.npz").probs.astype(np.float64)
    scale, shift = np.array(bundle.calibration.scale), np.array(bundle.calibration.shift)
    by_hand = expit(scale * logit(raw) + shift)
    np.testing.assert_allclose(scores_of(run).probs, by_hand, atol=1e-5)
    np.testing.assert_allclose(scores_of(run, rerun=True).probs, by_hand, atol=1e-5)
    tagger = mltr.load(run, device="cpu")
    record = opened.splits.test[3]
    assert not isinstance(record.image, bytes | Path)
    found = tagger(record.image.load())
    np.testing.assert_allclose(found.probs, by_hand[3], atol=1e-5)
    wanted = {bundle.classes[k] for k in np.flatnonzero(by_hand[3] >= bundle.thresholds)}
    assert {name for name, _ in found.labels} == wanted


def test_the_order_of_the_images_stays(run: Path) -> None:
    before = scores_of(run)
    assert main("calibrate", run, "--scaling", "platt", "--min-positives", 5) == 0
    after = scores_of(run)
    figures = [metrics.per_class(p.probs, p.targets)["ap"] for p in (before, after)]
    np.testing.assert_allclose(figures[0], figures[1], atol=1e-6)


def test_again_is_the_same_and_reset_takes_it_out(run: Path, capsys) -> None:
    untouched = (run / "config.json").read_bytes()
    contents = []
    for arguments in ([], ["--scaling", "platt", "--aim", "recall=0.7"], []):
        assert main("calibrate", run, "--min-positives", 5, *arguments) == 0
        contents.append((run / "config.json").read_bytes())
    assert contents[0] == contents[2] != contents[1]
    assert main("calibrate", run, "--reset") == 0
    assert (run / "config.json").read_bytes() == untouched
    assert load_bundle(run).thresholds is None
    capsys.readouterr()
    assert main("calibrate", run, "--reset") == 0
    assert "nothing to remove" in capsys.readouterr().out


def test_only_thresholds(run: Path) -> None:
    assert main("calibrate", run, "--scaling=none", "--aim=recall=0.8", "--min-positives=5") == 0
    bundle = load_bundle(run)
    assert bundle.calibration is None
    assert bundle.thresholds is not None
    raw = load_predictions(run / "predictions.npz")
    np.testing.assert_array_equal(scores_of(run).probs, raw.probs)


def test_figures_as_json_and_where_pictures_go(run: Path, tmp_path: Path, capsys) -> None:
    command = ("calibrate", run, "--min-positives", 8, "--json", "-", "--out", tmp_path / "new")
    assert main(*command, "--aim", "cost=1:3") == 0
    figures = json.loads(capsys.readouterr().out)
    assert (tmp_path / "new" / "reliability.png").stat().st_size > 5000
    assert not (run / "reliability.png").exists()
    raw = load_predictions(run / "predictions.npz")
    for name, value in metrics.evaluate(raw.probs, raw.targets).items():
        if "top" not in name:
            assert figures["test"]["before"][name] == pytest.approx(value)
    after = scores_of(run)
    thresholds = load_bundle(run).thresholds
    assert thresholds is not None
    again = metrics.evaluate(after.probs, after.targets, thresholds)
    assert figures["test"]["after"]["of1"] == pytest.approx(again["of1"])
    assert figures["aim"] == "cost=1:3"
    assert [row["threshold"] for row in figures["per_class"].values()] == list(thresholds)
    assert all(
        (row["threshold_is"] == "own") == (row["val_positives"] >= 8)
        for row in figures["per_class"].values()
    )


def test_evaluate_shows_own_thresholds_beside_one_half(run: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "figures.json"
    assert main("evaluate", run, "--json", out) == 0
    assert "at_own_thresholds" not in json.loads(out.read_text())
    assert main("calibrate", run, "--min-positives", 5) == 0
    capsys.readouterr()
    assert main("evaluate", run, "--json", out) == 0
    assert "each class at its own threshold" in capsys.readouterr().out
    figures = json.loads(out.read_text())
    after, thresholds = scores_of(run), load_bundle(run).thresholds
    assert figures["threshold"] == 0.5
    for part, limits in ((figures, 0.5), (figures["at_own_thresholds"], thresholds)):
        expected = metrics.evaluate(after.probs, after.targets, limits)  # type: ignore[arg-type]
        for name, value in expected.items():
            assert part[name] == pytest.approx(value)
        rows = metrics.per_class(after.probs, after.targets, limits)  # type: ignore[arg-type]
        f1 = [row["f1"] for row in part["per_class"].values()]
        np.testing.assert_allclose(np.array(f1, float), rows["f1"])


def test_images_that_were_trained_on_are_refused(run: Path, capsys, caplog) -> None:
    names = json.loads((run / "splits.json").read_text())
    names["train"] += names["val"][:3]
    (run / "splits.json").write_text(json.dumps(names))
    before = (run / "config.json").read_bytes()
    assert main("calibrate", run, "--min-positives", 5) == 1
    told = capsys.readouterr().err
    assert "3 of 40 val images have the names of training images" in told
    assert "val-00000" in told
    assert (run / "config.json").read_bytes() == before
    # In another source, images of the same names may be different ones.
    assert main("calibrate", run, "--min-positives", 5, "--data.scenes.seed", 4) == 0
    assert "make sure that they are different images" in caplog.text


def test_another_source_is_scored_anew(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    command = ("calibrate", run, "--min-positives", 5, "--json", out)
    assert main(*command, "--data.scenes.seed", 4, "--data.scenes.test", 30) == 0
    assert json.loads(out.read_text())["test_images"] == 30


def test_a_run_without_saved_scores_and_without_an_end(run: Path, tmp_path: Path, caplog) -> None:
    out = tmp_path / "figures.json"
    for name in ("metrics.json", "predictions.npz", "splits.json"):
        (run / name).unlink()
    (run / "checkpoint" / "epoch-1").mkdir(parents=True)
    assert main("calibrate", run, "--min-positives", 5, "--json", out) == 0
    assert json.loads(out.read_text())["test_images"] == 24
    assert "isn't finished" in caplog.text


def test_too_few_labels_leave_the_run_as_it_was(run: Path, capsys) -> None:
    before = (run / "config.json").read_bytes()
    assert main("calibrate", run, "--min-positives", 1000) == 1
    assert "too few to calibrate on" in capsys.readouterr().err
    assert (run / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--aim", "precison=0.9"], 2, "did you mean 'precision'"),
        (["--min-positives", "0"], 2, "at least 1"),
        (["--scaling", "isotonic"], 2, "temperature"),
    ],
)
def test_wrong_arguments_are_reported(
    run: Path, arguments: list[str], code: int, told: str, capsys
) -> None:
    assert main("calibrate", run, *arguments) == code
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--reset"]])
def test_a_missing_run_is_reported(tmp_path: Path, arguments: list[str], capsys) -> None:
    assert main("calibrate", tmp_path / "none", *arguments) == 1
    assert "no such" in capsys.readouterr().err


@pytest.mark.parametrize("classes", [1, 40])
@pytest.mark.parametrize("known", [True, False])
def test_pictures_of_one_and_of_many_classes(tmp_path: Path, classes: int, known: bool) -> None:
    test = true_to_its_word(30, classes=classes)
    fitted = fit(test, parse_aim("recall=0.9"), "temperature", 1)
    if not known:
        test.targets[:] = -1
    assert save_reliability(tmp_path, fitted, test).stat().st_size > 5000


def test_test_images_without_labels_are_no_obstacle(run: Path, capsys) -> None:
    saved = load_predictions(run / "predictions.npz")
    for value in (-1, 0):
        targets = np.full_like(saved.targets, value)
        unknown = Predictions(saved.probs, targets, saved.images, saved.classes)
        save_predictions(run / "predictions.npz", unknown)
        assert main("calibrate", run, "--min-positives", 5) == 0
        row = next(line for line in capsys.readouterr().out.splitlines() if "cf1 " in line)
        assert "nan" not in row
    assert load_bundle(run).thresholds is not None


def test_distorted_probabilities_get_better_on_images_never_seen() -> None:
    for sharpness, shift in itertools.product((0.5, 3), (-1.5, 1.5)):
        val, test = (true_to_its_word(2000, 3, sharpness, shift, seed) for seed in (0, 1))
        fitted = fit(val, F1, "platt", 10)
        after = as_predicted(test, fitted.calibration)
        old, new = (measure(p.probs, p.targets, 0.5, F1) for p in (test, after))
        for name in ("ece", "ece_mean", "brier"):
            assert new[name] < old[name]
