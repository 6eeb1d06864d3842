"""A run finds its data from any folder, and reports data that has moved or changed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from making import TINY, write_image

from mltr.cli import main
from mltr.config.recipe import load_recipe, to_yaml
from mltr.config.schema import Config, DataConfig, ModelConfig
from mltr.runs.folder import with_absolute_paths

OPTIONS = [option for option in TINY if "scenes" not in option]
OPTIONS += ["--train.epochs=2", "--train.batch_size=8", "--train.warmup=0"]


def train(*options: str) -> int:
    return main(["train", "scratch", "--data.root=photos", "--out=run", *OPTIONS, *options])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with photos and a run on them that was started with relative paths."""
    folder = tmp_path_factory.mktemp("home")
    lines = ["path,sea,sky"]
    for index in range(40):
        write_image(folder / "photos" / f"{index}.png", seed=index)
        lines.append(f"{index}.png,{index % 2},{(index // 2) % 2}")
    (folder / "photos" / "labels.csv").write_text("\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train() == 0
    return folder


@pytest.fixture
def home(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy that folder, remove the run's final figures, and make it the current folder."""
    shutil.copytree(made, tmp_path / "home")
    recipe = tmp_path / "home" / "run" / "config.yaml"
    recipe.write_text(recipe.read_text().replace(str(made), str(tmp_path / "home")))
    (tmp_path / "home" / "run" / "metrics.json").unlink()
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def test_a_run_is_used_from_any_folder(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir("/")
    assert main(["evaluate", str(home / "run"), "--json", str(tmp_path / "figures.json")]) == 0
    recipe = str(home / "run" / "config.yaml")
    assert main(["train", recipe, "--out", str(home / "run"), "--resume"]) == 0


def test_moved_data_is_reported_with_the_option_that_fixes_it(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "photos").rename(home / "moved")
    assert main(["evaluate", "run", "--split", "val"]) == 1
    told = capsys.readouterr().err
    assert f"data.root {home / 'photos'}: no such file or folder" in told
    assert "--data.root NEW" in told
    assert main(["evaluate", "run", "--split", "val", "--data.root", "moved"]) == 0
    assert main(["train", "run/config.yaml", "--out=run", "--resume", "--data.root=moved"]) == 0
    assert load_recipe(home / "run" / "config.yaml").data.root == str(home / "moved")
    assert main(["evaluate", "run", "--split", "val"]) == 0


def test_what_changes_no_result_may_change_on_resuming(home: Path, capsys) -> None:
    assert train("--resume", "--data.workers=1", "--data.cache_gb=1") == 0
    (home / "run" / "metrics.json").unlink()
    assert train("--resume", "--data.val_fraction=0.3") == 2
    assert "data.val_fraction was 0.1 and is 0.3" in capsys.readouterr().err


def test_runs_of_earlier_versions_go_on_where_they_did(home: Path) -> None:
    """Such runs hold relative paths, and only the names of the images."""
    recipe = home / "run" / "config.yaml"
    content = yaml.safe_load(recipe.read_text())
    content["data"]["root"] = "photos"
    del content["data"]["cache_gb"]
    recipe.write_text(yaml.safe_dump(content))
    splits = json.loads((home / "run" / "splits.json").read_text())
    del splits["label_sums"], splits["file_sizes"]
    (home / "run" / "splits.json").write_text(json.dumps(splits))
    assert main(["evaluate", "run", "--split", "val"]) == 0
    assert train("--resume") == 0


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("label", r"other labels of 1 image: 7\.png\. Restore"),
        ("class name", "other classes, or in another order: sea, sky"),
        ("class order", "other classes, or in another order: sea, sky"),
        ("file", r"other files of 1 image: 7\.png"),
    ],
)
def test_what_was_learnt_must_not_change_before_resuming(
    home: Path, capsys: pytest.CaptureFixture[str], change: str, words: str
) -> None:
    table = home / "photos" / "labels.csv"
    if change == "label":
        edit(table, "\n7.png,1,1\n", "\n7.png,1,0\n")
    elif change == "class name":
        edit(table, "sea,sky", "sea,fog")
    elif change == "class order":
        edit(table, "sea,sky", "sky,sea")
    else:
        write_image(home / "photos" / "7.png", (60, 50))
    weights = (home / "run" / "model.safetensors").read_bytes()
    assert train("--resume") == 1
    told = capsys.readouterr().err
    assert re.search(words, told)
    assert told.count("\n") == 1
    assert (home / "run" / "model.safetensors").read_bytes() == weights


def test_shards_know_their_labels_too(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["photos", "--out=set", "--samples=5"]
    assert main(["shard", *options]) == 0
    start = ["train", "scratch", "--data.root=set", "--out=packed", *OPTIONS, "--train.epochs=1"]
    assert main(start) == 0
    (home / "packed" / "metrics.json").unlink()
    assert main([*start, "--resume"]) == 0
    (home / "packed" / "metrics.json").unlink()
    edit(home / "photos" / "labels.csv", "\n7.png,1,1\n", "\n7.png,1,\n")
    assert main(["shard", *options, "--overwrite"]) == 0
    assert main([*start, "--resume"]) == 1
    assert "other labels of 1 image" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("root", "expected"),
    [
        ("", ""),
        ("photos", "{}/photos"),
        ("/data/photos", "/data/photos"),
        ("hf-datasets:owner/name", "hf-datasets:owner/name"),
        ("https://host/set", "https://host/set"),
        ("s3://bucket/set", "s3://bucket/set"),
    ],
)
def test_paths_become_absolute_and_addresses_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("cats", "start", "pretrained"):
        (tmp_path / folder).mkdir()
    (tmp_path / "cat.pth").touch()
    for init, absolute in (
        ("", ""),
        ("cats", f"{tmp_path}/cats"),
        ("start", "start"),
        ("pretrained", "pretrained"),
        ("./start", f"{tmp_path}/start"),
        ("cat:cat.pth", f"cat:{tmp_path}/cat.pth"),
        ("swin:swin_tiny", "swin:swin_tiny"),
        ("hf-hub:owner/start", "hf-hub:owner/start"),
    ):
        config = Config(data=DataConfig(root=root, classes="c.txt"), model=ModelConfig(init=init))
        found = with_absolute_paths(config)
        assert found.data.root == expected.format(tmp_path)
        assert found.model.init == absolute
        classes = f"{tmp_path}/c.txt" if root.startswith("hf-") else "c.txt"
        assert found.data.classes == classes
        assert config.data.root == root
        assert to_yaml(with_absolute_paths(found)) == to_yaml(found)
