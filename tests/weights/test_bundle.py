"""Bundles: what goes in comes out, all damage is told, and a failed save loses nothing."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mltr.data.preprocess import Preprocess
from mltr.errors import MltrError
from mltr.files.writing import write_atomically, write_json
from mltr.network.model import create_model
from mltr.weights.bundle import (
    checkpoint_writer,
    load_bundle,
    read_config,
    save_bundle,
    update_config,
)
from mltr.weights.metadata import Calibration, to_probs

CLASSES = ("cat", "dog, wet", "Ünïcode 猫")
OVERRIDES: dict[str, Any] = {"depths": (0, 0, 1, 0), "image_size": 32}
PLATT = {"method": "platt", "scale": [0.5, 1.0, 2.0], "shift": [0.25, 0.0, -1.0]}
PREPROCESS = Preprocess(image_size=32, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))


def tiny_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return create_model("mltr_nano", num_classes=3, **OVERRIDES)


def save(folder: Path, model: nn.Module, **changes: Any) -> None:
    arguments: dict[str, Any] = {
        "name": "mltr_nano",
        "overrides": OVERRIDES,
        "classes": CLASSES,
        "preprocess": PREPROCESS,
    }
    save_bundle(folder, model=model, **(arguments | changes))


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | changes), encoding="utf-8")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    save(folder, tiny_model())
    return folder


def test_a_bundle_comes_back_as_it_was(tmp_path: Path) -> None:
    model = tiny_model(seed=3).eval()
    save(tmp_path / "a" / "b", model, thresholds=[0.25, 0.5, 1], extra={"map": 0.9, "bad": 0.1})
    loaded = load_bundle(str(tmp_path / "a" / "b"))
    assert loaded.classes == CLASSES
    assert loaded.preprocess == PREPROCESS
    assert loaded.thresholds == (0.25, 0.5, 1.0)
    assert loaded.config["extra"] == {"map": 0.9, "bad": 0.1}
    assert loaded.config["mltr_version"]
    assert not loaded.model.training
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded.model(images), model(images))
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_a_timm_backbone_is_saved_without_where_its_first_weights_came_from(
    tmp_path: Path,
) -> None:
    model = create_model("timm/resnet10t", num_classes=3)
    save(tmp_path, model, name="timm/resnet10t", overrides={"pretrained": True})
    loaded = load_bundle(tmp_path)
    assert loaded.config["model"] == {"name": "timm/resnet10t", "overrides": {}}
    assert torch.equal(loaded.model.state_dict()["fc.weight"], model.state_dict()["fc.weight"])


def test_a_foreign_config_cannot_make_a_backbone_fetch_weights(tmp_path: Path) -> None:
    save(tmp_path, create_model("timm/resnet10t", num_classes=3), name="timm/resnet10t")
    harmful = {"pretrained": True, "checkpoint_path": "/nowhere/pickled.pth"}
    edit_config(tmp_path, model={"name": "timm/resnet10t", "overrides": harmful})
    load_bundle(tmp_path)


def test_loading_does_not_need_the_checksum(bundle: Path) -> None:
    """Weights made by another tool come without this project's metadata."""
    tensors = safetensors.torch.load_file(bundle / "model.safetensors")
    safetensors.torch.save_file(tensors, bundle / "model.safetensors")
    config = json.loads((bundle / "config.json").read_text(encoding="utf-8"))
    del config["weights_crc32"]
    (bundle / "config.json").write_text(json.dumps(config))
    load_bundle(bundle)


def test_thresholds_can_be_edited_by_hand(bundle: Path) -> None:
    edit_config(bundle, thresholds=[0.1, 0.2, 0.3])
    assert load_bundle(bundle).thresholds == (0.1, 0.2, 0.3)


def test_a_calibration_comes_back_and_old_bundles_have_none(bundle: Path) -> None:
    assert load_bundle(bundle).calibration is None
    calibration = Calibration("platt", (0.5, 1.0, 2.0), (0.25, 0.0, -1.0))
    save(bundle, tiny_model(), calibration=calibration, thresholds=[0.1, 0.2, 0.3])
    assert load_bundle(bundle).calibration == calibration
    config = json.loads((bundle / "config.json").read_text(encoding="utf-8"))
    assert config["calibration"] == PLATT
    del config["calibration"]
    (bundle / "config.json").write_text(json.dumps(config))
    assert load_bundle(bundle).calibration is None


