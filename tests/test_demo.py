"""The demo: one command trains, prints the figures, and writes a page."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest
from PIL import Image

from mltr.cli import main

pytestmark = pytest.mark.pictures

TINY = [
    "--data.scenes.train=48", "--data.scenes.val=16", "--data.scenes.test=20",
    "--data.scenes.side=32", "--data.base_size=32", "--data.cache=false", "--data.workers=0",
    "--model.image_size=32", "--model.overrides.depths=[0,1]",
    "--model.overrides.conv_depths=[1,0]", "--train.batch_size=16", "--train.precision=fp32",
    "--train.min_size=0", "--train.epochs=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "demo"
    assert main(["demo", "--out", str(out), "--json", str(out.parent / "figures.json"), *TINY]) == 0
    return out


def test_the_page_shows_every_scene_and_the_figures(demo: Path) -> None:
    page = (demo / "index.html").read_text(encoding="utf-8")
    figures = json.loads((demo / "metrics.json").read_text())
    assert f"{100 * figures['map']:.1f}" in page
    pictures = re.findall(r"<img[^>]+src=\"([^\"]+)\"", page)
    assert len(pictures) == 20 + 3  # scenes, then curves
    assert all(source.startswith("data:image/") for source in pictures)  # one file, no network
    assert not re.search(r"(src|href)=\"https?:", page)


def test_the_demo_is_a_run_like_any_other(demo: Path, tmp_path: Path, capsys) -> None:
    saved = json.loads((demo / "metrics.json").read_text())
    assert json.loads((demo.parent / "figures.json").read_text())["map"] == saved["map"]
    assert Image.open(demo / "scenes.png").width > 100
    assert main(["evaluate", str(demo), "--json", "-", "--out", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["map"] == pytest.approx(saved["map"], abs=1e-6)


def test_json_on_stdout_is_nothing_but_json(tmp_path: Path, capsys) -> None:
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out), "--json", "-", *TINY, "--train.epochs=1"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 20


def test_a_demo_is_replaced_only_when_asked(demo: Path, capsys) -> None:
    before = (demo / "metrics.json").read_bytes()
    assert main(["demo", "--out", str(demo), *TINY]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (demo / "metrics.json").read_bytes() == before


def test_a_page_of_somebody_else_stays(tmp_path: Path, capsys) -> None:
    (tmp_path / "index.html").write_text("mine")
    assert main(["demo", "--out", str(tmp_path), *TINY]) == 2
    assert "index.html exists" in capsys.readouterr().err
    assert (tmp_path / "index.html").read_text() == "mine"


def test_it_says_where_the_page_is_and_what_to_do_next(tmp_path: Path, capsys) -> None:
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out), *TINY, "--train.epochs=1"]) == 0
    printed = "".join(capsys.readouterr().out.split())
    assert str(out / "index.html") in printed
    assert f"mltrpredict{out}" in printed


def test_quick_takes_no_other_settings(tmp_path: Path, capsys) -> None:
    assert main(["demo", "--out", str(tmp_path / "demo"), "--quick", "--train.epochs=3"]) == 2
    assert "--quick" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


@pytest.mark.slow
def test_quick_trains_the_recipe_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert main(["demo", "--out", str(tmp_path / "demo"), "--quick"]) == 0
    figures = json.loads((tmp_path / "demo" / "metrics.json").read_text())
    assert figures["epochs"] == 2
    assert 0 < figures["map"] <= 1


def test_a_taken_port_stops_the_demo_before_its_training(tmp_path: Path, capsys) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        arguments = ["demo", "--serve", "--port", str(port), "--out", str(tmp_path / "demo")]
        assert main([*arguments, *TINY]) == 1
    assert f"port {port} is in use" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_it_serves_what_it_learnt(demo: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    served = {}
    monkeypatch.setattr(
        "mltr.serve.server.serve", lambda run, settings, **options: served.update(options, run=run)
    )
    out = tmp_path / "demo"
    port = ["--port", "0"]
    assert main(["demo", "--serve", *port, "--out", str(out), *TINY, "--train.epochs=1"]) == 0
    assert served == {"run": out, "port": 0, "quiet": False}
    scenes = sorted((out / "scenes").glob("*.png"))
    assert len(scenes) == 20
    assert Image.open(scenes[0]).size == (32, 32)
    assert "".join(str(out / "scenes").split()) in "".join(capsys.readouterr().out.split())
