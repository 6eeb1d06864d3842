"""Runs the commands of the README, with a few photos and short training."""

from __future__ import annotations

import ast
import csv
import re
import shlex
from pathlib import Path

import pytest
from making import write_image

from mltr.cli import COMMANDS, main
from mltr.config.recipe import find_recipe, load_recipe
from mltr.data.get import DATA_SETS

pytestmark = pytest.mark.pictures

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SHORT = [
    "--train.epochs=1", "--model.name=timm/test_efficientnet", "--model.init=",
    "--model.image_size=32", "--data.workers=0", "--train.precision=fp32",
]  # fmt: skip


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)


def commands(language: str, page: str = README) -> list[list[str]]:
    lines = [line for block in blocks(language, page) for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("mltr ")]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rows = ["path,sea,sunset"]
    for index in range(160):  # so that `mltr calibrate` has ten positive labels
        write_image(tmp_path / "my_photos" / f"{index}.png", (40, 30))
        rows.append(f"{index}.png,{index % 2},{index // 2 % 2}")
    (tmp_path / "my_photos" / "labels.csv").write_text("\n".join(rows))
    write_image(tmp_path / "holiday" / "beach.png", (60, 40))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def test_the_commands_for_own_photos_and_python(photos: Path, capsys) -> None:
    names = ["data", "train", "evaluate", "calibrate", "report", "predict", "serve"]
    assert [command[0] for command in commands("sh")] == names
    for command in commands("sh")[:-1]:  # test_photos_page.py tests `mltr serve`
        assert main(command + (SHORT if command[0] == "train" else [])) == 0, command
    with (photos / "tags.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["path"].endswith("holiday/beach.png")
    assert (photos / "runs" / "mine" / "report.html").is_file()
    (python,) = blocks("python")
    capsys.readouterr()
    exec(compile(python, "README.md", "exec"), {})
    printed = ast.literal_eval(capsys.readouterr().out)
    assert [name for name, _ in printed] == [name for name in row["labels"].split("; ") if name]
    assert all(0 <= prob <= 1 for _, prob in printed)


def test_the_commands_for_public_data_have_recipes_and_fields() -> None:
    page = (ROOT / "docs" / "data.md").read_text()
    fetched = [command for command in commands("text", page) if command[0] == "data"]
    assert {name for _, _, name, *_ in fetched} == set(DATA_SETS)
    found = [command for command in commands("text", page) if command[0] == "train"]
    assert {recipe for _, recipe, *_ in found} == {"coco", "voc2007", "nuswide"}
    for _, recipe, *overrides in found:
        assert load_recipe(find_recipe(recipe), overrides).data.root


def test_the_table_of_measured_figures_names_real_commands() -> None:
    for command in re.findall(r"`mltr (\w+)", README):
        assert command in COMMANDS
    for target in re.findall(r"`make (\w+)`", README):
        assert f"\n{target}:" in (ROOT / "Makefile").read_text()


def test_every_folder_of_the_map_exists_and_none_is_missing() -> None:
    (listing,) = [block for block in blocks("text") if "src/mltr/" in block]
    folders = {f"{path.parent.name}/" for path in (ROOT / "src" / "mltr").glob("*/__init__.py")}
    assert set(re.findall(r"^  ([a-z_]+/)", listing, flags=re.MULTILINE)) == folders
    for folder in re.findall(r"^([a-z]+/)", listing, flags=re.MULTILINE):
        assert (ROOT / folder).is_dir()
