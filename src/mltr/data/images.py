"""Opening images: every kind that cameras and the web produce, or a clear error."""

from __future__ import annotations

import contextlib
import io
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError, features

from mltr.data.records import ImageSource, LazyFile, LazyImage
from mltr.errors import BrokenImage
from mltr.files.writing import open_regular

HAS_HEIF = False
with contextlib.suppress(ImportError):
    from pillow_heif import register_heif_opener

    register_heif_opener(thumbnails=False)
    HAS_HEIF = True

_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif", ".hif"),
}
_IS_THERE = {"AVIF": bool(features.check("avif")), "HEIF": HAS_HEIF}
#: Formats that are decoded, whatever a file is called; no vector formats, no document formats.
FORMATS = tuple(form for form in _SUFFIXES if _IS_THERE.get(form, True))
IMAGE_SUFFIXES = tuple(suffix for form in FORMATS for suffix in _SUFFIXES[form])
_OTHERS = (".jxl", ".jp2", ".psd", ".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2")
_ADVICE = {
    **dict.fromkeys(_SUFFIXES["HEIF"], "pip install 'mltr[heic]'"),
    **dict.fromkeys(_SUFFIXES["AVIF"], "pip install --upgrade pillow"),
    **dict.fromkeys(_OTHERS, "convert them to JPEG"),
}
#: Suffixes of pictures that can't be read here, with what to do about them.
UNREAD_SUFFIXES = {suffix: _ADVICE[suffix] for suffix in _ADVICE if suffix not in IMAGE_SUFFIXES}
#: Larger images are refused before they are decoded: a small file can unpack to gigabytes.
MAX_PIXELS = 100_000_000
#: Larger files are refused before they are read; 100 megapixels of four 16-bit values have 0.8 GB.
MAX_FILE_BYTES = 1_000_000_000
#: A JPEG has up to some twenty scans, and each costs the decoder a walk over all pixels.
MAX_SCANS = 100
BLOCK = 1024  #: pixels on a side, of deep values at a time: working copies take eight bytes a pixel
START_OF_SCAN = b"\xff\xda"  #: marker in a JPEG; its bytes don't occur within a scan
# Tags of TIFF 6.0, sections 8, 15 and 19.
TIFF_BITS_PER_SAMPLE, TIFF_PHOTOMETRIC, TIFF_SAMPLE_FORMAT = 258, 262, 339
TIFF_TILE_WIDTH, TIFF_TILE_LENGTH = 322, 323
#: What sets a picture upright, by its orientation in the Exif data (1: it is).
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: Where Pillow looks for the orientation.
ORIENTED = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")

#: Left, top, right, bottom; in pixels, or in shares of the image.
Region = tuple[float, float, float, float]
WHOLE: Region = (0.0, 0.0, 1.0, 1.0)
#: A photo is decoded at 1/2, 1/4 or 1/8 of its size if at least this share of the pixels wanted is
#: left on each side. 0.9, so that 640 x 427, COCO's commonest size, is halved for 224 pixels.
LEAST_SHARE = 0.9


