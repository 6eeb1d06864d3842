"""Decoding: what it takes is known from the headers, and bounded, before any pixel is there."""

from __future__ import annotations

import asyncio
import io
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
from fastapi import HTTPException
from PIL import Image, ImageMode

from mltr.data.images import FORMATS
from mltr.serve.settings import MEGABYTE, Settings
from mltr.serve.uploads import Upload

Result = TypeVar("Result")

#: Memory that decoding takes at most, until the image is in RGB and upright: as measured, of all
#: modes; and with WebP, which is decoded as a whole.
WORKING_BYTES, WORKING_BYTES_WEBP = 12, 20  # a pixel
#: Images that take more have half of the threads: small ones pass them by.
LARGE = 200 * MEGABYTE


class Weight(NamedTuple):
    """What an image takes, in bytes."""

    decoded: int  #: depth and channels count
    working: int  #: while it is decoded


NOTHING = Weight(0, 0)


def weigh(data: bytes, max_pixels: int) -> Weight:
    """Return what decoding a file takes, by its header; nothing for what will be refused."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception:  # whoever decodes it finds the same, and says what
        return NOTHING
    with image:
        pixels, mode = image.width * image.height, ImageMode.getmode(image.mode)
        if pixels > max_pixels:
            return NOTHING
        stored = np.dtype(mode.typestr).itemsize * len(mode.bands)
        working = WORKING_BYTES_WEBP if image.format == "WEBP" else WORKING_BYTES
        return Weight(pixels * stored, pixels * working)


class Decoder:
    """Threads that decode, as many as there are cores, and the memory that they may take."""

    def __init__(self, settings: Settings) -> None:
        self.max_pixels = int(settings.max_megapixels * MEGABYTE)
        self._most_mb = settings.max_decoded_mb
        self._free = self._most = int(settings.max_decoded_mb * MEGABYTE)
        self._has_room = asyncio.Event()
        cores = os.cpu_count() or 1
        self._threads = ThreadPoolExecutor(cores, "decoder")
        self._half = max(1, cores // 2)
        self._large = 0  #: images that are being decoded

    def stop(self) -> None:
        """End after what is being decoded."""
        self._threads.shutdown()

    async def weigh(self, uploads: list[Upload]) -> list[Weight]:
        """Return what each image takes.

        Raises `HTTPException` (413) if that, or what they unpack to together, is more than allowed.
        """
        weights = await self.run(
            lambda: [weigh(upload.data, self.max_pixels) for upload in uploads]
        )
        takes = max(sum(one.decoded for one in weights), *(one.working for one in weights))
        if takes > self._most:
            raise HTTPException(
                413,
                f"the images take {takes / MEGABYTE:,.0f} MB once unpacked, more than the limit of "
                f"{self._most_mb:g}: send fewer at a time, or smaller ones",
            )
        return weights

    def turns(self) -> asyncio.Semaphore:
        """Return what keeps one request from taking all threads before another one's image."""
        return asyncio.Semaphore(self._half)

    async def decode(
        self,
        turns: asyncio.Semaphore,
        weight: Weight,
        function: Callable[[bytes], Result],
        data: bytes,
    ) -> Result:
        """Return what the function makes of an image that was weighed, once there is memory."""
        large = weight.working > LARGE
        async with turns:
            while weight.working > self._free or (large and self._large >= self._half):
                self._has_room.clear()
                await self._has_room.wait()
            self._free -= weight.working
            self._large += large
            loop = asyncio.get_running_loop()
            future = self._threads.submit(function, data)
            # A request that gives up doesn't stop a thread, which keeps its place and memory.
            future.add_done_callback(
                lambda _: loop.call_soon_threadsafe(self._give_back, weight.working, large)
            )
            return await asyncio.wrap_future(future)

    def _give_back(self, size: int, large: bool) -> None:
        self._free += size
        self._large -= large
        self._has_room.set()

    async def run(self, function: Callable[..., Result], *args: object) -> Result:
        """Run something in one of the threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)
