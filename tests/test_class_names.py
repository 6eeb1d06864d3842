"""Names of classes in any script, from labels of other tools to all that a run becomes."""

from __future__ import annotations

import html
import json
from pathlib import Path

import pytest
from making import TINY_ON_PHOTOS, write_image
from PIL import Image

import mltr
from mltr.cli import main
from mltr.data.detect import detect_format

pytestmark = pytest.mark.pictures

NAMES = ["AC/DC; a|b", 'say "no", <b>', "日本 👩‍👩‍👧", "=Größe", "car [/x]", "$_$ :cat:"]
LABELS = {f"{k}.png": [name for bit, name in enumerate(NAMES) if k >> bit & 1] for k in range(96)}


def write_label_studio(folder: Path) -> None:
    tasks = [
        {
            "data": {"image": f"/data/upload/1/0a1b2c3d-{name}"},
            "annotations": [{"result": [{"type": "choices", "value": {"choices": labels}}]}],
        }
        for name, labels in LABELS.items()
    ]
    (folder / "project.json").write_text(json.dumps(tasks))


def write_yolo(folder: Path) -> None:
    for name, labels in LABELS.items():
        boxes = [f"{NAMES.index(label)} 0.5 0.5 0.25 0.25\n" for label in labels]
        (folder / name).with_suffix(".txt").write_text("".join(boxes))
    (folder / "classes.txt").write_text("\n".join(NAMES), "utf-8")


WRITERS = {"label_studio": write_label_studio, "yolo": write_yolo}


@pytest.fixture(scope="module", params=WRITERS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch on photos with labels of another tool."""
    folder = tmp_path_factory.mktemp("photos")
    for number, name in enumerate(LABELS):
        write_image(folder / name, seed=number)
    WRITERS[request.param](folder)
    assert detect_format(folder) == request.param
    out = tmp_path_factory.mktemp("runs") / "run"
    options = ["--data.root", str(folder), "--out", str(out), *TINY_ON_PHOTOS]
    assert main(["train", "scratch", *options]) == 0
    return out


def test_a_run_on_labels_of_other_tools_keeps_their_names(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert sorted(mltr.load(run).classes) == sorted(NAMES)
    write_image(tmp_path / "a.png")
    capsys.readouterr()
    words = ["--threshold", "0", "--json", "-", "--sidecars", "--xmp"]
    assert main(["predict", str(run), str(tmp_path / "a.png"), *words]) == 0
    assert sorted(json.loads(capsys.readouterr().out)["labels"]) == sorted(NAMES)
    for form in ("sidecars", "keywords"):
        assert main(["data", f"{form}:{tmp_path}", "--quick", "--json", "-"]) == 1  # one photo
        assert "1 image can't be split" in capsys.readouterr().err
    for command in ("evaluate", "calibrate", "audit"):
        assert main([command, str(run)]) == 0
        table = capsys.readouterr().out
        assert all(name in table for name in NAMES), command
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text("utf-8")
    for name in NAMES:
        assert f"<td>{html.escape(name).replace('&quot;', '&#34;')}</td>" in page


@pytest.mark.slow
def test_an_exported_network_and_the_page_keep_them_too(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    out = tmp_path / "model.onnx"
    assert main(["export", str(run), "--out", str(out)]) == 0
    exported = mltr.load(out)
    assert sorted(exported.classes) == sorted(NAMES)
    image = Image.open(write_image(tmp_path / "a.png"))
    assert exported(image).probs == pytest.approx(mltr.load(run)(image).probs, abs=1e-3)
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    from mltr.serve.app import create_app
    from mltr.serve.settings import Settings

    with TestClient(create_app(exported, Settings(name="any"))) as client:
        labels = client.get("/v1/labels", headers={"host": "localhost"}).json()["labels"]
    assert sorted(label["label"] for label in labels) == sorted(NAMES)
