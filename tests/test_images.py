"""Opening images of every kind: handled, or refused by name."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from making import write_image
from PIL import Image

from mltr.data import find_images, open_image
from mltr.errors import BrokenImage, MltrError


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


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tiff"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_files_are_refused_by_name(tmp_path: Path, suffix: str, share: float) -> None:
    path = write_image(tmp_path / f"cut.{suffix}", (64, 64))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(BrokenImage, match=f"cut.{suffix}: "):
        open_image(path)


def test_huge_images_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    Image.new("1", (20_000, 10_000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 100_000
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(
            BrokenImage, match="bomb.png: more pixels than the limit of 100,000,000"
        ):
            open_image(tmp_path / "bomb.png")
    with pytest.raises(BrokenImage, match="24 x 20, more pixels than the limit of 100"):
        open_image(write_image(tmp_path / "small.png"), max_pixels=100)


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
    assert [p.relative_to(tmp_path).as_posix() for p in find_images(tmp_path)] == [
        "a.png", "b.JPG", "sub/c.webp",
    ]  # fmt: skip
    with pytest.raises(MltrError, match="no such folder"):
        find_images(tmp_path / "nowhere")


def test_real_photos(shared: Path) -> None:
    for path in find_images(shared / "data" / "coco_mini" / "val2017")[:20]:
        assert open_image(path).mode == "RGB"
