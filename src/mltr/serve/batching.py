"""Images of many requests go through the network together; what doesn't fit is turned away."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from mltr.data.preprocess import Pixels
from mltr.predict.predictor import Prediction, Predictor
from mltr.serve.settings import Settings

Result = TypeVar("Result")
#: Weight of the newest batch in the running mean of the time for one image.
NEWEST = 0.2


class Busy(Exception):
    """The queue is full; a request may come again after `retry_after_s`."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(retry_after_s)
        self.retry_after_s = retry_after_s


class Batcher:
    """The network in a thread of its own, or in several, and the queue before it.

    An image waits for others only while others are on their way, and never longer than
    `max_wait_ms`: a lone request goes through at once.
    """

    def __init__(
        self,
        predictor: Predictor,
        settings: Settings,
        on_batch: Callable[[int, float], None] = lambda size, seconds: None,
    ) -> None:
        self.pending = 0  #: images accepted and not answered yet
        self._predictor = predictor
        self._settings = settings
        self._on_batch = on_batch
        self._seconds_per_image = 0.0
        self._in_network = 0  #: images that are in the network now
        self._threads = ThreadPoolExecutor(settings.network_threads, "network")
        self._queue: asyncio.Queue[tuple[Pixels, asyncio.Future[Prediction]]] = asyncio.Queue()
        self._workers: list[asyncio.Task[None]] = []

    @property
    def is_working(self) -> bool:
        """Whether images that are put in come out again."""
        return bool(self._workers) and not any(worker.done() for worker in self._workers)

    async def start(self) -> None:
        """Run the network once, so that no request pays for its first time, and begin."""
        side = self._predictor.preprocess.image_size
        await self.run(self._predictor.predict_batch, np.zeros((1, side, side, 3), np.uint8))
        self._workers = [
            asyncio.create_task(self._work()) for _ in range(self._settings.network_threads)
        ]

    async def stop(self) -> None:
        """End after the batches in hand."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        self._threads.shutdown()

    def check_place(self, count: int) -> None:
        """Raise `Busy` if so many images more would not be answered in time."""
        waiting_s = self.pending * self._seconds_per_image / self._settings.network_threads
        is_late = self.pending > 0 and waiting_s > self._settings.timeout_s
        if is_late or self.pending + count > self._settings.max_queue:
            raise Busy(max(1, math.ceil(waiting_s)))

    @contextlib.contextmanager
    def accept(self, count: int) -> Iterator[None]:
        """Hold places for so many images; raises `Busy` as `check_place` does."""
        self.check_place(count)
        self.pending += count
        try:
            yield
        finally:
            self.pending -= count

    async def predict(self, pixels: Pixels) -> Prediction:
        """Return what the network says of an image uint8 [S, S, 3] that was accepted."""
        future: asyncio.Future[Prediction] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((pixels, future))
        return await future

    async def run(self, function: Callable[..., Result], *args: Any) -> Result:
        """Run something in the network's threads, between two batches."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    async def _work(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            batch = await self._collect()
            # Requests that ran out of time have cancelled theirs.
            batch = [(pixels, future) for pixels, future in batch if not future.done()]
            if not batch:
                continue
            started = clock()
            self._in_network += len(batch)
            try:
                found = await self.run(self._predict_batch, [pixels for pixels, _ in batch])
            except Exception as error:  # such as no memory left: these requests fail, others go on
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            finally:
                self._in_network -= len(batch)
            for (_, future), prediction in zip(batch, found, strict=True):
                if not future.done():
                    future.set_result(prediction)
            self._tell(len(batch), clock() - started)

    async def _collect(self) -> list[tuple[Pixels, asyncio.Future[Prediction]]]:
        batch = [await self._queue.get()]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.max_wait_ms / 1000):
                # What is pending and not in the network is here, or on its way to the queue.
                most = self._settings.max_batch
                while len(batch) < min(most, self.pending - self._in_network):
                    batch.append(await self._queue.get())
        return batch

    def _predict_batch(self, images: list[Pixels]) -> list[Prediction]:
        return self._predictor.predict_batch(np.stack(images))

    def _tell(self, size: int, seconds: float) -> None:
        newest = seconds / size
        before = self._seconds_per_image or newest
        self._seconds_per_image = before + NEWEST * (newest - before)
        self._on_batch(size, seconds)
