"""Decoding: what it takes is known from the headers, and bounded, before any pixel is there."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from fastapi import HTTPException

from mltr.data.images import Weight, weigh
from mltr.errors import BrokenImage
from mltr.serve.settings import MEGABYTE, Settings
from mltr.serve.uploads import Upload

Result = TypeVar("Result")


class Decoder:
    """Threads that decode, as many as there are cores, and the memory that they may take."""

    def __init__(self, settings: Settings) -> None:
        self.max_pixels = int(settings.max_megapixels * MEGABYTE)
        self._most_mb = settings.max_decoded_mb
        self._free = self._most = int(settings.max_decoded_mb * MEGABYTE)
        self._has_room = asyncio.Event()
        self._threads = ThreadPoolExecutor(os.cpu_count(), "decoder")

    def stop(self) -> None:
        """End after what is being decoded."""
        self._threads.shutdown()

    async def weigh(self, uploads: list[Upload]) -> list[Weight | BrokenImage]:
        """Return what each image takes, or why it can't be read.

        Raises `HTTPException` (413) if together they unpack to more than is allowed.
        """
        weights = await self.run(lambda: [self._weigh_one(upload.data) for upload in uploads])
        decoded = sum(one.decoded_bytes for one in weights if isinstance(one, Weight))
        if decoded > self._most:
            raise HTTPException(
                413,
                f"the images unpack to {decoded / MEGABYTE:,.0f} MB, more than the limit of "
                f"{self._most_mb:g}: send fewer at a time",
            )
        return weights

    def _weigh_one(self, data: bytes) -> Weight | BrokenImage:
        try:
            weight = weigh(data, self.max_pixels)
        except BrokenImage as error:
            return error
        if weight.working_bytes > self._most:
            takes = f"takes {weight.working_bytes / MEGABYTE:,.0f} MB to decode"
            return BrokenImage(f"{takes}, more than the limit of {self._most_mb:g}")
        return weight

    @staticmethod
    def turns() -> asyncio.Semaphore:
        """Return what keeps one request from taking all threads before another one's image."""
        return asyncio.Semaphore(max(1, (os.cpu_count() or 1) // 2))

    async def decode(
        self, turns: asyncio.Semaphore, weight: Weight, function: Callable[[bytes], Result],
        data: bytes,
    ) -> Result:  # fmt: skip
        """Return what the function makes of an image that was weighed, once there is memory."""
        async with turns:
            while weight.working_bytes > self._free:
                self._has_room.clear()
                await self._has_room.wait()
            self._free -= weight.working_bytes
            loop = asyncio.get_running_loop()
            future = self._threads.submit(function, data)
            # A request that gives up doesn't stop a thread, which goes on to hold its memory.
            future.add_done_callback(
                lambda _: loop.call_soon_threadsafe(self._give_back, weight.working_bytes)
            )
            return await asyncio.wrap_future(future)

    def _give_back(self, size: int) -> None:
        self._free += size
        self._has_room.set()

    async def run(self, function: Callable[..., Result], *args: object) -> Result:
        """Run something in one of the threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)
