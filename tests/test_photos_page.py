"""Runs docs/photos.md from start to end, with a few photos and short training."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from making import write_image, write_photos

from mltr.cli import main

pytestmark = pytest.mark.pictures

PAGE = (Path(__file__).parents[1] / "docs" / "photos.md").read_text("utf-8")
SMALL = [
    "--model.name=timm/test_efficientnet", "--model.image_size=32", "--data.workers=0",
    "--train.precision=fp32", "--train.batch_size=8",
]  # fmt: skip
SHORT = {
    "train probe": [*SMALL, "--model.init=", "--train.epochs=1"],
    "train photos": [*SMALL, "--data.base_size=40", "--train.minutes=0.05"],
    "calibrate": ["--min-positives", "1"],
    "diagnose": ["--resamples", "20"],
}


def serve(arguments: list[str], photo: Path) -> None:
    """Start the page's server on a free port, send it a photo, and stop it with Ctrl-C."""
    told = photo.parent / "serve.json"
    told.unlink(missing_ok=True)
    command = [sys.executable, "-m", "mltr", *arguments, "--port", "0", "--json", str(told)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        end = time.monotonic() + 60
        while not told.is_file():
            assert server.poll() is None and time.monotonic() < end, server.stderr
            time.sleep(0.05)
        address = json.loads(told.read_text())["address"]
        with urllib.request.urlopen(f"{address}/healthz") as answer:
            assert answer.status == 200
        every = f"{address}/v1/predict?threshold=0"
        request = urllib.request.Request(every, data=photo.read_bytes())
        request.add_header("Content-Type", "image/png")
        with urllib.request.urlopen(request) as answer:
            (result,) = json.load(answer)["results"]
            assert {label["label"] for label in result["labels"]} == {"sea", "sunset"}
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)
        assert server.stderr is not None
        server.stderr.close()


def test_the_page_works_from_its_first_line_to_its_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    write_photos(tmp_path / "my_photos", 24)
    photo = write_image(tmp_path / "holiday" / "beach.png", (60, 40))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    ran = []
    for language, block in re.findall(r"```(sh|python)\n(.*?)```", PAGE, flags=re.DOTALL):
        if language == "python":
            capsys.readouterr()
            exec(compile(block, "photos.md", "exec"), {})
            ran.append("python")
            continue
        for line in block.splitlines():
            mltr, *arguments = shlex.split(line, comments=True)
            assert mltr == "mltr"
            ran.append(arguments[0])
            if arguments[0] == "serve":
                serve(arguments, photo)
            else:
                short = next((SHORT[key] for key in SHORT if line.startswith(f"mltr {key}")), [])
                assert main([*arguments, *short]) == 0, line
    assert ran == [
        "data", "train", "train", "evaluate", "diagnose", "audit", "calibrate", "report", "predict",
        "serve", "export", "predict", "serve", "python",
    ]  # fmt: skip
    for name in ("looked_at/labels.png", "runs/mine/report.html", "runs/mine/model.onnx"):
        assert (tmp_path / name).is_file()
    assert "holiday/beach.png" in (tmp_path / "tags.csv").read_text()
