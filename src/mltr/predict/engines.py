"""Which engine runs a network: the one asked for, or the fastest that agrees on the job's photos.

docs/engines.md says what each of them is worth.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mltr.data.preprocess import Pixels, Preprocess
from mltr.errors import MltrError, UsageError
from mltr.predict.openvino import OpenVinoNetwork, is_installed
from mltr.weights.metadata import Calibration, read_calibration, to_probs

if TYPE_CHECKING:
    import torch

    from mltr.predict.predictor import Network, Predictor
    from mltr.weights.bundle import Bundle

Floats = NDArray[np.float32]
Run = Callable[[Pixels], Floats]  #: from pixels uint8 [B, S, S, 3] to logits [B, K]

log = logging.getLogger(__name__)

#: How far probabilities may move in another precision, at most and on average. In int8, Lite0 keeps
#: its map at 0.036 on average, and loses 1.3 at 0.077.
PROB_TOLERANCE = {"fp16": (0.02, 0.002), "bf16": (0.1, 0.01), "int8": (0.5, 0.05)}
TRIAL_IMAGES = 64  #: photos on which engines are compared, at least
LONG_S = 30.0  #: seconds of work that are worth a trial, which takes up to ten
TRIALS = 3  #: times as long as a trial, at least
PAUSE_S = 10.0  #: the longest trial amid answers that somebody may wait for
FAILURES = (MltrError, RuntimeError)  #: of an engine that can't run a network
GAIN = 1.1  #: an engine must be so many times as fast as the network's own


class Choosing:
    """A network that lets the fastest engine run it, once that has agreed with it on some photos.

    The first photos go through `reference`. When there are enough of them, and `images_left` says
    that the job is long, the other engines are made and get the same photos.
    """

    takes_pixels = True

    def __init__(
        self,
        reference: Network,
        preprocess: Preprocess,
        calibration: Calibration | None,
        makers: Mapping[str, Callable[[], Run]],
        tolerance: tuple[float, float] = PROB_TOLERANCE["bf16"],
    ) -> None:
        self.reference = reference
        self.calibration = calibration
        self.tolerance = tolerance
        #: photos still to come, None if that is unknown
        self.images_left: Callable[[], float | None] = lambda: None
        self._makers = dict(makers)
        self._made: dict[str, Run] = {}
        self._own = on_pixels(reference, preprocess)
        self._chosen: Run | None = None if makers else self._own
        self._lock = threading.Lock()
        self._kept: list[tuple[Pixels, Floats]] = []  # photos of the trial, and their logits
        self._spent_s = self._seconds_per_image = 0.0

    @property
    def fingerprint(self) -> str:
        """The reference's: results of one engine hold for the others."""
        return self.reference.fingerprint

    def __call__(self, images: Pixels) -> Floats:
        """Return logits float32 [B, K] of images uint8 [B, S, S, 3]."""
        if self._chosen is not None:
            return self._chosen(images)
        start = time.perf_counter()
        logits = self._own(images)
        took_s = time.perf_counter() - start
        if self._lock.acquire(blocking=False):  # else another thread is at it
            try:
                self._note(images, logits, took_s)
            finally:
                self._lock.release()
        return logits

    def prepare(self) -> None:
        """Make all engines now rather than when they are tried, which takes some seconds."""
        for name, make in self._makers.items():
            try:
                self._made[name] = make()
            except FAILURES as error:
                log.info("the network can't be run by %s: %s", name, error)
        self._makers = {}

    def _note(self, images: Pixels, logits: Floats, took_s: float) -> None:
        if self._chosen is not None:
            return
        self._spent_s += took_s
        self._seconds_per_image = took_s / len(images)
        if sum(len(pixels) for pixels, _ in self._kept) < TRIAL_IMAGES:
            self._kept.append((images, logits))
        elif self._is_long():
            self.prepare()
            self._chosen = self._choose()
            self._kept.clear()
            self._made.clear()

    def _is_long(self) -> bool:
        """Tell whether a trial pays; a job of unknown length may be as long again as it was.

        The trial runs the photos that were kept, and the largest batch once more, by each engine.
        """
        sizes = [len(pixels) for pixels, _ in self._kept]
        images = (sum(sizes) + max(sizes)) * (1 + len(self._makers or self._made))
        trial_s = images * self._seconds_per_image
        left = self.images_left()
        if left is None:  # somebody may be waiting for each answer
            return self._spent_s > LONG_S and trial_s < PAUSE_S
        return left * self._seconds_per_image > max(LONG_S, TRIALS * trial_s)

    def _choose(self) -> Run:
        """Return the fastest of the engines that agree with the reference."""
        own_s = self._time(self._own)
        best, best_s, best_name = self._own, own_s / GAIN, ""
        for name, engine in self._made.items():
            try:
                self._check(engine)
                seconds = self._time(engine)
            except FAILURES as error:
                log.info("%s isn't used: %s", name, error)
                continue
            if seconds < best_s:
                best, best_s, best_name = engine, seconds, name
        if best_name:
            log.info(
                "%s runs the network from here on: %.0f images/s rather than %.0f",
                best_name, 1 / best_s, 1 / own_s,
            )  # fmt: skip
        return best

    def _check(self, engine: Run) -> None:
        """Raise `MltrError` if an engine disagrees on the photos of the trial."""
        found = np.concatenate([engine(pixels) for pixels, _ in self._kept])
        expected = np.concatenate([logits for _, logits in self._kept])
        moved = np.abs(to_probs(found, self.calibration) - to_probs(expected, self.calibration))
        most, mean = self.tolerance
        if not (moved.max() <= most and moved.mean() <= mean):  # NaN too
            raise MltrError(
                f"its probabilities differ by up to {moved.max():.2g} and by {moved.mean():.2g} on "
                f"average ({most:g} and {mean:g} allowed)"
            )

    def _time(self, engine: Run) -> float:
        """Return the seconds that an engine takes for an image of the largest batch."""
        largest = max((pixels for pixels, _ in self._kept), key=len)
        start = time.perf_counter()
        engine(largest)
        return (time.perf_counter() - start) / len(largest)


