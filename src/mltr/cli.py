"""The command line: a table of commands whose modules are imported when called."""

from __future__ import annotations

import argparse
import codecs
import dataclasses
import errno
import importlib
import io
import logging
import os
import re
import shlex
import sys
import types
import typing
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from mltr import __version__
from mltr.errors import MltrError, UsageError, did_you_mean
from mltr.machine.launch import launched_processes, launched_rank
from mltr.machine.memory import keep_freed_memory
from mltr.terminal import PrintableFormatter, printable

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Command:
    """A command: a module with `add_arguments(parser)` and `run(args)`.

    The module imports nothing heavy, so that --help and misspelt options are answered at once;
    `run` imports what does the work.
    """

    module: str
    help: str  #: one-line description
    sections: tuple[str, ...] = ()  #: of a recipe whose fields `run` gets, such as --data.root
    next: str = ""  #: suggested next command, a format string with the names of the arguments


DATA = ("data",)  #: where the photos are
RECIPE = (*DATA, "augment", "model", "loss", "train")  #: all sections of a recipe

COMMANDS = {
    "demo": Command(
        "mltr.demo", "train on composed scenes and show the result; needs no data", RECIPE
    ),
    "data": Command(
        "mltr.data.describe",
        "describe a source of labelled photos before training",
        DATA,
        "mltr train probe {sources[0]}",
    ),
    "data get": Command("mltr.data.get", "download VOC or COCO from its official site"),
    "shard": Command("mltr.data.shard", "pack a source into a few large files", DATA),
    "train": Command("mltr.training.train", "train a network from a recipe", RECIPE),
    "plan": Command(
        "mltr.planning.plan", "estimate memory, hours and disk space of a recipe", RECIPE
    ),
    "evaluate": Command(
        "mltr.evaluation.evaluate",
        "compute every metric of a run, for every class",
        DATA,
        "mltr calibrate {run}",
    ),
    "diagnose": Command(
        "mltr.diagnosis.diagnose",
        "measure small objects, similar objects and usual company",
        DATA,
        "mltr audit {runs[0]}",
    ),
    "calibrate": Command(
        "mltr.evaluation.calibrate",
        "fit thresholds and probabilities on held-out images",
        DATA,
        "mltr predict {run} PHOTOS",
    ),
    "audit": Command(
        "mltr.diagnosis.audit",
        "find labels that are likely missing or wrong, and duplicate pictures",
        RECIPE,
    ),
    "next": Command("mltr.diagnosis.next_labels", "choose the photos to label next"),
    "predict": Command(
        "mltr.predict.command", "predict labels for photos", next="mltr serve {bundle}"
    ),
    "embed": Command(
        "mltr.predict.embed",
        "write the features of photos, for search or clustering",
        next="mltr similar {out} PHOTO",
    ),
    "similar": Command("mltr.predict.similar", "find the photos most similar to one"),
    "serve": Command("mltr.serve.command", "serve predictions over an HTTP API and a web page"),
    "export": Command(
        "mltr.export.command",
        "write one file that runs elsewhere: ONNX or a torch program",
        DATA,
    ),
    "report": Command(
        "mltr.diagnosis.report",
        "write one HTML file on how good a run is and where it fails",
        DATA,
        "mltr predict {run} PHOTOS",
    ),
    "explain": Command(
        "mltr.diagnosis.explain",
        "show where in a picture the evidence for a label lies",
        DATA,
        "mltr report {run}",
    ),
    "convert": Command("mltr.weights.command", "convert weights of CAT or Swin to a bundle"),
    "convert tagger": Command(
        "mltr.taggers.command",
        "convert another project's tagger (ONNX or timm) to a bundle",
        next="mltr predict {out} PHOTOS",
    ),
    "resize": Command("mltr.weights.resize", "adapt a bundle to another image or window size"),
    "push": Command("mltr.export.push", "upload a run and its model card to the Hugging Face Hub"),
    "results": Command("mltr.planning.results", "list published figures beside those of our runs"),
    "cache": Command("mltr.files.cache", "list or clear the caches"),
    "list": Command("mltr.network.listing", "list the networks"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return exit code 0, 1 for an error, 2 for wrong usage, 130 for Ctrl-C.

    Training that is stopped by SIGTERM exits with code 75, on which schedulers can restart it.
    """
    if argv is None and sys.getfilesystemencoding() == "ascii":
        _restart_in_utf8()
    _prepare_streams()
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
        try:
            return _dispatch(arguments)
        finally:
            sys.stdout.flush()  # here, where an error can still be reported
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has exited
        _give_up_stdout()
        return 1
    except MltrError as error:
        if debug:
            raise
        if rank == 0 or not isinstance(error, UsageError):  # all processes find wrong usage
            print(f"{speaker}: error: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        if debug:
            raise
        if isinstance(error, OSError) and error.errno:
            print(f"{speaker}: error: {printable(_explain_os_error(error))}", file=sys.stderr)
            return 1
        if type(error).__name__ in ("MemoryError", "OutOfMemoryError"):  # the latter is torch's
            reason = printable(str(error).partition("\n")[0]) or "of this process"
            print(
                f"{speaker}: error: out of memory ({reason}): lower --batch-size or "
                "--train.batch_size, or the size of the images",
                file=sys.stderr,
            )
            return 1
        print(
            f"{speaker}: internal error: {type(error).__name__}: {printable(str(error))}\n"
            "Run the command again with --debug for a traceback, and report it as a bug.",
            file=sys.stderr,
        )
        return 1


def console() -> NoReturn:
    """Run the command that this process was started with; end with its exit code.

    The process keeps the memory that it frees, since its network needs the same blocks again at
    once.

    One of several processes ends without taking the interpreter down: a thread of gloo's may still
    hold a tensor of the last collective, and aborts the process if it finds no interpreter to free
    it in.
    """
    keep_freed_memory(of_all_threads=True)
    code: Any
    try:
        code = main()
    except SystemExit as end:  # by SIGTERM, and where another process has failed
        code = end.code
    if launched_processes() > 1:
        logging.shutdown()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


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
    if not command.sections:
        args = parser.parse(arguments)
        return _tell_next(command, args, module.run(args))
    own, fields = _divide(arguments)
    for field in fields:
        if field.removeprefix("--").partition(".")[0] in {*RECIPE} - {*command.sections}:
            raise UsageError(
                f"mltr {name} has no use for {field.partition('=')[0]}: of a recipe's fields, it "
                f"takes those of {' and '.join(command.sections)} (see `mltr {name} --help`)"
            )
    if {"-h", "--help"} & set(own):
        parser.list_fields(own)
    args = parser.parse(own)
    return _tell_next(command, args, module.run(args, fields), fields)


def _tell_next(
    command: Command, args: argparse.Namespace, code: int, fields: Sequence[str] = ()
) -> int:
    """Log the suggested next command, unless the output is for a program or the command failed.

    It gets the same fields of a recipe, if it takes any: what this one read, that one should.
    The command may have put another one in `args.next`.
    """
    is_for_program = "-" in (getattr(args, "json", None), getattr(args, "out", None))
    if command.next and not code and not is_for_program:
        words = {name: _quoted(value) for name, value in vars(args).items()}
        line = getattr(args, "next", command.next).format(**words)
        if COMMANDS[line.split()[1]].sections:
            line = " ".join([line, *_as_options(args, fields)])
        log.info("next: %s", line)
    return int(code)


def _recipe_called(word: str) -> Any:
    """Return the recipe that a word names; None if it is the value of an option."""
    from mltr.config.recipe import find_recipe, load_recipe

    try:
        return load_recipe(find_recipe(word))
    except MltrError:
        return None


def _as_options(args: argparse.Namespace, fields: Sequence[str]) -> list[str]:
    """Return the fields of a recipe that were given, in full: those with a short option first."""
    short = [(key, value) for key, value in vars(args).items() if "." in key and value is not None]
    given = [field.removeprefix("--").split("=", 1) for field in fields]
    return [f"--{key} {shlex.quote(str(value))}" for key, value in [*short, *given]]


def _quoted(value: Any) -> Any:
    """Quote arguments for a shell."""
    return list(map(_quoted, value)) if isinstance(value, list) else shlex.quote(str(value))


def _divide(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split arguments into the command's own and fields of a recipe (as ``--key=value``).

    Names of fields contain a dot, such as --train.lr. A field needs a value, except for a switch
    such as --data.cache, which is true without one.
    """
    from mltr.config.recipe import switches

    own: list[str] = []
    fields: list[str] = []
    rest = deque(arguments)
    while rest:
        argument = rest.popleft()
        key, equals, _ = argument.removeprefix("--").partition("=")
        if argument == "--":
            return [*own, argument, *rest], fields
        if not argument.startswith("--") or "." not in key:
            own.append(argument)
        elif equals:
            fields.append(argument)
        elif key in switches() and not (rest and rest[0].lower() in ("true", "false")):
            fields.append(f"{argument}=true")
        elif rest and not _is_option(rest[0]):
            fields.append(f"{argument}={rest.popleft()}")
        else:
            raise UsageError(f"{argument} needs a value: {argument} VALUE")
    return own, fields


def _is_option(argument: str) -> bool:
    """Return whether an argument is an option rather than a value such as -1."""
    return re.match(r"-[^\d.]", argument) is not None


def make_parser(name: str) -> _Parser:
    """Return the parser of the command called `name`."""
    module = importlib.import_module(COMMANDS[name].module)
    parser = _Parser(prog=f"mltr {name}", description=module.__doc__)
    module.add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


class _Parser(argparse.ArgumentParser):
    """An argument parser that raises `UsageError` and suggests the nearest option."""

    def __init__(self, **settings: str | None) -> None:
        super().__init__(allow_abbrev=False, **settings)  # type: ignore[arg-type]

    def print_help(self, file: Any = None) -> None:
        """Print the help; unlike argparse's own method, this raises if stdout can't be written."""
        print(self.format_help(), end="", file=file)

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse arguments, with options and positional arguments in any order."""
        if "--" in arguments:  # which parse_intermixed_args drops
            return self.parse_args(arguments)
        return self.parse_intermixed_args(self._lists_last(arguments))

    def list_fields(self, arguments: Sequence[str] = ()) -> None:
        """Add recipe fields to the help, with defaults of the recipe in `arguments`."""
        from mltr.config.recipe import fields, find_recipe, load_recipe, value_of
        from mltr.config.schema import Config

        takes_recipe = any(action.dest == "recipe" for action in self._actions)
        named = [argument for argument in arguments if not _is_option(argument)]
        config = Config()
        if takes_recipe and named:
            others = [argument for argument in arguments if argument not in ("-h", "--help")]
            parsed, rest = self.parse_known_args(others)
            # The value of a field, which the parser doesn't know, may be in the recipe's place.
            own = [action.dest for action in self._actions if not action.option_strings]
            positional = [getattr(parsed, name) for name in own]
            candidates = [word for word in (*positional, *rest) if word in named]
            found = next(filter(None, map(_recipe_called, candidates)), None)
            config = found or load_recipe(find_recipe(parsed.recipe))  # which says what it may be
        self.usage = f"{self.format_usage().removeprefix('usage: ').rstrip()} [--FIELD VALUE ...]"
        group: argparse._ActionsContainer = self
        for field in fields():
            if field.key.partition(".")[0] not in self._sections():
                continue
            if isinstance(field.kind, type) and dataclasses.is_dataclass(field.kind):
                title = (field.kind.__doc__ or "").rstrip(".")
                group = self.add_argument_group(field.key, title)
                continue
            value = value_of(config, field.key)
            shown = str(value).lower() if isinstance(value, bool) else value
            default = f" (default: {shown})" if takes_recipe and value not in ("", None, {}) else ""
            metavar = _describe_kind(field.kind)
            words = f"{field.words}{default}".replace("%", "%%")
            group.add_argument(f"--{field.key}", metavar=metavar, help=words)

    def _lists_last(self, arguments: Sequence[str]) -> list[str]:
        """Move options with lists of choices to the end, where they can't consume positionals."""
        lists = {
            text: action.choices
            for action in self._actions
            if action.nargs == "+" and action.choices
            for text in action.option_strings
        }
        others: list[str] = []
        moved: list[str] = []
        rest = deque(arguments)
        while rest:
            argument = rest.popleft()
            if argument not in lists:
                others.append(argument)
                continue
            moved.append(argument)
            if rest and not _is_option(rest[0]):
                moved.append(rest.popleft())  # the first value, valid or not
            while rest and rest[0] in lists[argument]:
                moved.append(rest.popleft())
        return others + moved

    def error(self, message: str) -> None:  # type: ignore[override]
        """Raise `UsageError` instead of printing the usage and exiting."""
        hint = ""
        if message.startswith("unrecognized arguments: -"):
            hint = did_you_mean(message.split()[2], self._options())
        raise UsageError(f"{message}{hint} (see `{self.prog} --help`)")

    def _sections(self) -> tuple[str, ...]:
        return COMMANDS[self.prog.removeprefix("mltr ")].sections

    def _options(self) -> list[str]:
        """Return the command's options, including recipe fields if it takes them."""
        options = [text for action in self._actions for text in action.option_strings]
        sections = self._sections()
        if sections:
            from mltr.config.recipe import known_keys  # imports YAML, needed only for errors

            options += [f"--{key}" for key in known_keys() if key.partition(".")[0] in sections]
        return options


# -- streams and system errors -----------------------------------------------------------------


def _restart_in_utf8() -> None:
    """Restart Python in UTF-8 mode, without which tables couldn't refer to non-ASCII file names."""
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, "-P", "-m", "mltr", *sys.argv[1:]])


