"""From images to labels: the only inference path.

Torch isn't imported: exported networks need none.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar, cast, overload

import numpy as np
from numpy.typing import NDArray

from mltr.data.hierarchy import ancestors, implied
from mltr.data.images import MAX_PIXELS
from mltr.data.preprocess import Pixels, Preprocess
from mltr.errors import BrokenImage, MltrError, UsageError
from mltr.machine.threads import on_one_thread, settle_threads
from mltr.predict.options import DEFAULT_THRESHOLD, ENGINES, MIRROR, TILES
from mltr.weights.metadata import (
    Calibration,
    holds_onnx,
    read_calibration,
    read_categories,
    to_probs,
)

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import nn

    from mltr.data.images import Region
    from mltr.data.records import ImageSource
    from mltr.weights.bundle import Bundle, TorchNetwork

Floats = NDArray[np.float32]
Source = TypeVar("Source")

PASSED_BATCHES = 64  #: a batch of images waits for no more than so many batches of what is known
EXPORTED = (".onnx", ".pt2")  #: endings of the files that `mltr export` writes


class Network(Protocol):
    """Anything that computes logits float32 [B, K] from preprocessed images float32 [B, 3, S, S].

    If `takes_pixels` is True, it gets uint8 [B, S, S, 3] and scales them itself.
    """

    def __call__(self, images: NDArray[Any]) -> Floats:
        """Return the logits."""
        ...

    @property
    def fingerprint(self) -> str:
        """What tells these weights from others: results of earlier runs hold for the same alone."""
        ...


@dataclass(frozen=True, eq=False)
class Prediction:
    """The prediction for one image."""

    probs: Floats  #: [K]
    classes: tuple[str, ...]  #: K names
    thresholds: Floats  #: [K]
    hierarchy: Mapping[str, str] = field(default_factory=dict)  #: the parent of each child
    chosen: NDArray[np.bool_] | None = None  #: [K], decided before; None: by the thresholds

    @cached_property
    def labels(self) -> list[tuple[str, float]]:
        """The classes at or above their thresholds, with their probabilities, best first.

        A label comes with all that it implies.
        """
        chosen = self._decided
        return [(self.classes[k], float(self.probs[k])) for k in self._order if chosen[k]]

    def top(self, k: int) -> list[tuple[str, float]]:
        """Return the `k` most probable classes, whatever their thresholds, best first."""
        return [(self.classes[index], float(self.probs[index])) for index in self._order[:k]]

    def only(self, indices: Sequence[int]) -> Prediction:
        """Return the same prediction with only some of the classes, whatever implied them."""
        classes = tuple(self.classes[index] for index in indices)
        return replace(
            self,
            probs=self.probs[list(indices)],
            classes=classes,
            thresholds=self.thresholds[list(indices)],
            chosen=self._decided[list(indices)],
        )

    @cached_property
    def _decided(self) -> NDArray[np.bool_]:
        if self.chosen is not None:
            return self.chosen
        own: NDArray[np.bool_] = self.probs >= self.thresholds
        return implied(own, ancestors(self.classes, self.hierarchy))

    @cached_property
    def _order(self) -> list[int]:
        order: list[int] = np.argsort(-self.probs, kind="stable").tolist()
        return order


@dataclass(eq=False)
class Predictor:
    """A network ready to use: call it with images.

    An image is a path, the bytes of an image file, a PIL image, or a uint8 array [H, W, 3] or
    [H, W]. One image gives a `Prediction`; a list gives a list, in the same order.
    """

    network: Network
    classes: tuple[str, ...]
    preprocess: Preprocess
    thresholds: Floats  #: [K], on probabilities; may be changed
    batch_size: int = 32
    calibration: Calibration | None = None  #: how logits become probabilities; None: sigmoid
    categories: tuple[str, ...] | None = None  #: K names of kinds of classes, if they have any
    hierarchy: Mapping[str, str] = field(default_factory=dict)  #: the parent of each child, by name
    views: tuple[str, ...] = ()  #: of `VIEWS`, whose probabilities are averaged with the plain ones

    @overload
    def __call__(self, images: list[Any]) -> list[Prediction]: ...

    @overload
    def __call__(self, images: Any) -> Prediction: ...

    def __call__(self, images: Any) -> Prediction | list[Prediction]:
        """Predict for one image or a list; raises `BrokenImage` for one that can't be read."""
        if not isinstance(images, list | tuple):
            return self.predict_batch(self.look(images)[None])[0]
        predictions = []
        for number, (_, found) in enumerate(predict_paths(self, images), start=1):
            if isinstance(found, BrokenImage):
                raise BrokenImage(f"image {number} of {len(images)}: {found}") from found
            if found is not None:
                predictions.append(found)
        return predictions

    @property
    def fingerprint(self) -> str:
        """Identifies the probabilities of this predictor; thresholds don't matter."""
        parts: tuple[object, ...] = (
            self.network.fingerprint,
            self.classes,
            self.preprocess,
            self.calibration,
        )
        if self.hierarchy:
            parts += (dict(self.hierarchy),)
        if self.views:
            parts += (self.views,)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    @property
    def model(self) -> nn.Module:
        """The PyTorch network, in eval mode; raises `UsageError` for an exported one."""
        return self._torch_network.model

    @property
    def device(self) -> torch.device:
        """Where the PyTorch network is; raises as `model` does."""
        return self._torch_network.device

    @property
    def _torch_network(self) -> TorchNetwork:
        if not self.has_model:
            raise UsageError(
                "an exported network can only predict: use the run that it was exported from"
            )
        return cast("TorchNetwork", getattr(self.network, "reference", self.network))

    @property
    def has_model(self) -> bool:
        """Whether there is a PyTorch network, whatever else runs it for predictions."""
        return hasattr(getattr(self.network, "reference", self.network), "model")

    def predict_batch(self, pixels: Pixels) -> list[Prediction]:
        """Return a prediction for each of the images uint8 [B, S, S, 3].

        Of tiles, [B, 5, S, S, 3], and mirrored views the probabilities are averaged.
        """
        if not self.views:
            probs = to_probs(self.logits(pixels), self.calibration)
            return [self.to_prediction(row) for row in probs]
        looks = pixels.reshape(-1, *pixels.shape[-3:])
        per_image = len(looks) // len(pixels)
        if MIRROR in self.views:
            looks = np.concatenate([looks, looks[:, :, ::-1]])
        starts = range(0, len(looks), self.batch_size)
        logits = [self.logits(looks[start : start + self.batch_size]) for start in starts]
        probs = to_probs(np.concatenate(logits), self.calibration)
        probs = probs.reshape(-1, len(pixels), per_image, probs.shape[-1])
        return [self.to_prediction(row) for row in probs.mean(axis=(0, 2))]

    def logits(self, pixels: Pixels) -> Floats:
        """Return the logits of images uint8 [B, S, S, 3]: float32 [B, K]."""
        from mltr.predict.engines import on_pixels

        return on_pixels(self.network, self.preprocess)(pixels)

    def to_prediction(self, probs: Floats) -> Prediction:
        """Return the prediction for probabilities [K] of one image.

        That of a label is at least that of each label that implies it.
        """
        probs = implied(probs, self._ancestors)
        return Prediction(probs, self.classes, self.thresholds.copy(), self.hierarchy)

    @cached_property
    def _ancestors(self) -> dict[int, list[int]]:
        return ancestors(self.classes, self.hierarchy)

    def look(self, source: Any) -> Pixels:
        """Return what `predict_batch` needs of one image; raises `BrokenImage`."""
        opened = self.open(source) if _is_file(source) else (to_image(source), None)
        return self.resize(*opened)

    def open(
        self, source: ImageSource | str, max_pixels: int = MAX_PIXELS
    ) -> tuple[Image.Image, Region | None]:
        """Open an image file for `resize`; raises `BrokenImage`."""
        return self.preprocess.open(source, max_pixels, TILES in self.views)

    def resize(self, image: Image.Image, place: Region | None = None) -> Pixels:
        """Return uint8 [S, S, 3] of an image, or [5, S, S, 3] if tiles are among the views."""
        way = self.preprocess.tile if TILES in self.views else self.preprocess.resize
        return way(image, place)

    def read(self, source: Any) -> Pixels:
        """Open and resize one image to uint8 [S, S, 3], without views; raises `BrokenImage`."""
        if _is_file(source):
            return self.preprocess.read(source)
        return self.preprocess.resize(to_image(source))


