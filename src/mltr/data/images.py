"""Opening an image, whatever it is: every kind that a camera or the web delivers, or a clear no."""

from __future__ import annotations

import io
import math
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from mltr.data.records import ImageSource, LazyFile, LazyImage
from mltr.errors import BrokenImage

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
#: Formats that are decoded, whatever a file is called; no vector formats, no document formats.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
#: Larger images are refused before they are decoded: a small file can unpack to gigabytes.
MAX_PIXELS = 100_000_000
#: What Pillow's decoders raise for damaged data.
DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, IndexError, KeyError)


#: Left, top, right, bottom; in pixels, or in shares of the image.
Region = tuple[float, float, float, float]
WHOLE: Region = (0.0, 0.0, 1.0, 1.0)
#: A photo is decoded at 1/2, 1/4 or 1/8 of its size if at least this share of the pixels wanted is
#: left on each side. 0.9, so that 640 x 427, COCO's commonest size, is halved for 224 pixels.
LEAST_SHARE = 0.9


def open_image(source: ImageSource | str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return the image in RGB, upright, its first frame, transparency on white.

    `source` is a path, the bytes of a file, or a `LazyImage`. Raises `BrokenImage`,
    naming the file and the reason, for what is missing, damaged, not an image, or larger than
    `max_pixels`.
    """
    return _open(source, max_pixels)[0]


def open_reduced(
    source: ImageSource | str, side: int, region: Region = WHOLE, max_pixels: int = MAX_PIXELS
) -> tuple[Image.Image, Region]:
    """Return an image as `open_image` does, perhaps reduced, and the place of a region in it.

    JPEG decoders can leave out the finest detail, and most of the time goes with it. They may, as
    long as `region`, given in shares of the image, keeps about `side` pixels in each direction.
    The place is in pixels; its borders needn't be whole numbers.
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
    with (
        _told(name, max_pixels),
        _open_file(source, name) as file,
        Image.open(file, formats=FORMATS) as image,
    ):
        _check_size(image, name, max_pixels)
        place = _reduce(image, side, region) if side and image.format in ("JPEG", "MPO") else None
        image = to_rgb(image)
        return image, place or (0, 0, *image.size)


def _reduce(image: Image.Image, side: int, region: Region) -> Region:
    """Have a JPEG decoded smaller; return the place of the picture in it, upright.

    The decoder rounds sizes up, so that the picture may end within the last pixel, which becomes
    the first one where a camera's mirrored or turned picture is set upright.
    """
    orientation = image.getexif().get(ExifTags.Base.Orientation)
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
def _told(name: str, max_pixels: int) -> Iterator[None]:
    """Turn whatever Pillow says of a file into `BrokenImage`."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of what our own check refuses, and of damage that it can live with.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)
            yield
    except BrokenImage:
        raise
    except Image.DecompressionBombError as error:  # found before our own check could
        raise BrokenImage(f"{name}: more pixels than the limit of {max_pixels:,}") from error
    except DECODING_ERRORS as error:
        raise BrokenImage(f"{name}: {_reason(error)}") from error


def _open_file(source: Path | str | bytes, name: str) -> IO[bytes]:
    """Return what to read from, at its start: a giant that is no image isn't read in whole."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    path = Path(source)
    if path.is_dir():
        raise BrokenImage(f"{name}: a folder, not an image")
    if path.stat().st_size == 0:
        raise BrokenImage(f"{name}: the file is empty")
    return path.open("rb")


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, PermissionError):
        return "not allowed to read the file"
    if isinstance(error, UnidentifiedImageError):
        return f"not an image that can be read ({', '.join(FORMATS)})"
    return f"damaged or cut off ({error})"


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise BrokenImage(
            f"{name}: {width} x {height}, more pixels than the limit of {max_pixels:,}"
        )


def to_rgb(image: Image.Image) -> Image.Image:
    """Decode and convert; the orientation of the Exif data is applied."""
    image.load()
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        return _from_high_depth(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_high_depth(image: Image.Image) -> Image.Image:
    """Scale grey values of 16 or 32 bits to 8; Pillow would clip them to white."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0.0, neginf=0.0)
    largest = float(values.max())
    # Files don't say what white is: floats run to 1, 8-bit values may come in a wide container.
    whites = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
    top = next((white for white in whites if largest <= white), largest)
    grey = np.clip(values / top * 255, 0, 255).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")
