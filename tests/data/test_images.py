"""Opening images of every kind: handled, or refused by name."""

from __future__ import annotations

import functools
import importlib.util
import io
import os
import struct
import subprocess
import sys
import time
import tracemalloc
import warnings
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import rich.console
from hypothesis import given, settings
from hypothesis import strategies as st
from making import write_image
from PIL import Image

from mltr.data import Preprocess, find_images, open_image
from mltr.data.images import FORMATS, LEAST_SHARE, open_reduced
from mltr.data.preprocess import read_squashed, squash
from mltr.data.walk import with_count
from mltr.errors import BrokenImage, MltrError
from mltr.predict.inputs import Inputs
from mltr.predict.predictor import to_image


def corner(path: Path) -> tuple[int, ...]:
    image = open_image(path)
    assert image.mode == "RGB"
    return image.getpixel((0, 0))


def test_plain_kinds_keep_their_pixels(tmp_path: Path) -> None:
    reference = open_image(write_image(tmp_path / "a.png"))
    for suffix in ("png", "bmp", "tiff", "webp"):
        path = tmp_path / f"b.{suffix}"
        reference.save(path, **({"lossless": True} if suffix == "webp" else {}))
        assert np.array_equal(np.asarray(open_image(path)), np.asarray(reference))
    assert np.array_equal(
        np.asarray(open_image((tmp_path / "a.png").read_bytes())), np.asarray(reference)
    )


def test_the_content_decides_not_the_name(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png").rename(tmp_path / "a.jpg")
    assert open_image(tmp_path / "a.jpg").size == (24, 20)


def test_grey_palette_and_cmyk(tmp_path: Path) -> None:
    Image.new("L", (4, 4), 77).save(tmp_path / "grey.png")
    assert corner(tmp_path / "grey.png") == (77, 77, 77)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    palette.save(tmp_path / "palette.png")
    assert corner(tmp_path / "palette.png") == (10, 200, 30)
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=95)
    red, green, blue = corner(tmp_path / "cmyk.jpg")
    assert red > 200
    assert max(green, blue) < 60


def test_transparency_shows_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "rgba.png")
    assert corner(tmp_path / "rgba.png") == (255, 255, 255)
    Image.new("LA", (4, 4), (0, 128)).save(tmp_path / "la.png")
    assert corner(tmp_path / "la.png") == pytest.approx((127, 127, 127), abs=1)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([9, 9, 9])
    palette.save(tmp_path / "keyed.png", transparency=0)
    assert corner(tmp_path / "keyed.png") == (255, 255, 255)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 16384, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    grey = np.asarray(open_image(tmp_path / "deep.png"))[0, :, 0]
    assert grey.tolist() == [0, 63, 127, 255]