def _is_file(source: Any) -> bool:
    """Whether this is an image yet to be opened: a path, a file's bytes, an image of a split."""
    from PIL import Image

    from mltr.data.records import LazyImage

    kinds = (str, bytes, Path, LazyImage)
    return isinstance(source, kinds) and not isinstance(source, Image.Image)


def to_image(source: Any) -> Image.Image:
    """Return any supported image in RGB; raises `BrokenImage`, or `UsageError` for other types."""
    from PIL import Image

    from mltr.data.images import open_image, to_rgb, told

    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or not (
            source.size and (source.ndim == 2 or (source.ndim == 3 and source.shape[2] in (3, 4)))
        ):
            raise BrokenImage(
                f"array of {source.dtype} {list(source.shape)}: expected uint8 with shape [height, "
                "width, 3] or [height, width]"
            )
        source = Image.fromarray(source)
    if isinstance(source, Image.Image):
        with told(getattr(source, "filename", "") or "image from memory"):
            return to_rgb(source)
    if _is_file(source):
        return open_image(source)
    raise UsageError(
        f"can't predict for a {type(source).__name__}; give a path, bytes, a PIL image, a uint8 "
        "array, or a list of them"
    )


def load(
    path: str | Path, device: str | None = None, batch_size: int = 32, engine: str | None = None
) -> Predictor:
    """Load a bundle, a training run or an exported file for prediction.

    The default device is an accelerator if available. `engine` runs the network: torch (float32),
    onnx, openvino, or auto, the fastest that is installed and agrees on the photos. By default
    torch runs bundles and .pt2 files, and onnxruntime ONNX files, without torch. Raises `MltrError`
    if nothing complete is at `path`, or the device or the engine can't be used.
    """
    if batch_size < 1:
        raise UsageError(f"batch_size={batch_size} must be at least 1")
    from mltr.predict.engines import bundle_engine

    if engine not in (None, *ENGINES):
        raise UsageError(f"engine={engine!r} must be one of {', '.join(ENGINES)}")
    if str(path).endswith(EXPORTED) or holds_onnx(path):
        return _load_exported(path, device, batch_size, engine)
    from mltr.predict.openvino import check_device
    from mltr.weights.bundle import load_bundle

    if engine == "openvino":
        check_device(device)
        device = "cpu"
    chosen = choose_device(device)
    with on_one_thread():  # another may run the network
        bundle = load_bundle(path, chosen)
        if not bundle.classes:
            raise MltrError(
                f"{path} has no labels yet; train from it: mltr train RECIPE --model.init {path}"
            )
        predictor = as_predictor(bundle, chosen, batch_size)
        network = bundle_engine(engine or "torch", predictor, bundle, chosen)
    return replace(predictor, network=network)


