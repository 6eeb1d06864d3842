"""The HTTP API: correct responses, every limit, hostile input, the command."""

from __future__ import annotations

import base64
import io
import json
import logging
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from serving import (
    COLOURS,
    colour_network,
    colour_predictor,
    live_server,
    picture,
    save_tiny_bundle,
)

import mltr
from mltr.cli import main
from mltr.data.preprocess import Preprocess
from mltr.diagnosis.evidence import explain
from mltr.errors import MltrError, UsageError
from mltr.predict.predictor import load
from mltr.serve.settings import Settings, read_keys
from mltr.weights.bundle import save_bundle

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient

from mltr.serve.app import create_app
from mltr.serve.observe import JsonFormatter

PREDICT, EXPLAIN = "/v1/predict", "/v1/explain"
SMALL = Settings(name="colours", max_files=4, max_body_mb=1, max_megapixels=1, max_queue=8)


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with TestClient(create_app(colour_predictor(), SMALL)) as opened:
        yield opened


def as_image(colour: str, **options: Any) -> tuple[str, tuple[str, bytes]]:
    return ("images", (f"{colour}.png", picture(colour, **options)))


# -- correct responses ---------------------------------------------------------------------------


def test_forms_json_and_plain_bodies_give_the_same(client: Any) -> None:
    form = client.post(PREDICT, files=[as_image("red"), as_image("lime")])
    assert form.status_code == 200
    assert form.json()["model"] == "colours"
    red, green = form.json()["results"]
    assert red["name"] == "red.png"
    assert [found["label"] for found in red["labels"]] == ["red"]
    assert red["labels"][0]["prob"] == pytest.approx(1 / (1 + np.exp(-10)), abs=1e-5)
    assert [found["label"] for found in green["labels"]] == ["green"]

    encoded = [
        {"name": f"{colour}.png", "data": base64.b64encode(picture(colour)).decode()}
        for colour in ("red", "lime")
    ]
    assert client.post(PREDICT, json={"images": encoded}).json() == form.json()
    plain = client.post(PREDICT, content=picture("red"), headers={"Content-Type": "image/png"})
    assert plain.json()["results"] == [red | {"name": ""}]


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "AVIF", "HEIF"])
def test_photos_of_phones_are_taken(client: Any, form: str) -> None:
    if form == "HEIF":
        pytest.importorskip("pillow_heif")
    headers = {"Content-Type": f"image/{form.lower()}"}
    answer = client.post(PREDICT, content=picture("red", form=form), headers=headers)
    assert [found["label"] for found in answer.json()["results"][0]["labels"]] == ["red"]


def test_options_mean_what_they_do_for_predict(client: Any) -> None:
    def labels(options: str) -> list[str]:
        answer = client.post(f"{PREDICT}?{options}", files=[as_image("#ffaa00")])
        return [found["label"] for found in answer.json()["results"][0]["labels"]]

    assert labels("") == ["red", "green"]
    assert labels("top=3") == ["red", "green", "blue"]
    assert labels("top=1") == ["red"]
    assert labels("threshold=0.999") == ["red"]
    assert labels("threshold=0&top=2") == ["red", "green"]


def test_labels_tell_thresholds_and_limits(client: Any) -> None:
    told = client.get("/v1/labels").json()
    expected = [{"label": name, "threshold": 0.5, "implies": []} for name in COLOURS]
    assert told["labels"] == expected
    assert (told["model"], told["image_size"], told["explains"]) == ("colours", 8, False)
    assert told["limits"]["max_files"] == 4


def test_an_unreadable_image_leaves_the_others_their_answers(client: Any) -> None:
    files = [as_image("red"), ("images", ("bad.jpg", picture("red", form="JPEG")[:200]))]
    answer = client.post(PREDICT, files=files)
    assert answer.status_code == 200
    good, bad = answer.json()["results"]
    assert good["labels"][0]["label"] == "red"
    assert (bad["name"], bad.get("labels")) == ("bad.jpg", None)
    assert "damaged or cut off" in bad["error"]


def test_images_of_many_requests_go_through_together() -> None:
    sizes: list[int] = []

    def network(images: np.ndarray) -> np.ndarray:
        sizes.append(len(images))
        time.sleep(0.05)
        return colour_network(images)

    app = create_app(colour_predictor(network), Settings(max_batch=8))
    with TestClient(app) as client:
        colours = [COLOURS[number % 3] for number in range(24)]
        with ThreadPoolExecutor(24) as senders:
            answers = list(
                senders.map(lambda colour: client.post(PREDICT, files=[as_image(colour)]), colours)
            )
    for colour, answer in zip(colours, answers, strict=True):
        assert [one["label"] for one in answer.json()["results"][0]["labels"]] == [colour]
    assert sum(sizes) == 24 + 1  # one for warm-up
    assert len(sizes) < 12
    assert max(sizes) <= 8


