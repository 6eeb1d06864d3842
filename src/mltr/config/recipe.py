"""Reads a recipe: YAML plus command-line overrides, checked and returned as a `Config`."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from mltr.config.schema import Config, TrainConfig, bounds_of
from mltr.errors import MltrError, UsageError, did_you_mean

# Searched in order: the current folder, the installed package, a checkout of the project.
RECIPE_FOLDERS = (
    Path("recipes"),
    Path(__file__).parents[1] / "recipes",
    Path(__file__).parents[3] / "recipes",
)

MAX_VALUES = 10_000  #: maximum values of a recipe, as nested aliases can expand to billions


def find_recipe(name: str) -> Path:
    """Return the file of a recipe given by path or name; raises `UsageError` if there is none."""
    path = Path(name)
    if path.is_file():
        return path
    for folder in RECIPE_FOLDERS:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    known = sorted({file.stem for folder in RECIPE_FOLDERS for file in folder.glob("*.yaml")})
    raise UsageError(
        f"no recipe {name!r}{did_you_mean(name, known)}; give a YAML file, or one of: "
        f"{', '.join(known)}"
    )


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Return the recipe in a YAML file, with overrides such as ``--train.epochs 3`` applied.

    Raises `UsageError` for a file that isn't YAML, an unknown key (suggesting the nearest one), and
    a value of the wrong type or out of bounds.
    """
    path = Path(path)
    content = _read_yaml(path)
    _translate(content)
    known = known_keys()
    for key in _keys_of(content):
        if key not in known:
            raise UsageError(f"{path}: no key {key!r}{did_you_mean(key, known)}")
    _check_options(overrides)
    return _parse(path, content, overrides)


def override(config: Config, overrides: Sequence[str]) -> Config:
    """Return a recipe with overrides applied; raises `UsageError` as `load_recipe` does."""
    _check_options(overrides)
    return _parse(Path("recipe"), dataclasses.asdict(config), overrides)


def _check_options(overrides: Sequence[str]) -> None:
    known = known_keys()
    for argument in overrides:
        key = argument.removeprefix("--").partition("=")[0]
        if argument.startswith("--") and key not in known and not _is_inside_dict(key):
            options = [f"--{name}" for name in known]
            raise UsageError(f"no option '--{key}'{did_you_mean(f'--{key}', options)}")


def with_photos(photos: str | None, overrides: Sequence[str]) -> list[str]:
    """Return the overrides, with PHOTOS from the command line as ``--data.root`` if given.

    Raises `UsageError` if ``--data.root`` is given too.
    """
    if photos is None:
        return list(overrides)
    for override in overrides:
        if override.startswith("--data.root="):
            raise UsageError(f"{photos} and {override} both give the photos: use one of them")
    return [f"--data.root={photos}", *overrides]


def to_yaml(config: Config) -> str:
    """Return a recipe as YAML that `load_recipe` reads back."""
    text: str = yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)
    return text


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        loader = yaml.SafeLoader(path.read_text("utf-8"))
        root = loader.get_single_node()
        if (key := _repeated_key(root, set())) is not None:
            line = key.start_mark.line + 1
            raise UsageError(f"{path}, line {line}: {key.value} is there a second time")
        if _count_values(root, {}) > MAX_VALUES:
            raise UsageError(f"{path}: more than {MAX_VALUES:,} values after expanding its aliases")
        content: Any = loader.construct_document(root) if root else None
    except RecursionError as error:
        raise UsageError(f"{path}: nested too deeply, or contains itself") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: such as a date in month 13
        raise UsageError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise MltrError(f"{path}: can't be read: {error.strerror}") from error
    if content is None:
        return {}
    sections = content.values() if isinstance(content, dict) else [content]
    if not all(isinstance(section, dict) for section in sections):
        raise UsageError(
            f"{path}: a recipe consists of sections with keys, such as train: {{epochs: 3}}"
        )
    return dict(content)


def _translate(content: dict[str, Any]) -> None:
    """Convert `warmup_epochs` of earlier versions to `warmup`, a share of the run.

    A weight for features of the teacher is left out.
    """
    section = content.get("train") or {}
    section.pop("teacher_features", None)
    epochs = section.get("epochs", TrainConfig().epochs)
    if isinstance(section.get("warmup_epochs"), int | float) and isinstance(epochs, int) and epochs:
        section["warmup"] = round(min(section.pop("warmup_epochs") / epochs, 1.0), 4)


def _repeated_key(node: yaml.Node | None, seen: set[int]) -> yaml.Node | None:
    """Return a key that an earlier one of its mapping equals; YAML would drop that in silence."""
    if not isinstance(node, yaml.CollectionNode) or id(node) in seen:
        return None
    seen.add(id(node))
    names: set[str] = set()
    for entry in node.value:
        key, *parts = entry if isinstance(entry, tuple) else (None, entry)
        if isinstance(key, yaml.ScalarNode):
            if key.value in names:
                return key
            names.add(key.value)
        for part in parts:
            if (found := _repeated_key(part, seen)) is not None:
                return found
    return None


