"""The network of `mltr predict` in processes of a Ray cluster; the rest stays in the command.

Names of images go out and probabilities come back, in order. If a process dies, Ray starts another,
which repeats its images.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from mltr.data.preprocess import Pixels
from mltr.errors import BrokenImage, MltrError
from mltr.predict.cluster import connected, divide, load_same, locate, reason
from mltr.predict.journal import Stamp, stamp_of
from mltr.predict.predictor import Prediction, Predictor, predict_paths

if TYPE_CHECKING:
    from mltr.data.records import PackedImage

log = logging.getLogger(__name__)

Key = TypeVar("Key")

SLOTS = 2  #: parts that a process has: it opens the images of one while its network does another
AHEAD = 8  #: parts for each process that may be done before one that comes before them
BATCHES = 2  #: of images, in a part
MAX_RETRIES = 5  #: of a part whose process died; then its images are taken for the cause
START_S = 60.0  #: after which it is told that the cluster has no room


class Answer(NamedTuple):
    """What was found in an image."""

    probs: NDArray[np.float32] | None  #: [K]; None: it can't be read
    error: str
    stamp: Stamp | None  #: for the journal


class Tagger:
    """What runs in a process of the cluster."""

    def __init__(self, folder: str, workers: int | None, notes: bool, *bundle: Any) -> None:
        # Names are relative to the command's own folder, and must not mean others here.
        os.chdir(folder if Path(folder).is_dir() else tempfile.mkdtemp())
        self._predictor = load_same(*bundle)
        self._workers, self._notes = workers, notes

    def is_ready(self) -> bool:
        """Tell that the network is loaded."""
        return True

    def predict(self, images: Sequence[Path | PackedImage]) -> list[Answer]:
        """Return an answer for each image; several threads may call this."""
        stamps: dict[int, Stamp | None] = {}

        def read(number: int) -> Pixels:
            if self._notes:
                stamps[number] = stamp_of(images[number])
            return self._predictor.look(images[number])

        found = predict_paths(self._predictor, range(len(images)), self._workers, read=read)
        return [_answer(one, stamps.get(number)) for number, one in found]


def _answer(found: Prediction | BrokenImage | None, stamp: Stamp | None) -> Answer:
    if isinstance(found, Prediction):
        return Answer(found.probs, "", stamp)
    return Answer(None, str(found), None)


@dataclass(frozen=True)
class Cluster:
    """Processes of a Ray cluster that have loaded the network."""

    ray: Any
    taggers: Sequence[Any]
    part_size: int  #: images that a process is best given at a time

    def predict(
        self, parts: Iterable[tuple[Key, Sequence[Path | PackedImage]]]
    ) -> Iterator[tuple[Key, list[Answer]]]:
        """Yield the answers for each part, in order.

        Raises `MltrError` if some images end every process, or one can't be used any longer.
        """
        free = deque(list(self.taggers) * SLOTS)
        running: dict[Any, tuple[int, Any]] = {}  # reference: number of the part, process
        keys: dict[int, Key] = {}
        answers: dict[int, list[Answer]] = {}
        waiting = iter(parts)
        first = following = 0  # part to yield next; part to send next
        while True:
            while free and following - first < AHEAD * len(self.taggers):
                part = next(waiting, None)
                if part is None:
                    break
                keys[following], images = part
                if images:
                    tagger = free.popleft()
                    running[tagger.predict.remote(images)] = following, tagger
                else:
                    answers[following] = []
                following += 1
            if first in answers:
                yield keys.pop(first), answers.pop(first)
                first += 1
            elif running:
                done = self.ray.wait(list(running))[0][0]
                number, tagger = running.pop(done)
                answers[number] = self._get(done)
                free.append(tagger)
            else:
                return

    def _get(self, reference: Any) -> Any:
        from ray.exceptions import RayError

        try:
            return self.ray.get(reference)
        except RayError as error:
            raise MltrError(f"on the Ray cluster: {reason(str(error))}") from error


@contextlib.contextmanager
def on_cluster(
    bundle: str,
    predictor: Predictor,
    device: str | None,
    count: int | None,
    workers: int | None,
    notes: bool,
) -> Iterator[Cluster]:
    """Load the network in processes of the cluster that `RAY_ADDRESS` names, or of this machine.

    With `notes`, answers have stamps. Raises `MltrError` if it can't be loaded.
    """
    with connected() as ray:
        part = divide(ray, device, count)
        kind = ray.remote(Tagger).options(
            **part.resources, max_concurrency=SLOTS, max_restarts=-1, max_task_retries=MAX_RETRIES
        )
        own = (
            locate(bundle),
            predictor.fingerprint,
            device,
            part.threads,
            predictor.batch_size,
            predictor.views,
        )
        taggers = [kind.remote(str(Path.cwd()), workers, notes, *own) for _ in range(part.count)]
        cluster = Cluster(ray, taggers, BATCHES * predictor.batch_size)
        starting = [tagger.is_ready.remote() for tagger in taggers]
        _, late = ray.wait(starting, num_returns=len(starting), timeout=START_S)
        if late:
            log.warning(
                "%d of %d processes are waiting for free resources on the cluster",
                len(late),
                part.count,
            )
        for reference in starting:
            cluster._get(reference)
        yield cluster
