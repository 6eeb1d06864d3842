"""The page of commands is made from the commands themselves, so that it can't fall behind."""

from __future__ import annotations

import os
from typing import Any

from mltr.cli import COMMANDS, make_parser

PLACE = "<!-- commands -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    if PLACE not in markdown:
        return markdown
    os.environ["COLUMNS"] = "90"  # argparse wraps at the width of a terminal
    return markdown.replace(PLACE, "\n\n".join(_section(name) for name in COMMANDS))


def _section(name: str) -> str:
    parser = make_parser(name)
    if name == "train":
        parser.list_fields()
    return f"## mltr {name}\n\n```text\n{parser.format_help()}```"
