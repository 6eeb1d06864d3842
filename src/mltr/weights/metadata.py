"""The metadata of weights: classes, preprocessing, thresholds, calibration, as JSON, without torch.

A bundle's ``config.json`` holds it, and an exported network's metadata.
"""

from __future__ import annotations

import json
import math
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mltr import __version__
from mltr.data.hierarchy import problem_of
from mltr.errors import MltrError, NotFinite, did_you_mean
from mltr.terminal import UNPRINTABLE, printable

WEIGHTS_FILE = "model.safetensors"
ONNX_FILE = "model.onnx"  #: in place of weights, in a bundle of `mltr convert tagger`
CONFIG_FILE = "config.json"
RECIPE_FILE = "config.yaml"  #: of a training run, or a resized one
SPLITS_FILE = "splits.json"  #: names of the images in each split of such a run
#: What only a training run has.
LOG_FILE, METRICS_FILE, PREDICTIONS_FILE = "log.jsonl", "metrics.json", "predictions.npz"
FORMAT_VERSION = 1
LARGEST_CONFIG = 2**27  #: bytes; a million names need less
LARGEST_OPTION = 65536  #: of a network: a width, a side, a number of blocks
#: One scale and shift for all classes; one for each class; one scale for all classes.
SCALINGS = ("shared", "platt", "temperature")
MOST_CLASSES = 1_000_000
REQUIRED_KEYS = ("format_version", "model", "classes", "preprocess", "thresholds")

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Calibration:
    """How logits become probabilities: ``sigmoid(scale * logit + shift)``, class by class.

    `SOFTMAX` is for a network that was trained to predict one class.
    """

    method: str  #: one of `SCALINGS`, or softmax
    scale: tuple[float, ...]  #: K numbers above 0, so that the order of the images stays
    shift: tuple[float, ...]  #: K numbers

    def to_dict(self) -> dict[str, Any]:
        """Return the entry of ``config.json``."""
        return {"method": self.method, "scale": list(self.scale), "shift": list(self.shift)}


SOFTMAX = Calibration("softmax", (), ())


def to_probs(logits: Floats, calibration: Calibration | None = None) -> Floats:
    """Return probabilities float32 [..., K] of logits [..., K]: sigmoid, if not calibrated.

    This is the only path from a run's logits to its probabilities. Raises `NotFinite` if they
    aren't.
    """
    from scipy.special import expit, softmax

    logits = np.asarray(logits, np.float32)
    check_finite(logits)
    if calibration == SOFTMAX:
        shares: Floats = softmax(logits, axis=-1)
        return shares
    if calibration is not None:
        logits = logits * np.array(calibration.scale, np.float32)
        logits = logits + np.array(calibration.shift, np.float32)
    probs: Floats = expit(logits)
    return probs


def check_finite(answers: Floats) -> None:
    """Raise `NotFinite` unless all answers of a network are finite."""
    if not np.isfinite(answers).all():
        raise NotFinite(
            "the network predicts NaN or infinite values: its weights or the preprocessing in its "
            "bundle are damaged, or the precision is too low for them"
        )


def read_calibration(config: Mapping[str, Any]) -> Calibration | None:
    """Return the calibration that a checked config holds, if any; bundles once had none."""
    entry = config.get("calibration")
    if entry is None:
        return None
    return Calibration(entry["method"], tuple(entry["scale"]), tuple(entry["shift"]))


