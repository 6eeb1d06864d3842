"""Push to and load from a fake Hub on loopback: bundles are bit-identical."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fake_hub import FakeHub, running_hub
from huggingface_hub import ModelCard
from making import TINY_ON_PHOTOS, save_untrained, write_photos

import mltr
from mltr.cli import main
from mltr.data.preprocess import Preprocess
from mltr.errors import UsageError
from mltr.export.hub import prepare
from mltr.weights.bundle import save_bundle

CLASSES = ("sea", "sun|set", "*tree*")


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with running_hub() as server:
        yield server


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    about = {"preprocess": Preprocess(96), "thresholds": (0.3, 0.5, 0.75)}
    return save_untrained(tmp_path / "mine", CLASSES, {"depths": [0, 0, 1]}, **about)


def python(hub: FakeHub, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a new process that uses the fake Hub."""
    own = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_TOKEN": "secret"}
    own |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_ETAG_TIMEOUT": "2"}
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | own, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def command(hub: FakeHub, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `mltr ...` in a new process that uses the fake Hub."""
    return python(hub, home, "-m", "mltr", *arguments)


RUN_ALL = """
import contextlib, io, json, sys
from mltr.cli import main
found = []
for arguments in json.loads(sys.argv[1]):
    told, printed = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(printed):
        code = main(arguments)
    found.append([code, told.getvalue()])
print(json.dumps(found))
"""


def commands(hub: FakeHub, home: Path, *given: list[str]) -> list[tuple[int, str]]:
    """Run several in one new process; return the exit code and the messages of each."""
    done = python(hub, home, "-c", RUN_ALL, json.dumps(given))
    assert done.returncode == 0, done.stderr
    return [(code, told) for code, told in json.loads(done.stdout)]


SCORE = """
import sys, torch, mltr
for name, out in zip(sys.argv[1::2], sys.argv[2::2]):
    tagger = mltr.load(name, device="cpu")
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(5))
    logits = torch.from_numpy(tagger.network(images.numpy()))
    torch.save([logits, tagger.classes, tagger.thresholds.tolist()], out)
"""


def test_pushed_and_loaded_back_gives_the_same_bits(
    hub: FakeHub, bundle: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    pushed = command(hub, home, "push", str(bundle), "me/beach", "--licence", "apache-2.0")
    assert pushed.returncode == 0, pushed.stderr
    assert f"{hub.endpoint}/me/beach\n" in pushed.stdout
    assert set(hub.repositories["me/beach"]) == {"README.md", "config.json", "model.safetensors"}

    files = [str(tmp_path / name) for name in ("own.pt", "fetched.pt")]
    result = subprocess.run(
        [sys.executable, "-c", SCORE, str(bundle), files[0], "hf-hub:me/beach", files[1]],
        env=os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    own, fetched = (torch.load(file, weights_only=True) for file in files)
    assert torch.equal(own[0], fetched[0])
    assert own[1:] == fetched[1:]
    assert not any("README" in request for request in hub.requests if "resolve" in request)


SCORE_BY_TIMM = """
import sys, torch, timm, mltr.timm_models
model = timm.create_model("hf-hub:" + sys.argv[1], pretrained=True).eval()
data = timm.data.resolve_model_data_config(model)
images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(5))
with torch.no_grad():
    torch.save([model(images), data["input_size"], list(data["mean"])], sys.argv[2])
