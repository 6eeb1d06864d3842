"""`mltr serve --engine ray`: the same responses, and none lost when a replica is killed."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from serving import COLOURS, save_tiny_bundle

from mltr.cli import main
from mltr.diagnosis.evidence import explain
from mltr.predict.cluster import share
from mltr.predict.predictor import Prediction, load

pytest.importorskip("ray.serve")
pytest.importorskip("fastapi")

CLIENTS = 24
LOAD_S = 20


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@contextmanager
def served(bundle: Path, replicas: int) -> Iterator[tuple[psutil.Popen, str]]:
    """Run the command; yield its process and address, and check that SIGTERM ends everything."""
    environment = {name: v for name, v in os.environ.items() if not name.startswith("RAY_")}
    log = bundle.with_suffix(".log")  # an unread pipe would block the server
    with log.open("w") as stderr:
        server = psutil.Popen(
            [sys.executable, "-m", "mltr", "serve", str(bundle), "--port", "0", "--json", "-",
             "--device", "cpu", "--engine", "ray", "--replicas", str(replicas)],
            stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment,
        )  # fmt: skip
    try:
        text = ""
        while not text.rstrip().endswith("}"):
            line = server.stdout.readline()
            assert line, log.read_text()
            text += line
        yield server, json.loads(text)["address"]
    finally:
        offspring = server.children(recursive=True)
        server.send_signal(signal.SIGTERM)
        out, _ = server.communicate(timeout=60)
        _, left = psutil.wait_procs(offspring, timeout=20)
        for process in left:
            process.kill()
    assert (out, left, server.returncode) == ("", [], 128 + signal.SIGTERM)
    assert "Traceback" not in log.read_text()


def fetch(address: str, body: bytes | None = None) -> bytes:
    """Send GET, or POST with a picture as the body; return the response's body."""
    request = urllib.request.Request(address, body, {"Content-Type": "image/png"} if body else {})
    with urllib.request.urlopen(request, timeout=40) as answer:
        return answer.read()


def replicas_of(server: psutil.Popen) -> list[psutil.Process]:
    """Return the processes of the replicas, by the titles that Ray gives them."""

    def is_one(process: psutil.Process) -> bool:
        try:
            return " ".join(process.cmdline()).startswith("ray::ServeReplica")
        except psutil.Error:  # it has just ended
            return False

    return [process for process in server.children(recursive=True) if is_one(process)]


def noise(number: int) -> bytes:
    """Return a unique picture, so that swapped responses are noticed."""
    values = np.random.default_rng(number).integers(0, 256, (3, 4, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(values).resize((40, 30), Image.Resampling.BICUBIC).save(stream, "PNG")
    return stream.getvalue()


def check_answer(answer: bytes, prediction: Prediction) -> None:
    """Compare a response to ``top=3`` with the network's prediction in this process."""
    labels = json.loads(answer)["results"][0]["labels"]
    expected = prediction.top(3)
    assert [one["label"] for one in labels] == [label for label, _ in expected]
    np.testing.assert_allclose(
        [one["prob"] for one in labels], [prob for _, prob in expected], atol=2e-6
    )


@pytest.mark.slow
def test_a_server_on_ray_does_what_any_does(bundle: Path) -> None:
    predictor = load(bundle, "cpu")
    with served(bundle, 1) as (server, address):
        assert address.startswith("http://127.0.0.1:")
        assert len(replicas_of(server)) == 1
        image = noise(0)
        check_answer(fetch(f"{address}/v1/predict?top=3", image), predictor(image))
        told = json.loads(fetch(f"{address}/v1/labels"))
        assert [one["label"] for one in told["labels"]] == list(COLOURS)
        assert [one["threshold"] for one in told["labels"]] == [0.4, 0.45, 0.9]
        assert b"<title>" in fetch(f"{address}/")
        assert json.loads(fetch(f"{address}/readyz")) == {"status": "ready"}
        for method in ("evidence", "rollout"):
            query = f"label=green&form=grid&method={method}"
            grid = json.loads(fetch(f"{address}/v1/explain?{query}", image))
            expected = explain(predictor, image, ["green"], method)[0]
            np.testing.assert_allclose(grid["cells"], expected.cells, atol=1e-6)
            assert grid["is_exact"] == expected.is_exact
        listening = [
            connection.laddr.ip
            for process in server.children(recursive=True)
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        loopback = [ip for ip in listening if ip.removeprefix("::ffff:").startswith("127.")]
        assert len(listening) - len(loopback) <= 1  # Serve's replica, which requires a token


@pytest.mark.slow
def test_a_killed_replica_loses_no_request(bundle: Path) -> None:
    images = [noise(number) for number in range(64)]
    answers: list[tuple[int, bytes]] = []

    def send(client: int, address: str, end: float) -> None:
        number = client
        while time.monotonic() < end:
            image = number % len(images)
            answers.append((image, fetch(f"{address}/v1/predict?top=3", images[image])))
            number += CLIENTS

    with served(bundle, 2) as (server, address), ThreadPoolExecutor(CLIENTS) as clients:
        end = time.monotonic() + LOAD_S
        sent = [clients.submit(send, client, address, end) for client in range(CLIENTS)]
        killed = set()
        for _ in range(2):  # both initial replicas, one after the other
            time.sleep(LOAD_S / 4)
            running = [one for one in replicas_of(server) if one.pid not in killed]
            running[0].kill()
            killed.add(running[0].pid)
        for one in sent:
            one.result()  # raises for any status other than 200, and for a cut connection
        deadline = time.monotonic() + 30
        while len(replicas_of(server)) < 2 and time.monotonic() < deadline:
            time.sleep(0.2)
        running = replicas_of(server)
        assert len(running) == 2
        assert not killed & {one.pid for one in running}
        metrics = fetch(f"{address}/metrics").decode()
        assert f'mltr_images_total{{outcome="predicted"}} {len(answers):.1f}' in metrics
        assert "mltr_pending_images 0.0" in metrics
    assert len(answers) > 20 * CLIENTS
    expected = load(bundle, "cpu")(images)
    for image, answer in answers:
        check_answer(answer, expected[image])


def test_replicas_need_ray_and_are_some(bundle: Path, capsys: Any) -> None:
    assert main(["serve", str(bundle), "--replicas", "2"]) == 2
    assert "--engine ray" in capsys.readouterr().err
    assert main(["serve", str(bundle), "--engine", "ray", "--replicas", "0"]) == 2
    assert "--replicas 0" in capsys.readouterr().err


def test_without_ray_the_error_says_how_to_install_it(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["serve", str(bundle), "--engine", "ray", "--port", "0"]) != 0
    assert "pip install 'mltr[ray]'" in capsys.readouterr().err


def test_an_absent_cluster_is_reported(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert main(["serve", str(bundle), "--engine", "ray", "--port", "0"]) == 1
    assert f"RAY_ADDRESS={address}" in capsys.readouterr().err


@given(st.lists(st.integers(1, 64), min_size=1, max_size=5), st.integers(1, 100))
def test_as_many_replicas_as_wanted_find_place(sizes: list[int], count: int) -> None:
    def places(units: int) -> int:
        return sum(10_000 * size // units for size in sizes)  # Ray's unit is 1/10,000 of a core

    units = round(10_000 * share(sizes, count))
    assert places(units) >= count
    assert places(units + 1) < count  # larger shares wouldn't fit
