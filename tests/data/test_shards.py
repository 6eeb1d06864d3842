"""Shards: the same images and labels as their source, from anywhere, whatever the network does."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import shutil
import tarfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import fsspec
import numpy as np
import pytest
from faulty_server import FaultyServer, serving
from hypothesis import given, settings
from hypothesis import strategies as st
from making import write_image, write_voc
from PIL import Image

from mltr.cli import main
from mltr.config.schema import DataConfig, ScenesConfig
from mltr.data import (
    ImageDataset,
    Preprocess,
    Splits,
    make_loader,
    open_splits,
    packing,
    read_scenes,
)
from mltr.data.shards import (
    OPEN_FILES,
    WINDOW,
    ShardRecords,
    ShardSplit,
    ShardStore,
    StoredFile,
    read_shards,
)
from mltr.errors import BrokenImage, MltrError, UsageError
from mltr.files import download


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr("mltr.data.shards.PAUSES_S", (0.0,))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Photos with known, unknown and no labels, and a name that is not ASCII."""
    rows = ["path,sea,sky,split"]
    for index in range(60):
        name = f"{index}.png" if index else "é ü.png"
        write_image(tmp_path / "photos" / name, (40, 30), seed=index)
        split = ("train", "train", "train", "val", "test")[index % 5]
        rows.append(f"{name},{index % 2},{('1', '0', '')[index % 3]},{split}")
    (tmp_path / "photos" / "labels.csv").write_text("\n".join(rows))
    return tmp_path / "photos"


def pack(source: Path | str, out: Path, *options: str) -> int:
    return main(["shard", str(source), "--out", str(out), "--samples", "7", *options])


def contents(splits: Splits) -> dict[tuple[str, str], tuple]:
    """All that a source says, in any order."""
    return {
        (split.name, record.name): (
            record.image.read_bytes(), record.labels.tolist(), record.boxes,
        )
        for split in splits for record in split
    }  # fmt: skip


def opened(root: object, tmp_path: Path | None = None, **options: object) -> Splits:
    cache = {"shard_cache": str(tmp_path / "cache")} if tmp_path else {}
    return open_splits(DataConfig(root=str(root), **cache, **options))


# -- writing -----------------------------------------------------------------------------------


def test_nothing_is_lost_or_changed(table: Path, tmp_path: Path, capsys) -> None:
    assert pack(table, tmp_path / "shards", "--verify") == 0
    assert "train: 36 images in 6 shards" in (printed := capsys.readouterr().out)
    assert "no problems" in printed
    before, after = opened(table), opened(tmp_path / "shards")
    assert contents(before) == contents(after)
    for old, new in zip(before, after, strict=True):
        rows = [new.names.index(name) for name in old.names]
        assert np.array_equal(new.targets[rows], old.targets)
        assert np.array_equal(new.positives.toarray()[rows], old.targets == 1)
        assert [record.name for record in new] == new.names
        known = [(old.targets == value).sum(0).tolist() for value in (1, 0)]
        assert [count.tolist() for count in new.count_labels()] == known
        assert [count.tolist() for count in old.count_labels()] == known
    assert after.train.names != before.train.names  # shuffled
    assert (before.train.targets == -1).any()
    before, after = (opened(root, missing="negative") for root in (table, tmp_path / "shards"))
    assert contents(before) == contents(after)
    assert all((split.targets >= 0).all() for split in (*before, *after))
    after = opened(tmp_path / "shards", missing="negative", format="coco")  # as a recipe says
    assert contents(before) == contents(after)


@pytest.mark.parametrize("source", ["voc", "coco"])
def test_boxes_and_difficult_objects_stay(tmp_path: Path, source: str, request) -> None:
    root = tmp_path / "VOC2007"
    if source == "coco":
        root = request.getfixturevalue("shared") / "data" / "coco_mini"
    else:
        write_voc(root)
    assert pack(root, tmp_path / "shards", "--verify") == 0
    assert contents(opened(root)) == contents(opened(tmp_path / "shards"))


def test_other_programs_read_the_tar_files(table: Path, tmp_path: Path) -> None:
    """The layout of WebDataset: files of one sample stand together and share a key."""
    pack(table, tmp_path / "shards")
    index = json.loads((tmp_path / "shards" / "index.json").read_text())
    expected = {record.name: record for record in opened(table).train}
    seen = []
    for entry in index["splits"]["train"]["shards"]:
        with tarfile.open(tmp_path / "shards" / entry["name"]) as tar:
            members = tar.getmembers()
            assert len(members) == 2 * entry["samples"]
            for image, about in zip(members[::2], members[1::2], strict=True):
                assert image.name == about.name.replace("json", "png")
                sample = json.load(tar.extractfile(about))
                record = expected[sample["name"]]
                assert tar.extractfile(image).read() == record.image.read_bytes()
                assert sample["labels"] == np.flatnonzero(record.labels == 1).tolist()
                assert sample["unknown"] == np.flatnonzero(record.labels == -1).tolist()
                seen.append(sample["name"])
    assert sorted(seen) == sorted(expected)
    assert index["classes"] == ["sea", "sky"]


