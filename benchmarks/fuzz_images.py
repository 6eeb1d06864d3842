"""Fuzzing of image decoding: a damaged file gives a prediction or a `BrokenImage`.

    python benchmarks/fuzz_images.py --files 20000 --seed 0

Each file is a valid one with some damage: flipped bits, extreme numbers, parts cut out, repeated,
or inserted from another file. Files that raise any other error are kept in `--keep`. Prints the
numbers of predicted and refused files, the longest time, and the peak memory.
"""

from __future__ import annotations

import argparse
import io
import random
import resource
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, PngImagePlugin, TiffImagePlugin

from mltr.data.images import FORMATS
from mltr.data.preprocess import Preprocess
from mltr.errors import BrokenImage
from mltr.predict.journal import stamp_of
from mltr.predict.predictor import Predictor

#: Extreme values for lengths, offsets, sizes and counts.
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
HEAD = 512  #: bytes of a file that contain most of its metadata
COMPRESSIONS = (None, "packbits", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "group4")


class MeanColour:
    """A network that takes almost no time."""

    fingerprint = "mean colour"

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return images.mean(axis=(2, 3))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for files that raise other errors")
    args = parser.parse_args()
    start = time.monotonic()
    outcomes, wrong, slowest = fuzz(args.files, args.seed)
    for number, (content, error) in wrong.items():
        print(f"file {number} of seed {args.seed}: {error!r}")
        if args.keep:
            args.keep.mkdir(parents=True, exist_ok=True)
            (args.keep / f"{args.seed}_{number}.bin").write_bytes(content)
    total = Counter(outcome for _, outcome in outcomes.elements())
    for form in FORMATS:
        print(form, {outcome: outcomes[form, outcome] for outcome in sorted(total)})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{args.files:,} files in {time.monotonic() - start:.0f} s: {dict(total)}; the slowest "
        f"took {slowest:.2f} s; at most {peak:.0f} MiB in use"
    )
    return 1 if wrong else 0


def fuzz(
    count: int, seed: int
) -> tuple[Counter[tuple[str, str]], dict[int, tuple[bytes, Exception]], float]:
    """Return outcomes by format, files that raised other errors, and the longest time (s)."""
    predictor = Predictor(
        MeanColour(), ("red", "green", "blue"), Preprocess(32), np.full(3, 0.5, np.float32)
    )
    outcomes: Counter[tuple[str, str]] = Counter()
    wrong: dict[int, tuple[bytes, Exception]] = {}
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jpg"
        for number, (form, content) in enumerate(damaged_files(count, seed)):
            path.write_bytes(content)
            start = time.monotonic()
            outcome = "raised"
            try:
                stamp_of(path)
                outcome = "predicted" if len(predictor(path).probs) == 3 else outcome
            except BrokenImage as error:
                outcome = "refused"
                assert str(error).startswith(f"{path}: "), error
            except Exception as error:
                wrong[number] = content, error
            slowest = max(slowest, time.monotonic() - start)
            outcomes[form, outcome] += 1
    return outcomes, wrong, slowest


