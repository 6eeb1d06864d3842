"""The command line: a table of commands, each imported when it is called."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from mltr import __version__
from mltr.errors import MltrError, UsageError, did_you_mean
from mltr.launch import launched_rank
from mltr.terminal import PrintableFormatter, printable


@dataclass(frozen=True)
class Command:
    """A module with `add_arguments(parser)` and `run(args)`, and what it does in a line."""

    module: str
    help: str
    takes_recipe_fields: bool = False  #: such as --data.root; `run` gets them as overrides


COMMANDS = {
    "demo": Command(
        "mltr.demo", "train on composed scenes and show the result: needs no data", True
    ),
    "data": Command("mltr.describe", "describe a source of labelled photos before training"),
    "data get": Command("mltr.get", "fetch VOC or COCO from the official address"),
    "shard": Command("mltr.shard", "pack a source into a few large files, to read from anywhere"),
    "train": Command("mltr.train", "train by a recipe", takes_recipe_fields=True),
    "pretrain": Command("mltr.pretrain", "learn from photos without labels first", True),
    "plan": Command("mltr.planning.plan", "what a recipe takes: memory, hours, disk", True),
    "evaluate": Command("mltr.evaluate", "all metrics of a run, by name and by class", True),
    "diagnose": Command(
        "mltr.diagnosis.diagnose",
        "small, similar and usual-company objects: where a run fails",
        True,
    ),
    "calibrate": Command(
        "mltr.calibrate", "thresholds and probabilities from held-out images", True
    ),
    "audit": Command(
        "mltr.diagnosis.audit",
        "find labels that are likely missing or wrong, and repeated pictures",
        True,
    ),
    "predict": Command("mltr.tagging.predict", "name what is in photos"),
    "serve": Command("mltr.serve.command", "an HTTP API and a page that name what is in photos"),
    "export": Command(
        "mltr.export", "one file that runs elsewhere: ONNX, without torch, or a torch program", True
    ),
    "report": Command(
        "mltr.diagnosis.report", "one HTML file: how good a run is and where it fails", True
    ),
    "explain": Command(
        "mltr.diagnosis.explain", "where in a picture the evidence for a label lies", True
    ),
    "convert": Command("mltr.convert", "turn weights of CAT or Swin into a bundle"),
    "resize": Command("mltr.resize", "fit a bundle to another image or window size"),
    "push": Command("mltr.hub", "upload a run with its card to the Hugging Face Hub"),
    "results": Command("mltr.planning.reproduction", "published figures beside those of our runs"),
    "list": Command("mltr.listing", "list the networks"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return 0, or 1 for an error, 2 for wrong usage, 130 for Ctrl-C.

    A training that was told to end by SIGTERM ends with code 75, for schedulers to start again.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    to_terminal = logging.StreamHandler(sys.stderr)
    to_terminal.setFormatter(PrintableFormatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[to_terminal])
    rank = launched_rank()
    logging.getLogger("mltr").setLevel(
        logging.DEBUG if debug else logging.INFO if rank == 0 else logging.ERROR
    )
    speaker = "mltr" if rank == 0 else f"mltr: process {rank}"
    try:
        return _dispatch(arguments)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MltrError as error:
        if debug:
            raise
        if rank == 0 or not isinstance(error, UsageError):  # wrong usage is so in all processes
            print(f"{speaker}: error: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        if debug:
            raise
        print(
            f"{speaker}: unexpected {type(error).__name__}: {printable(str(error))}\n"
            "Run it again with --debug for the traceback, and please report it.",
            file=sys.stderr,
        )
        return 1


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        print(f"mltr {__version__}")
        return 0
    words = 2 if " ".join(arguments[:2]) in COMMANDS else 1
    name, arguments = " ".join(arguments[:words]), arguments[words:]
    if name not in COMMANDS:
        raise UsageError(
            f"no command {name!r}{did_you_mean(name, COMMANDS)}; known: {', '.join(COMMANDS)}"
        )
    command = COMMANDS[name]
    module = importlib.import_module(command.module)
    parser = make_parser(name)
    if not command.takes_recipe_fields:
        return int(module.run(parser.parse_args(arguments)))
    args, overrides = parser.parse_known_args(arguments)
    for argument in overrides:
        option = argument.partition("=")[0]
        if option.startswith("--") and "." not in option:  # each field has a dot: --train.lr
            parser.error(f"unrecognized arguments: {option}")
    return int(module.run(args, overrides))


def make_parser(name: str) -> argparse.ArgumentParser:
    """Return the parser of the command called `name`."""
    module = importlib.import_module(COMMANDS[name].module)
    parser = _Parser(prog=f"mltr {name}", description=module.__doc__)
    module.add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are the project's own, with the nearest option."""

    def __init__(self, **settings: str | None) -> None:
        super().__init__(allow_abbrev=False, **settings)  # type: ignore[arg-type]

    def error(self, message: str) -> None:  # type: ignore[override]
        """Raise `UsageError` in place of printing the usage and exiting."""
        hint = ""
        if message.startswith("unrecognized arguments: -"):
            hint = did_you_mean(message.split()[2], self._options())
        raise UsageError(f"{message}{hint} (see `{self.prog} --help`)")

    def _options(self) -> list[str]:
        """Return the command's options, and the fields of a recipe where it takes them."""
        options = [text for action in self._actions for text in action.option_strings]
        if COMMANDS[self.prog.removeprefix("mltr ")].takes_recipe_fields:
            from mltr.recipe import known_keys  # loads YAML, which only a mistake needs here

            options += [f"--{key}" for key in known_keys()]
        return options


def _usage() -> str:
    lines = [
        "usage: mltr COMMAND ...",
        "",
        "Multi-label image classification: name everything in a picture.",
        "",
        *(f"  {name:<10} {command.help}" for name, command in COMMANDS.items()),
        "",
        "`mltr COMMAND --help` tells more; --debug shows tracebacks; --version the version.",
    ]
    return "\n".join(lines)