def test_an_interrupted_call_goes_on_and_ends_the_same(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    pack(table, tmp_path / "whole")
    out, pack_one, calls = tmp_path / "halves", packing._pack, []

    def interrupted(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        pack_one(*arguments)

    monkeypatch.setattr(packing, "_pack", interrupted)
    assert pack(table, out) == 130
    assert not (out / "index.json").exists()
    for others in (["--side", "20"], ["--missing", "negative"]):
        assert pack(table, out, *others) == 2
        assert "begun with other" in capsys.readouterr().err
    assert pack(table, out) == 0
    assert len(calls) == 4 + 6 + 2 + 2 - 3  # three shards were there
    files = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert {path.name: path.read_bytes() for path in out.iterdir()} == files
    assert pack(table, out) == 2
    assert "holds shards already" in capsys.readouterr().err
    assert pack(table, out, "--overwrite") == 0


def test_nothing_of_others_is_replaced(table: Path, tmp_path: Path, capsys) -> None:
    shards = tmp_path / "shards"
    assert pack(table, shards) == 0
    before = {path.name: path.read_bytes() for path in shards.iterdir()}
    assert pack(shards, shards, "--side", "20", "--overwrite") == 2
    assert "is where the images come from" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in shards.iterdir()} == before
    (shards / "train-photos.tar").write_bytes(b"mine")  # six letters, where we have six digits
    (shards / "train-000000.tar").unlink()  # as is left of an --overwrite that was interrupted
    assert pack(table, shards, "--overwrite") == 0
    assert (shards / "train-photos.tar").read_bytes() == b"mine"
    for name in ("val.parquet", "train-000000.tar", "train-00001.tar"):
        own = tmp_path / name / "own"
        own.mkdir(parents=True)
        (own / name).write_bytes(b"mine")
        for option in ([], ["--overwrite"]):
            assert pack(table, own, *option) == 2
            assert f"holds {name}, which `mltr shard` didn't write" in capsys.readouterr().err
        assert [path.name for path in own.iterdir()] == [name]


def test_labels_that_are_named_count_before_shards_beside_them(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(table, tmp_path / "both"))
    assert pack(table, tmp_path / "shards") == 0
    shutil.copytree(tmp_path / "shards", folder, dirs_exist_ok=True)
    named = open_splits(DataConfig(root=str(folder), format="table", labels="labels.csv"))
    assert not isinstance(named.train, ShardSplit)
    monkeypatch.chdir(folder)  # where a recipe's labels.csv is one, too
    packed = open_splits(
        DataConfig(root=str(tmp_path / "shards"), format="table", labels="labels.csv")
    )
    assert isinstance(packed.train, ShardSplit)
    assert isinstance(open_splits(DataConfig(root=str(folder))).train, ShardSplit)


def test_images_are_shrunk_and_composed_ones_packed(tmp_path: Path) -> None:
    write_image(tmp_path / "photos" / "a" / "large.png", (90, 60))
    write_image(tmp_path / "photos" / "b" / "small.png", (24, 20))
    for index in range(8):
        write_image(tmp_path / "photos" / "ab"[index % 2] / f"{index}.png", (40, 30))
    options = ("--side", "30", "--test_fraction", "0.3", "--val_fraction", "0.3")
    assert pack(tmp_path / "photos", tmp_path / "shards", *options, "--verify") == 0
    splits = opened(tmp_path / "shards")
    sizes = {r.name: Image.open(io.BytesIO(r.image.read_bytes())) for s in splits for r in s}
    assert sizes["a/large.png"].size == (45, 30)
    assert sizes["b/small.png"].size == (24, 20)
    assert {image.format for image in sizes.values()} == {"JPEG"}
    few = read_scenes(ScenesConfig(train=9, val=9, test=9))
    packing.write_shards(few, tmp_path / "scenes", samples=4)
    (first,) = (r for r in opened(tmp_path / "scenes").val if r.name == few.val[0].name)
    assert np.array_equal(np.asarray(first.image.load()), np.asarray(few.val[0].image.load()))


def test_photos_without_labels_are_packed_too(tmp_path: Path, capsys) -> None:
    for index in range(12):
        write_image(tmp_path / "photos" / f"{index}.png")
    assert pack(f"images:{tmp_path / 'photos'}", tmp_path / "shards", "--verify") == 0
    splits = read_shards(DataConfig(root=str(tmp_path / "shards")))
    assert [len(split) for split in splits] == [11, 1, 0]
    assert splits.train[0].labels.shape == (0,)
    assert main(["train", "scratch", str(tmp_path / "photos"), "--data.format=images"]) == 2
    assert "data.format images has no labels" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert pack(f"images:{tmp_path / 'empty'}", tmp_path / "none") == 1
    assert "no images" in capsys.readouterr().err


def test_broken_images_are_left_out_and_limited(table: Path, tmp_path: Path, capsys) -> None:
    (table / "5.png").write_bytes(b"broken")
    (table / "10.png").unlink()
    assert pack(table, tmp_path / "shards") == 1
    assert "more than data.max_broken" in capsys.readouterr().err  # the missing one alone
    assert pack(table, tmp_path / "shards", "--data.max_broken", "0.02") == 2
    assert "--max-broken SHARE sets" in capsys.readouterr().err
    assert pack(table, tmp_path / "shards", "--max-broken", "0.02") == 0
    assert main(["data", str(tmp_path / "shards"), "--quick", "--truncated", "allow"]) == 0
    index = json.loads((tmp_path / "shards" / "index.json").read_text())
    (message,) = index["splits"]["train"]["broken"]
    assert message.startswith("5.png: ")
    assert len(opened(tmp_path / "shards").train) == 34
    (table / "6.png").write_bytes(b"broken")
    assert pack(table, tmp_path / "shards", "--max-broken", "0.02", "--overwrite") == 1
    assert "--max-broken 0.02 allows" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("flip", "train-000001.tar: damaged: its sha256"),
        ("cut", "train-000001.tar: damaged"),
        ("gone", "train-000001.tar: [Errno 2]"),
        ("label", "and the table disagree"),
    ],
)
def test_verify_finds_damage(table: Path, tmp_path: Path, damage: str, words: str, capsys) -> None:
    pack(table, tmp_path / "shards")
    path = tmp_path / "shards" / "train-000001.tar"
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "label":
        at = content.index(b'"labels": ')
        content[at : at + 10] = b'"lobels": '
        path.write_bytes(content)
    else:
        content[700] ^= 1
        path.write_bytes(content if damage == "flip" else content[:5000])
    capsys.readouterr()
    assert main(["shard", str(tmp_path / "shards"), "--verify"]) == 1
    assert words in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "--out DIR"),
        (["--out", "x", "--samples", "0"], "at least 1"),
        (["--out", "x", "--quality", "0"], "1..100"),
        (["--verify"], "can't be read"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, options: list[str], words: str, capsys) -> None:
    assert main(["shard", str(tmp_path), *options]) in (1, 2)
    assert words in capsys.readouterr().err


