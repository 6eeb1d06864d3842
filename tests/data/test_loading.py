"""Batches that a seed determines, whatever the workers; broken images that harm nothing."""

from __future__ import annotations

import errno
import os
import pickle
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from making import write_image
from PIL import Image

from mltr.config.schema import AugmentConfig
from mltr.data import ImageDataset, Preprocess, Record, Split, make_loader, open_image
from mltr.data.loading import Batch, Key, Sample, fingerprint, suitable_workers
from mltr.errors import BrokenImage, MltrError
from mltr.files.cache import Cache
from mltr.predict.predictor import Predictor

VARIED = AugmentConfig(crop="random", jitter=0.3, randaugment_ops=1, cutout=0.3)


@pytest.fixture
def split(tmp_path: Path) -> Split:
    records = []
    for index in range(11):
        path = write_image(tmp_path / f"{index}.png", (30, 40))
        labels = np.array([index % 2, 1, -1], np.int8)
        records.append(Record(path, path.name, labels))
    return Split(("a", "b", "c"), records)


def batches_of(split: Split, workers: int = 0, epoch: int = 0, start: int = 0) -> list[Batch]:
    dataset = ImageDataset(split, Preprocess(16), VARIED, seed=7)
    loader = make_loader(dataset, 4, shuffle=True, workers=workers, seed=7)
    return list(loader.epoch(epoch, start))


def same(first: list[Batch], second: list[Batch]) -> bool:
    return all(
        torch.equal(a.images, b.images) and torch.equal(a.indices, b.indices)
        for a, b in zip(first, second, strict=True)
    )


def test_an_epoch_holds_every_image_once(split: Split) -> None:
    batches = batches_of(split)
    assert sorted(torch.cat([b.indices for b in batches]).tolist()) == list(range(11))
    for batch in batches:
        assert np.array_equal(batch.targets.numpy(), split.targets[batch.indices.numpy()])
    dropped = make_loader(ImageDataset(split, Preprocess(16)), 4, drop_last=True)
    assert [len(batch.indices) for batch in dropped] == [4, 4]
    tiny = make_loader(ImageDataset(split, Preprocess(16)), 64, drop_last=True)
    assert [len(batch.indices) for batch in tiny] == [11]


def test_repeated_images_come_in_a_row_and_are_varied_anew(split: Split) -> None:
    dataset = ImageDataset(split, Preprocess(16), VARIED, seed=7)
    loader = make_loader(dataset, 4, shuffle=True, seed=7, repeats=3)
    batches = list(loader.epoch(2))
    rows = torch.cat([batch.indices for batch in batches]).tolist()
    assert [len(batch.indices) for batch in batches] == [4, 4, 3]
    assert rows == np.repeat(split.epoch_order(7, 2), 3)[:11].tolist()
    images = torch.cat([batch.images for batch in batches])
    assert all(not torch.equal(images[i], images[j]) for i, j in ((0, 1), (1, 2), (0, 2)))
    assert torch.equal(images[0], batches_of(split, epoch=2)[0].images[0])
    assert same(batches[1:], list(loader.epoch(2, start_batch=1)))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(split: Split, workers: int) -> None:
    assert same(batches_of(split), batches_of(split, workers))


