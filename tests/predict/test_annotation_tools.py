"""What FiftyOne and Label Studio read: by the rules of their own importers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

import pytest
from making import write_image
from predicting import CLASSES, MeanColour, as_predictor, command

from mltr.predict.label_studio import labelling_setup


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch) -> MeanColour:
    network = MeanColour()
    monkeypatch.setattr("mltr.predict.predictor.load", lambda *_: as_predictor(network))
    return network


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    from PIL import Image

    folder = tmp_path / "my photos"
    folder.mkdir()
    for name, colour in (("a&b.png", "red"), ("é.png", "yellow"), ("none.png", "black")):
        Image.new("RGB", (20, 20), colour).save(folder / name)
    (folder / "broken.png").write_text("no image")
    return sorted(folder.glob("*.png"))


EXPECTED = {"a&b.png": {"red"}, "é.png": {"red", "green"}, "none.png": set()}


def test_fiftyone(photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Absolute paths need no manifest; a list of dicts becomes Classifications."""
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "tags.json"
    assert command("my photos", "--format", "fiftyone", "--out", out) == 1
    content = json.loads(out.read_text("utf-8"))
    assert content["classes"] == list(CLASSES)
    found = {}
    for path, targets in content["labels"].items():
        assert Path(path).is_absolute() and Path(path).is_file()
        assert all(set(each) == {"label", "confidence"} for each in targets)
        assert all(0.5 <= each["confidence"] <= 1 for each in targets)
        found[Path(path).name] = {each["label"] for each in targets}
    assert found == EXPECTED


def read_tasks(out: Path) -> dict[str, set[str]]:
    """Labels by the decoded path of each task."""
    setup = ElementTree.parse(f"{out}.xml").getroot()
    image, choices = setup.find("Image"), setup.find("Choices")
    assert image is not None and choices is not None
    found = {}
    for task in json.loads(out.read_text("utf-8")):
        address = urlsplit(task["data"][image.attrib["value"].removeprefix("$")])
        assert address.path == "/data/local-files/"
        (path,) = parse_qs(address.query, strict_parsing=True)["d"]
        (prediction,) = task["predictions"]
        assert prediction["model_version"] == "run"
        labels: set[str] = set()
        for result in prediction["result"]:
            assert result["from_name"] == choices.attrib["name"]
            assert result["to_name"] == choices.attrib["toName"] == image.attrib["name"]
            assert result["type"] == "choices"
            labels |= set(result["value"]["choices"])
        assert labels <= {each.attrib["value"] for each in choices}
        assert ("score" in prediction) is bool(labels)
        found[path] = labels
    return found


def test_label_studio(photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "tasks.json"
    monkeypatch.delenv("LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT", raising=False)
    assert command(photos[0].parent, "--format", "label-studio", "--out", out) == 1
    found = read_tasks(out)
    assert all((Path("/") / path).is_file() for path in found)
    assert {Path(path).name: labels for path, labels in found.items()} == EXPECTED
    monkeypatch.setenv("LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT", str(tmp_path))
    assert command(photos[0].parent, "--format", "label-studio", "--out", out) == 1
    assert set(read_tasks(out)) == {f"my photos/{name}" for name in EXPECTED}
    tasks = json.loads(out.read_text("utf-8"))
    sdk: Any = pytest.importorskip("label_studio_sdk.label_interface")
    interface = sdk.LabelInterface(Path(f"{out}.xml").read_text())
    interface.validate()
    for task in tasks:
        assert interface.validate_task({"data": task["data"]})
        for prediction in task["predictions"]:
            assert interface.validate_prediction(prediction, return_errors=True) == []


def test_photos_that_label_studio_may_not_open(
    photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mltr.errors import MltrError

    (tmp_path / "other").mkdir()
    monkeypatch.setenv("LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT", str(tmp_path / "other"))
    out = tmp_path / "tasks.json"
    with pytest.raises(MltrError, match="set it to a folder above your photos"):
        command(photos[0], "--format", "label-studio", "--out", out)
    assert not out.exists() and not Path(f"{out}.xml").exists()


@pytest.mark.parametrize("form", ["fiftyone", "label-studio"])
def test_images_without_files_of_their_own(form: str, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from mltr.errors import MltrError

    content = write_image(tmp_path / "a.png").read_bytes()
    pq.write_table(pa.table({"image": [content]}), tmp_path / "packed.parquet")
    with pytest.raises(MltrError, match="has no file of its own"):
        command(tmp_path / "packed.parquet", "--format", form, "--out", tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("form", ["fiftyone", "label-studio"])
def test_a_name_that_is_not_utf_8_is_left_out(form: str, tmp_path: Path, caplog) -> None:
    for name in (b"a.png", b"caf\xe9.png"):
        write_image(tmp_path / os.fsdecode(name))
    out = tmp_path / "tags.json"
    assert command(tmp_path, "--format", form, "--out", out) == 0
    content = json.loads(out.read_text("utf-8"))
    assert len(content["labels"] if form == "fiftyone" else content) == 1
    assert "caf\\xe9.png" in caplog.text
    assert "which isn't UTF-8; left out" in caplog.text


def test_nothing_to_write(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_text("no image")
    for form, empty in (
        ("fiftyone", {"classes": list(CLASSES), "labels": {}}),
        ("label-studio", []),
    ):
        out = tmp_path / f"{form}.json"
        assert command(tmp_path / "broken.png", "--format", form, "--out", out) == 1
        assert json.loads(out.read_text()) == empty


def test_names_of_labels_in_the_setup() -> None:
    names = ['a "b" & <c>', "d'e", "sea"]
    root = ElementTree.fromstring(labelling_setup(names))
    assert [each.attrib["value"] for each in root.iter("Choice")] == names
