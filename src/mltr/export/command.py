"""`mltr export`: write one file that runs elsewhere, verified against the original network."""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.export import ExportedProgram

from mltr import __version__
from mltr.data.preprocess import Pixels, Preprocess
from mltr.data.records import ImageSource, Labels
from mltr.errors import BrokenImage, MltrError, UsageError, counted
from mltr.evaluation.open_run import open_scored
from mltr.files.download import HUB_PREFIX, first_line
from mltr.files.writing import to_json, write_atomically
from mltr.metrics import evaluate
from mltr.predict.engines import PROB_TOLERANCE
from mltr.predict.exported import (
    CONFIG_ENTRY,
    CONFIG_KEY,
    INPUT,
    OUTPUT,
    load_onnx,
    load_program,
    require,
)
from mltr.predict.graph import trace
from mltr.predict.inputs import Inputs
from mltr.weights.bundle import Bundle, TorchNetwork, load_bundle
from mltr.weights.metadata import to_probs

if TYPE_CHECKING:
    import onnx

    from mltr.predict.predictor import Network

Floats = NDArray[np.float32]

SUFFIX = {"onnx": ".onnx", "torch": ".pt2"}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
PRECISIONS = {"onnx": ("fp32", "fp16", "int8"), "torch": ("fp32", "fp16", "bf16")}
LARGEST_ONNX = 2**31 - 1  #: maximum bytes of a protobuf message

MOST_IMAGES = 256  #: maximum number of images for the check, and for calibration
BATCH = 32  #: batch size of the check and its timing
LOGIT_TOLERANCE = 1e-4  #: fp32: maximum deviation of logits, relative to the largest if above 1


def write_program(program: ExportedProgram, path: Path, config: Mapping[str, Any]) -> None:
    """Write a .pt2 file that contains the config."""
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files={CONFIG_ENTRY: to_json(config)})


def to_onnx(program: ExportedProgram) -> onnx.ModelProto:
    """Return the program as an ONNX graph; raises `MltrError` if ONNX can't express it."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    try:
        with _quiet():
            found = torch.onnx.export(
                program, input_names=[INPUT], output_names=[OUTPUT], dynamo=True, verbose=False
            )
    except torch.onnx.OnnxExporterError as error:
        raise MltrError(f"can't be exported to ONNX: {first_line(error)}") from error
    assert found is not None
    ClearMetadataAndDocStringPass()(found.model)  # removes stack traces with local paths
    return found.model_proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings and logs of the exporter and the quantiser."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def write_onnx(model: onnx.ModelProto, path: Path, config: Mapping[str, Any]) -> None:
    """Write an ONNX file that contains the config."""
    import onnx

    if model.ByteSize() > LARGEST_ONNX:
        raise MltrError(
            f"{model.ByteSize() / 1e9:.1f} GB don't fit into one ONNX file (2 GB at most): use "
            "--precision fp16 or --to torch"
        )
    onnx.helper.set_model_props(model, {CONFIG_KEY: to_json(config)})
    path.write_bytes(model.SerializeToString())


# -- images for the check ----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Photos:
    """Images for the check of a file and for its calibration."""

    pixels: Pixels  #: images of the check, [N, S, S, 3]
    calibration: Pixels  #: [M, S, S, 3]; empty if there are no real images
    source: str  #: origin of `pixels`, in words
    targets: Labels | None = None  #: [N, K]; None if unknown


def find_photos(
    run: str, bundle: Bundle, images: str | None, overrides: Sequence[str] = ()
) -> Photos:
    """Return images of a folder, or of the run's own source, or noise if that can't be opened.

    Raises `MltrError` for a folder without readable images, or if a source chosen by `overrides`
    can't be opened.
    """
    if images is not None:
        paths = list(Inputs([images]))
        pixels, kept = _read(_spread(paths, 2 * MOST_IMAGES), bundle.preprocess)
        if not kept:
            raise MltrError(f"{images}: none of {len(paths)} images can be read")
        # A single image serves both purposes.
        return Photos(pixels[::2], pixels[1::2] if len(kept) > 1 else pixels, f"of {images}")
    try:
        splits = open_scored(run, overrides).splits
        records = _spread(splits.val.records or splits.test.records, MOST_IMAGES)
        pixels, kept = _read([record.image for record in records], bundle.preprocess)
        if not kept:
            raise MltrError("none of the run's validation images can be read")
    except MltrError as error:
        if overrides:
            raise
        side = bundle.preprocess.image_size
        made_up = _make_up(16, side)
        reason = f"of noise, because the run's own can't be opened ({error}); give --images FOLDER"
        return Photos(made_up, np.zeros((0, side, side, 3), np.uint8), reason)
    learnt_from = _spread(splits.train.records, MOST_IMAGES)
    calibration, _ = _read([record.image for record in learnt_from], bundle.preprocess)
    targets = np.stack([records[index].labels for index in kept])
    return Photos(pixels, calibration, "that the run was validated on", targets)


def _spread(items: Sequence[Any], most: int) -> list[Any]:
    """Return at most `most` items, evenly spread over all of them."""
    indices = np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)
    return [items[index] for index in indices]


def _read(sources: Sequence[ImageSource], preprocess: Preprocess) -> tuple[Pixels, list[int]]:
    """Return the pixels of the readable images, and their indices."""

    def read(source: ImageSource) -> Pixels | None:
        try:
            return preprocess.read(source)
        except BrokenImage:
            return None

    with ThreadPoolExecutor() as pool:
        found = list(pool.map(read, sources))
    kept = [index for index, pixels in enumerate(found) if pixels is not None]
    side = preprocess.image_size
    shape = (len(kept), side, side, 3)
    return np.array([found[index] for index in kept], np.uint8).reshape(shape), kept


def _make_up(count: int, side: int) -> Pixels:
    """Return smooth noise, which has edges and colours like photos."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 8, 8, 3), np.uint8)
    return np.stack([np.asarray(Image.fromarray(each).resize((side, side))) for each in coarse])


