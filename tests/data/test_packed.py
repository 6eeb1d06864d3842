"""Images in Parquet tables and shards are tagged as those in files are."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faulty_server import serving
from making import write_image
from serving import colour_predictor

from mltr import cli
from mltr.data.shards import is_shards
from mltr.errors import MltrError, UsageError
from mltr.predict import command as predict


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    return [write_image(tmp_path / "photos" / f"{k}.png", seed=k) for k in range(7)]


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(path: str, device: str | None, batch_size: int, engine: str | None) -> Any:
        predictor = colour_predictor(Counting())
        predictor.batch_size = batch_size
        return predictor

    Counting.seen = 0
    monkeypatch.setattr("mltr.predict.predictor.load", load)


class Counting:
    """Logits are 20 x (mean of a channel - 0.5)."""

    fingerprint = "colours"
    seen = 0

    def __call__(self, images: np.ndarray) -> np.ndarray:
        Counting.seen += len(images)
        return 20 * (images.mean(axis=(2, 3)) - 0.5)


def tag(out: Path, *words: object) -> list[dict[str, Any]]:
    """Run the command; return its rows."""
    parser = argparse.ArgumentParser()
    predict.add_arguments(parser)
    predict.run(
        parser.parse_args(["run", *map(str, words), "--out", str(out), "--batch-size", "2"])
    )
    return [json.loads(line) for line in out.read_text().splitlines()]


def without_paths(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "path"} for row in rows]


def write_table(path: Path, columns: dict[str, Any], group: int = 3) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=group)
    return path


def test_a_table_of_paths_stands_for_its_images(photos: list[Path], tmp_path: Path) -> None:
    table = write_table(
        tmp_path / "photos.parquet", {"path": [str(p) for p in photos], "n": [1] * 7}
    )
    rows = tag(tmp_path / "tags.jsonl", table)
    assert rows == tag(tmp_path / "expected.jsonl", *photos)


@pytest.mark.parametrize("form", ["bytes", "bytes and path", "struct", "struct and path"])
def test_a_table_of_images(photos: list[Path], tmp_path: Path, form: str) -> None:
    contents = [path.read_bytes() for path in photos]
    names = [f"album/{path.name}" for path in photos]
    structs = [{"bytes": b, "path": n} for b, n in zip(contents, names, strict=True)]
    columns = {
        "bytes": {"label": list("abcdefg"), "jpg": contents},
        "bytes and path": {"path": names, "content": contents},
        "struct": {"image": [{"bytes": content} for content in contents]},
        "struct and path": {"image": structs, "label": list("abcdefg")},
    }[form]
    table = write_table(tmp_path / "photos.parquet", columns)
    rows = tag(tmp_path / "tags.jsonl", table)
    assert without_paths(rows) == without_paths(tag(tmp_path / "expected.jsonl", *photos))
    own = [f"{table}:{number}" for number in range(7)]
    assert [row["path"] for row in rows] == (names if "path" in form else own)


def test_shards_are_tagged_in_place(
    photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["image,split,red", *(f"{p.name},{('train', 'test')[p.stem > '4']},1" for p in photos)]
    (tmp_path / "photos" / "labels.csv").write_text("\n".join(lines) + "\n")
    assert cli.main(["shard", str(tmp_path / "photos"), "--out", str(tmp_path / "shards")]) == 0
    assert is_shards(tmp_path / "shards")
    rows = tag(tmp_path / "tags.jsonl", tmp_path / "shards")
    expected = {row["path"]: row for row in tag(tmp_path / "expected.jsonl", *photos)}
    assert len(rows) == 7
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with serving(tmp_path / "shards") as server:
        assert tag(tmp_path / "far.jsonl", server.address) == rows
    for row in rows:
        match = next(other for path, other in expected.items() if path.endswith(row["path"]))
        assert row | {"path": ""} == match | {"path": ""}


def test_packed_images_are_known_again(photos: list[Path], tmp_path: Path) -> None:
    contents = [path.read_bytes() for path in photos]
    table = write_table(tmp_path / "photos.parquet", {"image": contents})
    before = tag(tmp_path / "tags.jsonl", table)
    assert Counting.seen == 7
    assert tag(tmp_path / "tags.jsonl", table) == before
    write_table(table, {"image": [*reversed(contents), contents[0]]})  # known by their content
    assert without_paths(tag(tmp_path / "tags.jsonl", table)[:7]) == without_paths(before)[::-1]
    assert Counting.seen == 7
    write_table(table, {"image": [write_image(tmp_path / "new.png", seed=50).read_bytes()]})
    tag(tmp_path / "tags.jsonl", table)
    assert Counting.seen == 8


def test_rows_without_an_image_are_reported(photos: list[Path], tmp_path: Path) -> None:
    table = write_table(
        tmp_path / "photos.parquet", {"path": ["a", "b", "c"], "image": [b"", b"no image", None]}
    )
    rows = tag(tmp_path / "tags.jsonl", table)
    assert [row["error"] for row in rows] == [
        f"a: no bytes of an image in this row of {table}",
        rows[1]["error"],
        f"c: no bytes of an image in this row of {table}",
    ]
    assert rows[1]["error"].startswith("b: not an image that can be read")


def test_tables_that_cannot_be_used(photos: list[Path], tmp_path: Path) -> None:
    table = write_table(tmp_path / "numbers.parquet", {"n": [1], "m": [2]})
    with pytest.raises(MltrError, match=r"no column of bytes.*called path; it has n, m"):
        tag(tmp_path / "tags.jsonl", table)
    table.write_bytes(b"PAR1 no table")
    with pytest.raises(MltrError, match=r"numbers.parquet: not a complete Parquet file"):
        tag(tmp_path / "tags.jsonl", table)
    write_table(table, {"image": [photos[0].read_bytes()]})
    with pytest.raises(UsageError, match="a sidecar can't be written beside .*numbers.parquet:0"):
        tag(tmp_path / "tags.jsonl", table, "--sidecars")
    with pytest.raises(UsageError, match="numbers.parquet holds the images to read"):
        tag(table, table)


@pytest.mark.parametrize(
    "kind",
    [pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int32(), pa.binary())],
    ids=str,
)
def test_bytes_of_any_type(photos: list[Path], tmp_path: Path, kind: pa.DataType) -> None:
    contents = pa.array([path.read_bytes() for path in photos])
    column = contents.dictionary_encode() if pa.types.is_dictionary(kind) else contents.cast(kind)
    table = write_table(tmp_path / "photos.parquet", {"image": column, "path": [1] * 7})
    rows = tag(tmp_path / "tags.jsonl", table)
    assert without_paths(rows) == without_paths(tag(tmp_path / "expected.jsonl", *photos))


def test_which_column_has_the_images(photos: list[Path], tmp_path: Path) -> None:
    contents = [path.read_bytes() for path in photos]
    structs = [{"bytes": content, "path": "a name"} for content in contents]
    digests = [b"\0" * 16] * 7
    expected = without_paths(tag(tmp_path / "expected.jsonl", *photos))
    table = write_table(tmp_path / "photos.parquet", {"md5": digests, "image": structs})
    assert without_paths(tag(tmp_path / "tags.jsonl", table)) == expected
    write_table(table, {"path": digests, "image.bytes": contents})
    assert without_paths(tag(tmp_path / "tags.jsonl", table)) == expected
    write_table(table, {"md5": digests, "image": contents})
    with pytest.raises(MltrError, match=r"which column has the images, md5 or image\?"):
        tag(tmp_path / "tags.jsonl", table)
    for columns in ({"path": [1]}, {"image": [{"bytes": "text"}]}):
        write_table(table, columns)
        with pytest.raises(MltrError, match="no column of bytes"):
            tag(tmp_path / "tags.jsonl", table)


def test_rows_without_a_path_and_images_named_twice(photos: list[Path], tmp_path: Path) -> None:
    names = [str(photos[0]), None, str(photos[1]), str(photos[0]), "a\0b.png"]
    table = write_table(tmp_path / "photos.parquet", {"path": names})
    rows = tag(tmp_path / "tags.jsonl", table)
    own = f"{table}:1"
    assert [row["path"] for row in rows] == [names[0], own, names[2], names[4]]
    assert [bool(row.get("error")) for row in rows] == [False, True, False, True]
    assert rows[1]["error"] == f"{own}: no path in this row"


def test_a_folder_of_parts_is_a_table(photos: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "photos.parquet"
    folder.mkdir()
    for part in (1, 0):
        chosen = photos[4 * part : 4 * part + 4]
        write_table(folder / f"part-{part}.parquet", {"path": [str(path) for path in chosen]})
    rows = tag(tmp_path / "tags.jsonl", folder)
    assert [row["path"] for row in rows] == [str(path) for path in photos]


def test_the_same_command_again_passes_over_its_output(photos: list[Path], tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", {"path": [str(path) for path in photos]})
    out = tmp_path / "tags.parquet"
    parser = argparse.ArgumentParser()
    predict.add_arguments(parser)
    for _ in range(2):
        words = ["run", str(tmp_path / "*.parquet"), "--out", str(out)]
        assert predict.run(parser.parse_args(words)) == 0
        assert pq.read_table(out)["path"].to_pylist() == [str(path) for path in photos]


def test_addresses_of_single_files_are_refused(tmp_path: Path) -> None:
    for name in ("photo.jpg", "photos.parquet"):
        with pytest.raises(UsageError, match="only shards can be read from a URL"):
            tag(tmp_path / "tags.jsonl", f"https://photos.example/{name}")


def test_patterns_find_tables(photos: list[Path], tmp_path: Path) -> None:
    for part, chosen in enumerate((photos[:4], photos[4:])):
        write_table(tmp_path / f"part-{part}.parquet", {"path": [str(path) for path in chosen]})
    rows = tag(tmp_path / "tags.jsonl", tmp_path / "part-*.parquet")
    assert [row["path"] for row in rows] == [str(path) for path in photos]