def read_categories(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the category of each class that a checked config holds; most networks have none."""
    entry = config.get("categories")
    return None if entry is None else tuple(entry)


def holds_onnx(folder: str | Path) -> bool:
    """Whether a folder is a bundle whose network is an ONNX file, which needs no torch."""
    path = Path(folder)
    return (path / ONNX_FILE).is_file() and not (path / WEIGHTS_FILE).exists()


def read_config_file(path: Path) -> dict[str, Any]:
    """Return the checked content of a ``config.json``; raises `MltrError`, which names it."""
    try:
        if path.stat().st_size > LARGEST_CONFIG:
            raise MltrError(f"{path} is larger than any config: {path.stat().st_size:,} bytes")
        return parse_config(path.read_text(encoding="utf-8"), path)
    except (OSError, UnicodeDecodeError) as error:
        raise MltrError(f"{path} can't be read: {error}") from error


def parse_config(text: str, path: Path) -> dict[str, Any]:
    """Parse and check the text of a config; every error names `path`."""
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise MltrError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise MltrError(f"{path} must contain a JSON object, not {type(config).__name__}")
    version = config.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise MltrError(
            f"{path} has format_version {version}, but this mltr {__version__} reads at most "
            f"{FORMAT_VERSION}: it was saved by a newer mltr ({config.get('mltr_version', '?')}); "
            "upgrade mltr"
        )
    if "architecture" in config and "format_version" not in config:
        raise MltrError(
            f"{path} is timm's: make a bundle of it with "
            f"`mltr convert tagger {shlex.quote(str(path.parent))} --out BUNDLE`"
        )
    for key in REQUIRED_KEYS:
        if key not in config:
            raise MltrError(f"{path} has no key {key!r}{did_you_mean(key, config)}")
    problem = _config_problem(config)
    if problem:
        raise MltrError(f"{path}: {problem}")
    return config


def _config_problem(config: Mapping[str, Any]) -> str:
    """Say what is wrong with the values of a config, or return an empty text."""
    model, classes = config["model"], config["classes"]
    if config["format_version"] != FORMAT_VERSION:
        return f"format_version must be {FORMAT_VERSION}, not {config['format_version']!r}"
    if not (
        isinstance(model, dict)
        and isinstance(model.get("name"), str)
        and isinstance(model.get("overrides"), dict)
    ):
        return 'model must be {"name": text, "overrides": {...}}'
    if not (isinstance(classes, list) and all(isinstance(c, str) for c in classes)):
        return "classes must be a list of names"
    if len(classes) > MOST_CLASSES:
        return f"{len(classes):,} classes are more than {MOST_CLASSES:,}"
    for name in classes:
        if UNPRINTABLE.search(name):
            return f"the class {printable(name)} has control characters in its name"
    if len(set(classes)) < len(classes):
        repeated = Counter(classes).most_common(1)[0][0]
        return f"classes must differ, and {repeated!r} stands there twice"
    return (
        _size_problem(model["overrides"])
        or _thresholds_problem(config["thresholds"], len(classes))
        or _calibration_problem(config.get("calibration"), len(classes))
        or _categories_problem(config.get("categories"), len(classes))
        or problem_of(config.get("hierarchy", {}))
    )


def _size_problem(overrides: object) -> str:
    """Return which number in the options of a network is impossible."""
    if isinstance(overrides, dict):
        overrides = list(overrides.values())
    if isinstance(overrides, list | tuple):
        return next(filter(None, map(_size_problem, overrides)), "")
    if isinstance(overrides, int | float) and not abs(overrides) <= LARGEST_OPTION:  # NaN too
        return f"model.overrides holds {overrides:.4g}, more than {LARGEST_OPTION}"
    return ""


def _thresholds_problem(thresholds: object, num_classes: int) -> str:
    if thresholds is None:
        return ""
    if not (isinstance(thresholds, list) and len(thresholds) == num_classes):
        return f"thresholds must be null or one number for each of the {num_classes} classes"
    if not all(isinstance(value, int | float) and 0 <= value <= 1 for value in thresholds):
        return "thresholds must lie in 0..1"
    return ""


def _calibration_problem(calibration: object, num_classes: int) -> str:
    if calibration in (None, SOFTMAX.to_dict()):
        return ""
    if not isinstance(calibration, dict) or calibration.get("method") not in SCALINGS:
        return (
            f'calibration must be null or {{"method": {" or ".join(SCALINGS)}, "scale": [...], '
            '"shift": [...]}'
        )
    for key in ("scale", "shift"):
        values = calibration.get(key)
        if not (isinstance(values, list) and len(values) == num_classes):
            return f"calibration.{key} must be one number for each of the {num_classes} classes"
        if not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
            return f"calibration.{key} must be numbers"
    if not all(value > 0 for value in calibration["scale"]):
        return "calibration.scale must be above 0"
    return ""


def _categories_problem(categories: object, num_classes: int) -> str:
    if categories is None:
        return ""
    if not (isinstance(categories, list) and len(categories) == num_classes):
        return f"categories must be null or one name for each of the {num_classes} classes"
    if not all(isinstance(name, str) and not UNPRINTABLE.search(name) for name in categories):
        return "categories must be names"
    return ""
