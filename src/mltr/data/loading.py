"""A data set over any split, and batches determined by a seed.

A sample depends only on (seed, epoch, index, copy), and the order of an epoch only on (seed,
epoch): not on the number of workers, nor on where a run was resumed.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from mltr.config.schema import AugmentConfig
from mltr.data.colours import Planes
from mltr.data.images import WHOLE, open_image, open_reduced
from mltr.data.mapped import MappedRows
from mltr.data.preprocess import Preprocess, read_squashed
from mltr.data.records import LazyFile, LazyImage, Record, Split, original_of
from mltr.data.transforms import TrainTransform, to_floats
from mltr.errors import BrokenImage, MltrError
from mltr.files.cache import Cache
from mltr.machine.memory import keep_freed_memory

log = logging.getLogger(__name__)

#: number of a batch in its epoch to its images' side in pixels (0: that of the preprocessing)
SideOf = Callable[[int], int]
SHARED_MEMORY = "/dev/shm"  #: where Linux keeps what processes share; 64 MB in containers
SEMAPHORES = 1 << 15  #: bytes of shared memory for those of a worker, at most
LONGEST_SOCKET = 103  #: bytes of a socket's path, of which Linux takes 107
SOCKET_NAME = len("/pymp-12345678/listener-12345678")  #: as Python's multiprocessing names it
MOST_WORKERS = 8  #: that are started unless a number is asked for


class Key(NamedTuple):
    """A sample of training; copies of an image are varied differently."""

    epoch: int
    place: int  #: in the split
    copy: int = 0
    side: int = 0  #: of the image in pixels; 0: that of the preprocessing


def full_size(batch: int) -> int:
    """Return 0: the images of any batch are as large as the preprocessing wants."""
    return 0


@dataclass(frozen=True)
class Sample:
    """One image of the network's size; a broken image is zeros with every label unknown."""

    image: Tensor  #: uint8 [3, S, S]
    targets: Tensor  #: int8 [K]
    index: int
    error: str = ""


@dataclass(frozen=True)
class Batch:
    """Samples, stacked; a broken image is zeros, normalised or not."""

    images: Tensor  #: float32 [B, 3, S, S]; until it is ready uint8
    targets: Tensor  #: int8 [B, K]
    indices: Tensor  #: int64 [B], places in the split
    errors: list[str]  #: a message for each broken image among them
    broken: Tensor  #: bool [B]

    def ready(self, preprocess: Preprocess, device: torch.device) -> Batch:
        """Return the same with images as the network takes them, on its device."""
        images = to_floats(self.images.to(device, non_blocking=True), preprocess)
        if self.errors:
            images[self.broken.to(device)] = 0
        return replace(self, images=images)


@dataclass(frozen=True)
class Parcel:
    """A `Batch` sent by a worker: images in shared memory, or in a pipe if that is full.

    The rest is small, and always sent through the pipe.
    """

    images: Tensor | NDArray[np.uint8]
    targets: NDArray[np.int8]
    indices: NDArray[np.int64]
    errors: list[str]
    broken: NDArray[np.bool_]
    is_shared: bool = True

    def pin_memory(self) -> Parcel:
        """Return the same in memory from which an accelerator can fetch it while it works."""
        return replace(self, images=torch.as_tensor(self.images).pin_memory())

    def unpack(self) -> Batch:
        """Return the batch."""
        images, targets, indices, broken = map(
            torch.as_tensor, (self.images, self.targets, self.indices, self.broken)
        )
        return Batch(images, targets, indices, self.errors, broken)


