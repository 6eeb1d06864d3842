"""Untrusted names reach a terminal or a log as plain text without effect."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mltr.terminal import printable

HOSTILE = "a\x1b]0;owned\x07\x1b[2J\nmltr: all is well\r\u202egpj.exe\x9b31m\udcff"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a photo, é, 写真, 👩‍👧", "a photo, é, 写真, 👩‍👧"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("one\r\ntwo\tthree\x00", r"one\r\ntwo\tthree\x00"),
        ("\x7f\x9b2J", r"\x7f\x9b2J"),
        ("\u202egpj.exe\u2066\u200f", r"\u202egpj.exe\u2066\u200f"),
        ("one\u2028two\u0085three", r"one\u2028two\x85three"),
        ("\ud83d\udcff", r"\ud83d\udcff"),
    ],
)
def test_what_acts_on_a_terminal_is_shown(text: str, shown: str) -> None:
    assert printable(text) == shown


def harmless(line: bytes) -> bool:
    return not any(sign in line for sign in (b"\x1b", b"\x07", b"\r", b"\x9b31m", b"\xe2\x80\xae"))


def test_errors_of_a_command_are_one_harmless_line() -> None:
    name = HOSTILE.encode("utf-8", "surrogateescape")
    ended = subprocess.run(
        [sys.executable.encode(), b"-m", b"mltr", b"train", name], capture_output=True
    )
    assert ended.returncode == 2
    lines = ended.stderr.splitlines()
    assert len(lines) == 1
    assert harmless(lines[0])


def test_what_a_command_logs_is_harmless(tmp_path: Path) -> None:
    code = (
        "import logging, mltr.cli as c, mltr.network.listing\n"
        f"def run(args):\n    logging.getLogger('mltr.x').warning('%s: left out', {HOSTILE!r})\n"
        f"    try: raise OSError({HOSTILE!r})\n"
        "    except OSError: logging.getLogger('mltr.x').exception('failed')\n"
        "    logging.getLogger('a_library').warning('two\\nlines\\x1b[2J')\n"
        "    return 0\n"
        "mltr.network.listing.run = run\n"
        "raise SystemExit(c.main(['list']))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=tmp_path)
    assert ended.returncode == 0
    assert harmless(ended.stderr)
    lines = ended.stderr.decode().splitlines()
    assert lines[0].startswith(r"a\x1b]0;owned\x07\x1b[2J\nmltr: all is well\r\u202egpj.exe")
    assert lines[0].endswith(": left out")
    assert lines[-2:] == ["two", r"lines\x1b[2J"]
