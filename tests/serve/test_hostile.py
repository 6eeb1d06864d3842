"""The server among hostile clients: limits on sockets, host names, other sites, decoding."""

from __future__ import annotations

import errno
import json
import signal
import socket
import subprocess
import sys
import time
from asyncio.selector_events import _SelectorSocketTransport
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import colour_network, colour_predictor, live_server, picture, save_tiny_bundle

from mltr.serve.settings import Settings

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient

from mltr.serve.app import create_app
from mltr.serve.observe import JsonFormatter, ShortFormatter
from mltr.serve.uploads import LINGER_S

PREDICT = "/v1/predict"
GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
QUICK = Settings(head_timeout_s=0.5, max_connections=20, max_files=4, max_queue=8)


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with TestClient(create_app(colour_predictor(), QUICK)) as opened:
        yield opened


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with live_server(create_app(colour_predictor(), QUICK), QUICK) as server:
        yield server.port


def connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.settimeout(10)
    return connection


def read_all(connection: socket.socket) -> bytes:
    """Return all bytes received until the server closes the connection."""
    received = b""
    try:
        while more := connection.recv(65536):
            received += more
    except ConnectionResetError:
        pass
    return received


def post(body: bytes, kind: str = "image/png", more: str = "") -> bytes:
    return (
        f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\n{more}\r\n"
    ).encode() + body


# -- heads and connections -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 40_000, 431),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 10_000, 431),
        (b"GET /" + b"a" * 40_000, 431),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 40_000 + b"\r\n\r\n", 431),
        (b"\x16\x03\x01\x02\x00", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: ", 408),
    ],
)
def test_heads_are_refused_before_more_is_read(port: int, sent: bytes, status: int) -> None:
    with connect(port) as connection:
        connection.sendall(sent)
        started = time.monotonic()
        answer = read_all(connection)
    assert time.monotonic() - started < 4
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"connection: close" in head.lower()
    assert json.loads(body)["detail"]


def test_keys_change_nothing_for_heads() -> None:
    settings = Settings(keys=("k" * 20,), head_timeout_s=0.3)
    app = create_app(colour_predictor(), settings)
    with live_server(app, settings) as server, connect(server.port) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX: " + b"a" * 40_000)
        assert read_all(connection).startswith(b"HTTP/1.1 431")


def test_a_head_that_trickles_in_and_silence_are_given_up(port: int) -> None:
    with connect(port) as silent, connect(port) as slow:
        started = time.monotonic()
        slow.settimeout(0.05)
        received = b""
        while not received and time.monotonic() - started < 5:
            slow.sendall(b"G")
            try:
                received = slow.recv(1000)
            except TimeoutError:
                continue
        assert received.startswith(b"HTTP/1.1 4")
        assert read_all(silent) == b""
        assert time.monotonic() - started < 3


def test_a_client_that_leaves_while_it_is_refused_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def gone(transport: Any) -> None:
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    monkeypatch.setattr(_SelectorSocketTransport, "write_eof", gone)
    with live_server(create_app(colour_predictor(), QUICK), QUICK) as server:
        sent = time.monotonic()
        with connect(server.port) as connection:
            connection.sendall(b"GET / HT")
            read_all(connection)
        assert time.monotonic() - sent < QUICK.head_timeout_s + LINGER_S / 2
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_the_longest_idle_connection_makes_room(port: int) -> None:
    idle = [connect(port) for _ in range(60)]
    try:
        for connection in idle:
            connection.sendall(b"GET / HTTP/1.1\r\n")
        started = time.monotonic()
        with connect(port) as honest:
            honest.sendall(GET)
            assert honest.recv(1000).startswith(b"HTTP/1.1 200")
        assert time.monotonic() - started < 1
        for connection in idle[:30]:
            assert not read_all(connection).startswith(b"HTTP/1.1 2")
    finally:
        for connection in idle:
            connection.close()