def png(bits: int, colour: int, row: bytes, width: int, key: bytes = b"") -> bytes:
    """A PNG of one row, byte by byte."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, 1, bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + (chunk(b"tRNS", key) if key else b"")
        + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    )  # fmt: skip


def tiff(bits: int, row: bytes, width: int, photometric: int = 1, sample_format: int = 1) -> bytes:
    """A grey TIFF of one row, uncompressed, little-endian."""
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 134, 277: 1, 278: 1,
            279: len(row), 339: sample_format}  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + b"\0\0\0\0" + row


def greys(content: bytes) -> list[int]:
    pixels = np.asarray(open_image(content))
    assert (pixels == pixels[..., :1]).all()
    return pixels[0, :, 0].tolist()


def test_white_is_what_the_format_says() -> None:
    sixteen = struct.pack(">5H", 0, 200, 257, 25700, 65535)
    assert greys(png(16, 0, sixteen, 5)) == [0, 0, 1, 100, 255]
    assert greys(png(16, 0, struct.pack(">2H", 100, 200), 2)) == [0, 0]  # a dark picture is dark
    assert greys(tiff(16, struct.pack("<3H", 0, 25700, 65535), 3)) == [0, 100, 255]
    assert greys(tiff(16, struct.pack("<2H", 200, 255), 2)) == [0, 0]
    # 12 bits, two values in three bytes: 0, 15, 2055, 4095.
    assert greys(tiff(12, bytes.fromhex("00000f807fff"), 4)) == [0, 0, 127, 255]
    assert greys(tiff(32, struct.pack("<3I", 0, 2**31, 2**32 - 1), 3)) == [0, 127, 255]
    # White is zero.
    assert greys(tiff(16, struct.pack("<3H", 0, 25700, 65535), 3, photometric=0)) == [255, 155, 0]
    # With a sign there is no white in the format: the smallest of 255 and 65535 that holds all.
    assert greys(tiff(16, struct.pack("<3h", -5, 100, 255), 3, sample_format=2)) == [0, 100, 255]


def test_a_transparent_value_shows_white_in_any_depth() -> None:
    white = 255
    assert greys(png(16, 0, struct.pack(">3H", 0, 200, 65535), 3, struct.pack(">H", 200))) == [
        0, white, 255,
    ]  # fmt: skip
    assert greys(png(16, 0, struct.pack(">2H", 0, 25700), 2, struct.pack(">H", 0))) == [white, 100]
    assert greys(png(8, 0, bytes([9, 5]), 2, struct.pack(">H", 9))) == [white, 5]
    assert greys(png(4, 0, bytes([0x5A]), 2, struct.pack(">H", 5))) == [white, 0xA * 17]
    assert greys(png(2, 0, bytes([0b00_01_10_00]), 3, struct.pack(">H", 1))) == [0, white, 170]
    colours = struct.pack(">6H", 0x1234, 0x5678, 0x9ABC, 0x0101, 0x0101, 0x0101)
    assert greys(png(16, 2, colours, 2, colours[:6])) == [white, 1]


@pytest.mark.parametrize("white", [1.0, 255.0, 65535.0, 1e6])
def test_float_grey_keeps_its_shades(tmp_path: Path, white: float) -> None:
    values = np.linspace(0, white, 5, dtype=np.float32)[None]
    Image.fromarray(values).save(tmp_path / "float.tiff")
    grey = np.asarray(open_image(tmp_path / "float.tiff"))[0, :, 0]
    assert grey.tolist() == pytest.approx([0, 63, 127, 191, 255], abs=1)


def test_float_grey_with_holes(tmp_path: Path) -> None:
    values = np.array([[np.nan, np.inf, -np.inf, -3.0, 0.5, 1.0]], dtype=np.float32)
    Image.fromarray(values).save(tmp_path / "holes.tiff")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        grey = np.asarray(open_image(tmp_path / "holes.tiff"))[0, :, 0]
    assert grey.tolist() == [0, 0, 0, 0, 127, 255]


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20), "black")
    image.paste((255, 255, 255), (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    image.save(tmp_path / "turned.jpg", exif=exif)
    turned = open_image(tmp_path / "turned.jpg")
    assert turned.size == (20, 40)
    assert turned.getpixel((10, 5))[0] > 200
    assert turned.getpixel((10, 35))[0] < 50


def test_a_picture_set_upright_is_not_turned_again(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    slope(40, 20).save(tmp_path / "a.jpg", exif=exif)
    once = open_image(tmp_path / "a.jpg")
    assert np.array_equal(np.asarray(to_image(once)), np.asarray(once))


def slope(width: int, height: int) -> Image.Image:
    """A picture in which each pixel's colour says where it is, with some soft texture."""
    rows, columns = np.mgrid[0:height, 0:width]
    waves = 20 * np.sin(rows / 9) * np.sin(columns / 7)
    colours = [20 + 215 * rows / height, 20 + 215 * columns / width, 128 + waves]
    return Image.fromarray(np.stack(colours, -1).astype(np.uint8))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_decoded_smaller_is_the_same_picture_in_the_same_place(
    tmp_path: Path, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    slope(333, 283).save(tmp_path / "a.jpg", exif=exif, quality=95)  # 1/4: 83.25 x 70.75 pixels
    whole = open_image(tmp_path / "a.jpg")
    reduced, place = open_reduced(tmp_path / "a.jpg", 64)
    assert reduced.size == tuple(-(-side // 4) for side in whole.size)
    assert (place[2] - place[0], place[3] - place[1]) == (whole.width / 4, whole.height / 4)
    difference = np.asarray(squash(reduced, 64, place), int) - np.asarray(squash(whole, 64), int)
    # A shift of half a pixel of the reduced image would be a mean of 1 to 2.
    assert np.abs(difference.mean((0, 1))).max() < 0.4
    assert np.abs(difference).mean() < 0.8


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(*[st.integers(40, 400)] * 2), st.integers(8, 120),
    st.tuples(*[st.floats(0, 0.6)] * 2), st.tuples(*[st.floats(0.1, 0.4)] * 2),
    st.sampled_from([1, 3, 6]),
)  # fmt: skip
def test_a_region_keeps_its_pixels_and_its_place(
    size: tuple[int, int], side: int, start: tuple[float, float], extent: tuple[float, float],
    orientation: int,
) -> None:  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    slope(*size).save(stream, "JPEG", exif=exif)
    whole = open_image(stream.getvalue())
    region = (*start, start[0] + extent[0], start[1] + extent[1])
    reduced, place = open_reduced(stream.getvalue(), side, region)
    scale = round(whole.width / reduced.width)
    assert scale in (1, 2, 4, 8)
    if scale > 1:
        assert min(place[2] - place[0], place[3] - place[1]) >= LEAST_SHARE * side * 0.999
    for axis in (0, 1):
        length = whole.size[axis] / scale
        shift = place[axis] - start[axis] * length
        assert -1e-6 <= shift < 1
        assert place[axis + 2] - place[axis] == pytest.approx(extent[axis] * length)


def test_photos_decoded_smaller_look_the_same(shared: Path) -> None:
    """The difference is smaller than that between two good ways of resizing."""
    reduced, other = [], []
    for path in sorted((shared / "data" / "coco_mini" / "val2017").glob("*.jpg"))[:60]:
        whole = open_image(path)
        if min(whole.size) < 2 * LEAST_SHARE * 128:
            continue
        expected = np.asarray(squash(whole, 128), int)
        reduced.append(np.abs(np.asarray(read_squashed(path, 128), int) - expected).mean())
        lanczos = whole.resize((128, 128), Image.Resampling.LANCZOS)
        other.append(np.abs(np.asarray(lanczos, int) - expected).mean())
    assert len(reduced) > 40
    assert np.mean(reduced) < 1.6 < np.mean(other)
    assert max(reduced) < 4


def test_only_photos_larger_than_needed_are_decoded_smaller(tmp_path: Path) -> None:
    preprocess = Preprocess(48)
    for name, size in (("a.jpg", (80, 90)), ("b.png", (400, 300)), ("c.webp", (400, 300))):
        slope(*size).save(tmp_path / name)
        expected = preprocess.resize(open_image(tmp_path / name))
        assert np.array_equal(preprocess.read(tmp_path / name), expected)


def test_a_damaged_exif_block_costs_neither_the_image_nor_a_warning(tmp_path: Path) -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0\x01"
    Image.new("RGB", (16, 8), "red").save(tmp_path / "a.jpg", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_image(tmp_path / "a.jpg").size == (16, 8)


@pytest.mark.parametrize("kind", [5, 7, 2, 12])
def test_odd_exif_entries_cost_no_image(kind: int) -> None:
    """Their types are no longer what their tags say; the orientation is still right."""
    exif = Image.Exif()
    exif.update({0x0112: 6, 0x010F: "maker of cameras", 0x011A: 72.0})
    content = encoded("JPEG", exif=exif)
    start = content.index(b"MM\0*") + 10
    for entry in range(start, start + 36, 12):
        if content[entry : entry + 2] == b"\x01\x12":
            continue
        odd = bytearray(content)
        odd[entry + 2 : entry + 4] = kind.to_bytes(2, "big")
        assert open_image(bytes(odd)).size == (24, 28)


def test_a_photo_pair_of_a_phone_gives_the_first(tmp_path: Path) -> None:
    second = Image.new("RGB", (16, 16), "blue")
    Image.new("RGB", (16, 16), "red").save(
        tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second]
    )
    assert corner(tmp_path / "a.jpg")[0] > 250


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert corner(tmp_path / "a.gif") == (255, 0, 0)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.jpg", b"", "the file is empty"),
        ("text.jpg", b"this is no image", "not an image that can be read"),
        ("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        ("gone.jpg", None, "no such file"),
    ],
)
def test_what_is_no_image_is_refused_by_name(
    tmp_path: Path, name: str, content: bytes | None, words: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BrokenImage, match=f"{name}: .*{words}"):
        open_image(tmp_path / name)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tiff", "avif"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_files_are_refused_by_name(tmp_path: Path, suffix: str, share: float) -> None:
    path = write_image(tmp_path / f"cut.{suffix}", (64, 64))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(BrokenImage, match=f"cut.{suffix}: "):
        open_image(path)


def encoded(form: str, **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 28, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form, **options)
    return stream.getvalue()


FILES = {form: encoded(form) for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")}


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from(sorted(FILES)),
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_damage_gives_an_image_or_a_broken_image(form: str, damage: list[tuple[int, int]]) -> None:
    content = bytearray(FILES[form])
    for place, value in damage:
        content[place % len(content)] = value
    try:
        assert open_image(bytes(content)).mode == "RGB"
    except BrokenImage as error:
        assert str(error).startswith("image from memory: ")


def test_huge_images_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    Image.new("1", (20_000, 10_000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 100_000
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(
            BrokenImage, match=r"bomb\.png: more pixels than the limit of 100,000,000"
        ):
            open_image(tmp_path / "bomb.png")
    with pytest.raises(BrokenImage, match="24 x 20, more pixels than the limit of 100"):
        open_image(write_image(tmp_path / "small.png"), max_pixels=100)


@pytest.mark.parametrize(
    ("width", "told"),
    [((4, 1, 32_768), "a tile with more pixels than the limit"), ((2, 4, 0x00616161), "damaged")],
)
def test_a_tiff_with_a_huge_tile_is_refused_before_room_is_made_for_it(
    width: tuple[int, int, int], told: str
) -> None:
    """Also where the width (type, count, value) is a text, which Python can multiply."""
    tags = {256: 16, 257: 16, 258: 8, 259: 5, 262: 1, 277: 1, 322: 0, 323: 2**32 - 1, 324: 200,
            325: 9}  # fmt: skip
    entries = b"".join(
        struct.pack("<HHII", tag, *(width if tag == 322 else (4, 1, value)))
        for tag, value in tags.items()
    )
    content = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(100)
    tracemalloc.start()
    try:
        with pytest.raises(BrokenImage, match=told):
            open_image(content)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_a_jpeg_with_thousands_of_scans_is_refused_at_once(tmp_path: Path) -> None:
    content = encoded("JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    (tmp_path / "a.jpg").write_bytes(content[:last] + content[last:-2] * 5000 + b"\xff\xd9")
    with pytest.raises(BrokenImage, match=r"a\.jpg: 5,0\d\d scans, more than the limit of 100"):
        open_image(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes(content)
    assert open_image(tmp_path / "a.jpg").size == (28, 24)


def test_giants_and_pipes_are_not_read(tmp_path: Path) -> None:
    with (tmp_path / "giant.jpg").open("wb") as file:
        file.write(encoded("JPEG"))
        file.truncate(40 * 10**9)
    with pytest.raises(BrokenImage, match=r"giant\.jpg: 40,000,000,000 bytes, more than the limit"):
        open_image(tmp_path / "giant.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(BrokenImage, match=r"pipe\.jpg: a pipe, not an image"):
        open_image(tmp_path / "pipe.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    with pytest.raises(BrokenImage, match=r"loop\.jpg: Too many levels of symbolic links"):
        open_image(tmp_path / "loop.jpg")


def test_deep_images_take_no_more_memory_than_others() -> None:
    """30 megapixels of 16 bits in a fresh process: the picture in RGB alone has 115 MiB."""
    code = (
        "import io, resource, sys; import numpy as np; from PIL import Image\n"
        "from mltr.data import open_image\n"
        "stream = io.BytesIO(); Image.new('I;16', (6000, 5000)).save(stream, 'PNG')\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "before = peak(); open_image(stream.getvalue()); print(peak() - before)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(found.stdout) < 260


def test_damaged_files_of_every_format_are_predicted_or_refused() -> None:
    """A part of what `benchmarks/fuzz_images.py` does with 20,000 files."""
    path = Path(__file__).parents[2] / "benchmarks" / "fuzz_images.py"
    spec = importlib.util.spec_from_file_location("fuzz_images", path)
    assert spec is not None and spec.loader is not None
    fuzz_images = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fuzz_images)
    outcomes, wrong, slowest = fuzz_images.fuzz(600, seed=1)
    assert not wrong, [repr(error) for _, error in wrong.values()]
    assert outcomes.total() == 600
    assert {form for form, outcome in outcomes if outcome == "predicted"} == set(FORMATS)
    assert slowest < 10


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(BrokenImage, match="a folder, not an image"):
        open_image(tmp_path)


def test_bytes_are_named_as_such() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "PNG")
    with pytest.raises(BrokenImage, match="image from memory"):
        open_image(stream.getvalue()[:40])


def test_find_images_sorts_and_passes_over_others(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "sub/c.webp", ".hidden.png"):
        write_image(tmp_path / "x.png").rename(tmp_path / "y")
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / "y").rename(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    assert [p.relative_to(tmp_path).as_posix() for p in find_images(tmp_path)] == [
        "a.png", "b.JPG", "sub/c.webp",
    ]  # fmt: skip
    with pytest.raises(MltrError, match="no such folder"):
        find_images(tmp_path / "nowhere")


def test_caches_are_passed_over_and_unread_kinds_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in (
        "a.jpe",
        "b.JFIF",
        "c.avif",
        ".ipynb_checkpoints/a-checkpoint.png",
        "sea/@eaDir/a.jpg/SYNOPHOTO.jpg",
        ".git/x.png",
        "sea/.thumbnails/a.png",
        "sea/a.jpg",
        "old/b.png",
        "._a.jpg",
        "d.jxl",
        "e.JXL",
        "f.cr3",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "gone.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "loop").symlink_to(".")
    (tmp_path / "notes.txt").symlink_to("notes.txt")
    passed_over: Counter[str] = Counter()
    found = find_images(tmp_path, ["old", "sea/a.*"], passed_over)
    assert [path.name for path in found] == ["a.jpe", "b.JFIF", "c.avif", "gone.jpg", "loop.jpg"]
    assert passed_over == {
        ".ipynb_checkpoints/": 1,
        "@eaDir/": 1,
        ".git/": 1,
        ".thumbnails/": 1,
        "old/": 1,
        "hidden photos": 2,
        ".jxl": 2,
        ".cr3": 1,
        "links to folders": 1,
        "pipes and devices": 1,
    }
    assert find_images(tmp_path / ".ipynb_checkpoints")  # asked for by name
    list(Inputs([str(tmp_path)]))
    assert "2 .jxl skipped (convert them to JPEG)" in caplog.text


def test_heic_without_its_package_is_skipped_and_reported(tmp_path: Path) -> None:
    for name in ("a.heic", "b.HEIC", "c.jpg"):
        (tmp_path / name).touch()
    code = (
        "import sys; sys.modules['pillow_heif'] = None\n"
        "from mltr.data.walk import walk_images\n"
        f"print(*walk_images({str(tmp_path)!r}))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(tmp_path / "c.jpg")
    assert "2 .heic skipped (pip install 'mltr[heic]')" in found.stderr


def test_a_line_counts_many_photos_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    console = functools.partial(rich.console.Console, file=screen, force_terminal=True)
    monkeypatch.setattr(rich.console, "Console", lambda stderr, **options: console(**options))
    assert list(with_count(range(1002), "looking for photos")) == list(range(1002))
    assert "looking for photos: 1,000 so far" in screen.getvalue()


@pytest.mark.slow
def test_a_folder_of_200_000_photos_is_walked_in_seconds(tmp_path: Path) -> None:
    for folder in range(200):
        (tmp_path / str(folder)).mkdir()
        for number in range(1000):
            (tmp_path / str(folder) / f"{number}.jpg").touch()
    start = time.monotonic()
    assert len(find_images(tmp_path)) == 200_000
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    ("suffix", "form"),
    [("jpe", "JPEG"), ("jfif", "JPEG"), ("mpo", "MPO"), ("avif", "AVIF"), ("heic", "HEIF")],
)
def test_kinds_of_phones_and_the_web(tmp_path: Path, suffix: str, form: str) -> None:
    if form == "HEIF":
        pytest.importorskip("pillow_heif")
    picture = Image.fromarray(np.full((20, 30, 3), (200, 40, 60), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # held upright: 30 x 20 pixels show a picture of 20 x 30
    picture.save(tmp_path / f"a.{suffix}", form, exif=exif, quality=95)
    [path] = find_images(tmp_path)
    image = open_image(path)
    # HEIF has a property of its own for that; its Exif orientation doesn't count.
    assert image.size == ((30, 20) if form == "HEIF" else (20, 30))
    assert np.abs(np.asarray(image)[5, 5].astype(int) - (200, 40, 60)).max() < 8


def test_real_photos(shared: Path) -> None:
    for path in find_images(shared / "data" / "coco_mini" / "val2017")[:20]:
        assert open_image(path).mode == "RGB"
