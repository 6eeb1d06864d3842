"""Batches the images of concurrent requests for the network, with a bounded queue."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from mltr.data.preprocess import Pixels
from mltr.machine.threads import settle_threads
from mltr.predict.predictor import Prediction, Predictor
from mltr.serve.settings import Settings

Result = TypeVar("Result")
NEWEST = 0.2  #: weight of the latest batch in the moving average of the time per image


class Busy(Exception):
    """The queue is full; the client may retry after `retry_after_s` seconds."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(retry_after_s)
        self.retry_after_s = retry_after_s


class Batcher:
    """Runs the network in one or more threads, fed by a queue.

    An image waits for others only while others are being decoded, and at most `max_wait_ms`. A
    lone image doesn't wait.
    """

    def __init__(
        self,
        predictor: Predictor,
        settings: Settings,
        on_batch: Callable[[int, float], None] = lambda size, seconds: None,
    ) -> None:
        self.pending = 0  #: number of images accepted and not answered yet
        self._predictor = predictor
        self._settings = settings
        self._on_batch = on_batch
        self._seconds_per_image = 0.0
        self._in_network = 0  #: number of images in the network
        self._threads = ThreadPoolExecutor(settings.network_threads, "network", settle_threads)
        self._queue: asyncio.Queue[tuple[Pixels, asyncio.Future[Prediction]]] = asyncio.Queue()
        self._workers: list[asyncio.Task[None]] = []

    @property
    def is_working(self) -> bool:
        """Whether the workers run."""
        return bool(self._workers) and not any(worker.done() for worker in self._workers)

    async def start(self) -> None:
        """Run the network once, so that no request pays for the warm-up, and start the workers."""
        side = self._predictor.preprocess.image_size
        await self.run(self._predictor.predict_batch, np.zeros((1, side, side, 3), np.uint8))
        self._workers = [
            asyncio.create_task(self._work()) for _ in range(self._settings.network_threads)
        ]

    async def stop(self) -> None:
        """Stop after the batches in progress."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        self._threads.shutdown()

    def check_place(self, count: int) -> None:
        """Raise `Busy` if `count` more images exceed the queue or couldn't be answered in time."""
        waiting_s = self.pending * self._seconds_per_image / self._settings.network_threads
        is_late = self.pending > 0 and waiting_s > self._settings.timeout_s
        if is_late or self.pending + count > self._settings.max_queue:
            raise Busy(max(1, math.ceil(waiting_s)))

    @contextlib.contextmanager
    def accept(self, count: int) -> Iterator[None]:
        """Reserve places for `count` images; raises `Busy` as `check_place` does."""
        self.check_place(count)
        self.pending += count
        try:
            yield
        finally:
            self.pending -= count

    async def predict(self, pixels: Pixels) -> Prediction:
        """Return the prediction of an accepted image, uint8 [S, S, 3]."""
        future: asyncio.Future[Prediction] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((pixels, future))
        return await future

    async def run(self, function: Callable[..., Result], *args: Any) -> Result:
        """Run a function in the network's threads, between two batches."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    async def _work(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            batch = await self._collect()
            # Requests that timed out have cancelled their futures.
            batch = [(pixels, future) for pixels, future in batch if not future.done()]
            if not batch:
                continue
            started = clock()
            self._in_network += len(batch)
            try:
                found = await self.run(self._predict_batch, [pixels for pixels, _ in batch])
            except Exception as error:  # such as out of memory: only these requests fail
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
                # Pending images that aren't in the network are in this batch or will be queued.
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