@pytest.mark.parametrize(
    ("device", "cores", "expected"),
    [("cpu", 1, 1), ("cpu", 2, 1), ("cpu", 16, 4), ("cuda", 2, 1), ("cuda", 4, 3), ("cuda", 64, 8)],
)
def test_workers_leave_cores_to_the_network(
    monkeypatch: pytest.MonkeyPatch, device: str, cores: int, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert suitable_workers(torch.device(device)) == expected


def test_epochs_differ_and_a_resumed_one_goes_on(split: Split) -> None:
    assert same(batches_of(split, epoch=3), batches_of(split, epoch=3))
    assert not same(batches_of(split, epoch=3), batches_of(split, epoch=4))
    assert same(batches_of(split, epoch=3)[1:], batches_of(split, epoch=3, start=1))


def test_one_loader_serves_many_epochs_with_the_same_workers(split: Split) -> None:
    loader = make_loader(
        ImageDataset(split, Preprocess(16), VARIED, seed=7), 4, shuffle=True, workers=1, seed=7
    )
    for epoch in (0, 1, 5):
        assert same(list(loader.epoch(epoch)), batches_of(split, epoch=epoch))


def test_the_process_generator_is_left_alone(split: Split) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    batches_of(split)
    assert torch.equal(torch.get_rng_state(), before)


def test_accelerators_are_not_reseeded(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout on an accelerator must not depend on whether workers load the images."""
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    batches_of(split)
    assert not seeds


@pytest.mark.parametrize("workers", [0, 1])
def test_an_epoch_left_halfway_disturbs_no_other(split: Split, workers: int) -> None:
    dataset = ImageDataset(split, Preprocess(16), VARIED, seed=7)
    loader = make_loader(dataset, 4, shuffle=True, workers=workers, seed=7)
    next(loader.epoch(0))
    assert same(list(loader.epoch(3)), batches_of(split, epoch=3))


def test_an_epoch_is_settled_when_it_is_asked_for(split: Split) -> None:
    loader = make_loader(
        ImageDataset(split, Preprocess(16), VARIED, seed=7), 4, shuffle=True, seed=7
    )
    first, second = loader.epoch(1), loader.epoch(2, start_batch=1)
    assert same(list(first), batches_of(split, epoch=1))
    assert same(list(second), batches_of(split, epoch=2, start=1))


def test_image_size_may_grow(split: Split) -> None:
    dataset = ImageDataset(split, Preprocess(32), VARIED)
    split[1].image.write_bytes(b"broken")
    loader = make_loader(dataset, 4, shuffle=True)
    growing = loader.epoch(0, 1, lambda number: 8 + 8 * number)
    assert [batch.images.shape[-1] for batch in growing] == [16, 24]
    assert [batch.images.shape[-1] for batch in loader.epoch(1)] == [32, 32, 32]
    assert dataset[Key(0, 0, side=16)].image.shape == (3, 16, 16)
    evaluation = ImageDataset(split, Preprocess(32))
    assert {evaluation[Key(0, i, side=16)].image.shape for i in (0, 1)} == {(3, 32, 32)}


@pytest.mark.parametrize("mean", [0.0, 0.4])
def test_a_broken_image_adds_nothing(split: Split, tmp_path: Path, mean: float) -> None:
    (tmp_path / "3.png").write_bytes(b"not an image")
    (tmp_path / "5.png").unlink()
    dataset = ImageDataset(split, Preprocess(16, (mean, mean, mean)), VARIED, seed=7)
    batches = list(make_loader(dataset, 4, shuffle=True))
    errors = [message for batch in batches for message in batch.errors]
    assert len(errors) == 2
    assert any("3.png: not an image" in message for message in errors)
    assert any("5.png: no such file" in message for message in errors)
    for batch in batches:
        for image, targets, index in zip(batch.images, batch.targets, batch.indices, strict=True):
            if index in (3, 5):
                assert image.eq(0).all()
                assert targets.eq(-1).all()


@pytest.mark.parametrize("augment", [None, VARIED])
def test_the_cache_changes_no_pixel(
    split: Split, tmp_path: Path, augment: AugmentConfig | None
) -> None:
    (tmp_path / "4.png").write_bytes(b"broken")
    preprocess = Preprocess(16, base_size=24)
    plain = ImageDataset(split, preprocess, augment)
    cached = [
        ImageDataset(split, preprocess, augment, cache=Cache(tmp_path / "c")) for _ in range(2)
    ]
    for index in range(11):
        for dataset in (*cached, pickle.loads(pickle.dumps(cached[0]))):
            assert torch.equal(dataset[index].image, plain[index].image)
            assert dataset[index].error == plain[index].error
    assert len(list((tmp_path / "c").glob("*.u8"))) == 1  # the second found the first's


def test_evaluation_sees_what_prediction_sees(tmp_path: Path) -> None:
    """Large photos, which are decoded in part, through every way that leads to the network."""
    path = write_image(tmp_path / "photo.jpg", (333, 250))
    split = Split(("a",), [Record(path, path.name, np.ones(1, np.int8))])
    for preprocess in (Preprocess(48, (0.4, 0.5, 0.6)), Preprocess(32, base_size=40)):
        predictor = Predictor(lambda images: images[:, 0, 0, :1], ("a",), preprocess, np.zeros(1))
        expected = preprocess.scale(predictor.read(path))
        assert np.array_equal(preprocess.scale(predictor.read(path.read_bytes())), expected)
        cache = Cache(tmp_path / "c") if preprocess.base_size else None
        for found in (None, cache):
            (batch,) = make_loader(ImageDataset(split, preprocess, cache=found), 1)
            assert np.array_equal(batch.images[0].numpy(), expected)
        assert not np.array_equal(preprocess(open_image(path)), expected)  # decoded in full


@dataclass(frozen=True)
class Painted:
    """A composed image whose colour stands for the code that composes it."""

    index: int
    colour = "red"

    def load(self) -> Image.Image:
        return Image.new("RGB", (24, 24), self.colour)


def test_images_composed_by_other_code_are_composed_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [Record(Painted(i), str(i), np.ones(1, np.int8)) for i in range(3)]
    preprocess = Preprocess(16, base_size=24)

    def first() -> torch.Tensor:
        return ImageDataset(Split(("a",), records), preprocess, cache=Cache(tmp_path))[0].image

    red = first()
    assert torch.equal(first(), red)
    assert len(list(tmp_path.glob("*.u8"))) == 1
    monkeypatch.setattr(Painted, "colour", "blue")
    assert not torch.equal(first(), red)


@pytest.mark.parametrize("damage", ["cut", "gone", "list gone", "list damaged"])
def test_a_damaged_cache_is_made_again(split: Split, tmp_path: Path, damage: str) -> None:
    preprocess, folder = Preprocess(16, base_size=24), tmp_path / "c"
    before = ImageDataset(split, preprocess, cache=Cache(folder))[0].image
    (pixels,) = folder.glob("*.u8")
    size = len(split) * 24 * 24 * 3
    if damage == "gone":
        pixels.unlink()
    else:
        os.truncate(pixels, 100 if damage == "cut" else size)
    if damage == "list damaged":
        os.truncate(pixels, size + 7)  # of zeros, as a power cut leaves them
    assert torch.equal(ImageDataset(split, preprocess, cache=Cache(folder))[0].image, before)


def test_a_full_disk_is_said_in_one_line_and_leaves_nothing(
    split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(MltrError, match=r"squashed images there \(No space left.*data\.cache"):
        ImageDataset(split, Preprocess(16, base_size=24), cache=Cache(tmp_path / "c"))
    assert not list((tmp_path / "c").iterdir())


def test_a_dataset_survives_the_eviction_of_its_file(split: Split, tmp_path: Path) -> None:
    preprocess, size = Preprocess(16, base_size=24), len(split) * 24 * 24 * 3
    cache = Cache(tmp_path / "c", 3 * size // 2)
    first = ImageDataset(split, preprocess, cache=cache)
    ImageDataset(split.subset(range(1, len(split)), "val"), preprocess, cache=cache)
    assert len(list((tmp_path / "c").glob("*.u8"))) == 1
    plain = ImageDataset(split, preprocess)
    for dataset in (first, pickle.loads(pickle.dumps(first))):
        assert torch.equal(dataset[2].image, plain[2].image)
    with pytest.raises(MltrError, match=r"exceed data\.cache_gb 1e-06: raise it"):
        ImageDataset(split, preprocess, cache=Cache(tmp_path / "c", 1000))


def test_an_image_that_can_be_read_again_is(split: Split, tmp_path: Path) -> None:
    preprocess, path = Preprocess(16, base_size=24), tmp_path / "1.png"
    content, status = path.read_bytes(), path.stat()

    def read() -> Sample:
        return ImageDataset(split, preprocess, cache=Cache(tmp_path / "c"))[1]

    def write(content: bytes) -> None:  # which no one sees, as with rights to read it
        path.write_bytes(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    write(b"x" * len(content))
    assert read().error
    assert read().error
    write(content)
    assert not read().error


def test_what_is_kept_is_not_fetched_ahead(split: Split, tmp_path: Path) -> None:
    class Remote(Split):
        fetched = 0

        def will_read(self, order: np.ndarray) -> None:
            self.fetched += 1

    remote = Remote(split.classes, split.records)
    preprocess = Preprocess(16, base_size=24)
    for cache, fetched in ((Cache(tmp_path / "c"), 0), (None, 3)):
        loader = make_loader(ImageDataset(remote, preprocess, cache=cache), 4)
        assert len(list(loader.epoch(0))) == 3
        assert remote.fetched == fetched


def test_no_packed_image_is_read_to_know_a_split(split: Split) -> None:
    class Broken:
        """A file within another one."""

        def read_bytes(self) -> bytes:
            raise BrokenImage("cut")

        load = read_bytes

    record = replace(split[0], image=Broken())
    assert fingerprint(Split(split.classes, [record]), "squash")


def test_a_changed_file_is_decoded_anew(split: Split, tmp_path: Path) -> None:
    preprocess = Preprocess(16, base_size=24)
    before = ImageDataset(split, preprocess, cache=Cache(tmp_path / "c"))[0].image
    write_image(tmp_path / "0.png", (30, 40), seed=99)
    after = ImageDataset(split, preprocess, cache=Cache(tmp_path / "c"))[0].image
    assert not torch.equal(before, after)