def open_image(source: ImageSource | str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return the image in RGB, upright, its first frame, transparency on white.

    `source` is a path, the bytes of a file, or a `LazyImage`. Raises `BrokenImage`, naming the file
    and the reason, if it is missing, damaged, not an image, or larger than `max_pixels`.
    """
    return _open(source, max_pixels)[0]


def open_reduced(
    source: ImageSource | str, side: int, region: Region = WHOLE, max_pixels: int = MAX_PIXELS
) -> tuple[Image.Image, Region]:
    """Return an image as `open_image` does, perhaps reduced, and the place of a region in it.

    JPEG decoders can skip the finest detail, which saves most of the time. They may, as long as
    `region`, given in shares of the image, keeps about `side` pixels in each direction. The place
    is in pixels; its borders needn't be whole numbers.
    """
    image, (x, y, end_x, end_y) = _open(source, max_pixels, side, region)
    left, top, right, bottom = region
    width, height = end_x - x, end_y - y
    return image, (x + left * width, y + top * height, x + right * width, y + bottom * height)


def _open(
    source: ImageSource | str, max_pixels: int, side: int = 0, region: Region = WHOLE
) -> tuple[Image.Image, Region]:
    """Return an image, reduced if `side` isn't 0, and the place of the picture in it."""
    name = "image from memory" if isinstance(source, bytes) else str(source)
    if isinstance(source, LazyFile):
        source = source.read_bytes()
    if isinstance(source, LazyImage):
        image = source.load()
        return image, (0, 0, *image.size)
    with told(name, max_pixels), _identified(source, name, max_pixels) as image:
        place = _reduce(image, side, region) if side and image.format in ("JPEG", "MPO") else None
        image = to_rgb(image)
        return image, place or (0, 0, *image.size)


def check_image(path: Path) -> None:
    """Raise `BrokenImage` for what isn't an image by its first bytes; nothing is decoded."""
    with told(str(path), MAX_PIXELS), _identified(path, str(path), MAX_PIXELS):
        pass


@contextmanager
def _identified(source: Path | str | bytes, name: str, max_pixels: int) -> Iterator[Image.Image]:
    """Open an image of a format and a size that are decoded."""
    with _open_file(source, name) as file, Image.open(file, formats=FORMATS) as image:
        _check_size(image, name, max_pixels)
        if image.info.get("progressive"):
            _check_scans(file, name)
        yield image


def _reduce(image: Image.Image, side: int, region: Region) -> Region:
    """Have a JPEG decoded smaller; return the place of the picture in it, upright.

    The decoder rounds sizes up, so that the picture may end within the last pixel, which becomes
    the first one where a camera's mirrored or turned picture is set upright.
    """
    orientation = _orientation(image)
    is_turned = orientation in (5, 6, 7, 8)
    left, top, right, bottom = region
    shares = (bottom - top, right - left) if is_turned else (right - left, bottom - top)
    least = [max(1, math.ceil(LEAST_SHARE * side / share)) for share in shares]
    drafted = image.draft(None, (least[0], least[1]))
    width, height = drafted[1][2:] if drafted else (float(image.width), float(image.height))
    rest_x, rest_y = image.width - width, image.height - height
    if is_turned:
        width, height, rest_x, rest_y = height, width, rest_y, rest_x
    x = rest_x if orientation in (2, 3, 6, 7) else 0
    y = rest_y if orientation in (3, 4, 7, 8) else 0
    return x, y, x + width, y + height


@contextmanager
def told(name: str, max_pixels: int = MAX_PIXELS) -> Iterator[None]:
    """Convert whatever Pillow raises for a file or an image to `BrokenImage`."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of what our own check refuses, and of damage that it can live with.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)
            yield
    except BrokenImage:
        raise
    except Image.DecompressionBombError as error:  # found before our own check could
        most = min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels))  # where Pillow raises
        raise BrokenImage(f"{name}: more pixels than the limit of {most:,}") from error
    except Exception as error:  # its readers trip over damage in ways that no list can name
        raise BrokenImage(f"{name}: {_reason(error)}") from error


def _open_file(source: Path | str | bytes, name: str) -> IO[bytes]:
    """Return what to read from, at its start: a giant that is no image isn't read in whole."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    file = open_regular(source, "an image")
    size = os.fstat(file.fileno()).st_size
    if 0 < size <= MAX_FILE_BYTES:
        return file
    file.close()
    if size == 0:
        raise BrokenImage(f"{name}: the file is empty")
    raise BrokenImage(f"{name}: {size:,} bytes, more than the limit of {MAX_FILE_BYTES:,}")


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, PermissionError):
        return "not allowed to read the file"
    if isinstance(error, UnidentifiedImageError):
        return f"not an image that can be read ({', '.join(FORMATS)})"
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    if isinstance(error, OSError) and error.strerror:  # of the file system, not of Pillow
        return str(error.strerror)
    return f"damaged or cut off ({error or type(error).__name__})"


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise BrokenImage(
            f"{name}: {width} x {height}, more pixels than the limit of {max_pixels:,}"
        )
    tags = getattr(image, "tag_v2", {})
    # A text is no number, and a billion times itself in Python.
    tile = int(tags.get(TIFF_TILE_WIDTH, 0)) * int(tags.get(TIFF_TILE_LENGTH, 0))
    if tile > max_pixels:  # the decoder makes room for a whole tile, however small the image
        raise BrokenImage(f"{name}: a tile with more pixels than the limit of {max_pixels:,}")


