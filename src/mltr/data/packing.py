"""Packs splits into shards, and checks shards."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mltr import __version__
from mltr.config.schema import SPLITS, DataConfig
from mltr.data.images import open_image
from mltr.data.shards import (
    FORMAT,
    INDEX_FILE,
    VERSION,
    ShardRecords,
    ShardSplit,
    StoredFile,
    is_shards,
    read_shards,
    seal,
    table_schema,
)
from mltr.errors import BrokenImage, MltrError, UsageError
from mltr.files.writing import sha256_of, text_writer, write_atomically, write_json
from mltr.terminal import make_console

if TYPE_CHECKING:
    import pyarrow as pa

    from mltr.data.records import ImageSource, Record, Split, Splits

PARTS = ".parts"  #: folder of what is known of finished shards, until all are there
SHUFFLE_SEED = 0  #: of the order in which training images go into shards
SUFFIXES = {"JPEG": "jpg", "TIFF": "tif"}  #: other formats are called by their own name


@dataclass(frozen=True)
class Encoding:
    """What becomes of an image on its way into a shard."""

    side: int = 0  #: pixels of the shorter side, if it is longer than that (0: the original bytes)
    quality: int = 90  #: of the JPEG, where it is made anew

    def __call__(self, source: ImageSource) -> tuple[bytes, str]:
        """Return an image file and its suffix; raises `BrokenImage`."""
        image = open_image(source)  # what can't be decoded isn't packed
        buffer = io.BytesIO()
        if self.side:
            scale = min(1.0, self.side / min(image.size))
            size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
            image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0).save(
                buffer, "JPEG", quality=self.quality
            )
            return buffer.getvalue(), "jpg"
        if not isinstance(source, bytes) and not hasattr(source, "read_bytes"):
            image.save(buffer, "PNG")  # a composed image has no bytes of its own
            return buffer.getvalue(), "png"
        content = source if isinstance(source, bytes) else source.read_bytes()
        with Image.open(io.BytesIO(content)) as opened:
            form = opened.format or ""
        return content, SUFFIXES.get(form, form.lower())


# -- writing -----------------------------------------------------------------------------------


def write_shards(
    splits: Splits,
    out: Path,
    samples: int,
    encoding: Encoding = Encoding(),
    max_broken: float = 0.01,
    workers: int = 1,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write splits as shards of `samples` images into a folder, and return their index.

    Training images are shuffled first, once, so that each shard is a fair sample of them. What an
    interrupted call has finished is kept. A broken image is left out, and named in the index.
    Raises `MltrError` if they are more than the share `max_broken`, or the disk is full, and
    `UsageError` if other images, or the same in another way, were begun in that folder.
    """
    _refuse_foreign(out)
    if overwrite:
        _clear(out)
    orders = {split.name: _order(split) for split in splits}
    _check_plan(out, splits, orders, samples, encoding)
    jobs = [(split, start) for split in splits for start in range(0, len(split), samples)]
    parts: dict[str, list[dict[str, Any]]] = {split.name: [] for split in splits}
    total, broken = sum(map(len, splits)), 0
    for split, start in _with_bar(jobs):
        path = out / f"{split.name}-{start // samples:06d}.tar"
        rows = orders[split.name][start : start + samples]
        part = _shard(split, rows, start, path, encoding, workers)
        parts[split.name].append(part)
        broken += len(part["broken"])
        if broken > max_broken * total:
            raise MltrError(
                f"{broken} of {total} images are broken, more than --max-broken {max_broken:g} "
                f"allows: {'; '.join(part['broken'][:3])}"
            )
    entries = {split.name: _finish_split(out, split, parts[split.name]) for split in splits}
    index = seal(
        {
            "format": FORMAT,
            "version": VERSION,
            "mltr_version": __version__,
            "images": asdict(encoding) if encoding.side else "original",
            "classes": list(splits.train.classes),
            "splits": entries,
        }
    )
    write_json(out / INDEX_FILE, index)
    _remove_parts(out)
    return index


