"""Whatever bytes a source has, it ends in figures or in one line that says what to do."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from making import write_plain

from mltr.config.schema import DataConfig
from mltr.data import open_splits
from mltr.data.describe import describe
from mltr.errors import MltrError

COUNT = 8
QUICKLY = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plain(tmp_path_factory.mktemp("fuzz"), COUNT)


def try_out(folder: Path, name: str, content: bytes, **options: Any) -> None:
    """Read a source with one more file; only errors for users may come of it."""
    with tempfile.TemporaryDirectory() as own:
        for photo in folder.iterdir():
            (Path(own) / photo.name).symlink_to(photo)
        path = Path(own) / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        try:
            splits = open_splits(DataConfig(root=own, max_broken=1.0, **options))
            report = describe(splits, open_images=False)
            json.dumps(report)
            assert splits.understood.to_lines(splits)
        except MltrError as error:
            assert str(error).strip()


#: Where bytes matter: marks, quotes, separators, digits, brackets, letters of other encodings.
BYTES = st.binary(max_size=200) | st.lists(
    st.sampled_from(
        [
            b"p0.jpg",
            b"p1.jpg",
            b"p2",
            b"path",
            b"labels",
            b"split",
            b"train",
            b"test",
            b"sea",
            b"1",
            b"0",
            b"-1",
            b",",
            b";",
            b"\t",
            b"|",
            b"#",
            b" ",
            b"\n",
            b"\r\n",
            b"\r",
            b'"',
            b"'",
            b"[",
            b"]",
            b"{",
            b"}",
            b":",
            b"null",
            b"NaN",
            b"\xff\xfe",
            b"\xef\xbb\xbf",
            b"\0",
            b"\xe9",
            b"\xc3\xa9",
            b"sep=;\n",
            b"=1+1",
            b"9" * 40,
            b"1e999",
            b"[[[[",
        ]
    ),
    max_size=60,
).map(b"".join)

CELLS = st.sampled_from(
    [
        "",
        "1",
        "0",
        "-1",
        "2",
        "sea",
        "Sea",
        "sea,sky",
        "sea sky",
        "a|b",
        "['a']",
        '["a", 1]',
        "nan",
        "[1, 0]",
        "{}",
        '{"choices": ["a"]}',
        "[",
        "p0.jpg",
        "p1",
        "train",
        "val",
        "x",
        "1.5",
        "\u0130",
        "'=1",
        "#a",
        "1e5",
        "0x1",
        "\u00b2",
        "\u0663",
        "9" * 30,
        "[null]",
        "[[]]",
        "{1: 2}",
        "[1.5]",
    ]
)
TABLES = st.integers(1, 5).flatmap(
    lambda width: st.lists(st.lists(CELLS, min_size=width, max_size=width), min_size=1, max_size=9)
)


@given(content=BYTES)
@QUICKLY
def test_any_bytes_as_csv(folder: Path, content: bytes) -> None:
    try_out(folder, "labels.csv", content)


@given(
    rows=TABLES, delimiter=st.sampled_from(",;\t|"), encoding=st.sampled_from(["utf-8", "utf-16"])
)
@QUICKLY
def test_any_cells_as_csv(
    folder: Path, rows: list[list[str]], delimiter: str, encoding: str
) -> None:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter=delimiter)
    writer.writerows([["path", "labels", "sea", "split", "n"][: len(rows[0])], *rows])
    try_out(folder, "labels.csv", stream.getvalue().encode(encoding))


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 3)
    | st.floats()
    | st.text(max_size=4)
    | st.binary(max_size=4)
    | st.sampled_from(["sea", "sky", "p0.jpg", "train"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner),
    max_leaves=5,
)


@given(
    values=st.lists(VALUES, min_size=COUNT, max_size=COUNT),
    more=st.lists(VALUES, min_size=COUNT, max_size=COUNT),
)
@QUICKLY
def test_any_cells_as_parquet(folder: Path, values: list[Any], more: list[Any]) -> None:
    paths = [f"p{index}.jpg" for index in range(COUNT)]
    columns: dict[str, Any] = {"path": paths}
    for name, cells in (("labels", values), ("more", more)):
        try:
            columns[name] = pa.array(cells)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):  # of several kinds
            columns[name] = pa.array([str(cell) for cell in cells])
    stream = io.BytesIO()
    try:
        pq.write_table(pa.table(columns), stream)
    except pa.ArrowException:  # such as a struct without fields
        return
    try_out(folder, "labels.parquet", stream.getvalue())


def sound_parquet() -> bytes:
    stream = io.BytesIO()
    paths = [f"p{index}.jpg" for index in range(COUNT)]
    pq.write_table(pa.table({"path": paths, "labels": [["sea"], ["sky"]] * 4}), stream)
    return stream.getvalue()


def sound_coco() -> bytes:
    images = [{"id": index, "file_name": f"p{index}.jpg"} for index in range(COUNT)]
    annotations = [
        {"image_id": i, "category_id": i % 2, "bbox": [0, 0, 1, 1]} for i in range(COUNT)
    ]
    categories = [{"id": 0, "name": "sea"}, {"id": 1, "name": "sky"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return json.dumps(content).encode()


SOUND: dict[str, Callable[[], bytes]] = {
    "labels.parquet": sound_parquet,
    "annotations/instances_train2017.json": sound_coco,
    "instances_default.json": sound_coco,
}


@pytest.mark.parametrize("name", SOUND)
@given(data=st.data())
@QUICKLY
def test_damaged_files(folder: Path, name: str, data: st.DataObject) -> None:
    content = bytearray(SOUND[name]())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        change = data.draw(st.binary(max_size=3))
        content[place : place + data.draw(st.integers(0, 20))] = change
        content = content or bytearray(b"x")
    try_out(folder, name, bytes(content))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 3)
    | st.floats(allow_nan=False)
    | st.sampled_from(["sea", "p0.jpg", "", "1"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "images",
                    "annotations",
                    "categories",
                    "id",
                    "name",
                    "file_name",
                    "image_id",
                    "bbox",
                    "category_id",
                    "result",
                    "value",
                    "choices",
                    "data",
                    "image",
                    "choice",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=30,
)


@pytest.mark.parametrize(
    "name", ["instances_default.json", "annotations/instances_train.json", "project.json"]
)
@given(content=BYTES | JSON.map(lambda value: json.dumps(value).encode()))
@QUICKLY
def test_any_json(folder: Path, name: str, content: bytes) -> None:
    try_out(folder, name, content)


@pytest.mark.parametrize("name", ["p0.txt", "p0.jpg.txt", "p0.xmp", "p0.jpg.xmp", "data.yaml"])
@given(
    content=BYTES | st.sampled_from([b"<", b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>", b"0 .5 .5 1 1"])
)
@QUICKLY
def test_any_sidecar(folder: Path, name: str, content: bytes) -> None:
    try_out(folder, name, content)
