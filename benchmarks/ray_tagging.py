"""`mltr predict` on this machine with and without `--engine ray`, with the same number of cores.

    python benchmarks/ray_tagging.py runs/mine PHOTOS --images 5000

Alternately predicts from files to a finished Parquet file with its journal: in this process with
`--threads`, and in as many processes of Ray with one thread each. The start of Ray, including
loading the network there, is timed separately. The rows of both are compared.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from tagging import copy_photos, timed
from timing import about, spread

from mltr.files.writing import write_figures
from mltr.predict import command as predict
from mltr.predict import tagging
from mltr.predict.inputs import Inputs, Survey
from mltr.predict.on_ray import Cluster, on_cluster
from mltr.predict.predictor import load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="a bundle")
    parser.add_argument("photos", nargs="+", help="folders of photos")
    parser.add_argument("--images", type=int, default=5000, help="images per round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", metavar="FILE", help="write the figures as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    os.environ["OMP_NUM_THREADS"] = "1"  # for Ray's processes; this one already has its threads
    with tempfile.TemporaryDirectory() as folder:
        figures = compare(Path(folder), args)
    if args.out:
        machine = about(images=args.images, rounds=args.rounds)
        write_figures(args.out, {"about": machine} | figures)


def compare(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    copy_photos(args.photos, folder / "photos", args.images)
    predictor = load(args.run, "cpu")
    parser = argparse.ArgumentParser()
    predict.add_arguments(parser)

    def tag(name: str, cluster: Cluster | None) -> None:
        words = ["", str(folder / "photos"), "--out", str(folder / name), "--overwrite"]
        inputs = Inputs([str(folder / "photos")])
        tagging.tag(predictor, inputs, Survey(inputs), parser.parse_args(words), cluster)

    began = time.perf_counter()
    rounds = []
    with on_cluster(args.run, predictor, "cpu", args.threads, None, notes=True) as cluster:
        start_s = time.perf_counter() - began
        for _ in range(args.rounds + 1):  # the first round is warm-up
            plain_s, _ = timed(lambda: tag("plain.parquet", None))
            ray_s, _ = timed(lambda: tag("ray.parquet", cluster))
            rounds.append((plain_s, ray_s))
            print(
                f"plain {args.images / plain_s:.1f}/s, Ray {args.images / ray_s:.1f}/s", flush=True
            )
    plain, on_ray = zip(*rounds[1:], strict=True)
    share = spread([p / r for p, r in zip(plain, on_ray, strict=True)])
    largest = difference(folder / "plain.parquet", folder / "ray.parquet")
    print(
        f"Ray has {share['median']:.1%} ({share['low']:.1%}..{share['high']:.1%}) of the plain "
        f"rate; it starts in {start_s:.1f} s; same rows, probabilities within {largest:.1g}"
    )
    return {
        "share": share, "start_s": start_s, "largest_difference": largest,
        "plain_images_per_s": args.images / median(plain),
        "ray_images_per_s": args.images / median(on_ray),
    }  # fmt: skip


def difference(first: Path, second: Path) -> float:
    """Return the maximum difference of probabilities; raises `ValueError` if rows differ."""
    tables = pq.read_table(first), pq.read_table(second)
    for name in ("path", "labels", "error"):
        if tables[0][name].to_pylist() != tables[1][name].to_pylist():
            raise ValueError(f"column {name} differs")
    classes = tables[0].column_names[4:]
    probs = [np.column_stack([table[name].to_numpy() for name in classes]) for table in tables]
    return float(np.nanmax(np.abs(probs[0] - probs[1])))


if __name__ == "__main__":
    main()
