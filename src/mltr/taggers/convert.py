"""From a tagger as others lay it out to a bundle, which every command takes."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import ImageColor

from mltr import __version__
from mltr.data.preprocess import CROP_PCT, IMAGENET, Preprocess
from mltr.errors import MltrError, UsageError, counted
from mltr.files.download import HUB_PREFIX, fetch
from mltr.files.writing import text_writer, to_json, write_together
from mltr.predict.options import DEFAULT_THRESHOLD
from mltr.predict.thresholds import ALL, set_thresholds
from mltr.taggers import graph
from mltr.taggers.labels import TAGS_FILE, Tags, find_labels, numbered, read_labels
from mltr.weights.metadata import (
    CONFIG_FILE,
    FORMAT_VERSION,
    ONNX_FILE,
    SOFTMAX,
    WEIGHTS_FILE,
    Calibration,
    parse_config,
)

if TYPE_CHECKING:
    import onnx
    from torch import nn

log = logging.getLogger(__name__)

EXPECTED = (
    f"a folder with {ONNX_FILE} and {TAGS_FILE}, one of timm's with {CONFIG_FILE} and "
    f"{WEIGHTS_FILE}, or an ONNX file"
)
PIXEL_MAX = 255
#: Of the WD taggers, whose graphs say the rest.
WD_OPTIONS = {"channels": "bgr", "padding": "white", "interpolation": "bicubic"}
#: What their authors use in their own demonstration.
WD_THRESHOLDS = {"general": 0.35, "character": 0.85}


def locate(source: str) -> Path:
    """Return the ONNX file of a tagger, or its folder if that is timm's.

    Raises `MltrError` if there is none.
    """
    if source.startswith(HUB_PREFIX):
        return _locate_on_hub(source)
    path = Path(source)
    if path.is_file():
        if path.suffix != ".onnx":
            raise UsageError(f"{path}: expected a folder, or a file that ends in .onnx")
        return path
    if not path.is_dir():
        raise MltrError(f"no such folder: {path}; expected {EXPECTED}")
    if (path / ONNX_FILE).is_file():
        return path / ONNX_FILE
    if (path / CONFIG_FILE).is_file():
        return path
    files = sorted(path.glob("*.onnx"))
    if len(files) != 1:
        found = f"several ONNX files ({files[0].name}, ...): name one" if files else "none of these"
        raise MltrError(f"{path} has {found}; expected {EXPECTED}")
    return files[0]


def _locate_on_hub(source: str) -> Path:
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return fetch(source, [TAGS_FILE, ONNX_FILE]) / ONNX_FILE
    except MltrError as error:
        if not isinstance(error.__cause__, EntryNotFoundError):
            raise
    return fetch(source, [CONFIG_FILE, WEIGHTS_FILE])


@dataclass
class Tagger:
    """A network with its labels, ready to be written."""

    tags: Tags
    preprocess: Preprocess
    activation: str  #: sigmoid or softmax
    usual: Mapping[str, float] = field(default_factory=dict)  #: thresholds by category, if not told
    thresholds: NDArray[np.float32] | None = None  #: [K]

    def set_thresholds(self, wanted: Mapping[str, float]) -> None:
        """Set thresholds by category, and for the others the usual ones. Raises `UsageError`."""
        categories = set(self.tags.categories or ())
        usual = {name: value for name, value in self.usual.items() if name in categories}
        if wanted or usual:
            self.thresholds = np.full(len(self.tags.names), DEFAULT_THRESHOLD, np.float32)
            every = wanted if ALL in wanted else usual | dict(wanted)
            set_thresholds(self.thresholds, every, self.tags.categories)

    @property
    def calibration(self) -> Calibration | None:
        """How logits become probabilities."""
        return SOFTMAX if self.activation == "softmax" else None

    def write(self, out: Path, source: str) -> None:
        """Write a bundle, in place of another."""
        raise NotImplementedError

    def report(self) -> list[str]:
        """Say what the tagger was taken for, so that its user can compare with its description."""
        kinds = sorted(set(self.tags.categories or ()))
        lines = [f"{counted(len(self.tags.names), 'label')}, {self.activation}: {self.tags.source}"]
        for kind in kinds:
            chosen = np.array(self.tags.categories) == kind
            threshold = DEFAULT_THRESHOLD if self.thresholds is None else self.thresholds[chosen][0]
            lines.append(f"  {kind}: {chosen.sum()}, threshold {threshold:g}")
        return [*lines, f"images: {self.preprocess}"]


# -- ONNX --------------------------------------------------------------------------------------


@dataclass
class OnnxTagger(Tagger):
    """A graph that takes pixels and returns logits."""

    model: onnx.ModelProto | None = None
    is_bgr: bool = False

    def write(self, out: Path, source: str) -> None:
        """Write the graph and the config beside it."""
        from mltr.weights.bundle import drop_others

        thresholds = self.thresholds
        config = {
            "format_version": FORMAT_VERSION,
            "mltr_version": __version__,
            "model": {"name": "onnx", "overrides": {}},
            "classes": list(self.tags.names),
            "categories": None if self.tags.categories is None else list(self.tags.categories),
            "preprocess": self.preprocess.to_dict(),
            "thresholds": None if thresholds is None else [round(float(t), 6) for t in thresholds],
            "calibration": None if self.calibration is None else self.calibration.to_dict(),
            "export": {"input": "uint8"},
            "extra": {"converted_from": source},
        }
        text = to_json(config)
        parse_config(text, out / CONFIG_FILE)  # what can't be loaded isn't saved
        assert self.model is not None
        content = self.model.SerializeToString()
        write_together(
            {
                out / ONNX_FILE: lambda file: file.write_bytes(content),
                out / CONFIG_FILE: text_writer(text),
            }
        )
        drop_others(out, ONNX_FILE)

    def report(self) -> list[str]:
        """Say also in which order the colours go in."""
        *lines, images = super().report()
        return [*lines, f"{images}, {'BGR' if self.is_bgr else 'RGB'}"]


def convert_onnx(path: Path, options: argparse.Namespace) -> OnnxTagger:
    """Return the tagger of an ONNX file, run on noise and compared with the original.

    `options` are those of the command. Raises `MltrError` for a file that can't be one.
    """
    labels = Path(options.labels) if options.labels else find_labels(path.parent)
    if labels is None:
        raise MltrError(
            f"{path.parent} has no labels: give --labels FILE, with the name of each output in a "
            "line"
        )
    tags = read_labels(labels)
    model = graph.load(path)
    given = graph.read_input(model, path, options.layout)
    chosen = {key: value for key, value in vars(options).items() if value is not None}
    has_tags = labels.name == TAGS_FILE or (path.parent / TAGS_FILE).is_file()
    is_wd = has_tags and given.channels_last
    if is_wd:
        chosen = WD_OPTIONS | chosen
    preprocess = _read_preprocess(chosen, given, path)
    is_bgr = chosen.get("channels") == "bgr"
    model = graph.take_pixels(model, path, given, preprocess, is_bgr)
    scores = graph.score(model, path, preprocess.image_size)
    if scores.shape[1] != len(tags.names):
        raise MltrError(
            f"{path} has {counted(scores.shape[1], 'output')}, and {labels} names "
            f"{counted(len(tags.names), 'label')}: there must be one for each, in the same order"
        )
    model, told = graph.return_logits(model, path, scores, options.activation)
    graph.check(path, scores, graph.score(model, path, preprocess.image_size), told)
    usual = WD_THRESHOLDS if is_wd else {}
    return OnnxTagger(tags, preprocess, told, usual, model=model, is_bgr=is_bgr)


def _read_preprocess(options: Mapping[str, Any], given: graph.Input, path: Path) -> Preprocess:
    """Return what the images of a classifier went through, by options and by its graph."""
    side = options.get("image_size") or given.image_size
    if not side:
        raise UsageError(f"{path} takes images of any size: give its own with --image-size N")
    if given.image_size and side != given.image_size:
        raise UsageError(f"--image-size {side}: {path} takes {given.image_size} pixels")
    highest = options.get("range") or (PIXEL_MAX if given.channels_last or given.holds_bytes else 1)
    usual = IMAGENET if highest == 1 else ((0.0,) * 3, (1.0,) * 3)
    triples = {}
    for name, default in zip(("mean", "std"), usual, strict=True):
        told = options.get(name)
        own = default if told is None else _read_triple(name, told)
        if told is not None and options.get("channels") == "bgr":
            own = own[::-1]
        triples[name] = tuple(value / highest for value in own)
    padding = options.get("padding")
    try:
        return Preprocess.from_dict(
            {
                "image_size": side,
                **triples,
                "interpolation": options.get("interpolation", "bilinear"),
                "crop_pct": options.get("crop_pct", 0.0),
                "padding": None if padding in (None, "none") else ImageColor.getrgb(padding)[:3],
            }
        )
    except (ValueError, MltrError) as error:  # of a colour that nobody knows
        raise UsageError(f"the options of {path}: {error}") from error


def _read_triple(name: str, text: str) -> tuple[float, ...]:
    try:
        values = tuple(map(float, text.split(",")))
    except ValueError:
        values = ()
    if len(values) not in (1, graph.COLOURS):
        raise UsageError(f"--{name} {text}: expected three numbers with commas between them")
    return values if len(values) == graph.COLOURS else values * graph.COLOURS


# -- timm --------------------------------------------------------------------------------------


@dataclass
class TimmTagger(Tagger):
    """A network of timm's."""

    model: nn.Module | None = None
    name: str = ""  #: as in `create_model`
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def write(self, out: Path, source: str) -> None:
        """Write the weights and the config."""
        from mltr.weights.bundle import drop_others, save_bundle

        assert self.model is not None
        save_bundle(
            out,
            model=self.model,
            name=self.name,
            overrides=self.overrides,
            classes=self.tags.names,
            preprocess=self.preprocess,
            thresholds=None if self.thresholds is None else self.thresholds.tolist(),
            calibration=self.calibration,
            categories=self.tags.categories,
            extra={"converted_from": source},
        )
        drop_others(out, WEIGHTS_FILE)