def _count_values(node: yaml.Node | None, known: dict[int, int]) -> int:
    """Return the number of values in a document after expanding its aliases."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        parts = [
            part
            for entry in node.value
            for part in (entry if isinstance(entry, tuple) else [entry])
        ]
        known[id(node)] = 1 + sum(_count_values(part, known) for part in parts)
    return known[id(node)]


@dataclass(frozen=True)
class Field:
    """A field or section of a recipe."""

    key: str  #: dotted name
    kind: Any  #: type, for a section its dataclass
    words: str  #: one line of documentation, with its bound


@cache
def fields(section: type = Config, prefix: str = "") -> tuple[Field, ...]:
    """Return all fields and sections of a recipe in the order of `schema`."""
    found: list[Field] = []
    hints, comments, bounds = get_type_hints(section), _comments(section), bounds_of(section)
    for field in dataclasses.fields(section):
        key, kind = prefix + field.name, hints[field.name]
        words = comments.get(field.name, "")
        if field.name in bounds:
            words += f"; {bounds[field.name].words.partition(' ')[2]}"
        found.append(Field(key, kind, words))
        if dataclasses.is_dataclass(kind):
            assert isinstance(kind, type)
            found += fields(kind, f"{key}.")
    return tuple(found)


def _comments(section: type) -> dict[str, str]:
    """Return each field's `#:` comment, from its own line or those above it."""
    found: dict[str, str] = {}
    above: list[str] = []
    module = inspect.getsource(sys.modules[section.__module__])  # of a class it takes far longer
    body = re.search(rf"^class {section.__name__}\b.*?(?=^\S|\Z)", module, re.M | re.S)
    assert body is not None
    for line in body[0].splitlines():
        code, _, words = line.partition("#:")
        if field := re.match(r"    (\w+):", code):
            found[field[1]] = words.strip() or " ".join(above)
        above = [] if code.strip() else [*above, words.strip()]
    return found


def value_of(config: Config, key: str) -> Any:
    """Return the value of a dotted key in a recipe."""
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def known_keys() -> list[str]:
    """Return the dotted keys of all fields and sections."""
    return [field.key for field in fields()]


@cache
def switches() -> frozenset[str]:
    """Return the dotted keys of boolean fields."""
    return frozenset(field.key for field in fields() if field.kind is bool)


def _keys_of(content: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in content.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict) and not _is_inside_dict(f"{prefix}{key}.any"):
            yield from _keys_of(value, f"{prefix}{key}.")


def _is_inside_dict(key: str) -> bool:
    """Return whether a key belongs to options that the network or its head defines."""
    return key.startswith(("model.overrides.", "model.head_options."))


def _parse(path: Path, content: dict[str, Any], overrides: Sequence[str]) -> Config:
    """Check the file, then the overrides, so that an error names the right one."""
    import jsonargparse

    parser = _parser()
    prefixed = [
        argument.replace("--", "--recipe.", 1) if argument.startswith("--") else argument
        for argument in overrides
    ]
    blamed = f"{path}: "
    try:
        values = parser.parse_object({"recipe": content})
        blamed = ""
        values = parser.parse_args(prefixed, namespace=values)
        config = parser.instantiate(values).recipe
    except jsonargparse.ArgumentError as error:
        raise UsageError(f"{blamed}{_plain(str(error))}") from error
    assert isinstance(config, Config)
    _check_nulls(config, path)
    return config


@cache
def _parser() -> Any:
    """Return the parser of recipes, of which making takes longer than using."""
    import jsonargparse  # takes 0.1 s, which `mltr --help` shouldn't pay

    parser = jsonargparse.ArgumentParser(exit_on_error=False, prog="mltr train")
    parser.add_class_arguments(Config, nested_key="recipe")
    return parser


def _check_nulls(config: Config, path: Path) -> None:
    """Raise `UsageError` for a field without a value that can't be null, as ``lr:`` in YAML is."""
    for field in fields():
        may_be_null = type(None) in get_args(field.kind)
        if not may_be_null and attrgetter(field.key)(config) is None:
            raise UsageError(f"{path}: {field.key} has no value: give one, or leave the line out")


def _plain(message: str) -> str:
    """Shorten a message of jsonargparse to the key, the expected type and the value."""
    message = " ".join(message.replace("recipe.", "").split())
    wrong = re.search(r'key "(.+?)": Expected a (.+?)\. Got value: (.*)', message)
    if not wrong:
        return message
    key, kind, value = wrong.groups()
    kind = re.sub(r"<class '(\w+)'>", r"\1", kind)
    kind = re.sub(r"typing\.Literal\[(.*)\]", r"one of \1", kind)
    return f"{key}: expected {kind}, got {value}"