def _with_bar(jobs: list[tuple[Split, int]]) -> Iterable[tuple[Split, int]]:
    from rich.progress import track

    console = make_console(stderr=True)
    return track(
        jobs, "packing shards", console=console, transient=True, disable=not console.is_terminal
    )


def _order(split: Split) -> NDArray[np.int64]:
    if split.name != "train":
        return np.arange(len(split))
    return np.random.default_rng(SHUFFLE_SEED).permutation(len(split))


def _check_plan(
    out: Path,
    splits: Splits,
    orders: dict[str, NDArray[np.int64]],
    samples: int,
    encoding: Encoding,
) -> None:
    """Begin in a folder, or go on there if the same images are to be packed in the same way."""
    digest = hashlib.sha256(repr((splits.train.classes, samples, encoding)).encode())
    for split in splits:
        names = split.names
        digest.update(json.dumps([names[i] for i in orders[split.name]]).encode())
        digest.update(json.dumps(split.label_sums()).encode())
    plan = out / PARTS / "plan"
    if plan.is_file() and plan.read_text() != digest.hexdigest():
        raise UsageError(
            f"{out} holds shards begun with other images, labels or options: give those again, or "
            "--overwrite"
        )
    write_atomically(plan, text_writer(digest.hexdigest()))


def _shard(
    split: Split, rows: NDArray[np.int64], start: int, path: Path, encoding: Encoding, workers: int
) -> dict[str, Any]:
    """Write a shard, unless it is there; return what the index says of it, and its table."""
    import pyarrow.parquet as pq

    part = path.parent / PARTS / f"{path.stem}.parquet"
    if not (part.is_file() and path.is_file()):
        _pack(split, rows, start, path, part, encoding, workers)
    table = pq.read_table(part)
    about: dict[str, Any] = json.loads(table.schema.metadata[b"mltr"])
    return about | {"table": table}


def _pack(
    split: Split, rows: NDArray[np.int64], start: int, path: Path, part: Path, encoding: Encoding,
    workers: int,
) -> None:  # fmt: skip
    import pyarrow.parquet as pq

    packed: list[dict[str, Any]] = []
    broken: list[str] = []

    def write(temporary: Path) -> None:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for number, row, content in _encoded(split, rows, encoding, workers):
                if isinstance(content, BrokenImage):
                    broken.append(f"{split[row].name}: {content}")
                    continue
                image, suffix = content
                sample = _describe(split[row], keep_boxes=not encoding.side)
                key = f"{start + number:09d}"
                offset = _add(tar, f"{key}.{suffix}", image)
                _add(tar, f"{key}.json", json.dumps(sample, ensure_ascii=False).encode())
                packed.append(sample | {"offset": offset, "size": len(image)})

    write_atomically(path, write)
    about = {"shard": asdict(StoredFile.of(path, len(packed))), "broken": broken}
    # Written last: with it the shard is finished.
    table = _table(packed).replace_schema_metadata({"mltr": json.dumps(about)})
    write_atomically(part, lambda temporary: pq.write_table(table, temporary))


def _encoded(
    split: Split, rows: NDArray[np.int64], encoding: Encoding, workers: int
) -> Iterator[tuple[int, int, tuple[bytes, str] | BrokenImage]]:
    """Yield a number from 0, the record's index, and the image file or what is wrong with it."""

    def encode(row: int) -> tuple[bytes, str] | BrokenImage:
        try:
            return encoding(split[row].image)
        except BrokenImage as error:
            return error

    with ThreadPoolExecutor(workers) as pool:
        # A few at a time: a shard of large photos needn't fit into memory.
        for first in range(0, len(rows), 8 * workers):
            some = [int(row) for row in rows[first : first + 8 * workers]]
            for number, content in enumerate(pool.map(encode, some)):
                yield first + number, some[number], content