def test_busy_connections_are_kept_and_further_ones_refused() -> None:
    import threading

    is_open = threading.Event()
    is_open.set()

    def network(images: np.ndarray) -> np.ndarray:
        is_open.wait(20)
        return colour_network(images)

    settings = Settings(max_connections=2)
    with live_server(create_app(colour_predictor(network), settings), settings) as server:
        is_open.clear()
        busy = [connect(server.port) for _ in range(2)]
        for connection in busy:
            connection.sendall(post(picture()))
        time.sleep(0.3)
        with connect(server.port) as third:
            assert third.recv(1000).startswith(b"HTTP/1.1 503")
        is_open.set()
        assert [one.recv(1000)[:12] for one in busy] == [b"HTTP/1.1 200"] * 2
        for connection in busy:
            connection.close()


def test_a_connection_serves_one_request_after_another(port: int) -> None:
    with connect(port) as connection:
        for _ in range(3):
            connection.sendall(GET)
            received = b""
            while b"alive" not in received:  # head and body may come apart
                received += connection.recv(2000)
            assert received.startswith(b"HTTP/1.1 200")
        connection.sendall(GET * 5)  # before the first response
        received = b""
        while received.count(b"HTTP/1.1 200") < 5:
            received += connection.recv(2000)
        connection.sendall(GET * 1000)
        assert read_all(connection).count(b"HTTP/1.1 200") < 100


def test_upgrade_requests_are_ignored(port: int, caplog: Any) -> None:
    more = "Connection: Upgrade\r\nUpgrade: websocket\r\n"
    requests = {GET[:-2] + more.encode() + b"\r\n": 200, post(picture(), more=more): 400}
    for request, status in requests.items():
        with connect(port) as connection:
            connection.sendall(request)
            answer = b""
            while b"\r\n\r\n" not in answer:
                answer += connection.recv(1000)
            for _ in range(50):  # further input is neither read nor logged
                try:
                    connection.sendall(b"x")
                except OSError:
                    break
            assert answer.startswith(b"HTTP/1.1 %d" % status)
    assert len(caplog.records) < 10


def test_a_refusal_is_heard_though_the_body_still_comes() -> None:
    settings = Settings(keys=("k" * 20,), hosts=("localhost",))
    with live_server(create_app(colour_predictor(), settings), settings) as server:
        for host, status in (("localhost", 401), ("elsewhere", 403)):
            request = post(bytes(8_000_000), more="Connection: close\r\n")
            with connect(server.port) as connection:
                connection.sendall(request.replace(b"Host: x", b"Host: " + host.encode()))
                assert read_all(connection).startswith(b"HTTP/1.1 %d" % status)