# -- the check ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """Deviations of an exported file from the original network."""

    images: int
    source: str  #: origin of the images, in words
    largest_logit: float  #: maximum absolute logit
    logit_deviation: float  #: maximum absolute difference
    prob_deviation: float  #: maximum absolute difference
    mean_prob_deviation: float  #: mean absolute difference
    map_before: float | None  #: `map` of the original on these images; None without labels
    map_after: float | None  #: `map` of the file
    seconds: tuple[float, ...] | None = None  #: per image in onnxruntime: fp32, int8


def check(exported: Network, bundle: Bundle, photos: Photos, precision: str) -> Check:
    """Compare a file's network with the original on the same pixels, in batches of several sizes.

    Raises `MltrError` if logits or probabilities differ by more than the precision explains.
    """
    original = TorchNetwork(bundle.model, torch.device("cpu"))
    expected = run_network(original, photos.pixels, bundle.preprocess)
    found = run_network(exported, photos.pixels, bundle.preprocess)
    probs = [to_probs(logits, bundle.calibration) for logits in (expected, found)]
    moved = np.abs(probs[1] - probs[0])
    before, after = (
        None if photos.targets is None else evaluate(each, photos.targets)["map"] for each in probs
    )
    result = Check(
        images=len(photos.pixels),
        source=photos.source,
        largest_logit=float(np.abs(expected).max()),
        logit_deviation=float(np.abs(found - expected).max()),
        prob_deviation=float(moved.max()),
        mean_prob_deviation=float(moved.mean()),
        map_before=before,
        map_after=after,
    )
    _refuse_deviation(result, precision)
    return result


def run_network(network: Network, pixels: Pixels, preprocess: Preprocess) -> Floats:
    """Return logits [N, K] of pixels [N, S, S, 3]; the first image is a batch of its own."""
    takes_pixels = getattr(network, "takes_pixels", False)
    cuts = sorted({0, *range(1, len(pixels), BATCH), len(pixels)})
    parts = [pixels[start:end] for start, end in pairwise(cuts)]
    return np.concatenate([network(as_input(part, preprocess, takes_pixels)) for part in parts])