def _describe(record: Record, keep_boxes: bool) -> dict[str, Any]:
    """Return what is known of an image as plain values: the JSON beside it."""
    sample: dict[str, Any] = {
        "name": record.name.encode("utf-8", "replace").decode("utf-8"),
        "labels": np.flatnonzero(record.labels == 1).tolist(),
        "unknown": np.flatnonzero(record.labels < 0).tolist(),
        "boxes": None,
    }
    if record.boxes is not None and keep_boxes:  # in pixels of the original image
        sample["boxes"] = [[float(v) for v in asdict(box).values()] for box in record.boxes]
    return sample


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Append a file, the same bytes at any time and by anybody; return where its content begins."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    offset: int = tar.offset + tarfile.BLOCKSIZE
    tar.addfile(member, io.BytesIO(content))
    return offset


def _table(samples: Sequence[dict[str, Any]]) -> pa.Table:
    import pyarrow as pa

    return pa.Table.from_pylist(list(samples), schema=table_schema())


def _finish_split(out: Path, split: Split, parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Write the table of a split from those of its shards; return its entry of the index."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = [part["table"].replace_schema_metadata(None) for part in parts] or [_table([])]
    path = out / f"{split.name}.parquet"
    write_atomically(path, lambda temporary: pq.write_table(pa.concat_tables(tables), temporary))
    shards = [part["shard"] for part in parts]
    return {
        "samples": sum(shard["samples"] for shard in shards),
        "table": asdict(StoredFile.of(path)),
        "shards": shards,
        "broken": [message for part in parts for message in part["broken"]],
    }


def _clear(out: Path) -> None:
    """Delete what this command has written into a folder, and nothing else."""
    # In this order, what an interruption leaves is known for shards.
    for path in (*_found(out, "[0-9]" * 6), out / INDEX_FILE):
        path.unlink(missing_ok=True)
    _remove_parts(out)


def _found(out: Path, number: str) -> list[Path]:
    """Return the tables and shards in a folder, these by a pattern of their number."""
    names = (name for split in SPLITS for name in (f"{split}.parquet", f"{split}-{number}.tar"))
    return sorted(path for name in names for path in out.glob(name))


def _refuse_foreign(out: Path) -> None:
    """Raise `UsageError` if a folder has files called so that this command hasn't written."""
    others = _found(out, "*")
    if others and not is_shards(out) and not (out / PARTS / "plan").is_file():
        raise UsageError(
            f"{out} holds {others[0].name}, which `mltr shard` didn't write: choose another --out"
        )


def _remove_parts(out: Path) -> None:
    folder = out / PARTS
    if folder.is_dir():
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


# -- checking ----------------------------------------------------------------------------------


def verify(root: str | Path) -> Iterator[str]:
    """Yield what is wrong with shards, in a folder or elsewhere: each byte and label is looked at.

    Raises `MltrError` if there is no index or it can't be read.
    """
    for split in read_shards(DataConfig(root=str(root), format="shards")):
        records = cast(ShardSplit, split).records
        for number, file in enumerate(records.files):
            try:
                yield from _verify_shard(records, number, file)
            except (MltrError, OSError, tarfile.TarError) as error:
                yield f"{file.name}: {error}"


def _verify_shard(records: ShardRecords, number: int, file: StoredFile) -> Iterator[str]:
    path = records.store.path(file)
    if sha256_of(path) != file.sha256:
        yield f"{file.name}: damaged: its sha256 isn't that of the index"
    first = int(records.bounds[number])
    seen = 0
    with tarfile.open(path) as tar:
        members = iter(tar)
        for index, (image, about) in enumerate(zip(members, members, strict=False), start=first):
            seen += 1
            if index >= records.bounds[number + 1]:
                continue
            record, described = records[index], tar.extractfile(about)
            place = (int(records.offsets[index]), int(records.sizes[index]))
            if (image.offset_data, image.size) != place:
                yield f"{file.name}: {image.name} isn't where the table says"
            sample = _describe(record, keep_boxes=True)
            if described is None or json.loads(described.read()) != sample:
                yield f"{file.name}: {about.name} and the table disagree"
    if seen != file.samples:
        yield f"{file.name}: {seen} samples, and {file.samples} in the index"
