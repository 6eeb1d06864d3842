"""The same picture twice: saved anew, scaled or lightened it is found, another picture isn't."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from mltr.data import duplicates
from mltr.data.duplicates import (
    SIDE,
    Seen,
    conflicting_classes,
    identical_groups,
    look_at,
    reaches_over_splits,
    similar_groups,
    similarity,
)
from mltr.data.records import Record, Split, Splits


def make_picture(seed: int, size: tuple[int, int] = (120, 90)) -> Image.Image:
    """Return soft blobs of colour, as photos are soft."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def jpeg(image: Image.Image, quality: int) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def splits_of(train: list[bytes], test: list[bytes]) -> Splits:
    def split(name: str, images: list[bytes]) -> Split:
        labels = np.zeros(1, np.int8)
        records = [Record(image, f"{name}{i}", labels) for i, image in enumerate(images)]
        return Split(("sea",), records, name)

    return Splits(split("train", train), split("val", []), split("test", test))


def names(groups: list[list[Seen]]) -> list[set[str]]:
    return [{image.name for image in group} for group in groups]


CHANGES = {
    "saved anew": lambda image: jpeg(image, 30),
    "half the size": lambda image: png(image.resize((60, 45))),
    "another shape": lambda image: png(image.resize((90, 90))),
    "lighter": lambda image: png(ImageEnhance.Brightness(image).enhance(1.1)),
    "less contrast": lambda image: png(ImageEnhance.Contrast(image).enhance(0.6)),
    "grey": lambda image: png(image.convert("L")),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_copy_is_found_in_another_split(change) -> None:
    pictures = [png(make_picture(seed)) for seed in range(20)]
    seen = look_at(splits_of(pictures, [change(make_picture(7))]))
    (group,) = similar_groups(seen)
    assert {image.name for image in group} == {"train7", "test0"}
    assert reaches_over_splits(group)
    assert identical_groups(seen) == []
    assert duplicates.SAME_PICTURE <= similarity(*group) <= 1 + 1e-6


def test_other_pictures_are_not_alike() -> None:
    seen = look_at(splits_of([png(make_picture(seed)) for seed in range(100)], []))
    assert similar_groups(seen) == []


def test_the_same_file_is_identical_and_alike() -> None:
    pictures = [png(make_picture(seed)) for seed in (1, 2, 1)]
    seen = look_at(splits_of(pictures, []))
    assert names(identical_groups(seen)) == names(similar_groups(seen)) == [{"train0", "train2"}]
    assert not reaches_over_splits(similar_groups(seen)[0])
    assert similarity(seen[0], seen[2]) == 1


def test_flat_and_broken_images_are_like_nothing() -> None:
    flat = [png(Image.new("RGB", (40, 30), (grey,) * 3)) for grey in (10, 128, 250)]
    seen = look_at(splits_of([*flat, b"no image"], [b"no image", b""]))
    assert similar_groups(seen) == []
    assert [bool(image.error) for image in seen] == [False] * 3 + [True] * 3
    assert identical_groups(seen) == []  # broken files can't be looked at
    assert similar_groups([]) == similar_groups(seen[:1]) == []


@pytest.mark.parametrize("block", [3, 7, 1000])
def test_groups_equal_a_naive_search(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the block; copies of copies are in one group though the ends differ more."""
    generator = np.random.default_rng(0)
    thumbnails = [generator.integers(0, 256, SIDE**2).astype(np.int16) for _ in range(12)]
    for _ in range(28):
        source = thumbnails[generator.integers(len(thumbnails))]
        thumbnails.append(np.clip(source + generator.normal(0, 8, SIDE**2), 0, 255).astype("i2"))
    record = Record(Path("x"), "x", np.zeros(1, np.int8))
    seen = [Seen("train", record, str(i), t.astype(np.uint8)) for i, t in enumerate(thumbnails)]
    near = np.corrcoef(np.stack(thumbnails).astype(float)) >= duplicates.SAME_PICTURE
    group_of = list(range(len(seen)))
    for i, j in np.argwhere(near):
        old, new = group_of[i], group_of[j]
        group_of = [new if group == old else group for group in group_of]
    expected = {
        frozenset(str(i) for i, own in enumerate(group_of) if own == number)
        for number in set(group_of)
        if group_of.count(number) > 1
    }
    assert max(map(len, expected)) > 3
    monkeypatch.setattr(duplicates, "BLOCK", block)
    found = {frozenset(image.content for image in group) for group in similar_groups(seen)}
    assert found == expected


def test_conflicting_labels_are_named_and_unknown_ones_conflict_with_nothing() -> None:
    rows = ([1, 0, -1, 1], [1, 1, 0, -1])
    group = [Seen("train", Record(b"", "x", np.array(row, np.int8))) for row in rows]
    assert conflicting_classes(group, ("sea", "sky", "sand", "sun")) == ["sky"]


def test_photos_that_are_there_twice(shared: Path) -> None:
    folder = shared / "data" / "miml" / "images"
    numbers = (337, 397, 50, 1124, 1125, 1163, 1451, 60, 156)
    records = [Record(folder / f"{n}.jpg", str(n), np.zeros(1, np.int8)) for n in numbers]
    empty = Split(("x",), [], "val")
    seen = look_at(Splits(Split(("x",), records, "train"), empty, empty))
    assert names(similar_groups(seen)) == [{"337", "397", "50"}, {"60", "156"}]
