"""Checks an exported file against the original network, on photos."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mltr.data.preprocess import Pixels, Preprocess
from mltr.data.records import ImageSource, Labels
from mltr.errors import BrokenImage, MltrError, UsageError, counted
from mltr.evaluation.open_run import open_scored
from mltr.metrics import evaluate
from mltr.predict.engines import PROB_TOLERANCE
from mltr.predict.inputs import Inputs
from mltr.weights.bundle import Bundle, TorchNetwork
from mltr.weights.metadata import to_probs

if TYPE_CHECKING:
    from mltr.predict.predictor import Network

Floats = NDArray[np.float32]

MOST_IMAGES = 256  #: maximum number of images for the check, and for calibration
BATCH = 32  #: batch size of the check and its timing
LOGIT_TOLERANCE = 1e-4  #: fp32: maximum deviation of logits, relative to the largest if above 1


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
        if overrides:
            raise UsageError(f"--images {images} and {overrides[0]} both give photos: use one")
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
