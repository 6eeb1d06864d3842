"""How many labels does `mltr next` save, beside photos chosen at random?

    mltr train probe PHOTOS --model.init FILE --model.image_size 128 --out RUN
    mltr embed RUN COCO18/images --out coco18.parquet
    python benchmarks/labelling.py --data COCO18 --features coco18.parquet --start 200 --step 200

Starts with a few photos of the training and validation splits, chosen at random, and fits logistic
regressions to their features. Then each way of choosing labels more of the others, round after
round, and each time the test photos are scored. Random choice goes on for twice as many rounds. The
table shows `map` at each number of labels; the last column says how many fewer labels a way needs
than random choice for the `map` of its last round.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import entr, expit

from mltr.config.schema import DataConfig
from mltr.data.records import Record
from mltr.data.sources import open_splits
from mltr.diagnosis.choose import SHORTLIST, choose, farthest_first, uncertainty
from mltr.files.writing import write_figures
from mltr.metrics import evaluate

Floats = NDArray[np.float32]
PENALTY = 100.0  #: on squared weights, of standardised features


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, metavar="PHOTOS", help="labelled photos")
    parser.add_argument("--labels", default="", help="their table")
    parser.add_argument("--features", required=True, help="of all of them, by mltr embed")
    parser.add_argument("--start", type=int, default=40, help="photos that have labels at first")
    parser.add_argument("--step", type=int, default=40, help="photos labelled in each round")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    pool, test = read(args)
    curves = {"random": curve(args, pool, test, at_random, 2 * args.rounds)}
    print("labels", *(args.start + args.step * k for k in range(2 * args.rounds + 1)))
    report("random", curves["random"])
    for name in args.ways:
        curves[name] = curve(args, pool, test, WAYS[name], args.rounds)
        report(name, curves[name], saved(args, curves["random"], curves[name]))
    if args.json:
        table = {"date": str(date.today()), "machine": platform.processor(), "options": vars(args)}
        write_figures(args.json, table | {"map": {n: c.tolist() for n, c in curves.items()}})


def read(args: argparse.Namespace) -> tuple[tuple[Floats, Any], tuple[Floats, Any]]:
    """Return features and labels of the photos to choose from, and of the test photos."""
    rows = pq.read_table(args.features, columns=["path", "features"])
    features = np.stack(rows["features"].to_numpy()).astype(np.float32)
    place = {os.path.realpath(path): row for row, path in enumerate(rows["path"].to_pylist())}
    splits = open_splits(DataConfig(root=args.data, labels=args.labels))

    def gather(records: list[Record]) -> tuple[Floats, Any]:
        order = [place[os.path.realpath(Path(str(record.image)))] for record in records]
        return features[order], np.stack([record.labels for record in records])

    return gather([*splits.train, *splits.val]), gather(list(splits.test))


# -- ways of choosing --------------------------------------------------------------------------

Way = Callable[[Floats, Floats, Any, int, Any], Any]  #: probs, features, labels, count, generator


def at_random(probs: Floats, features: Floats, labels: Any, count: int, rng: Any) -> Any:
    return rng.choice(len(probs), count, replace=False)


def by_next(probs: Floats, features: Floats, labels: Any, count: int, rng: Any) -> Any:
    return choose(probs, features, count)


def by_next_for_rare(probs: Floats, features: Floats, labels: Any, count: int, rng: Any) -> Any:
    """Choose as `next` does, with each label's uncertainty divided by the root of its frequency."""
    weights = ((labels == 1).sum(0) + 1) ** -0.5
    scores = ((1 - 2 * np.abs(probs - 0.5)) * weights).max(1)
    return spread(scores, features, count)


def entropy(probs: Floats, features: Floats, labels: Any, count: int, rng: Any) -> Any:
    return np.argsort(-entropies(probs).sum(1))[:count]


def entropy_of_rare(probs: Floats, features: Floats, labels: Any, count: int, rng: Any) -> Any:
    return np.argsort(-entropies(probs) @ (1 / ((labels == 1).sum(0) + 1)))[:count]


def entropy_spread(probs: Floats, features: Floats, labels: Any, count: int, rng: Any) -> Any:
    return spread(entropies(probs) @ (1 / ((labels == 1).sum(0) + 1)), features, count)


def margin(probs: Floats, features: Floats, labels: Any, count: int, rng: Any) -> Any:
    return np.argsort(-uncertainty(probs))[:count]


def rare_probable(probs: Floats, features: Floats, labels: Any, count: int, rng: Any) -> Any:
    return np.argsort(-probs @ (1 / ((labels == 1).sum(0) + 1)))[:count]


def core_set(probs: Floats, features: Floats, labels: Any, count: int, rng: Any) -> Any:
    return farthest_first(features, np.ones(len(features), np.float32), count)


