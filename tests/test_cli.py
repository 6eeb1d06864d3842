"""The command line: quick to answer, clear in its errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import mltr
from mltr import cli
from mltr.cli import COMMANDS, main


def run_python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout


HEAVY = ("torch", "numpy", "PIL", "matplotlib", "rich", "jsonargparse", "timm")


def test_help_imports_nothing_heavy() -> None:
    printed = run_python(
        "import sys; from mltr.cli import main; main(['--help']); "
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert printed.splitlines()[-1] == "[]"
    assert all(name in printed for name in COMMANDS)


def test_importing_the_package_imports_nothing_heavy() -> None:
    printed = run_python(
        f"import sys, mltr; print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert printed.strip() == "[]"
    assert len(mltr.__all__) <= 8
    assert all(getattr(mltr, name) is not None for name in mltr.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mltr.nothing  # noqa: B018


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main([*command.split(), "--help"])
    assert end.value.code == 0
    assert f"usage: mltr {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "no command 'trian'; did you mean 'train'"),
        (["train"], "RECIPE"),
        (["train", "no_such"], "no recipe 'no_such'"),
        (["train", "scenes_nano", "--train.epoch", "1"], "did you mean '--train.epochs'"),
        (["train", "scenes_nano", "--resum"], "did you mean '--resume'"),
        (["train", "scenes_nano", "--epochs", "3"], "did you mean '--train.epochs'"),
        (["list", "--clases", "3"], "did you mean '--classes'"),
        (["evaluate", "run", "--split", "tset"], "invalid choice: 'tset'"),
    ],
)
def test_wrong_usage_is_named_and_exits_with_2(arguments: list[str], words: str, capsys) -> None:
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("mltr: error: ")
    assert words in message


def test_no_command_shows_the_table(capsys) -> None:
    assert main([]) == 2
    assert "usage: mltr COMMAND" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert mltr.__version__ in capsys.readouterr().out


def test_an_unexpected_error_is_one_line_unless_debugged(monkeypatch, capsys) -> None:
    def fail(arguments: list[str]) -> int:
        raise RuntimeError("boom")

    monkeypatch.setattr(cli, "_dispatch", fail)
    assert main(["list"]) == 1
    message = capsys.readouterr().err
    assert "unexpected RuntimeError: boom" in message
    assert "--debug" in message
    with pytest.raises(RuntimeError):
        main(["list", "--debug"])


def test_list_gives_the_parameter_counts(tmp_path: Path, capsys) -> None:
    assert main(["list", "--json", str(tmp_path / "list.json")]) == 0
    figures = json.loads((tmp_path / "list.json").read_text())
    assert figures["mltr_s"]["parameters"] == 33_039_086
    assert "mltr_nano" in capsys.readouterr().out
