"""Opening an image, whatever it is: every kind that a camera or the web delivers, or a clear no."""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mltr.data.records import ImageSource, LazyImage
from mltr.errors import BrokenImage

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
#: Formats that are decoded, whatever a file is called; no vector formats, no document formats.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
#: Larger images are refused before they are decoded: a small file can unpack to gigabytes.
MAX_PIXELS = 100_000_000
#: What Pillow's decoders raise for damaged data.
DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, IndexError, KeyError)


def open_image(source: ImageSource | str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return the image in RGB, upright, its first frame, transparency on white.

    `source` is a path, the bytes of a file, or a `LazyImage`. Raises `BrokenImage`, naming the
    file and the reason, for what is missing, damaged, not an image, or larger than `max_pixels`.
    """
    if isinstance(source, LazyImage):
        return source.load()
    name = "image from memory" if isinstance(source, bytes) else str(source)
    try:
        with _open_file(source, name) as file, warnings.catch_warnings():
            # Pillow warns of what the check below refuses, and of damage that it can live with.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)
            with Image.open(file, formats=FORMATS) as image:
                _check_size(image, name, max_pixels)
                return to_rgb(image)
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
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        return _from_high_depth(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _from_high_depth(image: Image.Image) -> Image.Image:
    """Scale grey values of 16 or 32 bits to 8; Pillow would clip them to white."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0.0, neginf=0.0)
    largest = float(values.max())
    # Files don't say what white is: floats run to 1, 8-bit values may come in a wide container.
    whites = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
    top = next((white for white in whites if largest <= white), largest)
    grey = np.clip(values / top * 255, 0, 255).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")