def _prepare_streams() -> None:
    """Replace closed streams, and escape characters that stdout and stderr can't encode."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed: the next open file would get its descriptor
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115
            if name == "stdout":
                print("mltr: standard output is closed", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not _writes_all(stream):
            stream.reconfigure(errors="mltr_escape")


def _writes_all(stream: io.TextIOWrapper) -> bool:
    return stream.encoding.lower().startswith("utf") and stream.errors != "strict"


def _escape(error: UnicodeError) -> tuple[str, int]:
    r"""Escape unencodable characters as in JSON: ``\u00e9``."""
    assert isinstance(error, UnicodeEncodeError)
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4)), error.end


codecs.register_error("mltr_escape", _escape)


def _is_stdout_full() -> bool:
    try:
        print(flush=True)  # write something, as the buffer may have been discarded
    except OSError:
        return True
    return False


def _give_up_stdout() -> None:
    """Redirect stdout to the null device, or Python would report an error at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


#: Advice by error code of the system.
ADVICE = {
    errno.ENOSPC: "free some space or write to another disk",
    errno.EDQUOT: "free some space or write to another disk",
    errno.EROFS: "choose a writable location",
    errno.EACCES: "check its permissions, or choose another location",
    errno.EPERM: "check its permissions, or choose another location",
    errno.EMFILE: "allow more open files with `ulimit -n`",
    errno.ENFILE: "close other programs",
    errno.ENOMEM: "close other programs",
}


def _explain_os_error(error: OSError) -> str:
    """Return one line with the file, the reason and advice for a system error."""
    subject = ""
    if error.filename is not None:
        subject = f"{os.fsdecode(error.filename)}: "
    elif _is_stdout_full():
        subject = "standard output: "
        _give_up_stdout()
    advice = f"; {ADVICE[error.errno]}" if error.errno in ADVICE else ""
    return f"{subject}{error.strerror}{advice}"


def _describe_kind(kind: Any) -> str:
    """Return the placeholder for a value of this type in help texts."""
    if typing.get_origin(kind) is typing.Literal:
        return f"{{{','.join(map(str, typing.get_args(kind)))}}}"
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        parts = [part for part in typing.get_args(kind) if part is not type(None)]
        return "|".join(map(_describe_kind, parts))
    names = {bool: "{true,false}", int: "N", float: "X", str: "TEXT"}
    return names.get(kind, "{...}" if typing.get_origin(kind) is dict else "X")


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [
        "usage: mltr COMMAND ...",
        "",
        "Multi-label image classification: name everything in a picture.",
        "",
        *(f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()),
        "",
        "`mltr COMMAND --help` explains a command; --debug shows tracebacks; --version prints the "
        "version.",
    ]
    return "\n".join(lines)
