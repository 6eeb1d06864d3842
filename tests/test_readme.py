"""The commands of the README, run as they stand there, on a handful of photos and short."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from making import write_image

from mltr.cli import COMMANDS, main
from mltr.data.get import DATA_SETS
from mltr.config.recipe import find_recipe, load_recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SHORT = [
    "--train.epochs=1", "--data.base_size=40", "--model.image_size=32", "--data.workers=0",
    "--data.cache=false", "--train.precision=fp32",
]  # fmt: skip


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands(language: str) -> list[list[str]]:
    lines = [line for block in blocks(language) for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("mltr ")]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rows = ["path,sea,sunset"]
    for index in range(30):
        write_image(tmp_path / "my_photos" / f"{index}.png", (40, 30))
        rows.append(f"{index}.png,{index % 2},{index // 2 % 2}")
    (tmp_path / "my_photos" / "labels.csv").write_text("\n".join(rows))
    write_image(tmp_path / "holiday" / "beach.png", (60, 40))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def test_the_commands_for_own_photos_and_python(photos: Path, capsys) -> None:
    run = commands("sh")
    assert {command[0] for command in run} == {
        "data",
        "train",
        "evaluate",
        "diagnose",
        "explain",
        "export",
        "calibrate",
        "report",
        "predict",
    }
    extra = {"train": SHORT, "calibrate": ["--min-positives", "1"]}
    for command in run:
        assert main(command + extra.get(command[0], [])) == 0, command
    assert (photos / "tagged.png").is_file()
    assert "holiday/beach.png" in (photos / "tags.csv").read_text()
    assert (photos / "looked_at" / "labels.png").is_file()
    (python,) = blocks("python")
    capsys.readouterr()
    exec(compile(python, "README.md", "exec"), {})
    assert "('sea', 'sunset')" in capsys.readouterr().out


def test_the_commands_for_public_data_have_recipes_and_fields() -> None:
    fetched = [command for command in commands("text") if command[0] == "data"]
    assert [name for _, _, name, *_ in fetched] == ["coco2014", "voc2007"]
    assert {name for _, _, name, *_ in fetched} <= set(DATA_SETS)
    found = [command for command in commands("text") if command[0] == "train"]
    assert len(found) == 3
    for _, recipe, *overrides in found:
        assert load_recipe(find_recipe(recipe), overrides).model.name == "mltr_l"


def test_the_table_of_measured_figures_names_real_commands() -> None:
    for command in re.findall(r"`mltr (\w+)", README):
        assert command in COMMANDS
    for target in re.findall(r"`make (\w+)`", README):
        assert f"\n{target}:" in (ROOT / "Makefile").read_text()


def test_every_file_and_folder_of_the_map_exists_and_none_is_missing() -> None:
    (listing,) = [block for block in blocks("text") if "src/mltr/" in block]
    source = ROOT / "src" / "mltr"
    folders = {f"{path.parent.name}/" for path in source.glob("*/__init__.py")}
    modules = {path.name for path in source.glob("*.py") if not path.name.startswith("__")}
    named = re.findall(r"^  ([a-z_]+/)|([a-z_]+\.py)", listing, flags=re.MULTILINE)
    assert {folder or module for folder, module in named} == folders | modules - {"errors.py"}
