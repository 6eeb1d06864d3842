"""Libraries send no telemetry: no name is looked up, and nothing is stored to be sent later.

The tests run a name server in a network namespace without any other connection.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from making import write_image
from serving import save_tiny_bundle

from mltr.cli import main

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

#: Runs the given commands with a name server that resolves nothing, and prints its queries.
WATCH = """
import json, socket, subprocess, sys, threading
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))
asked = set()
def answer():
    while True:
        question, sender = server.recvfrom(2000)
        place, words = 12, []
        while question[place]:
            words.append(question[place + 1 : place + 1 + question[place]].decode())
            place += 1 + question[place]
        asked.add(".".join(words))
        unknown = question[:2] + b"\\x81\\x83" + question[4:6] + bytes(6) + question[12:]
        server.sendto(unknown, sender)
threading.Thread(target=answer, daemon=True).start()
running = [subprocess.Popen([sys.executable, "-c", code]) for code in json.load(sys.stdin)]
failed = [process.args[-1] for process in running if process.wait()]
print(json.dumps([failed, sorted(asked)]))
"""
NAMESPACE = 'ip link set lo up && mount --bind "$0" /etc/resolv.conf && exec "$@"'
LOOK_UP = """
import socket
try:
    socket.getaddrinfo("seen.example", 80)
except OSError:
    pass
"""
LOAD = """
import mltr, numpy as np
mltr.load({model!r}, 'cpu')([np.zeros((9, 9, 3), np.uint8)])
"""
IN_OPENVINO = LOAD.replace("'cpu'", "engine='openvino'")
#: Ray looks up its cloud regardless of settings (see docs/serving.md).
ASKED_BY_RAY = "metadata.google.internal"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny_bundle(tmp_path_factory.mktemp("runs") / "run")
    for number in range(12):
        write_image(folder / "photos" / f"{number}.png")
    assert main(["export", str(folder), "--images", str(folder / "photos")]) == 0
    return folder / "model.onnx"


def test_engines_keep_nothing_to_be_sent(model: Path, tmp_path: Path) -> None:
    """They would make files in the user's folders as soon as they are imported."""
    codes = [LOAD.format(model=str(model)), "import mltr.export.int8"]
    if find_spec("openvino"):
        codes += [IN_OPENVINO.format(model=str(model.parent))]
    for number, code in enumerate(codes):
        home = tmp_path / f"home{number}"
        home.mkdir()
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("ORT_", "XDG_"))}
        subprocess.run([sys.executable, "-c", code], check=True, env=clean | {"HOME": str(home)})
        kept = [path.relative_to(home) for path in home.rglob("*")]
        assert not [
            path for path in kept if re.search("onnxruntime|intel|openvino", str(path), re.I)
        ]


@pytest.mark.slow
def test_no_name_is_looked_up(model: Path, tmp_path: Path) -> None:
    resolver = tmp_path / "resolv.conf"
    resolver.write_text("nameserver 127.0.0.1\n")
    alone = ["unshare", "--map-root-user", "--net", "--mount", "sh", "-c", NAMESPACE, resolver]
    try:
        subprocess.run([*alone, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no namespaces of networks and mounts can be made here: {error}")
    run, wait = (
        model.parent,
        "import time; time.sleep(15)\n",
    )  # the first look-up happens after 10 s
    command = "from mltr.cli import main\nassert main({!r}) == 0\n"
    photos = str(run / "photos")
    code = [
        LOOK_UP,
        *[IN_OPENVINO.format(model=str(run)) + wait] * (find_spec("openvino") is not None),
        LOAD.format(model=str(model)) + wait,
        command.format(["export", str(run), "--precision", "int8", "--images", photos]) + wait,
        LOAD.format(model=str(run)) + "import timm, datasets, huggingface_hub\n" + wait,
        "from mltr.predict.cluster import connected\nwith connected(): " + wait,
        "import mltr.serve.server\n" + wait,
    ]
    clean = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    watched = subprocess.run(
        [*alone, sys.executable, "-c", WATCH], input=json.dumps(code), check=True,
        stdout=subprocess.PIPE, text=True, env=clean,
    )  # fmt: skip
    failed, asked = json.loads(watched.stdout.splitlines()[-1])
    assert not failed
    assert set(asked) - {ASKED_BY_RAY} == {"seen.example"}