# -- names and other sites -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:9000", 200),
        ("127.0.0.1:8000", 200),
        ("192.168.1.5", 200),
        ("[::1]:8000", 200),
        ("photos.example:80", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("evil.example:8000", 403),
        ("127.0.0.1.evil.example", 403),
        ("photos.example.evil", 403),
        ("[", 403),
        ("", 403),
    ],
)
@pytest.mark.parametrize(
    "spelling", ["photos.example", "Photos.example:8000", "https://photos.example"]
)
def test_only_known_names_are_answered(spelling: str, host: str, status: int) -> None:
    settings = Settings(hosts=("localhost", spelling))
    client = TestClient(create_app(colour_predictor(), settings))
    answer = client.get("/healthz", headers={"Host": host})
    assert answer.status_code == status
    assert status == 200 or "--allow-host" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://testserver"}, 200),
        ({"Origin": "https://photos.example"}, 200),
        ({"Origin": "https://photos.example", "Sec-Fetch-Site": "cross-site"}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        # Behind a TLS proxy that rewrites Host, Sec-Fetch-Site still tells.
        ({"Origin": "https://proxy.example", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://testserver:81"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://testserver", "Sec-Fetch-Site": "cross-site"}, 403),
    ],
)
def test_pages_of_other_sites_may_send_nothing(headers: dict[str, str], status: int) -> None:
    settings = Settings(cors_origins=("https://photos.example",))
    with TestClient(create_app(colour_predictor(), settings)) as client:
        answer = client.post(PREDICT, files={"images": picture()}, headers=headers)
        assert answer.status_code == status
        assert client.get("/healthz", headers=headers).status_code == 200


# -- bodies --------------------------------------------------------------------------------------


def test_forms_are_read_in_utf8_alone(client: Any) -> None:
    body = (
        '--b\r\nContent-Disposition: form-data; name="i"; filename="Übung.png"\r\n\r\n'.encode()
        + picture()
        + b"\r\n--b--\r\n"
    )
    for charset in ("", "; charset=utf-8", '; charset="UTF-8"'):
        kind = f"multipart/form-data; boundary=b{charset}"
        answer = client.post(PREDICT, content=body, headers={"Content-Type": kind})
        assert answer.json()["results"][0]["name"] == "Übung.png"
    for charset in ("punycode", "undefined", "idna", "utf-7", "x" * 5000, "utf-16"):
        kind = f"multipart/form-data; boundary=b; charset={charset}"
        answer = client.post(PREDICT, content=body, headers={"Content-Type": kind})
        assert (answer.status_code, "UTF-8" in answer.json()["detail"]) == (415, True)


def test_a_part_of_text_costs_nothing(client: Any) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="\xff"\r\n\r\n' + b"\xff" * 1_000_000
    kind = "multipart/form-data; boundary=b"
    started = time.process_time()
    answer = client.post(PREDICT, content=body + b"\r\n--b--", headers={"Content-Type": kind})
    assert (answer.status_code, "contains text" in answer.json()["detail"]) == (422, True)
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    ("items", "status"), [("1," * 3_000, 422), ("{}," * 3_000, 422), ("1," * 10**6, 413)]
)
def test_wrong_items_end_a_json_list_at_the_first(client: Any, items: str, status: int) -> None:
    body = f'{{"images":[{items}1]}}'
    started = time.monotonic()
    answer = client.post(PREDICT, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert status == 413 or answer.json()["detail"].startswith("images.0")
    assert time.monotonic() - started < 4  # reporting the errors of a million items took 7 s


def deep_png(side: int) -> bytes:
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.zeros((side, side), np.uint16)).save(stream, "PNG")
    return stream.getvalue()


def test_what_images_unpack_to_is_bounded_before_they_do() -> None:
    """By hand: 500 x 500 at 16 bits is 0.5 MB, RGB 0.75 MB, and 12 bytes per pixel 3 MB."""
    settings = Settings(max_decoded_mb=3, max_files=8)
    with TestClient(create_app(colour_predictor(), settings)) as client:

        def status(*files: bytes) -> int:
            sent = [("images", ("a.png", file)) for file in files]
            return client.post(PREDICT, files=sent).status_code

        deep, colour = deep_png(500), picture("red", (500, 500))
        assert status(*[deep] * 6) == 200
        assert status(*[deep] * 7) == 413
        assert status(*[colour] * 4) == 200
        assert status(*[colour] * 5) == 413
        assert status(*[colour] * 2, *[deep] * 4) == 413
        assert status(deep_png(501)) == 413  # its own peak memory
        assert status(b"no image", colour) == 200


def test_one_image_at_a_time_is_decoded_where_there_is_no_memory_for_more() -> None:
    settings = Settings(max_decoded_mb=3.01)
    with TestClient(create_app(colour_predictor(), settings)) as client:
        image = picture("red", (500, 500))
        with ThreadPoolExecutor(8) as senders:
            sent = [
                senders.submit(client.post, PREDICT, files={"images": image}) for _ in range(24)
            ]
        assert [one.result().status_code for one in sent] == [200] * 24


@pytest.mark.parametrize("size", [(8000, 6000), (8192, 6144)])
def test_photos_of_phones_are_served(size: tuple[int, int]) -> None:
    with TestClient(create_app(colour_predictor())) as client:
        answer = client.post(PREDICT, files={"images": picture("red", size, "JPEG")})
    assert answer.json()["results"][0]["labels"][0]["label"] == "red"