# -- heat maps -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="module")
def explaining(bundle: Path) -> Iterator[Any]:
    with TestClient(create_app(load(bundle, "cpu"))) as opened:
        yield opened


def test_a_grid_is_what_explain_says(bundle: Path, explaining: Any) -> None:
    photo = Image.effect_noise((60, 40), 90).convert("RGB")
    stream = io.BytesIO()
    photo.save(stream, "PNG")
    answer = explaining.post(
        f"{EXPLAIN}?label=green&form=grid", files={"images": ("noise.png", stream.getvalue())}
    ).json()
    expected = explain(load(bundle, "cpu"), stream.getvalue(), ["green"])[0]
    assert (answer["name"], answer["label"], answer["is_exact"]) == ("noise.png", "green", True)
    np.testing.assert_allclose(answer["cells"], expected.cells, atol=1e-5)
    assert answer["prob"] == pytest.approx(expected.prob, abs=1e-6)


def test_an_overlay_has_the_proportions_of_the_picture(explaining: Any) -> None:
    for size, expected in (((60, 40), (60, 40)), ((2048, 1000), (1024, 500))):
        answer = explaining.post(EXPLAIN, files=[as_image("red", size=size)])
        assert answer.headers["content-type"] == "image/png"
        assert Image.open(io.BytesIO(answer.content)).size == expected


def test_wrong_options_for_heat_maps_are_reported(client: Any, explaining: Any) -> None:
    one = [as_image("red")]
    unknown = explaining.post(f"{EXPLAIN}?label=gren", files=one)
    assert (unknown.status_code, "did you mean 'green'" in unknown.text) == (422, True)
    assert explaining.post(EXPLAIN, files=[*one, *one]).status_code == 422
    assert explaining.post(EXPLAIN, files={"images": b"no image"}).status_code == 422
    exported = client.post(EXPLAIN, files=one)
    assert (exported.status_code, "exported" in exported.text) == (501, True)


# -- limits --------------------------------------------------------------------------------------