class ImageDataset(Dataset[Sample]):
    """The images of a split, preprocessed, and augmented if `augment` is given.

    `cache` is a folder for squashed images, which are created once and memory-mapped; it needs
    `preprocess.base_size` and changes no pixel.
    """

    def __init__(
        self,
        split: Split,
        preprocess: Preprocess,
        augment: AugmentConfig | None = None,
        seed: int = 0,
        cache: Cache | None = None,
    ) -> None:
        self.split = split
        self.preprocess = preprocess
        self.transform = TrainTransform(augment, preprocess.interpolation) if augment else None
        self.seed = seed
        self.cache = SquashCache(split, preprocess.base_size, cache) if cache else None

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: Key | int) -> Sample:
        key = key if isinstance(key, Key) else Key(0, key)
        record = self.split[key.place]
        try:
            pixels = self._read(key)
        except BrokenImage as error:
            unknown = torch.full((len(record.labels),), -1, dtype=torch.int8)
            side = self._side(key)
            zeros = torch.zeros(3, side, side, dtype=torch.uint8)
            return Sample(zeros, unknown, key.place, str(error))
        targets = torch.from_numpy(np.array(record.labels, dtype=np.int8))
        return Sample(torch.from_numpy(pixels), targets, key.place)

    def _read(self, key: Key) -> Planes:
        """Return an image as uint8 [3, S, S]; raises `BrokenImage`."""
        index, preprocess, source = key.place, self.preprocess, self.split[key.place].image
        if self.transform is None:
            squashed = self.cache[index] if self.cache else None
            pixels = preprocess.read(source) if squashed is None else preprocess.resize(squashed)
            return np.ascontiguousarray(np.moveaxis(pixels, -1, 0))
        rng = np.random.default_rng((self.seed, key.epoch, index, key.copy))
        region, side = self.transform.choose_region(rng), self._side(key)
        base_size = preprocess.base_size
        if region == WHOLE and preprocess.crop_pct:
            whole = open_image(source)
            return self.transform(whole, preprocess.view(whole.size, side), side, rng)
        if not base_size:
            return self.transform(*open_reduced(source, side, region), side, rng)
        squashed = self.cache[index] if self.cache else None
        image = read_squashed(source, base_size) if squashed is None else squashed
        left, top, right, bottom = (share * base_size for share in region)
        return self.transform(image, (left, top, right, bottom), side, rng)

    def _side(self, key: Key) -> int:
        return (self.transform is not None and key.side) or self.preprocess.image_size