def convert_timm(folder: Path, labels: str | None, activation: str | None) -> TimmTagger:
    """Return the tagger of a folder as timm writes them for the Hub; raises `MltrError`."""
    from mltr.network.model import create_model
    from mltr.weights.convert import load_timm
    from mltr.weights.pretrained import TIMM, read_folder

    file = Path(labels) if labels else find_labels(folder)
    try:
        config, weights = read_folder(str(folder))
        count = int(weights.arguments.get("num_classes") or weights.config["num_classes"])
        preprocess = _timm_preprocess(weights.config)
        tags = _timm_tags(folder, config, count) if file is None else read_labels(file)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise MltrError(f"{folder / CONFIG_FILE} isn't as timm writes it: {error!r}") from error
    if count != len(tags.names):
        raise MltrError(
            f"{folder} has {counted(count, 'output')}, and {tags.source} names "
            f"{counted(len(tags.names), 'label')}: there must be one for each, in the same order"
        )
    name = f"{TIMM}{weights.architecture}"
    overrides = weights.overrides | {"image_size": preprocess.image_size}
    model = create_model(name, count, **overrides)
    report = load_timm(model, weights)
    if report.fresh:
        raise MltrError(f"{folder} has no weights for {', '.join(report.fresh[:3])}")
    if activation is None and not tags.exclude_one_another:
        raise UsageError(
            f"{folder} doesn't tell what makes probabilities of its logits: give --activation "
            "sigmoid if an image can have several labels, softmax if it has one"
        )
    return TimmTagger(
        tags,
        preprocess,
        activation or "softmax",
        model=model.eval(),
        name=name,
        overrides=overrides,
    )