def _png_that_unpacks_to(width: int, height: int, claims: int | None = None) -> bytes:
    """Return a PNG of zeros: a few kilobytes that decode to any number of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, claims or height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((width + 1) * height), 9)
    chunks = [chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9"/></svg>'
ONE = base64.b64encode(picture()).decode()
HOSTILE: dict[str, tuple[int, str, Any]] = {
    "bomb": (422, "more pixels", {"files": {"images": _png_that_unpacks_to(8000, 4000)}}),
    "claimed size": (
        422, "more pixels", {"files": {"images": _png_that_unpacks_to(8, 8, 2**31 - 1)}}),
    "truncated": (422, "damaged", {"files": {"images": picture("red", (300, 300), "JPEG")[:900]}}),
    "SVG": (422, "not an image", {"files": {"images": ("a.svg", SVG, "image/svg+xml")}}),
    "SVG that says it is a photo": (
        422, "not an image", {"files": {"images": ("a.jpg", SVG, "image/jpeg")}}),
    "PDF and script": (422, "not an image", {"files": {"images": b"%PDF-1.4\n<script>1</script>"}}),
    "empty file": (422, "no image", {"files": {"images": b""}}),
    "too narrow": (422, "too narrow", {"files": {"images": _png_that_unpacks_to(1, 100_000)}}),
    "too large": (413, "larger than 1 MB", {"files": {"images": bytes(1_100_000)}}),
    "too large, said nothing": (
        413,
        "larger than 1 MB",
        {"content": iter([bytes(100_000)] * 11), "headers": {"Content-Type": "image/png"}},
    ),
    "10,000 parts": (413, "Too many files", {
        "content": b"--b\r\nContent-Disposition: form-data; name=i; filename=i\r\n\r\n\r\n" * 10**4,
        "headers": {"Content-Type": "multipart/form-data; boundary=b"}}),
    "too many in JSON": (413, "more than 4", {"json": {"images": [{"data": ONE}] * 5}}),
    "text parts": (422, "contains text", {"data": {"images": "photo.jpg"}, "files": {"x": b"1"}}),
    "no boundary": (
        400, "boundary", {"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}),
    "broken form": (
        400,
        "multipart",
        {"content": b"--b\r\n\0\1: x\r\n", "headers": {
            "Content-Type": "multipart/form-data; boundary=b"}},
    ),
    "unfinished JSON": (
        400, "JSON", {"content": b'{"images": [', "headers": {"Content-Type": "application/json"}}),
    "deep JSON": (
        400, "JSON",
        {"content": b"[" * 100_000, "headers": {"Content-Type": "application/json"}}),
    "an address to fetch": (422, "images.0", {"json": {"images": [{"url": "http://127.0.0.1"}]}}),
    "not base64": (422, "base64", {"json": {"images": [{"data": "?"}]}}),
    "no images": (422, "at least 1", {"json": {"images": []}}),
    "form of a page": (415, "curl", {"data": {"images": "photo.jpg"}}),
    "SVG as a type": (415, "curl", {"content": SVG, "headers": {"Content-Type": "image/svg+xml"}}),
    "nothing": (415, "curl", {}),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_input_gets_its_error(client: Any, case: str) -> None:
    status, words, request = HOSTILE[case]
    answer = client.post(PREDICT, **request)
    assert (answer.status_code, words in answer.json()["detail"]) == (status, True), answer.text
    assert client.post(PREDICT, files=[as_image("red")]).status_code == 200
    assert "mltr_pending_images 0.0" in client.get("/metrics").text
    assert "mltr_held_bytes 0.0" in client.get("/metrics").text


def test_a_picture_that_is_also_a_script_is_a_picture(client: Any) -> None:
    polyglot = picture("red") + b"<script>alert(1)</script>"
    answer = client.post(PREDICT, files={"images": ("<b>.html", polyglot, "text/html")})
    assert answer.json()["results"][0]["labels"][0]["label"] == "red"
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\photos\\a.png", "a.png"),
        ("a\x00\x1b[2J.png", "a[2J.png"),
        ("x" * 5000, "x" * 255),
        ("Übung.png", "Übung.png"),
    ],
)
def test_names_come_back_without_paths(client: Any, given: str, told: str) -> None:
    image = {"name": given, "data": ONE}
    answer = client.post(PREDICT, json={"images": [image]}).json()
    assert answer["results"][0]["name"] == told


@pytest.mark.parametrize("options", ["top=0", "top=x", "threshold=2", "threshold=nan"])
def test_wrong_options_are_named(client: Any, options: str) -> None:
    answer = client.post(f"{PREDICT}?{options}", files=[as_image("red")])
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith(options.partition("=")[0])


class Gate:
    """A network that blocks every batch until it is released."""

    def __init__(self) -> None:
        self.is_open = threading.Event()
        self.is_open.set()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.is_open.wait(20)
        return colour_network(images)


def test_a_full_queue_says_when_to_come_again() -> None:
    gate = Gate()
    settings = Settings(max_queue=4, max_files=4, max_batch=2)
    with TestClient(create_app(colour_predictor(gate), settings)) as client:
        gate.is_open.clear()
        filling = ThreadPoolExecutor(4)
        accepted = [filling.submit(client.post, PREDICT, files=[as_image("red")]) for _ in range(4)]
        while "mltr_pending_images 4.0" not in client.get("/metrics").text:
            time.sleep(0.01)
        started = time.monotonic()
        refused = client.post(PREDICT, files=[as_image("red")])
        assert time.monotonic() - started < 1
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        gate.is_open.set()
        assert [one.result().status_code for one in accepted] == [200] * 4
        assert client.post(PREDICT, files=[as_image("red")]).status_code == 200


def test_an_answer_that_takes_too_long_is_given_up() -> None:
    gate = Gate()
    with TestClient(create_app(colour_predictor(gate), Settings(timeout_s=0.2))) as client:
        gate.is_open.clear()
        late = client.post(PREDICT, files=[as_image("red")])
        assert (late.status_code, "0.2 s" in late.json()["detail"]) == (504, True)
        gate.is_open.set()
        assert client.post(PREDICT, files=[as_image("red")]).status_code == 200
        assert "mltr_pending_images 0.0" in client.get("/metrics").text


def test_a_failing_network_fails_its_requests_alone(caplog: pytest.LogCaptureFixture) -> None:
    def network(images: np.ndarray) -> np.ndarray:
        if images.max() == 1:
            raise RuntimeError("out of memory")
        return colour_network(images)

    with TestClient(create_app(colour_predictor(network))) as client:
        failed = client.post(PREDICT, files=[as_image("red")])
        assert failed.status_code == 500
        assert "out of memory" not in failed.text
        assert failed.headers["x-request-id"] in str(caplog.records[-1].__dict__)
        assert client.post(PREDICT, files=[as_image("black")]).status_code == 200
        assert "mltr_pending_images 0.0" in client.get("/metrics").text


# -- keys, headers, logs and metrics ---------------------------------------------------------------


def test_only_a_known_key_opens_the_api() -> None:
    key = "k" * 20
    with TestClient(create_app(colour_predictor(), Settings(keys=("x" * 20, key)))) as client:
        for headers in ({}, {"X-API-Key": "k" * 19}, {"Authorization": f"Basic {key}"}):
            for path in ("/v1/labels", "/metrics"):
                refused = client.get(path, headers=headers)
                assert refused.status_code == 401
                assert refused.headers["www-authenticate"] == "Bearer"
            assert client.post(PREDICT, files=[as_image("red")], headers=headers).status_code == 401
        for headers in ({"X-API-Key": key}, {"Authorization": f"Bearer {key}"}):
            assert client.get("/v1/labels", headers=headers).status_code == 200
        assert client.get("/healthz").status_code == 200
        assert client.get("/").status_code == 200


def test_keys_come_from_a_file_or_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# team\n first-key-of-the-file \n\n")
    assert read_keys(file, {}) == ("first-key-of-the-file",)
    assert read_keys(None, {"MLTR_API_KEYS": "one,two"}) == ("one", "two")
    assert read_keys(None, {}) == ()
    file.write_text("\ufefffirst-key-of-the-file\n", "utf-8")  # as Windows' editor begins it
    assert read_keys(file, {}) == ("first-key-of-the-file",)
    with pytest.raises(MltrError, match="MLTR_API_KEYS is set, but contains no key"):
        read_keys(None, {"MLTR_API_KEYS": " "})
    file.write_text("# none\n")
    with pytest.raises(MltrError, match="no API key"):
        read_keys(file, {})
    with pytest.raises(MltrError, match="can't read"):
        read_keys(tmp_path / "absent", {})
    with pytest.raises(UsageError, match="16 characters"):
        Settings(keys=("short",))
    with pytest.raises(UsageError, match="a comment in a file of keys has a line of its own"):
        Settings(keys=("0123456789abcdef0123456789abcdef # alice",))


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_files": 0},
        {"max_files": 200},
        {"timeout_s": 0},
        {"max_body_mb": float("nan")},
        {"max_held_mb": 31},  # less than a request
        {"cors_origins": ("https://photos.example/",)},
        {"cors_origins": ("photos.example",)},
        {"cors_origins": ("https://Photos.example",)},
    ],
)
def test_limits_check_themselves(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong)).removesuffix("_origins")):
        Settings(**wrong)


def test_a_network_with_a_class_token_has_no_maps(tmp_path: Path) -> None:
    for name, has_maps in (("test_vit", False), ("test_resnet", True)):
        model = mltr.create_model(f"timm/{name}", 2, image_size=160)
        save_bundle(
            tmp_path / name, model=model, name=f"timm/{name}", overrides={"image_size": 160},
            classes=("a", "b"), preprocess=Preprocess(160),
        )  # fmt: skip
        with TestClient(create_app(load(tmp_path / name, "cpu"))) as client:
            assert client.get("/v1/labels").json()["explains"] is has_maps
            told = client.post("/v1/explain", files=[as_image("red")])
            assert told.status_code == (200 if has_maps else 501)


def test_other_sites_may_call_only_where_that_is_set(client: Any) -> None:
    origin = {"Origin": "https://photos.example"}
    assert "access-control-allow-origin" not in client.get("/v1/labels", headers=origin).headers
    settings = Settings(cors_origins=("https://photos.example",))
    with TestClient(create_app(colour_predictor(), settings)) as opened:
        allowed = opened.get("/v1/labels", headers=origin).headers
        assert allowed["access-control-allow-origin"] == "https://photos.example"
        other = opened.get("/v1/labels", headers={"Origin": "https://else.example"}).headers
        assert "access-control-allow-origin" not in other


def test_ids_go_in_and_out_and_into_the_log(client: Any, caplog: Any) -> None:
    with caplog.at_level(logging.INFO, "mltr.serve"):
        answer = client.post(PREDICT, files=[as_image("red")], headers={"X-Request-ID": "my-id.1"})
    assert answer.headers["x-request-id"] == "my-id.1"
    line = json.loads(JsonFormatter().format(caplog.records[-1]))
    assert (line["request_id"], line["status"], line["images"]) == ("my-id.1", 200, 1)
    assert line["path"] == PREDICT
    for forged in ('a"\nb', "x" * 65, ""):
        found = client.get("/healthz", headers={"X-Request-ID": forged.replace("\n", " ")})
        assert len(found.headers["x-request-id"]) == 32


def test_metrics_count_requests_and_images() -> None:
    with TestClient(create_app(colour_predictor())) as client:
        client.post(PREDICT, files=[as_image("red"), ("images", b"broken")])
        client.get("/made/up/path")
        text = client.get("/metrics").text
    for line in (
        'mltr_requests_total{path="/v1/predict",status="200"} 1.0',
        'mltr_requests_total{path="other",status="404"} 1.0',
        'mltr_images_total{outcome="predicted"} 1.0',
        'mltr_images_total{outcome="broken"} 1.0',
        "mltr_batch_size_count 1.0",
    ):
        assert line in text


def test_it_is_ready_only_while_it_works() -> None:
    app = create_app(colour_predictor())
    assert TestClient(app).get("/readyz").status_code == 503
    assert TestClient(app).get("/healthz").status_code == 200
    assert TestClient(app).head("/healthz").status_code == 200
    with TestClient(app) as client:
        assert client.get("/readyz").json() == {"status": "ready"}


def test_serving_an_exported_network_needs_no_torch() -> None:
    code = "import sys, mltr.serve.server; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_several_batches_go_through_at_a_time() -> None:
    both = threading.Barrier(2, timeout=20)

    def network(images: np.ndarray) -> np.ndarray:
        if images.max() == 1:
            both.wait()  # until the other batch has arrived, too
        return colour_network(images)

    settings = Settings(max_batch=1, network_threads=2)
    with TestClient(create_app(colour_predictor(network), settings)) as client:
        with ThreadPoolExecutor(2) as senders:
            sent = [senders.submit(client.post, PREDICT, files=[as_image("red")]) for _ in "ab"]
        assert [one.result().status_code for one in sent] == [200, 200]
        assert "mltr_pending_images 0.0" in client.get("/metrics").text


# -- a real socket, and the command ----------------------------------------------------------------


def test_a_body_that_trickles_in_is_given_up() -> None:
    app = create_app(colour_predictor(), Settings(body_timeout_s=0.5))
    with live_server(app) as server, socket.create_connection(("127.0.0.1", server.port)) as slow:
        slow.sendall(
            b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
            b"Content-Length: 1000\r\n\r\n"
        )
        slow.settimeout(10)
        started = time.monotonic()
        received = b""
        while not received:
            slow.sendall(b"x")
            try:
                slow.settimeout(0.1)
                received = slow.recv(1000)
            except TimeoutError:
                continue
        assert received.startswith(b"HTTP/1.1 408")
        assert time.monotonic() - started < 5
        assert b"connection: close" in received.lower()


def _start(bundle: Path) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "mltr", "serve", str(bundle), "--port", "0", "--json", "-",
         "--device", "cpu"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    text = ""
    while not text.rstrip().endswith("}"):
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        text += line
    return process, json.loads(text)


def _send_in_two(port: int, stop: Callable[[], object]) -> bytes:
    """Send half of a request, call `stop` to end the server, send the rest; return the response."""
    body = picture("red", (900, 900))
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(
            b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body) + body[:100]
        )
        time.sleep(0.3)
        stop()
        time.sleep(0.3)
        with pytest.raises(OSError), socket.create_connection(("127.0.0.1", port), 1):
            pass
        connection.sendall(body[100:])
        connection.settimeout(20)
        with connection.makefile("rb") as answer:
            return answer.read()  # headers and body may arrive separately


def test_stopping_finishes_what_was_accepted() -> None:
    with live_server(create_app(colour_predictor())) as server:
        answer = _send_in_two(server.port, lambda: setattr(server, "should_exit", True))
    assert answer.startswith(b"HTTP/1.1 200")
    assert b'"label":"red"' in answer


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_tells_its_address_and_stops_well(bundle: Path, number: int) -> None:
    process, told = _start(bundle)
    assert told == {"address": told["address"], "model": "tiny", "labels": 3}
    port = int(told["address"].rpartition(":")[2])
    answer = _send_in_two(port, lambda: process.send_signal(number))
    assert answer.startswith(b"HTTP/1.1 200")
    _, errors = process.communicate(timeout=20)
    assert process.returncode == (0 if number == signal.SIGINT else -signal.SIGTERM)
    assert json.loads(errors.splitlines()[-1])["status"] == 200


def test_a_taken_port_and_a_wrong_one_are_reported(bundle: Path, capsys: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", str(bundle), "--port", str(port)]) == 1
    assert f"port {port} is in use" in capsys.readouterr().err
    assert main(["serve", str(bundle), "--port", "70000"]) == 2
    assert main(["serve", str(bundle), "--host", "no.such.host.invalid"]) == 1
    assert "no.such.host.invalid" in capsys.readouterr().err