def _load_exported(
    path: str | Path, device: str | None, batch_size: int, engine: str | None
) -> Predictor:
    from mltr.predict.engines import file_engine
    from mltr.predict.exported import load_program

    network: Network
    if str(path).endswith(".pt2"):
        if engine in ("onnx", "openvino"):
            raise UsageError(f"only torch can run {path}: leave out --engine {engine}")
        network, config = load_program(path, choose_device(device))
    else:
        network, config = file_engine(engine or "onnx", path, device, batch_size)
    return Predictor(
        network,
        tuple(config["classes"]),
        Preprocess.from_dict(config["preprocess"]),
        fill_thresholds(config["thresholds"], len(config["classes"])),
        batch_size,
        read_calibration(config),
        read_categories(config),
        config.get("hierarchy", {}),
    )


def as_predictor(
    bundle: Bundle, device: torch.device | None = None, batch_size: int = 32
) -> Predictor:
    """Return a loaded bundle ready for use."""
    import torch

    from mltr.weights.bundle import TorchNetwork

    network = TorchNetwork(bundle.model, device or torch.device("cpu"))
    thresholds = fill_thresholds(bundle.thresholds, len(bundle.classes))
    return Predictor(
        network,
        bundle.classes,
        bundle.preprocess,
        thresholds,
        batch_size,
        bundle.calibration,
        bundle.categories,
        bundle.config.get("hierarchy", {}),
    )


