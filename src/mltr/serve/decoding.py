"""Decoding of images, with memory estimated from the file header and bounded in advance."""

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

#: Peak bytes per pixel of decoding to upright RGB, measured over all modes. Some formats need more,
#: as they are decoded as a whole.
WORKING_BYTES, WORKING_BYTES_WHOLE = 12, 20
DECODED_WHOLE = ("WEBP", "AVIF", "HEIF")
#: Bytes above which images share half of the threads, so that small ones can overtake them.
LARGE = 200 * MEGABYTE


class Weight(NamedTuple):
    """The memory of an image in bytes."""

    decoded: int  #: size of the decoded image, at its own depth and channels
    working: int  #: peak memory of decoding


NOTHING = Weight(0, 0)


def weigh(data: bytes, max_pixels: int) -> Weight:
    """Estimate the memory of decoding a file from its header; 0 if decoding will refuse it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception:  # decoding fails in the same way and reports it
        return NOTHING
    with image:
        pixels, mode = image.width * image.height, ImageMode.getmode(image.mode)
        if pixels > max_pixels:
            return NOTHING
        stored = np.dtype(mode.typestr).itemsize * len(mode.bands)
        working = WORKING_BYTES_WHOLE if image.format in DECODED_WHOLE else WORKING_BYTES
        return Weight(pixels * stored, pixels * working)


class Decoder:
    """A thread per core that decodes images, within a limit on memory."""

    def __init__(self, settings: Settings) -> None:
        self.max_pixels = int(settings.max_megapixels * MEGABYTE)
        self._most_mb = settings.max_decoded_mb
        self._free = self._most = int(settings.max_decoded_mb * MEGABYTE)
        self._has_room = asyncio.Event()
        cores = os.cpu_count() or 1
        self._threads = ThreadPoolExecutor(cores, "decoder")
        self._half = max(1, cores // 2)
        self._large = 0  #: number of large images being decoded

    def stop(self) -> None:
        """Stop after the images being decoded."""
        self._threads.shutdown()

    async def weigh(self, uploads: list[Upload]) -> list[Weight]:
        """Return the memory of each image.

        Raises `HTTPException` (413) if decoding any of them, or all decoded images together, would
        exceed the limit.
        """
        weights = await self.run(
            lambda: [weigh(upload.data, self.max_pixels) for upload in uploads]
        )
        takes = max(sum(one.decoded for one in weights), *(one.working for one in weights))
        if takes > self._most:
            raise HTTPException(
                413,
                f"the images take {takes / MEGABYTE:,.0f} MB when decoded, more than the limit of "
                f"{self._most_mb:g}: send fewer at a time, or smaller ones",
            )
        return weights

    def turns(self) -> asyncio.Semaphore:
        """Return a semaphore that limits one request to half of the threads."""
        return asyncio.Semaphore(self._half)

    async def decode(
        self,
        turns: asyncio.Semaphore,
        weight: Weight,
        function: Callable[[bytes], Result],
        data: bytes,
    ) -> Result:
        """Return ``function(data)``, called in a thread once the image's memory is available."""
        large = weight.working > LARGE
        async with turns:
            while weight.working > self._free or (large and self._large >= self._half):
                self._has_room.clear()
                await self._has_room.wait()
            self._free -= weight.working
            self._large += large
            loop = asyncio.get_running_loop()
            future = self._threads.submit(function, data)
            # A thread goes on after its request has timed out, so only its end frees the memory.
            future.add_done_callback(
                lambda _: loop.call_soon_threadsafe(self._give_back, weight.working, large)
            )
            return await asyncio.wrap_future(future)

    def _give_back(self, size: int, large: bool) -> None:
        self._free += size
        self._large -= large
        self._has_room.set()

    async def run(self, function: Callable[..., Result], *args: object) -> Result:
        """Run a function in one of the threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)