def _check_scans(file: IO[bytes], name: str) -> None:
    """Refuse a JPEG whose scans, a few bytes each, would keep the decoder busy for hours."""
    place = file.tell()
    file.seek(0)
    count = sum(block.count(START_OF_SCAN) for block in iter(lambda: file.read(1 << 20), b""))
    file.seek(place)
    if count > MAX_SCANS:
        raise BrokenImage(f"{name}: {count:,} scans, more than the limit of {MAX_SCANS}")


def to_rgb(image: Image.Image) -> Image.Image:
    """Decode and convert; the orientation of the Exif data is applied."""
    grey = _DeepGrey.of(image)
    image = _with_transparency(image)
    image.load()
    turn = TURNS.get(_orientation(image))
    if turn is not None:
        image = image.transpose(turn)
        for key in ORIENTED:  # it is upright now, whoever looks again
            image.info.pop(key, None)
    if grey is not None:
        return grey.to_rgb(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image)
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """Return how the camera was held; damaged Exif data costs nothing but that."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # as `told` says
        return 1


def _with_transparency(image: Image.Image) -> Image.Image:
    """Return the image with its transparent value or colour in the depth of its pixels.

    Pillow scales the pixels of a PNG to 8 bits, and leaves that as it is in the file.
    """
    key: Any = image.info.get("transparency")
    own = key
    tiles = getattr(image, "tile", [])  # until it is decoded
    if isinstance(key, int) and image.mode == "L" and tiles:
        own = key * {"L;2": 85, "L;4": 17}.get(str(tiles[0].args), 1)
    elif isinstance(key, tuple) and max(key) > 255:
        own = tuple(value >> 8 for value in key)
    if own != key:
        image = image.copy()
        image.info["transparency"] = own
    return image


@dataclass(frozen=True)
class _DeepGrey:
    """Grey of more than 8 bits, which Pillow would clip to white."""

    white: float | None  #: the value that the format says is white; None: it says nothing
    bits: int  #: of an unsigned value; 0 for a signed or floating one
    is_inverted: bool  #: whether it is 0 that is white
    transparent: int | None

    @classmethod
    def of(cls, image: Image.Image) -> _DeepGrey | None:
        """Return how to read an image; None for another kind."""
        if not image.mode.startswith(("I", "F")):
            return None
        tags = getattr(image, "tag_v2", {})
        # PNG has 16 bits, and so has what Pillow keeps in 16.
        bits = 16 if image.mode.startswith("I;16") or image.format == "PNG" else 0
        if tags:
            is_unsigned = tags.get(TIFF_SAMPLE_FORMAT, (1,))[0] == 1
            bits = int(tags[TIFF_BITS_PER_SAMPLE][0]) if is_unsigned else 0
        key = image.info.get("transparency")
        is_inverted = tags.get(TIFF_PHOTOMETRIC) == 0
        return cls(
            2.0**bits - 1 if bits else None,
            bits,
            is_inverted,
            key if isinstance(key, int) else None,
        )

    def to_rgb(self, image: Image.Image) -> Image.Image:
        """Scale from 0 to white."""
        white = self.white or self._guess_white(image)
        grey = np.empty((image.height, image.width), np.uint8)
        for place, values in self._blocks(image):
            clear = values == self.transparent
            if self.is_inverted:
                values = white - values
            grey[place] = np.clip(values * 255 / white, 0, 255)
            grey[place][clear] = 255
        return Image.fromarray(grey).convert("RGB")

    def _guess_white(self, image: Image.Image) -> float:
        """Floats run to 1, 8-bit values may come in a wide container."""
        largest = max(float(values.max()) for _, values in self._blocks(image))
        whites = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        return next((white for white in whites if largest <= white), largest)

    def _blocks(
        self, image: Image.Image
    ) -> Iterator[tuple[tuple[slice, slice], NDArray[np.float64]]]:
        """Yield parts of the image with their places."""
        for y, x in product(range(0, image.height, BLOCK), range(0, image.width, BLOCK)):
            end_y, end_x = min(y + BLOCK, image.height), min(x + BLOCK, image.width)
            block = np.asarray(image.crop((x, y, end_x, end_y)))
            if self.bits == 32:  # Pillow keeps them as if they had a sign
                block = block.view(np.uint32)
            values = np.nan_to_num(block.astype(np.float64), copy=False, posinf=0.0, neginf=0.0)
            yield (slice(y, end_y), slice(x, end_x)), values