def as_input(pixels: Pixels, preprocess: Preprocess, takes_pixels: bool) -> NDArray[Any]:
    """Return pixels [B, S, S, 3] in the input format of a network."""
    return pixels if takes_pixels else preprocess.scale(pixels)


def seconds_per_image(
    networks: Sequence[Network], batches: Sequence[NDArray[Any]], seconds: float = 3.0
) -> tuple[float, ...]:
    """Return each network's seconds per image of its batch: the median of many rounds.

    The networks alternate for about `seconds` in total, so that noise affects all of them.
    """
    pairs = list(zip(networks, batches, strict=True))
    for network, batch in pairs:
        network(batch)
    rounds: list[list[float]] = []
    end = time.perf_counter() + seconds
    while len(rounds) < 5 or time.perf_counter() < end:
        rounds.append([_seconds(network, batch) for network, batch in pairs])
    return tuple(float(median) for median in np.median(rounds, axis=0))


def _seconds(network: Network, batch: NDArray[Any]) -> float:
    start = time.perf_counter()
    network(batch)
    return (time.perf_counter() - start) / len(batch)


def _refuse_deviation(result: Check, precision: str) -> None:
    if precision == "fp32":
        allowed = LOGIT_TOLERANCE * max(1, result.largest_logit)
        fits = result.logit_deviation <= allowed  # False for nan
        words = f"logits differ by up to {result.logit_deviation:.2g} ({allowed:.2g} allowed)"
    else:
        most, mean = PROB_TOLERANCE[precision]
        fits = result.prob_deviation <= most and result.mean_prob_deviation <= mean
        words = (
            f"probabilities differ by up to {result.prob_deviation:.2g} and by "
            f"{result.mean_prob_deviation:.2g} on average ({most:g} and {mean:g} allowed)"
        )
    if not fits:
        raise MltrError(
            f"not written: on {result.images} images {result.source}, {words} from the run's own"
        )


# -- the command -------------------------------------------------------------------------------


def export(
    run: str,
    out: str | Path,
    *,
    to: str = "onnx",
    precision: str = "fp32",
    takes_pixels: bool = True,
    images: str | None = None,
    overrides: Sequence[str] = (),
) -> Check:
    """Write a run's network, labels and preprocessing to one file, and check it.

    `images` is a folder of photos for the check (default: the run's validation images). Raises
    `MltrError`, without writing, if the file's network deviates from the run's.
    """
    if to == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            require(package, "export", "exporting to ONNX")
    bundle = load_bundle(run)
    if not bundle.classes:
        raise MltrError(f"{run} has no labels yet: train it before exporting it")
    photos = find_photos(run, bundle, images, overrides)
    if precision == "int8" and not len(photos.calibration):
        raise UsageError(
            f"int8 needs real images for calibration; the images here are {photos.source}"
        )
    program = trace(bundle, takes_pixels, DTYPES.get(precision, torch.float32), to)
    entry = {
        "input": "uint8" if takes_pixels else "float32",
        "precision": precision,
        "mltr_version": __version__,
        "torch_version": torch.__version__,
    }
    config = bundle.config | {"export": entry}
    found: list[Check] = []

    def write(temporary: Path) -> None:
        if to == "torch":
            write_program(program, temporary, config)
            loaded = load_program(temporary, torch.device("cpu"))[0]
            found.append(check(loaded, bundle, photos, precision))
            return
        model, speeds = to_onnx(program), None
        if precision == "int8":
            write_onnx(model, temporary, config)
            plain = load_onnx(temporary, "cpu")[0]
            model = _quantize(model, bundle, photos.calibration, takes_pixels)
        write_onnx(model, temporary, config)
        network = load_onnx(temporary, "cpu")[0]
        result = check(network, bundle, photos, precision)
        if precision == "int8":
            batch = as_input(photos.pixels[:BATCH], bundle.preprocess, takes_pixels)
            speeds = seconds_per_image([plain, network], [batch, batch])
        found.append(replace(result, seconds=speeds))

    write_atomically(out, write)
    return found[0]