def test_probabilities_of_logits() -> None:
    logits = np.array([[0, -2, 4], [1, 2, 3]], np.float32)
    np.testing.assert_allclose(to_probs(logits), torch.from_numpy(logits).sigmoid(), rtol=1e-6)
    extremes = to_probs(np.array([-1e4, 1e4], np.float32))
    assert extremes.tolist() == [0, 1]
    expected = [[1 / (1 + math.exp(-z)) for z in row] for row in ((0.25, -2, 7), (0.75, 2, 5))]
    found = to_probs(logits, Calibration("platt", (0.5, 1.0, 2.0), (0.25, 0.0, -1.0)))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.dtype == np.float32


def test_an_update_changes_the_config_alone(bundle: Path) -> None:
    before = contents(bundle)
    update_config(bundle, {"calibration": PLATT, "thresholds": [0.1, 0.2, 0.3]})
    assert contents(bundle)["model.safetensors"] == before["model.safetensors"]
    assert sorted(contents(bundle)) == sorted(before)
    loaded = load_bundle(bundle)
    assert loaded.calibration == Calibration("platt", (0.5, 1.0, 2.0), (0.25, 0.0, -1.0))
    assert loaded.thresholds == (0.1, 0.2, 0.3)
    update_config(bundle, {"calibration": None, "thresholds": None})
    assert contents(bundle) == before


def test_a_wrong_or_failed_update_leaves_the_config_as_it_was(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(bundle)
    with pytest.raises(MltrError, match="thresholds must lie in"):
        update_config(bundle, {"thresholds": [0.5, 0.5, 7]})
    with pytest.raises(MltrError, match="no such folder"):
        update_config(bundle / "none", {})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MltrError, match="previous one is untouched"):
        update_config(bundle, {"thresholds": [0.5, 0.5, 0.5]})
    assert contents(bundle) == before


def test_an_update_of_a_config_of_other_weights_starts_from_the_right_one(
    bundle: Path, tmp_path: Path
) -> None:
    """The machine stopped between the two renames of a save."""
    save(tmp_path / "other", tiny_model(seed=9), extra={"mine": True})
    shutil.copy(tmp_path / "other" / "model.safetensors", bundle)
    assert read_config(bundle)["extra"] == {"mine": True}
    update_config(bundle, {"thresholds": [0.1, 0.2, 0.3]})
    loaded = load_bundle(bundle)
    assert loaded.config["extra"] == {"mine": True}
    assert loaded.thresholds == (0.1, 0.2, 0.3)


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def flip_a_byte(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-500] ^= 1
    path.write_bytes(content)


def poison(folder: Path) -> None:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors["head.weight"][0, 0] = float("nan")
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del config["weights_crc32"]
    (folder / "config.json").write_text(json.dumps(config))