def fill_thresholds(own: Sequence[float] | None, num_classes: int) -> Floats:
    """Return the thresholds [K] of a bundle's classes, or the default for each."""
    thresholds = np.full(num_classes, DEFAULT_THRESHOLD, np.float32)
    if own is not None:
        thresholds[:] = own
    return thresholds


def choose_device(name: str | None) -> torch.device:
    """Return a device by name, or an accelerator if there is one; raises `UsageError`."""
    import torch

    if name is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"device {name!r} can't be used here ({reason}); try cpu") from error
    return device


Found: TypeAlias = Prediction | BrokenImage | None  #: what comes of an image
Opened: TypeAlias = Pixels | Found


def predict_paths(
    predictor: Predictor,
    paths: Iterable[Source],
    workers: int | None = None,
    read: Callable[[Source], Opened] | None = None,
) -> Iterator[tuple[Source, Found]]:
    """Yield each image with its prediction, or with the reason it can't be read, in order.

    Threads open images while the network processes the batch before, and the caller the one before
    that; at most three batches are held at a time, however many images there are. `read` replaces
    `predictor.look` and runs in threads; if it returns an existing result or None instead of
    pixels, that is passed through.
    """
    size = predictor.batch_size
    readers = ThreadPoolExecutor(workers or min(8, _usable_cores()))
    runner = ThreadPoolExecutor(1, initializer=settle_threads)
    opened = _read_ahead(readers, read or predictor.look, iter(paths), size)
    running = None
    try:
        for batch in _batches(opened, size):
            following = runner.submit(_predict_readable, predictor, batch)
            if running is not None:
                yield from running.result()
            running = following
        if running is not None:
            yield from running.result()
    finally:
        for pool in (readers, runner):
            pool.shutdown(cancel_futures=True)


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _read_ahead(
    pool: Executor, read: Callable[[Source], Opened], paths: Iterator[Source], count: int
) -> Iterator[tuple[Source, Opened]]:
    """Open images in order, `count` at a time."""

    def submit(path: Source) -> tuple[Source, Future[Opened]]:
        return path, pool.submit(read, path)

    waiting = deque(map(submit, islice(paths, count)))
    while waiting:
        path, future = waiting.popleft()
        waiting.extend(map(submit, islice(paths, 1)))
        try:
            yield path, future.result()
        except BrokenImage as error:
            yield path, error


def _batches(
    opened: Iterable[tuple[Source, Opened]], size: int
) -> Iterator[list[tuple[Source, Opened]]]:
    """Gather as many images as the network takes at once, and what comes between them."""
    batch: list[tuple[Source, Opened]] = []
    num_images = 0
    for pair in opened:
        batch.append(pair)
        num_images += isinstance(pair[1], np.ndarray)
        if num_images == size or len(batch) == PASSED_BATCHES * size:
            yield batch
            batch, num_images = [], 0
    if batch:
        yield batch


def _predict_readable(
    predictor: Predictor, batch: list[tuple[Source, Opened]]
) -> list[tuple[Source, Found]]:
    """Predict for the images of one batch that are pixels, keeping the order."""
    images = [image for _, image in batch if isinstance(image, np.ndarray)]
    predictions = iter(predictor.predict_batch(np.stack(images)) if images else [])
    return [
        (path, next(predictions) if isinstance(image, np.ndarray) else image)
        for path, image in batch
    ]