class EpochBatches(Sampler[list[Key]]):
    """The batches of one epoch as lists of keys; set `epoch`, and `side`, before iterating.

    Each of several processes gets its share of every batch, so that the order of the images and the
    position in it are the same for any number of processes. With `repeats`, each image is used that
    many times consecutively, and an epoch of the same length covers only part of the images
    (repeated augmentation, arXiv 1901.09335).
    """

    def __init__(
        self, split: Split, batch_size: int, shuffle: bool, drop_last: bool, seed: int,
        rank: int = 0, processes: int = 1, repeats: int = 1,
    ) -> None:  # fmt: skip
        self.split, self.batch_size, self.shuffle, self.seed = split, batch_size, shuffle, seed
        self.rank, self.processes, self.repeats = rank, processes, repeats
        # A set smaller than one batch would otherwise give no batch at all.
        self.drop_last = drop_last and len(split) > batch_size
        self.epoch = 0
        self.start_batch = 0
        self.side: SideOf = full_size
        self.reads_images = True  #: False where all that is needed of them is kept

    def __len__(self) -> int:
        whole, rest = divmod(len(self.split), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[list[Key]]:
        # Handed over now: the epoch may be set anew while these batches are still being drawn.
        return self._batches(self.epoch, self.start_batch, self.side)

    def _batches(self, epoch: int, start_batch: int, side_of: SideOf) -> Iterator[list[Key]]:
        order = np.arange(len(self.split))
        if self.shuffle:
            order = self.split.epoch_order(self.seed, epoch)
        for number in range(start_batch, len(self)):
            begin, end = number * self.batch_size, (number + 1) * self.batch_size
            if self.reads_images:
                self.split.will_read(order[begin // self.repeats :])
            places = share(np.arange(begin, min(end, len(order))), self.rank, self.processes)
            rows, copies = order[places // self.repeats], places % self.repeats
            side = side_of(number)
            yield [
                Key(epoch, int(row), int(copy), side)
                for row, copy in zip(rows, copies, strict=True)
            ]


Rows = TypeVar("Rows", NDArray[Any], Tensor)


def share(batch: Rows, rank: int, processes: int) -> Rows:
    """Return one process's rows of a batch; a process without rows repeats the first row.

    All processes therefore have the same number of batches, as sharded networks need.
    """
    own = batch[rank::processes]
    return own if len(own) else batch[:1]


class Loader(Protocol):
    """Batches, epoch by epoch."""

    def __len__(self) -> int:
        """Return the batches of an epoch."""
        ...

    def epoch(self, epoch: int, start_batch: int = 0, side: SideOf = full_size) -> Iterator[Batch]:
        """Iterate over the batches of an epoch, from `start_batch` on.

        `side` says how large the images of a batch are, when it is drawn.
        """
        ...

    def close(self) -> None:
        """End what draws them: there are no more batches."""
        ...


class BatchLoader:
    """Batches of a data set, epoch by epoch; workers are kept between epochs."""

    def __init__(
        self, dataset: ImageDataset, batches: EpochBatches, workers: int, device: torch.device
    ) -> None:
        self.dataset = dataset
        self.batches = batches
        self.device = device
        self.loader: DataLoader[Sample] = DataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=_pack,
            persistent_workers=workers > 0,
            worker_init_fn=_settle_worker,
            pin_memory=device.type != "cpu",
            # Of its own: by default the loader draws from the generator that dropout uses.
            generator=torch.Generator().manual_seed(batches.seed),
        )

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    def epoch(self, epoch: int, start_batch: int = 0, side: SideOf = full_size) -> Iterator[Batch]:
        """Iterate over the batches of an epoch, from `start_batch` on."""
        self.batches.epoch, self.batches.start_batch, self.batches.side = epoch, start_batch, side
        try:
            parcels = iter(self.loader)
        except OSError as error:
            if not self.loader.num_workers:
                raise
            raise MltrError(
                f"data workers can't be started ({error.strerror or error}): free some memory and "
                f"some of {SHARED_MEMORY}, or set data.workers to 0"
            ) from error
        return map(self._receive, parcels)

    def close(self) -> None:
        """End the workers, which would else be killed with the program and leave their files."""
        del self.loader

    def _receive(self, parcel: Parcel) -> Batch:
        if not parcel.is_shared:
            (_tell_full if _has_short_name() else _tell_long)("images come through pipes")
        return parcel.unpack().ready(self.dataset.preprocess, self.device)


def make_loader(
    dataset: ImageDataset,
    batch_size: int,
    *,
    shuffle: bool = False,
    drop_last: bool = False,
    workers: int = 0,
    seed: int = 0,
    rank: int = 0,
    processes: int = 1,
    repeats: int = 1,
    device: str | torch.device = "cpu",
) -> BatchLoader:
    """Return the batches of a data set: `for batch in loader.epoch(number)`.

    `batch_size` is the total over all `processes`; the process `rank` gets its share. `repeats` is
    how often an image is used consecutively. Images are moved to `device`. `workers` -1 starts a
    number of workers that suits this machine.
    """
    batches = EpochBatches(
        dataset.split, batch_size, shuffle, drop_last, seed, rank, processes, repeats
    )
    batches.reads_images = dataset.cache is None
    device = torch.device(device)
    workers = suitable_workers(device) if workers < 0 else workers
    if workers and not _can_start(workers):
        _tell_full("the main process loads the images")
        workers = 0
    return BatchLoader(dataset, batches, workers, device)


@functools.cache
def _tell_full(instead: str) -> None:
    """Log once that shared memory is full, and what is done instead."""
    log.warning(
        "%s is full: %s, which is slower; give it more space (docker run --shm-size 2g)",
        SHARED_MEMORY,
        instead,
    )


@functools.cache
def _tell_long(instead: str) -> None:
    """Log once that sockets can't have a name, and what is done instead."""
    log.warning(
        "%s, the temporary folder, has too long a name for sockets: %s, which is slower; set "
        "TMPDIR to a shorter one",
        tempfile.gettempdir(),
        instead,
    )


def _has_short_name() -> bool:
    """Whether sockets, by which workers hand over memory, can lie in the temporary folder."""
    return len(os.fsencode(tempfile.gettempdir())) + SOCKET_NAME <= LONGEST_SOCKET


def _can_start(workers: int) -> bool:
    """Whether shared memory has room for the semaphores of so many workers."""
    try:
        return shutil.disk_usage(SHARED_MEMORY).free >= (workers + 1) * SEMAPHORES
    except OSError:  # not Linux
        return True


def suitable_workers(device: torch.device) -> int:
    """Return how many workers to start; training on the same cores needs most of them."""
    affinity = getattr(os, "sched_getaffinity", None)  # what a container allows, where one can ask
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min(MOST_WORKERS, cores // 4 if device.type == "cpu" else cores - 1))


def _pack(samples: list[Sample]) -> Parcel:
    images = torch.stack([sample.image for sample in samples])
    is_shared = get_worker_info() is None or _share(images)
    return Parcel(
        images if is_shared else images.numpy(),
        np.stack([sample.targets for sample in samples]),
        np.array([sample.index for sample in samples], np.int64),
        [sample.error for sample in samples if sample.error],
        np.array([bool(sample.error) for sample in samples]),
        is_shared,
    )


def _share(images: Tensor) -> bool:
    """Move images into shared memory; return whether the training process can get at them there.

    Now, and not when they are sent: nobody would hear of an error then, and wait for ever.
    """
    if not _has_short_name():
        return False
    try:
        images.share_memory_()  # type: ignore[no-untyped-call]
    except RuntimeError:
        return False
    return True


def _settle_worker(worker: int) -> None:
    """Keep a worker to one core, since the others belong to the training process, and its memory.

    Pages fetched anew from the system for every image cost a tenth of a worker's time.
    """
    torch.set_num_threads(1)
    keep_freed_memory()


# -- decode once -------------------------------------------------------------------------------

#: To be raised whenever `read_squashed` gives other pixels than before: old caches are left alone.
DECODING = 2


class SquashCache(MappedRows):
    """The images of a split, squashed to a square: rows uint8 [side, side, 3].

    Raises `MltrError` where the cache can't hold it.
    """

    def __init__(self, split: Split, side: int, cache: Cache) -> None:
        def fill(pixels: NDArray[Any]) -> dict[int, str]:
            log.info("decoding %d images once, to %s", len(split), cache.folder / name)
            errors: dict[int, str] = {}

            def decode(index: int) -> None:
                try:
                    pixels[index] = np.asarray(read_squashed(split[index].image, side))
                except BrokenImage as error:
                    errors[index] = str(error)

            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(decode, range(len(split))))
            return errors

        name = f"squashed-{side}-{fingerprint(split, f'{DECODING} {side}')}.u8"
        super().__init__(
            cache, name, (len(split), side, side, 3), np.dtype(np.uint8), fill,
            is_broken=partial(is_broken, split), what="squashed images",
            instead="set data.cache to false",
        )  # fmt: skip


def is_broken(split: Split, index: int) -> bool:
    """Whether an image of a split can't be read, tried now."""
    try:
        open_image(split[index].image)
    except BrokenImage:
        return True
    return False


def fingerprint(split: Split, treatment: str) -> str:
    """Return a short hash of which images these are and of what is done with them.

    Of files it tells names, sizes and times.
    """
    digest = hashlib.sha256(treatment.encode())
    first = split[0].image if len(split) else None
    if isinstance(first, LazyImage) and not isinstance(first, LazyFile):
        # The code that composes images may change: the first picture speaks for the others.
        digest.update(open_image(first).tobytes())
    for record in split:
        digest.update(_identity(record).encode())
    return digest.hexdigest()[:16]


def _identity(record: Record) -> str:
    if isinstance(record.image, bytes):
        return hashlib.sha256(record.image).hexdigest()
    path = original_of(record.image)
    if not isinstance(path, Path):
        return repr(record.image)
    salvaged = "" if path is record.image else "salvaged "
    try:
        status = path.stat()
    except OSError:
        return f"{salvaged}{path} missing"
    return f"{salvaged}{path.resolve()} {status.st_size} {status.st_mtime_ns}"