# -- the order ---------------------------------------------------------------------------------


def empty_split(counts: list[int]) -> ShardSplit:
    files = [StoredFile(f"{i}.tar", 1, "", count) for i, count in enumerate(counts)]
    rows = [{"name": "", "offset": 0, "size": 0, "labels": [], "unknown": []}] * sum(counts)
    records = ShardRecords(ShardStore("/x", Path(), 0), files, packing._table(rows), 1)
    return ShardSplit(("a",), records)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=40), st.integers(0, 9))
def test_an_epoch_needs_few_shards_at_a_time(counts: list[int], epoch: int) -> None:
    split = empty_split(counts)
    order = split.epoch_order(3, epoch)
    assert sorted(order.tolist()) == list(range(sum(counts)))
    assert np.array_equal(order, split.epoch_order(3, epoch))
    # A shard is needed from its first sample to its last.
    shards = np.repeat(np.arange(len(counts)), counts)[order]
    needed = np.zeros(len(order) + 1, int)
    for number in np.unique(shards):
        places = np.flatnonzero(shards == number)
        needed[places[0]] += 1
        needed[places[-1] + 1] -= 1
    assert needed.cumsum().max() <= WINDOW


def test_epochs_differ_and_mix_the_shards() -> None:
    split = empty_split([50] * 40)
    orders = [split.epoch_order(0, epoch) for epoch in (0, 1)]
    assert not np.array_equal(*orders)
    in_the_middle = orders[0][800:1200] // 50
    assert len(set(in_the_middle.tolist())) >= WINDOW
    # One shard after another would give whole runs of samples of the same shard.
    assert (in_the_middle[1:] == in_the_middle[:-1]).mean() < 2 / WINDOW