"""


@pytest.mark.parametrize("name", ["mltr_nano", "timm/resnet10t", "timm/vit_tiny_patch16_224"])
def test_timm_loads_it_from_the_hub_too(hub: FakeHub, tmp_path: Path, name: str) -> None:
    torch.manual_seed(1)
    overrides: dict[str, Any] = {"image_size": 96, "drop_path": 0.1}
    model = mltr.create_model(name, num_classes=3, **overrides).eval()
    save_bundle(
        tmp_path / "own", model=model, name=name, overrides=overrides, classes=CLASSES,
        preprocess=Preprocess(96),
    )  # fmt: skip
    prepare(tmp_path / "own", tmp_path / "up", "me/x")
    hub.repositories["me/x"] = {f.name: f.read_bytes() for f in (tmp_path / "up").iterdir()}
    result = subprocess.run(
        [sys.executable, "-c", SCORE_BY_TIMM, "me/x", str(tmp_path / "scores.pt")],
        env=os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    logits, size, mean = torch.load(tmp_path / "scores.pt", weights_only=True)
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        torch.testing.assert_close(logits, model(images))
    assert (tuple(size), mean) == ((3, 96, 96), [0, 0, 0])


def test_what_is_not_there_is_reported_in_one_line(
    hub: FakeHub, bundle: Path, tmp_path: Path
) -> None:
    (bundle / "photo.png").write_bytes(b"")
    hub.dropped |= {"me/far", "me/new"}
    expected = (
        (["predict", "hf-hub:me/none", str(bundle)], "hf-hub:me/none can't be fetched"),
        (["predict", "hf-hub:not a name", str(bundle)], "expected hf-hub:OWNER/NAME"),
        (["push", str(bundle), "a/b/c"], "is not OWNER/NAME"),
        (["push", str(bundle), "x", "--dry-run", str(tmp_path / "dry")], "put the owner in front"),
        (["push", str(tmp_path / "none"), "me/x"], "no such folder"),
        (["predict", "hf-hub:me/far", str(bundle)], "hf-hub:me/far can't be fetched: "),
        (["push", str(bundle), "me/new"], "me/new can't be uploaded: "),
    )
    found = commands(hub, tmp_path / "home", *(arguments for arguments, _ in expected))
    for (code, told), (_, words) in zip(found, expected, strict=True):
        assert code in (1, 2)
        assert words in told
        assert told.count("\n") == 1, told
    for code, told in found[-2:]:
        assert code == 1
        assert "check the network, and try again" in told
    hub.refuse_uploads = True
    result = command(hub, tmp_path / "home", "push", str(bundle), "me/beach")
    assert result.returncode == 1
    assert "can't be uploaded" in result.stderr
    assert "check the name and the login" in result.stderr


def test_what_is_private_goes_to_no_public_repository(
    hub: FakeHub, bundle: Path, tmp_path: Path
) -> None:
    hub.repositories["me/open"], hub.private["me/open"] = {}, False
    both = (["push", str(bundle), name, "--private"] for name in ("me/own", "me/open"))
    (own, _), (code, told) = commands(hub, tmp_path / "home", *both)
    assert own == 0
    assert hub.private == {"me/own": True, "me/open": False}
    assert code == 1
    assert "me/open is public" in told
    assert hub.repositories["me/open"] == {}


def test_damage_on_the_way_is_found(hub: FakeHub, bundle: Path, tmp_path: Path) -> None:
    prepare(bundle, tmp_path / "up", "me/x")
    files = {path.name: path.read_bytes() for path in (tmp_path / "up").iterdir()}
    content = bytearray(files["model.safetensors"])
    content[-100] ^= 0xFF
    hub.repositories["me/x"] = files | {"model.safetensors": bytes(content)}
    (tmp_path / "photo.png").write_bytes(b"")
    result = command(hub, tmp_path / "home", "predict", "hf-hub:me/x", str(tmp_path / "photo.png"))
    assert "damaged" in result.stderr


def read_card(folder: Path) -> tuple[dict[str, Any], str]:
    _, metadata, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(metadata), text


def test_the_card_of_a_bare_bundle(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "card"
    assert main(["push", str(bundle), "me/beach", "--dry-run", str(out)]) == 0
    metadata, text = read_card(out)
    assert metadata["library_name"] == "mltr"
    assert metadata["pipeline_tag"] == "image-classification"
    assert "license" not in metadata
    assert "model-index" not in metadata  # no figures without test scores
    assert "not scored on any test images" in text
    assert 'mltr.load("hf-hub:me/beach")' in text
    assert r"| sun\|set | 0.5 | - | - |" in text
    assert r"\*tree\*" in text
    assert "None was given" in text
    assert mltr.load(out).classes == CLASSES


def test_the_card_of_weights_without_labels_says_where_they_come_from(tmp_path: Path) -> None:
    about = {"preprocess": Preprocess(96), "extra": {"converted_from": "a|b_c.pth"}}
    save_untrained(tmp_path / "bare", (), {"depths": [0, 0, 1]}, **about)
    assert main(["push", str(tmp_path / "bare"), "me/x", "--dry-run", str(tmp_path / "card")]) == 0
    card = ModelCard.load(tmp_path / "card" / "README.md")
    assert card.data.tags == ["multi-label", "mltr", "mltr_nano"]
    assert "without labels. The network is `mltr_nano`" in card.text
    assert r"Converted from a\|b\_c.pth." in card.text
    headings = [line[3:] for line in card.text.splitlines() if line.startswith("## ")]
    assert headings == ["How to use it", "Figures", "Where it comes from", "Licence"]


def test_the_card_of_a_run_tells_its_figures_and_no_paths(tmp_path: Path) -> None:
    options = ["--data.scenes.train", "48", "--data.scenes.val", "16", "--data.scenes.test", "24"]
    options += ["--train.epochs", "1", "--train.batch_size", "16", "--data.workers", "0"]
    options += ["--data.scenes.side", "32", "--model.image_size", "32", "--data.cache", "false"]
    run = tmp_path / "private" / "run"
    assert main(["train", "scenes_nano", "--out", str(run), *options]) == 0
    recipe = run / "config.yaml"
    text = recipe.read_text().replace("init: ''", f"init: cat:{tmp_path}/cat.pth")
    recipe.write_text(text.replace("teacher: ''", f"teacher: {tmp_path}/teacher"))
    prepare(run, tmp_path / "card", "me/digits", "cc-by-4.0")
    prepare(run, tmp_path / "card", "me/digits", "cc-by-4.0")  # again
    clone = shutil.copytree(run, tmp_path / "clone")  # of anybody's repository
    (clone / "README.md").write_text("---\nlibrary_name: timm\n---\n")
    with pytest.raises(UsageError, match="is the folder to upload"):
        prepare(tmp_path / "card", tmp_path / "card", "me/digits")
    for weights in (run, clone, shutil.copytree(run, tmp_path / "other")):
        with pytest.raises(UsageError, match="holds model.safetensors, which isn't from a push"):
            prepare(run, weights, "me/digits")
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "README.md").write_text("mine")
    with pytest.raises(UsageError, match="holds README.md, which isn't from a push"):
        prepare(run, tmp_path / "project", "me/digits")
    metadata, text = read_card(tmp_path / "card")
    figures = json.loads((run / "metrics.json").read_text())
    (index,) = metadata["model-index"]
    values = {entry["type"]: entry["value"] for entry in index["results"][0]["metrics"]}
    assert values == {name: round(figures[name], 4) for name in ("map", "cf1", "of1")}
    assert metadata["license"] == "cc-by-4.0"
    assert f"| `map` | {100 * figures['map']:.2f} | mAP, non-interpolated" in text
    assert "On 24 test images" in text
    assert "mltr_nano" in text
    assert str(tmp_path) not in text
    assert "init: cat:cat.pth" in text
    assert "teacher: teacher" in text
    published = json.loads((tmp_path / "card" / "metrics.json").read_text())
    assert figures.pop("broken_images") == figures.pop("broken_training_images") == []
    assert published == figures


def test_no_secret_of_an_address_is_published(tmp_path: Path, bundle: Path) -> None:
    photos = write_photos(tmp_path / "photos", 24)
    run = tmp_path / "run"
    options = ["--data.root", str(photos), "--out", str(run), *TINY_ON_PHOTOS]
    assert main(["train", "scratch", *options]) == 0
    recipe = run / "config.yaml"
    address = "https://alice:s3cret@host/shards?token=abc"
    recipe.write_text(recipe.read_text().replace(f"root: {photos}", f"root: {address}"))
    prepare(run, tmp_path / "card", "me/mine")
    card = (tmp_path / "card" / "README.md").read_text()
    assert "https://host/shards" in card
    assert not any(secret in card for secret in ("alice", "s3cret", "abc"))


def test_no_local_path_is_published(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 24)
    broken = next(photos.glob("*.png"))
    broken.write_bytes(b"no image")
    run = tmp_path / "run"
    options = ["--data.root", str(photos), "--out", str(run), *TINY_ON_PHOTOS]
    assert main(["train", "scratch", *options, "--data.max_broken", "1"]) == 0
    assert str(broken) in (run / "metrics.json").read_text()
    prepare(run, tmp_path / "card", "me/mine")
    for path in (tmp_path / "card").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path.name