# -- options, the description, failures ----------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (f"{PREDICT}?topp=1", "'topp'; did you mean 'top'"),
        (f"{PREDICT}?top=1&x=2", "known: top, threshold"),
        ("/v1/explain?tresh=1", "known: label, method, form"),
        ("/v1/labels?top=1", "it has none"),
    ],
)
def test_unknown_options_are_refused(client: Any, address: str, words: str) -> None:
    post = {"files": {"images": picture()}} if "labels" not in address else {}
    answer = client.request("POST" if post else "GET", address, **post)
    assert answer.status_code == 422
    assert words in answer.json()["detail"]


def test_the_description_tells_the_servers_own_address(client: Any, port: int) -> None:
    import urllib.request

    address = f"http://127.0.0.1:{port}"
    with urllib.request.urlopen(f"{address}/openapi.json") as answer:
        told = json.load(answer)["info"]["description"]
    assert f"curl -F images=@beach.jpg -F images=@forest.jpg {address}/v1/predict" in told
    assert "8000" not in told
    assert "http://testserver/v1/predict" in client.get("/openapi.json").text


def test_a_network_of_nan_is_reported_and_no_nan_is_sent() -> None:
    def network(images: np.ndarray) -> np.ndarray:
        logits = colour_network(images)
        logits[images.max(axis=(1, 2, 3)) == 1] = np.nan
        return logits

    with TestClient(create_app(colour_predictor(network))) as client:
        answer = client.post(PREDICT, files={"images": picture("red")})
        assert (answer.status_code, "predicts NaN" in answer.json()["detail"]) == (500, True)
        assert client.post(PREDICT, files={"images": picture("black")}).status_code == 200


def test_paths_do_nothing_at_a_terminal(client: Any, caplog: Any) -> None:
    with caplog.at_level("INFO", "mltr.serve"):
        client.get("/%1b%5d0;OWNED%07%1b%5b2J%0a00:00:00%c2%9b%e2%80%ae%7f")
    for formatter in (JsonFormatter(), ShortFormatter()):
        line = formatter.format(caplog.records[-1])
        assert "OWNED" in line
        assert line.isprintable()
        assert line.isascii()


# -- the command ---------------------------------------------------------------------------------


def test_the_server_survives_hostile_clients_and_stops_silently(tmp_path: Path) -> None:
    """With few open files allowed; then Ctrl-C. The benchmark does the same for longer."""
    bundle = save_tiny_bundle(tmp_path / "tiny")
    benchmark = Path(__file__).parents[2] / "benchmarks" / "hostile.py"
    out = tmp_path / "hostile.json"
    ended = subprocess.run(
        [sys.executable, benchmark, bundle, "--requests", "23", "--connections", "300",
         "--hold", "1", "--files", "256", "--out", out],
        capture_output=True, text=True, timeout=120,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    found = json.loads(out.read_text())
    assert list(found["idle"]["answers"]) == ["200"]
    assert found["idle"]["longest_s"] < 1
    answers = found["mixed"]["answers"]
    for name in answers:
        if name.startswith("honest"):
            assert list(answers[name]) == ["200"]
        assert "500" not in answers[name]
        assert "no answer" not in answers[name]
    assert found["log"]["other_lines"] == []
    assert list(found["log"]["levels"]) == ["info"]
    assert found["log"]["bytes"] < 1_000_000
    assert found["log"]["exit_code"] == 0


def test_a_form_that_is_cut_off_is_refused(client: Any) -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="i"; filename="a.png"\r\n\r\n'
    body = part + picture() + b"\r\n" + part + picture()[:-20]
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = client.post(PREDICT, content=body, headers=kind)
    assert answer.status_code == 400
    assert "its end is missing" in answer.json()["detail"]
    assert client.post(PREDICT, content=body + b"\r\n--b--", headers=kind).status_code == 200