def damaged_files(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield formats with damaged files, deterministic for a seed."""
    sound = [(form, content) for form in FORMATS for content in sound_files(form)]
    by_form = {form: [content for own, content in sound if own == form] for form in FORMATS}
    for number in range(count):
        chance = random.Random(f"{seed}/{number}")
        form = FORMATS[number % len(FORMATS)]
        content = bytearray(chance.choice(by_form[form]))
        for _ in range(chance.choice((1, 1, 2, 3, 5, 9))):
            damage = chance.choice(DAMAGES)
            damage(content, chance, chance.choice(by_form[form]))
        if (
            form == "PNG" and chance.random() < 0.7
        ):  # otherwise nearly all fail at the first checksum
            fix_checksums(content)
        yield form, bytes(content)


def fix_checksums(content: bytearray) -> None:
    """Correct the checksums of a PNG's chunks, as far as they can be parsed."""
    start = 8
    while start + 12 <= len(content):
        end = start + 8 + int.from_bytes(content[start : start + 4], "big")
        if end + 4 > len(content):
            return
        content[end : end + 4] = zlib.crc32(content[start + 4 : end]).to_bytes(4, "big")
        start = end + 4


def place_in(content: bytearray, chance: random.Random) -> int:
    """Return a random position, more often among the metadata at the start."""
    size = max(1, len(content))
    return chance.randrange(min(size, HEAD) if chance.random() < 0.7 else size)


def turn_bits(content: bytearray, chance: random.Random, other: bytes) -> None:
    if content:
        content[place_in(content, chance)] ^= 1 << chance.randrange(8)


def set_byte(content: bytearray, chance: random.Random, other: bytes) -> None:
    if content:
        content[place_in(content, chance)] = chance.randrange(256)


def set_extreme(content: bytearray, chance: random.Random, other: bytes) -> None:
    width = chance.choice((1, 2, 4))
    value = chance.choice(EXTREMES) & (256**width - 1)
    start = place_in(content, chance)
    content[start : start + width] = value.to_bytes(width, chance.choice(("little", "big")))


def cut_out(content: bytearray, chance: random.Random, other: bytes) -> None:
    start = place_in(content, chance)
    del content[start : start + chance.choice((1, 2, 4, 12, 100))]


def cut_off(content: bytearray, chance: random.Random, other: bytes) -> None:
    if chance.random() < 0.3:
        del content[place_in(content, chance) :]


def repeat(content: bytearray, chance: random.Random, other: bytes) -> None:
    start = place_in(content, chance)
    content[start:start] = content[start : start + chance.choice((1, 4, 12, 100))]


def put_in(content: bytearray, chance: random.Random, other: bytes) -> None:
    start, length = chance.randrange(len(other)), chance.choice((2, 8, 40, 400))
    place = place_in(content, chance)
    content[place : place + length] = other[start : start + length]


def change_entry(content: bytearray, chance: random.Random, other: bytes) -> None:
    """Change the tag, type, count or value of an entry of a TIFF or of Exif data."""
    start = max(content.find(b"II*\0"), content.find(b"MM\0*"))
    if start < 0:
        return
    order: Literal["little", "big"] = "little" if content[start : start + 1] == b"I" else "big"
    directory = start + int.from_bytes(content[start + 4 : start + 8], order)
    count = min(40, int.from_bytes(content[directory : directory + 2], order))
    if not count:
        return
    entry = directory + 2 + 12 * chance.randrange(count)
    part, width = chance.choice(((0, 2), (2, 2), (2, 2), (2, 2), (4, 4), (8, 4)))
    value = chance.choice((chance.randrange(14), chance.randrange(14), *EXTREMES))
    value &= 256**width - 1
    if entry + 12 <= len(content):
        content[entry + part : entry + part + width] = value.to_bytes(width, order)


Damage = Callable[[bytearray, random.Random, bytes], None]
DAMAGES: tuple[Damage, ...] = (
    turn_bits, set_byte, set_byte, set_extreme, set_extreme, cut_out, cut_off, repeat, put_in,
    change_entry, change_entry, change_entry, change_entry,
)  # fmt: skip


def sound_files(form: str) -> list[bytes]:
    """Return valid files of a format in all its variants."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 42, 4), dtype=np.uint8)
    pixels[10:20] //= 8
    rgb = Image.fromarray(pixels[..., :3])
    modes = {mode: rgb.convert(mode) for mode in ("1", "L", "P", "CMYK", "YCbCr", "RGB")}
    modes["RGBA"] = Image.fromarray(pixels)
    modes["LA"] = modes["RGBA"].convert("LA")
    modes["I;16"] = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    modes["F"] = Image.fromarray(pixels[..., 0].astype(np.float32) / 255)
    modes["I"] = Image.fromarray(pixels[..., 0].astype(np.int32) * 1000)
    exif = rgb.getexif()
    exif.update({0x0112: 6, 0x010F: "maker", 0x011A: TiffImagePlugin.IFDRational(72, 1)})
    exif.get_ifd(0x8769).update({0x829A: 0.01, 0x9003: "2026:01:01 00:00:00", 0x927C: b"\0" * 20})
    exif.get_ifd(0x8825).update({1: "N", 2: (50.0, 10.0, 3.0)})
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"></x:xmpmeta>'
    files: list[bytes] = []

    def add(image: Image.Image, **options: object) -> None:
        stream = io.BytesIO()
        image.save(stream, form, **options)
        files.append(stream.getvalue())

    if form == "JPEG":
        for mode in ("L", "RGB", "CMYK"):
            add(modes[mode], exif=exif)
            add(modes[mode], progressive=True, xmp=xmp, icc_profile=b"profile" * 9)
        add(rgb, exif=exif, xmp=xmp, comment=b"said", restart_marker_blocks=2, subsampling=2)
        stream = io.BytesIO()
        rgb.save(stream, "MPO", save_all=True, append_images=[modes["L"].convert("RGB")], exif=exif)
        files.append(stream.getvalue())
    elif form == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_text("comment", "said", zip=True)
        info.add_itxt("XML:com.adobe.xmp", xmp.decode())
        for mode in ("1", "L", "P", "RGB", "RGBA", "LA", "I;16"):
            add(modes[mode], pnginfo=info, exif=exif)
        for mode, key in (("L", 7), ("RGB", (1, 2, 3)), ("P", 3), ("I;16", 257)):
            add(modes[mode], transparency=key, icc_profile=b"profile" * 9)
        add(rgb, save_all=True, append_images=[modes["L"].convert("RGB")])
    elif form == "WEBP":
        for options in ({"lossless": True}, {"quality": 50}, {"exif": exif, "xmp": xmp}):
            add(rgb, **options)
            add(modes["RGBA"], **options)
        add(rgb, save_all=True, append_images=[modes["RGBA"]])
    elif form in ("AVIF", "HEIF"):
        for mode in ("L", "RGB", "RGBA"):
            add(modes[mode], quality=50, **({"speed": 10} if form == "AVIF" else {}))
        add(rgb, exif=exif, xmp=xmp, quality=90)
    elif form == "GIF":
        for mode in ("1", "L", "P"):
            add(modes[mode], comment=b"said")
            add(modes[mode], interlace=True, transparency=0)
        add(modes["P"], save_all=True, append_images=[modes["L"].convert("P")], loop=0, disposal=2)
    elif form == "BMP":
        for mode in ("1", "L", "P", "RGB", "RGBA"):
            add(modes[mode])
    else:
        for mode in ("1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "I;16", "I", "F"):
            for compression in COMPRESSIONS:
                # Some combinations don't exist.
                with_exif = {"exif": exif} if compression is None else {"tiffinfo": {270: "said"}}
                try:
                    add(modes[mode], compression=compression, **with_exif)
                except (OSError, ValueError, KeyError, RuntimeError):
                    continue
        add(rgb, compression="tiff_lzw", tiffinfo={278: 4}, big_tiff=True)
        add(rgb, save_all=True, append_images=[modes["L"]], compression="tiff_lzw")
    return files


if __name__ == "__main__":
    sys.exit(main())