def _timm_tags(folder: Path, config: Mapping[str, Any], count: int) -> Tags:
    """Return the labels that a config names, or those of ImageNet by their number."""
    from timm.data import infer_imagenet_subset

    from mltr.weights.convert import imagenet_classes

    known = dict(config.get("pretrained_cfg") or {}) | dict(config)
    names = known.get("label_names") or known.get("labels")
    if isinstance(names, dict):  # of numbers to names
        names = [names[key] for key in sorted(names, key=int)]
    if names:
        told = known.get("label_descriptions") or {}
        words = [str(told.get(name, name)).split(",")[0].strip() for name in names]
        return Tags(numbered(words), None, f"{folder / CONFIG_FILE}")
    if infer_imagenet_subset({"num_classes": count}) is None:
        raise MltrError(
            f"{folder / CONFIG_FILE} names no labels: give --labels FILE, with the name of each "
            "output in a line"
        )
    return Tags(imagenet_classes(count), None, f"ImageNet, by their number, {count}", True)


def _timm_preprocess(config: Mapping[str, Any]) -> Preprocess:
    """Return what timm's own evaluation does, its squash without a margin."""
    mean, std = config.get("mean", IMAGENET[0]), config.get("std", IMAGENET[1])
    mode = config.get("crop_mode", "center")
    _, height, width = config["input_size"]
    if height != width:
        raise MltrError(f"it takes images of {width} x {height} pixels; only square ones are read")
    if mode != "center" and (config.get("crop_pct") or 1) < 1:
        log.warning(
            "timm cuts a margin off the photo (crop_pct %g of %s), which isn't done here: "
            "probabilities will differ",
            config["crop_pct"],
            mode,
        )
    values = {
        "image_size": int(width),
        "mean": mean,
        "std": std,
        "interpolation": config.get("interpolation", "bilinear"),
    }
    if mode == "center":
        values["crop_pct"] = config.get("crop_pct") or CROP_PCT
    elif mode == "border":
        values["padding"] = [round(PIXEL_MAX * value) for value in mean]
    return Preprocess.from_dict(values)
