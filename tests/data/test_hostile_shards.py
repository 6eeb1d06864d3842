"""A server of shards that means harm: nothing outside the cache, no more bytes than announced."""

from __future__ import annotations

import hashlib
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from making import write_image

from mltr.cli import main
from mltr.config.schema import DataConfig
from mltr.data.shards import INDEX_LIMIT, read_shards, seal
from mltr.errors import BrokenImage, MltrError
from mltr.files import download


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """Shards of a few photos."""
    for index in range(20):
        write_image(tmp_path / "photos" / "ab"[index % 2] / f"{index}.png", seed=index)
    out = tmp_path / "set"
    assert main(["shard", str(tmp_path / "photos"), "--out", str(out), "--samples", "5"]) == 0
    return out


def rewrite(packed: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change an index, and seal it as if nothing had happened."""
    index = json.loads((packed / "index.json").read_text())
    del index["sha256"]
    change(index)
    (packed / "index.json").write_text(json.dumps(seal(index)))


@contextmanager
def server(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *_: object) -> None:
            pass

    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=found.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{found.server_port}"
    finally:
        found.shutdown()
        found.server_close()


def read(root: str, tmp_path: Path) -> None:
    splits = read_shards(DataConfig(format="shards", root=root, shard_cache=str(tmp_path / "c")))
    for split in splits:
        for record in split:
            record.image.load()


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("place", ["table", "shard"])
@pytest.mark.parametrize(
    "name",
    ["../x.tar", "/{}/x.parquet", "a/../../x.tar", "..", "", "x.pth", ".x.tar", "a\\..\\x.tar",
     "train.tar\n", "train.parquet\0", 3, None],
)  # fmt: skip
@pytest.mark.parametrize("where", ["folder", "server"])
def test_names_stay_in_the_folder(
    packed: Path, tmp_path: Path, name: Any, place: str, where: str
) -> None:
    payload = b"import os\n"
    name = name.format(str(tmp_path).strip("/")) if isinstance(name, str) else name

    def change(index: dict[str, Any]) -> None:
        train = index["splits"]["train"]
        file = train["table"] if place == "table" else train["shards"][0]
        file |= {"name": name, "size": len(payload)}
        file["sha256"] = hashlib.sha256(payload).hexdigest()

    rewrite(packed, change)
    content = (packed / "index.json").read_bytes()
    before = files(tmp_path)

    def answer(request: BaseHTTPRequestHandler) -> None:
        body = content if request.path.endswith("index.json") else payload
        request.send_response(200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    with server(answer) as address, pytest.raises(MltrError, match=r"index.*mltr shard"):
        read(address if where == "server" else str(packed), tmp_path)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    "fields",
    [
        {"sha256": "../../../../x"},
        {"size": -1},
        {"size": "9"},
        {"samples": 10**12},
        {"size": 1e4},
        {"other": 1},
    ],
)
def test_other_fields_are_checked_too(packed: Path, tmp_path: Path, fields: dict) -> None:
    rewrite(packed, lambda index: index["splits"]["train"]["shards"][0].update(fields))
    with pytest.raises(MltrError, match="isn't an index"):
        read(str(packed), tmp_path)


@pytest.mark.parametrize("part", ["splits", "classes"])
def test_an_index_without_a_part_is_none(packed: Path, tmp_path: Path, part: str) -> None:
    rewrite(packed, lambda index: index.pop(part))
    with pytest.raises(MltrError, match="isn't an index"):
        read(str(packed), tmp_path)
    (packed / "index.json").write_text(100_000 * "[")
    with pytest.raises(MltrError, match="is damaged"):
        read(str(packed), tmp_path)


def sent_for_ever(request: BaseHTTPRequestHandler, sent: list[int]) -> None:
    request.send_response(200)
    request.end_headers()
    block = bytes(1 << 20)
    try:
        while sum(sent) < 4 * INDEX_LIMIT:
            request.wfile.write(block)
            sent.append(len(block))
    except OSError:  # the reader has gone
        pass


def test_an_index_without_end_is_left_alone(tmp_path: Path) -> None:
    sent: list[int] = []
    told = pytest.raises(MltrError, match="larger than the limit of 67,108,864 bytes")
    with server(lambda request: sent_for_ever(request, sent)) as address, told:
        read(address, tmp_path)
    assert sum(sent) <= INDEX_LIMIT + (16 << 20)  # what lies in the network's buffers
    assert not files(tmp_path)

    def announced(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(INDEX_LIMIT + 1))
        request.end_headers()

    with server(announced) as address, pytest.raises(MltrError, match="larger than"):
        read(address, tmp_path)


def test_a_shard_takes_no_more_than_the_index_says(packed: Path, tmp_path: Path) -> None:
    sent: list[int] = []

    def answer(request: BaseHTTPRequestHandler) -> None:
        if request.path.endswith(".tar"):
            sent_for_ever(request, sent)
            return
        body = (packed / request.path.lstrip("/")).read_bytes()
        request.send_response(200)
        request.end_headers()
        request.wfile.write(body)

    with server(answer) as address, pytest.raises(BrokenImage, match="larger than"):
        read(address, tmp_path)
    assert sum(sent) <= 16 << 20
    assert not list((tmp_path / "c").rglob("*.tar.part"))


def test_a_store_sends_no_more_than_it_may(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/hostile/file", bytes(3 << 20))
    try:
        with pytest.raises(MltrError, match="larger than the limit of 1,000 bytes"):
            download.download_file(["memory://hostile/file"], tmp_path / "file", limit=1000)
        assert not files(tmp_path)
    finally:
        memory.rm("/hostile", recursive=True)


@pytest.mark.parametrize(
    ("column", "value"),
    [("offset", -1), ("offset", 10**15), ("size", 10**12), ("size", -5), ("labels", [7]),
     ("unknown", [-1]), ("labels", None), ("name", None)],
)  # fmt: skip
def test_rows_lie_in_their_shards(packed: Path, tmp_path: Path, column: str, value: Any) -> None:
    table = pq.read_table(packed / "train.parquet")
    rows = table.to_pylist()
    rows[1][column] = value
    replace_table(packed, pa.Table.from_pylist(rows, schema=table.schema))
    with pytest.raises(MltrError, match=r"train\.parquet"):
        read(str(packed), tmp_path)


def test_a_table_of_very_many_rows_is_not_read(packed: Path, tmp_path: Path) -> None:
    """A few kilobytes may stand for gigabytes of equal rows."""
    many = 1_000_000
    equal = {
        "name": pa.DictionaryArray.from_arrays(pa.array(many * [0], pa.int8()), ["x" * 1000]),
        "offset": pa.array(many * [0]),
    }
    replace_table(packed, pa.table(equal))
    assert (packed / "train.parquet").stat().st_size < many / 5

    def claim(index: dict[str, Any]) -> None:
        shards = index["splits"]["train"]["shards"]
        shards[0] |= {"samples": many - sum(shard["samples"] for shard in shards[1:])}
        shards[0]["size"] = 10**9

    rewrite(packed, claim)
    with pytest.raises(MltrError, match="its rows are not the 1,000,000 samples"):
        read(str(packed), tmp_path)


def replace_table(packed: Path, table: pa.Table) -> None:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    content = buffer.getvalue()
    (packed / "train.parquet").write_bytes(content)

    def describe(index: dict[str, Any]) -> None:
        index["splits"]["train"]["table"] |= {
            "size": len(content), "sha256": hashlib.sha256(content).hexdigest(),
        }  # fmt: skip

    rewrite(packed, describe)
