"""Engines for the same networks, side by side: images per second, and `map` of the same photos.

    mltr export RUN && mltr export RUN --precision int8
    python benchmarks/engines.py RUN [RUN ...] --data.root PHOTOS --out runs/engines.json

Files that are not there are left out, and engines that can't run a network. All engines take turns
on the same test photos, with the same number of threads; images/s are of the median round, and so
is the ratio to torch in float32 of the same round. bf16 takes part where the processor has it.
There, `--compiled` adds torch.compile with frozen weights in bf16, which may take minutes to begin.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from statistics import median
from typing import Any

import numpy as np
import torch
from timing import about, alternate, spread

from mltr.data.preprocess import Pixels
from mltr.errors import MltrError
from mltr.evaluation.open_run import OpenRun, open_scored
from mltr.files.writing import write_figures
from mltr.machine.memory import keep_freed_memory
from mltr.machine.precision import computes_in_bf16
from mltr.metrics import evaluate
from mltr.predict.engines import Floats, Run, on_pixels
from mltr.predict.exported import load_onnx, run_program
from mltr.predict.graph import Deployed, trace
from mltr.predict.openvino import convert, load_openvino, make_network
from mltr.weights.bundle import TorchNetwork
from mltr.weights.metadata import to_probs

CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", metavar="RUN", nargs="+")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--images", type=int, default=400, help="test photos that map is of")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--out", metavar="FILE", help="write the figures there as JSON")
    args, overrides = parser.parse_known_args()
    keep_freed_memory(of_all_threads=True)  # as `mltr predict` does
    # Read by torch when it was imported, by the others when they load a network.
    os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    versions = {name: version(name) for name in ("onnxruntime", "openvino")}
    machine = about(batch_size=args.batch_size, rounds=args.rounds, **versions)
    print(*(f"{key}: {value}" for key, value in machine.items()), sep=", ")
    rows = []
    for path in args.runs:
        rows += compare(path, args, overrides)
    if args.out:
        write_figures(args.out, {"about": machine, "rows": rows})


def compare(path: str, args: argparse.Namespace, overrides: list[str]) -> list[dict[str, Any]]:
    """Print and return a row for each engine."""
    scored = open_scored(path, overrides)
    test = scored.splits.test
    records = test.records[: args.images]
    preprocess = scored.bundle.preprocess
    pixels = np.stack([preprocess.read(record.image) for record in records])
    targets = np.stack([record.labels for record in records])
    name = f"{scored.bundle.config['model']['name']}, {preprocess.image_size} px"
    print(f"\n{name} ({path}): {len(pixels)} test photos")
    engines: dict[str, Run] = {}
    begun: dict[str, float] = {}
    batch = pixels[np.arange(args.batch_size) % len(pixels)]
    for engine, make in makers(scored, args.batch_size, args.compiled):
        start = time.perf_counter()
        try:
            engines[engine] = make()
        except MltrError as error:
            print(f"{engine:<20} {error}")
            continue
        engines[engine](batch)
        begun[engine] = time.perf_counter() - start
    jobs: list[Callable[[], Floats]] = [lambda each=each: each(batch) for each in engines.values()]
    seconds = alternate(jobs, args.rounds)
    rows = []
    for (engine, network), taken in zip(engines.items(), seconds, strict=True):
        ratios = [own / each for own, each in zip(seconds[0], taken, strict=True)]
        row = {
            "network": name, "engine": engine,
            "images_per_s": args.batch_size / median(taken),
            "over_torch_fp32": spread(ratios),
            "map": 100 * score(network, pixels, targets, scored, args.batch_size),
            "begins_after_s": begun[engine],
        }  # fmt: skip
        rows.append(row)
        ratio = row["over_torch_fp32"]
        print(
            f"{engine:<20} {row['images_per_s']:8.1f} img/s  {ratio['median']:6.2f} "
            f"({ratio['low']:.2f}..{ratio['high']:.2f})  map {row['map']:.2f}  "
            f"begins after {row['begins_after_s']:.1f} s",
            flush=True,
        )
    return rows


def makers(
    scored: OpenRun, batch_size: int, compiled: bool
) -> Iterator[tuple[str, Callable[[], Run]]]:
    """Yield the name of each engine, and what makes it."""
    bundle = scored.bundle
    files = {"fp32": scored.path / "model.onnx", "int8": scored.path / "model.int8.onnx"}
    yield "torch fp32", lambda: on_pixels(TorchNetwork(bundle.model, CPU), bundle.preprocess)
    has_bf16 = computes_in_bf16(CPU)
    if has_bf16:
        yield "torch bf16", lambda: in_torch(scored)
    if has_bf16 and compiled:
        yield "torch bf16 compiled", lambda: in_torch(scored, compiled=True)
    for precision, file in files.items():
        if file.is_file():
            yield f"onnxruntime {precision}", lambda file=file: load_onnx(file, "cpu")[0]
    graph = convert(trace(bundle, True, torch.float32, "openvino"))
    for precision in ("fp32", "bf16") if has_bf16 else ("fp32",):
        yield (
            f"openvino {precision}",
            lambda precision=precision: make_network(
                graph, batch_size, True, scored.path, precision
            ),
        )
    if files["int8"].is_file():
        yield "openvino int8", lambda: load_openvino(files["int8"], None, batch_size)[0]


def in_torch(scored: OpenRun, compiled: bool = False) -> Run:
    layout: Any = torch.channels_last
    module: Any = Deployed(scored.bundle, True, torch.bfloat16).to(memory_format=layout).eval()
    if compiled:
        torch._inductor.config.freezing = True
        module = torch.compile(module)
    return lambda pixels: run_program(module, pixels, CPU)


def score(network: Run, pixels: Pixels, targets: Any, scored: OpenRun, size: int) -> float:
    """Return map of the photos."""
    parts = [network(pixels[start : start + size]) for start in range(0, len(pixels), size)]
    probs = to_probs(np.concatenate(parts), scored.bundle.calibration)
    return evaluate(probs, targets)["map"]


if __name__ == "__main__":
    main()