def on_pixels(network: Network, preprocess: Preprocess) -> Run:
    """Return a network as a function of pixels uint8 [B, S, S, 3], whatever it takes itself."""
    if getattr(network, "takes_pixels", False):
        return network
    return lambda pixels: network(preprocess.scale(pixels))


def bundle_engine(
    engine: str, predictor: Predictor, bundle: Bundle, device: torch.device
) -> Network:
    """Return the network of a bundle as one of `ENGINES` runs it.

    Raises `UsageError` for an engine that can't run a bundle there or isn't installed.
    """
    if engine == "onnx":
        raise UsageError(
            "onnxruntime runs only exported files: write one by `mltr export RUN`, and give that"
        )
    if engine == "torch":
        return predictor.network
    if engine == "openvino":
        return _in_openvino(predictor, bundle)
    from mltr.machine.precision import choose_precision

    makers: dict[str, Callable[[], Run]] = {}
    if choose_precision("auto", device) == "bf16":
        makers["torch in bf16"] = lambda: _in_bf16(bundle, device)
    if device.type == "cpu" and is_installed():
        makers["openvino"] = lambda: _in_openvino(predictor, bundle)
    return Choosing(predictor.network, predictor.preprocess, predictor.calibration, makers)


def file_engine(
    engine: str, path: str | Path, device: str | None, batch_size: int
) -> tuple[Network, dict[str, Any]]:
    """Return the network of an ONNX file as one of `ENGINES` runs it, and its checked config.

    Raises `UsageError` for an engine that can't run the file or isn't installed.
    """
    from mltr.predict.exported import load_onnx
    from mltr.predict.openvino import load_openvino

    if engine == "torch":
        raise UsageError(f"torch can't run {path}: use the run, or --engine onnx")
    may_choose = engine == "auto" and is_installed() and device in (None, "cpu")
    if engine == "openvino" or (may_choose and find_spec("onnxruntime") is None):
        return load_openvino(path, device, batch_size)
    network, config = load_onnx(path, device)
    if not may_choose:
        return network, config
    preprocess = Preprocess.from_dict(config["preprocess"])
    precision = "int8" if config["export"].get("precision") == "int8" else "bf16"
    choosing = Choosing(
        network,
        preprocess,
        read_calibration(config),
        {"openvino": lambda: on_pixels(load_openvino(path, None, batch_size)[0], preprocess)},
        PROB_TOLERANCE[precision],
    )
    return choosing, config


def _in_bf16(bundle: Bundle, device: torch.device) -> Run:
    """Return the network with its weights in bf16."""
    import torch

    from mltr.predict.exported import run_program
    from mltr.predict.graph import Deployed

    layout: Any = torch.channels_last  # which convolutions are fast in
    module = Deployed(bundle, True, torch.bfloat16).to(device).to(memory_format=layout).eval()
    return lambda pixels: run_program(module, pixels, device)


def _in_openvino(predictor: Predictor, bundle: Bundle) -> OpenVinoNetwork:
    import torch

    from mltr.predict.graph import trace
    from mltr.predict.openvino import convert, make_network

    graph = convert(trace(bundle, True, torch.float32, "openvino"))
    return make_network(graph, predictor.batch_size, True, predictor.network)