def _quantize(
    model: onnx.ModelProto, bundle: Bundle, pixels: Pixels, takes_pixels: bool
) -> onnx.ModelProto:
    from mltr.export.int8 import quantize

    with _quiet():
        return quantize(model, as_input(pixels, bundle.preprocess, takes_pixels))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``mltr export``."""
    add = parser.add_argument
    add("bundle", metavar="RUN", help="a training run, or a folder with weights")
    add(
        "--to",
        choices=["onnx", "torch"],
        default="onnx",
        help="ONNX, for onnxruntime and most other engines (default), or a torch.export program",
    )
    add(
        "--out", metavar="FILE", help="default: in RUN, model.onnx, model.int8.onnx, model.pt2, ..."
    )
    add(
        "--precision",
        choices=["fp32", "fp16", "bf16", "int8"],
        default="fp32",
        help="precision of the computation; int8 (ONNX) is calibrated on real images, bf16 is for "
        "torch",
    )
    add(
        "--input",
        choices=["uint8", "float32"],
        default="uint8",
        help="input of the file: pixels [B, S, S, 3], which it scales itself (default), or scaled "
        "and normalised images [B, 3, S, S]",
    )
    add(
        "--images",
        metavar="FOLDER",
        help="photos to verify the file with (default: the run's validation images)",
    )
    add("--overwrite", action="store_true", help="replace an existing file")


def run(args: argparse.Namespace, overrides: Sequence[str] = ()) -> int:
    """Export a run to a checked file and describe it."""
    if args.precision not in PRECISIONS[args.to]:
        raise UsageError(
            f"--to {args.to} supports {', '.join(PRECISIONS[args.to])}, not {args.precision}"
        )
    out = _choose_out(args)
    result = export(
        args.bundle,
        out,
        to=args.to,
        precision=args.precision,
        takes_pixels=args.input == "uint8",
        images=args.images,
        overrides=overrides,
    )
    print(f"{out}: {args.precision}, {out.stat().st_size / 1e6:.1f} MB, takes {args.input}")
    print("\n".join(f"  {line}" for line in tell(result)))
    print(f"To use it: mltr predict {out} PHOTOS")
    return 0


def _choose_out(args: argparse.Namespace) -> Path:
    suffix = SUFFIX[args.to]
    if args.out is None and args.bundle.startswith(HUB_PREFIX):
        raise UsageError("--out FILE is needed for a bundle from the Hub")
    infix = "" if args.precision == "fp32" else f".{args.precision}"
    out = Path(args.out or Path(args.bundle) / f"model{infix}{suffix}")
    if out.suffix != suffix:
        raise UsageError(f"--out {out}: with --to {args.to}, the name must end in {suffix}")
    if out.exists() and not args.overwrite:
        raise UsageError(f"{out} already exists: choose another --out, or use --overwrite")
    return out


def tell(result: Check) -> list[str]:
    """Return the result of a check as lines of text."""
    lines = [
        f"checked on {counted(result.images, 'image')} {result.source}: logits differ by at most "
        f"{result.logit_deviation:.2g}, probabilities by {result.prob_deviation:.2g} "
        f"({result.mean_prob_deviation:.2g} on average)"
    ]
    if result.map_before is not None and result.map_after is not None:
        lines.append(
            f"map on them: {100 * result.map_after:.2f} (run: {100 * result.map_before:.2f})"
        )
    if result.seconds is not None:
        plain, own = (1000 * each for each in result.seconds)
        lines.append(
            f"{plain / own:.2f} times as fast as fp32 in onnxruntime here: {own:.2f} ms per image "
            f"instead of {plain:.2f}, in batches of {min(BATCH, result.images)}"
        )
    return lines