# -- from elsewhere ----------------------------------------------------------------------------


def read_share(
    root: str, cache: str, limit_gb: float, rank: int, first_batch: int, seen: multiprocessing.Queue
) -> None:
    """One process of a training: its batches of an epoch, read by two workers."""
    config = DataConfig(root=root, shard_cache=cache, shard_cache_gb=limit_gb)
    dataset = ImageDataset(open_splits(config).train, Preprocess(8))
    loader = make_loader(dataset, 12, shuffle=True, workers=2, seed=5, rank=rank, processes=3)
    found = []
    for batch in loader.epoch(2, first_batch):
        assert not batch.errors, batch.errors
        assert batch.images.flatten(1).any(dim=1).all()
        found.append(batch.indices.tolist())
    seen.put((rank, found))


def epoch_of_three(server: FaultyServer, tmp_path: Path, first_batch: int, limit: float) -> list:
    """Return the indices of each batch of an epoch, as three processes together read them."""
    context = multiprocessing.get_context("fork")
    seen = context.Queue()
    arguments = (server.address, str(tmp_path / "cache"), limit)
    processes = [
        context.Process(target=read_share, args=(*arguments, rank, first_batch, seen))
        for rank in range(3)
    ]
    for process in processes:
        process.start()
    shares = dict(seen.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    return [list(chain(*parts)) for parts in zip(*(shares[r] for r in range(3)), strict=True)]


def fails_now_and_then(name: str, number: int) -> str:
    """Every file fails in its own way before it comes, and again each time it is fetched anew."""
    faults = ("500", "break", "", "corrupt", "503", "break", "no range", "")
    return faults[(number + sum(map(ord, name))) % len(faults)]


def cache_size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.tar*"))


@pytest.mark.parametrize("source", ["miml", "scenes"])
def test_every_sample_once_on_three_ranks_with_two_workers(
    source: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Over HTTP that fails, through a cache that holds a part, resumed in mid-epoch too."""
    if source == "miml":
        root = request.getfixturevalue("shared") / "data" / "miml"
        splits = open_splits(DataConfig(root=str(root), labels="miml_labels_1.csv"))
    else:
        splits = read_scenes(ScenesConfig(train=365, val=9, test=9))
    few = Splits(*(s.subset(range(n), s.name) for s, n in zip(splits, (365, 9, 9), strict=True)))
    out = tmp_path / "shards"
    index = packing.write_shards(few, out, samples=7, workers=2)
    sizes = [file["size"] for file in index["splits"]["train"]["shards"]]
    largest = max(f["size"] for split in index["splits"].values() for f in split["shards"])
    limit = 2 * WINDOW * largest
    assert limit < 0.8 * sum(sizes)
    with serving(out, fails_now_and_then) as server:
        whole = epoch_of_three(server, tmp_path, 0, limit / 1e9)
        rest = epoch_of_three(server, tmp_path, 13, limit / 1e9)
    counts = Counter(chain(*whole))
    assert set(counts) == set(range(365))
    assert set(counts.values()) == {1}
    assert [sorted(batch) for batch in rest] == [sorted(batch) for batch in whole[13:]]
    assert {len(batch) for batch in whole[:-1]} == {12}
    assert max(server.counts.values()) > 1
    # What is fetched at the same moment may come on top of the limit: the shards that come next.
    assert cache_size(tmp_path / "cache") <= limit + WINDOW * largest


def test_a_store_like_s3(table: Path, tmp_path: Path) -> None:
    pack(table, tmp_path / "shards")
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "shards"), "/bucket/photos", recursive=True)
    try:
        splits = opened("memory://bucket/photos", tmp_path)
        assert contents(splits) == contents(opened(table))
        memory.rm("/bucket/photos/index.json")
        with pytest.raises(MltrError, match=r"index\.json can't be fetched"):
            opened("memory://bucket/photos", tmp_path)
    finally:
        memory.rm("/bucket", recursive=True)
    with pytest.raises(MltrError, match="not known: nothing"):
        opened("nothing://bucket", tmp_path)


def test_what_is_in_the_cache_is_not_fetched_again(table: Path, tmp_path: Path) -> None:
    pack(table, tmp_path / "shards")
    with serving(tmp_path / "shards") as server:
        for _ in range(2):
            assert contents(opened(server.address, tmp_path)) == contents(opened(table))
        assert server.counts.pop("index.json") == 2
        assert set(server.counts.values()) == {1}
        # Other shards at the same address are other shards.
        lines = (table / "labels.csv").read_text().replace(",1,", ",0,", 1)
        (table / "labels.csv").write_text(lines)
        pack(table, tmp_path / "shards", "--overwrite")
        assert contents(opened(server.address, tmp_path)) == contents(opened(table))


def test_a_cache_too_small_is_refused(table: Path, tmp_path: Path) -> None:
    pack(table, tmp_path / "shards")
    with serving(tmp_path / "shards") as server, pytest.raises(MltrError, match="shard_cache_gb"):
        opened(server.address, tmp_path, shard_cache_gb=1e-6)


def test_a_shard_that_can_not_be_had_is_counted(table: Path, tmp_path: Path) -> None:
    pack(table, tmp_path / "shards")
    gone = "train-000002.tar"
    with serving(tmp_path / "shards", lambda name, _: "500" if name == gone else "") as server:
        train = opened(server.address, tmp_path).train
        batches = list(make_loader(ImageDataset(train, Preprocess(8)), 12))
        errors = [error for batch in batches for error in batch.errors]
        assert server.counts[gone] == download.ATTEMPTS  # not for each of its images
    assert len(errors) == 7
    assert all(gone in error and "500" in error for error in errors)
    lost = [index for index in range(36) if train.records.file_of(index).name == gone]
    for batch in batches:
        for index, targets in zip(batch.indices.tolist(), batch.targets, strict=True):
            assert targets.eq(-1).all() == (index in lost)


def test_files_that_vanish_or_shrink_under_a_run_are_errors_not_crashes(
    table: Path, tmp_path: Path
) -> None:
    pack(table, tmp_path / "shards")
    train = opened(tmp_path / "shards").train
    train[0].image.load()
    os.truncate(tmp_path / "shards" / "train-000000.tar", 600)
    with pytest.raises(BrokenImage, match=r"train-000000\.tar: it is cut off"):
        train[0].image.load()
    (tmp_path / "shards" / "train-000001.tar").unlink()
    with pytest.raises(BrokenImage, match="No such file"):
        train[7].image.load()


def test_threads_read_more_shards_than_are_kept_open(table: Path, tmp_path: Path) -> None:
    """None closes a file that another one reads, and the number of open ones is bounded."""
    assert main(["shard", str(table), "--out", str(tmp_path / "shards"), "--samples", "1"]) == 0
    expected = {record.name: record.image.read_bytes() for record in opened(table).train}
    train = opened(tmp_path / "shards").train
    assert len(train.records.files) == 36 > OPEN_FILES
    order = [index for seed in range(20) for index in train.epoch_order(seed, 0).tolist()]
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda index: train[index].image.read_bytes(), order))
    assert read == [expected[train[index].name] for index in order]
    folder = Path("/proc/self/fd")
    if folder.is_dir():
        kept = [path for path in folder.iterdir() if str(tmp_path) in os.path.realpath(path)]
        assert 0 < len(kept) <= OPEN_FILES


def test_an_index_that_is_damaged_is_said_to_be(table: Path, tmp_path: Path) -> None:
    pack(table, tmp_path / "shards")
    path = tmp_path / "shards" / "index.json"
    index = json.loads(path.read_text())
    for content, words in (
        (index | {"version": 99}, "newer mltr"),
        (index | {"classes": ["sea", "fog"]}, "its checksum is wrong"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(MltrError, match=words):
            opened(tmp_path / "shards")
    path.write_text("{")
    with pytest.raises((MltrError, UsageError)):
        opened(tmp_path / "shards", format="shards")


def test_a_training_reads_them_and_stops_at_too_many_lost(
    table: Path, tmp_path: Path, capsys
) -> None:
    pack(table, tmp_path / "shards")
    options = [
        "--data.base_size=0", "--data.cache=false", "--model.image_size=32", "--data.workers=0",
        "--model.overrides.depths=[0,1]", "--model.overrides.conv_depths=[1,0]",
        "--train.epochs=1", "--train.batch_size=12", "--train.precision=fp32",
        f"--data.shard_cache={tmp_path / 'cache'}",
    ]  # fmt: skip
    gone = "train-000002.tar"
    with serving(tmp_path / "shards", lambda name, _: "404" if name == gone else "") as server:
        command = ["train", "scratch", "--data.root", server.address, *options]
        assert main([*command, "--out", str(tmp_path / "run")]) == 1
        assert "data.max_broken=0.01 allows" in (message := capsys.readouterr().err)
        assert gone in message
        assert main([*command, "--out", str(tmp_path / "run2"), "--data.max_broken=0.5"]) == 0
    figures = json.loads((tmp_path / "run2" / "metrics.json").read_text())
    assert len(figures["broken_training_images"]) == 7