def drop_key(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        del config[name]
        (folder / "config.json").write_text(json.dumps(config))

    return damage


def change(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_config(folder, **changes)


def put(name: str, content: bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return damage


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


NANO = {"name": "mltr_nano", "overrides": {"depths": [0, 0, 2, 0], "image_size": 32}}
DAMAGES: list[tuple[Callable[[Path], None], list[str]]] = [
    (remove("config.json"), ["has no config.json", "mltr train"]),
    (remove("model.safetensors"), ["has no model.safetensors"]),
    (truncate, ["model.safetensors", "cut short"]),
    (put("model.safetensors", b""), ["model.safetensors", "cut short"]),
    (put("model.safetensors", b"PK\x03\x04 a pickle in a zip"), ["model.safetensors"]),
    (flip_a_byte, ["model.safetensors", "damaged", "checksum"]),
    (poison, ["NaN", "head.weight"]),
    (put("config.json", b"{oh no"), ["config.json is not JSON"]),
    (put("config.json", b"\xff\xfe\x00"), ["config.json"]),
    (put("config.json", b"[]"), ["config.json", "object"]),
    (put("config.json", b""), ["config.json is not JSON"]),
    (drop_key("classes"), ["config.json", "has no key 'classes'"]),
    (change(format_version=99), ["format_version 99", "upgrade mltr"]),
    (change(format_version="one"), ["format_version"]),
    (change(model="mltr_s"), ["config.json", "model must be"]),
    (change(model={"name": "mltr_nanoo", "overrides": {}}), ["did you mean 'mltr_nano'"]),
    (change(model={"name": "mltr_nano", "overrides": {"width": 3}}), ["no option 'width'"]),
    (change(model=NANO), ["doesn't fit", "missing stages.2.blocks.4", "and "]),
    (change(classes=["a", "b"]), ["head.weight [3, 256] where [2, 256] belongs"]),
    (change(classes=[]), ["head.weight"]),
    (change(classes=["a", "b", "a"]), ["'a' stands there twice"]),
    (change(preprocess={"image_size": 32}), ["config.json", "preprocess"]),
    (change(preprocess=None), ["config.json", "preprocess"]),
    (change(thresholds=[0.5]), ["one number for each of the 3 classes"]),
    (change(thresholds=[0.5, 2, 0.5]), ["0..1"]),
    (change(thresholds=[0.5, float("nan"), 0.5]), ["0..1"]),
    (change(calibration=[1, 1, 1]), ["config.json", "calibration must be null or"]),
    (change(calibration={"method": "isotonic"}), ["shared or platt or temperature"]),
    (change(calibration=PLATT | {"scale": [1, 2]}), ["calibration.scale", "the 3 classes"]),
    (change(calibration=PLATT | {"shift": 0.5}), ["calibration.shift", "the 3 classes"]),
    (change(calibration=PLATT | {"shift": [0, "1", 0]}), ["calibration.shift must be numbers"]),
    (change(calibration=PLATT | {"shift": [0, float("nan"), 0]}), ["calibration.shift must be"]),
    (change(calibration=PLATT | {"scale": [1, 0, 1]}), ["calibration.scale must be above 0"]),
]


@pytest.mark.parametrize(("damage", "told"), DAMAGES)
def test_damage_is_named(bundle: Path, damage: Callable[[Path], None], told: list[str]) -> None:
    damage(bundle)
    with pytest.raises(MltrError) as caught:
        load_bundle(bundle)
    assert str(bundle) in str(caught.value)
    for words in told:
        assert words in str(caught.value)


def test_the_folder_itself_is_checked(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(MltrError, match=r"no such folder: .*nowhere; expected a folder with"):
        load_bundle(tmp_path / "nowhere")
    with pytest.raises(MltrError, match=r"no such file: .*gone\.pth; expected a folder with"):
        load_bundle(tmp_path / "gone.pth")
    with pytest.raises(MltrError, match=r"is a file.*give the folder .*bundle"):
        load_bundle(bundle / "model.safetensors")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    with pytest.raises(MltrError, match="stopped by Ctrl-C after a validation"):
        load_bundle(tmp_path / "run")


@given(cut=st.integers(0, 400), junk=st.binary(max_size=40))
def test_no_damaged_weights_file_escapes_as_another_exception(
    tmp_path_factory: pytest.TempPathFactory, cut: int, junk: bytes
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    intact = safetensors.torch.save({"w": torch.ones(20)}, metadata={"a": "b"})
    (folder / "model.safetensors").write_bytes(intact[:cut] + junk)
    (folder / "config.json").write_text("{}")
    with pytest.raises(MltrError, match="damaged"):
        load_bundle(folder)


def test_weights_that_are_not_finite_are_not_saved(bundle: Path) -> None:
    before = contents(bundle)
    model = tiny_model(seed=1)
    with torch.no_grad():
        model.get_parameter("head.bias")[1] = float("inf")
    with pytest.raises(MltrError, match=r"not saved.*head\.bias"):
        save(bundle, model)
    assert contents(bundle) == before


def test_what_could_not_be_loaded_is_not_saved(bundle: Path) -> None:
    before = contents(bundle)
    with pytest.raises(MltrError, match="twice"):
        save(bundle, tiny_model(), classes=("a", "a", "b"))
    assert contents(bundle) == before


@pytest.fixture
def small_files() -> Iterator[None]:
    """Let the operating system refuse files of more than 100 kB, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_refused_write_leaves_the_previous_bundle(
    bundle: Path, request: pytest.FixtureRequest
) -> None:
    before = contents(bundle)
    assert len(before["model.safetensors"]) > 100_000
    request.getfixturevalue("small_files")
    with pytest.raises(MltrError, match=r"can't write .*model\.safetensors .*untouched.*large"):
        save(bundle, tiny_model(seed=1))
    assert contents(bundle) == before


def test_a_checkpoint_that_finds_no_room_leaves_the_previous_one(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """torch.save tells of a full disk in words that nobody understands; here it is told plainly."""
    path = tmp_path / "state.pt"
    write_atomically(path, checkpoint_writer({"step": 1, "weights": torch.ones(9)}))
    assert torch.load(path, weights_only=True)["step"] == 1
    request.getfixturevalue("small_files")
    with pytest.raises(MltrError, match=r"can't write .*state\.pt .*untouched.*too large"):
        write_atomically(path, checkpoint_writer({"step": 2, "weights": torch.ones(100_000)}))
    assert torch.load(path, weights_only=True)["step"] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.pt"]


def test_a_full_disk_leaves_the_previous_bundle(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second file finds no room after the first was staged: neither may be replaced."""
    before = contents(bundle)
    write_text = Path.write_text

    def no_room(path: Path, *arguments: Any, **keywords: Any) -> int:
        write_text(path, "{half a conf")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_text", no_room)
    with pytest.raises(MltrError, match=r"config\.json .*untouched.*No space left.*free some"):
        save(bundle, tiny_model(seed=1))
    assert contents(bundle) == before


def test_a_really_full_disk(tmp_path: Path) -> None:
    """A file system of 256 kB, where the machine lets us make one."""
    script = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
import test_bundle
from mltr.errors import MltrError
try:
    test_bundle.save(Path({str(tmp_path)!r}), test_bundle.tiny_model())
except MltrError as error:
    print(error)
print([path.name for path in Path({str(tmp_path)!r}).iterdir()])
"""
    mount = f'mount -t tmpfs -o size=256k none {tmp_path} && exec "$@"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]
    if not shutil.which("unshare"):
        pytest.skip("needs unshare(1)")
    done = subprocess.run([*command, sys.executable, "-c", script], capture_output=True, text=True)
    if "mount:" in done.stderr or "unshare:" in done.stderr:
        pytest.skip(f"may not mount a file system here: {done.stderr.strip()}")
    told, left = done.stdout.splitlines()
    assert "No space left on device; free some space" in told, done.stderr
    assert left == "[]"


def test_a_machine_that_stops_between_the_renames_leaves_a_whole_bundle(
    bundle: Path, tmp_path: Path
) -> None:
    """New weights beside the old config: the weights bring their own."""
    save(tmp_path / "new", tiny_model(seed=1), classes=("x", "y", "z"))
    (tmp_path / "new" / "model.safetensors").replace(bundle / "model.safetensors")
    loaded = load_bundle(bundle)
    assert loaded.classes == ("x", "y", "z")
    expected = tiny_model(seed=1).state_dict()["head.weight"]
    assert torch.equal(loaded.model.state_dict()["head.weight"], expected)


def test_an_interrupted_writer_leaves_the_previous_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text("old")

    def interrupted(temporary: Path) -> None:
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, interrupted)
    assert contents(tmp_path) == {"results.csv": b"old"}


def test_an_atomic_write_keeps_the_suffix_and_makes_the_folder(tmp_path: Path) -> None:
    suffixes = []

    def writer(temporary: Path) -> None:
        suffixes.append(temporary.suffix)
        temporary.write_text("new")

    write_atomically(tmp_path / "deep" / "curves.png", writer)
    assert suffixes == [".png"]
    assert contents(tmp_path / "deep") == {"curves.png": b"new"}


def test_json_is_strict(tmp_path: Path) -> None:
    write_json(tmp_path / "m.json", {"map": float("nan"), "of1": 0.5, "deep": [float("inf"), (1,)]})
    text = (tmp_path / "m.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"map": None, "of1": 0.5, "deep": [None, [1]]}


@pytest.mark.parametrize(
    ("section", "key", "value", "words"),
    [
        ("preprocess", "image_size", 10**9, "image_size 1000000000 must be a number of pixels"),
        ("preprocess", "base_size", 10**9, "base_size 1000000000 must be a number of pixels"),
        ("preprocess", "image_size", 32.5, "image_size 32.5 must be"),
        ("preprocess", "std", [0, 1, 1], "std (0.0, 1.0, 1.0) must be above 0"),
        ("preprocess", "std", [math.nan, 1, 1], "must be three numbers"),
        ("preprocess", "mean", [math.inf, 0, 0], "must be three numbers"),
        ("overrides", "embed_dim", 32 * 10**6, "model.overrides holds 3.2e+07, more than 65536"),
        ("overrides", "embed_dim", 65536, "doesn't fit the model"),
        ("overrides", "depths", [0, 0, 60000], "doesn't fit"),
        ("overrides", "image_size", 10**9, "model.overrides holds 1e+09"),
        ("", "classes", ["sea", "sun\x1b[31m"], r"the class sun\x1b[31m has control characters"),
        ("", "classes", [f"class {i}" for i in range(10**6 + 1)], "are more than 1,000,000"),
        ("", "classes", [f"class {i}" for i in range(10**5)], "doesn't fit the model"),
    ],
)
def test_a_bundle_of_absurd_size_is_refused_before_anything_is_allocated(
    small_run: Path, section: str, key: str, value: object, words: str
) -> None:
    path = small_run / "config.json"
    config = json.loads(path.read_text())
    config["thresholds"] = None
    where = {"": config, "preprocess": config["preprocess"]}
    where.get(section, config["model"]["overrides"])[key] = value
    path.write_text(json.dumps(config))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with pytest.raises(MltrError, match=re.escape(words)):
        load_bundle(small_run)
    assert time.perf_counter() - start < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KB