def badge(probs: Floats, features: Floats, labels: Any, count: int, rng: Any) -> Any:
    """Sample by k-means++ on gradients (arXiv 1906.03671), taking each guess as the label."""
    errors = np.where(probs >= 0.5, probs - 1, probs)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    sizes = (errors**2).sum(1)
    distance, chosen = sizes.copy(), [int(np.argmax(sizes))]
    while len(chosen) < count:
        last = chosen[-1]
        inner = (errors @ errors[last]) * (unit @ unit[last])
        distance = np.minimum(distance, np.maximum(sizes + sizes[last] - 2 * inner, 0))
        distance[chosen] = 0
        chosen.append(int(rng.choice(len(probs), p=distance / distance.sum(dtype=np.float64))))
    return chosen


def entropies(probs: Floats) -> Floats:
    found: Floats = entr(probs) + entr(1 - probs)
    return found


def spread(scores: Floats, features: Floats, count: int) -> Any:
    rows = np.argsort(-scores)[: SHORTLIST * count]
    return rows[farthest_first(features[rows], scores[rows], count)]


WAYS: dict[str, Way] = {
    "next": by_next,
    "next, rare weigh more": by_next_for_rare,
    "margin": margin,
    "entropy": entropy,
    "entropy, rare weigh more": entropy_of_rare,
    "the same, spread": entropy_spread,
    "rare and probable": rare_probable,
    "core-set": core_set,
    "badge": badge,
}


# -- rounds ------------------------------------------------------------------------------------


def curve(args: argparse.Namespace, pool: Any, test: Any, way: Way, rounds: int) -> Floats:
    """Return `map` [seeds, rounds + 1] of the test photos after each round."""
    features, labels = pool
    mean, spread = features.mean(0), features.std(0) + 1e-6
    inputs, test_inputs = (features - mean) / spread, (test[0] - mean) / spread
    found = np.zeros((args.seeds, rounds + 1), np.float32)
    for seed in range(args.seeds):
        rng = np.random.default_rng(seed)
        has_labels = np.zeros(len(labels), bool)
        has_labels[rng.permutation(len(labels))[: args.start]] = True
        for number in range(rounds + 1):
            weights = fit(inputs[has_labels], labels[has_labels])
            found[seed, number] = evaluate(predict(weights, test_inputs), test[1])["map"]
            others = np.flatnonzero(~has_labels)
            probs = predict(weights, inputs[others])
            chosen = way(probs, features[others], labels[has_labels], args.step, rng)
            has_labels[others[chosen]] = True
    return found


def fit(inputs: Floats, labels: Any) -> Floats:
    """Return weights and biases [D + 1, K] of logistic regressions; unknown labels don't count."""
    signs, known = np.where(labels == 1, 1.0, -1.0).astype(np.float32), labels >= 0
    shape = (inputs.shape[1] + 1, labels.shape[1])

    def loss(values: Any) -> tuple[float, Any]:
        weights = values.reshape(shape).astype(np.float32)
        margins = signs * predict_logits(weights, inputs)
        slopes = -signs * expit(-margins) * known
        gradient = np.vstack([inputs.T @ slopes + PENALTY * weights[:-1], slopes.sum(0)])
        value = (np.logaddexp(0, -margins) * known).sum() + PENALTY / 2 * (weights[:-1] ** 2).sum()
        return float(value), gradient.ravel().astype(np.float64)

    start = np.zeros(shape).ravel()
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 100})
    weights: Floats = found.x.reshape(shape).astype(np.float32)
    return weights


def predict_logits(weights: Floats, inputs: Floats) -> Floats:
    logits: Floats = inputs @ weights[:-1] + weights[-1]
    return logits


def predict(weights: Floats, inputs: Floats) -> Floats:
    probs: Floats = expit(predict_logits(weights, inputs))
    return probs


def saved(args: argparse.Namespace, random: Floats, own: Floats) -> str:
    """Return how many fewer labels a way needs than random choice, at its last round."""
    goal = float(own.mean(0)[-1])
    reached = np.maximum.accumulate(random.mean(0))
    needs = args.start + args.step * np.arange(len(reached))
    used = args.start + args.step * (own.shape[1] - 1)
    if goal > reached[-1]:
        return f"more than {1 - used / needs[-1]:.0%}"
    return f"{1 - used / np.interp(goal, reached, needs):.0%}"


def report(name: str, values: Floats, words: str = "") -> None:
    means = " ".join(f"{100 * value:.1f}" for value in values.mean(0))
    print(f"{name:24} {means} (sd {100 * values[:, -1].std(ddof=1):.1f})  {words}", flush=True)


if __name__ == "__main__":
    main()
