"""Pretrained weights of timm's networks: their location, architecture and preprocessing.

They come from timm's own source, from a file of tensors, or from a folder, local or on the Hugging
Face Hub, whose ``config.json`` describes the network in timm's terms.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub.errors import EntryNotFoundError
from torch import Tensor, nn

from mltr.config.schema import PRETRAINED, START, ModelConfig
from mltr.data.preprocess import IMAGENET
from mltr.errors import MltrError, UsageError, did_you_mean
from mltr.files.download import HUB_PREFIX, fetch, lacks_file, reason_of
from mltr.network.features import classifier_of
from mltr.weights.bundle import WEIGHT_SOURCES, not_finite, read_config
from mltr.weights.foreign import IGNORED, Tensors, first_few, read_checkpoint
from mltr.weights.metadata import CONFIG_FILE, WEIGHTS_FILE

TIMM = "timm/"  #: of the name of a network
START_NETWORK = "mltr_nano"
START_FOLDER = Path(__file__).parent / "start"  #: a bundle without labels
#: What a folder's weights may be called, in the order in which they are looked for.
WEIGHT_FILES = (WEIGHTS_FILE, "pytorch_model.bin", "pytorch_model.pth", "model.pth")
#: What `model.overrides` may not say, and who does.
ELSEWHERE = {
    "name": "set model.name",
    "image_size": "set model.image_size",
    "num_classes": "the data decide on it",
    "in_chans": "photos have three channels",
    "features_only": "a network without a classifier can't be trained",
}
#: What the bundle of a network is built with and a run that starts from it settles anew, as it
#: does all that is dropped at random.
SET_ANEW = frozenset({"image_size", "img_size", "head", "head_options"})
#: What a network's arguments may not say: the data decide on some, `model.init` on the others.
CHOSEN_HERE = {"img_size", "num_classes", "in_chans", *WEIGHT_SOURCES}


@dataclass(frozen=True)
class TimmWeights:
    """Weights of a timm network, and the preprocessing of its images."""

    source: str  #: as the user named it
    architecture: str  #: timm's name, without the tag of the weights
    config: Mapping[str, Any]  #: timm's `pretrained_cfg`
    arguments: Mapping[str, Any] = field(default_factory=dict)  #: that timm built it by
    place: str = ""  #: a file, a folder, or a hf-hub: name; empty for timm's own source
    labels: tuple[str, ...] = ()  #: of the classifier, as far as they are told

    @property
    def overrides(self) -> dict[str, Any]:
        """The arguments that a network for other images and classes has in common with it."""
        return {key: value for key, value in self.arguments.items() if key not in CHOSEN_HERE}

    def read(self) -> tuple[dict[str, Tensor], bool]:
        """Return the entries by timm's names, and whether these had to be told by their order.

        Raises `MltrError` if the weights can't be had.
        """
        if not self.place:
            return _read_by_timm(self.source.removeprefix(TIMM)), False
        tensors = read_checkpoint(_weights_file(self.place))
        expected = self.expected()
        if set(tensors) & set(expected) or not _same_shapes(tensors, expected):
            return tensors, False
        return dict(zip(expected, tensors.values(), strict=True)), True

    def expected(self) -> dict[str, torch.Size]:
        """Return the shapes of the network's entries, as timm builds it for these weights."""
        with torch.device("meta"):
            network: nn.Module = timm.create_model(self.architecture, **self.arguments)
        return {name: tensor.shape for name, tensor in network.state_dict().items()}


def _same_shapes(tensors: Tensors, expected: Mapping[str, torch.Size]) -> bool:
    """Whether the shapes are the same in order; the classifier, at the end, may have other rows."""
    if len(tensors) != len(expected):
        return False
    found = [tensor.shape for tensor in tensors.values()]
    classifier = len(found) - 2
    return all(
        own == its or (place >= classifier and own[1:] == its[1:])
        for place, (own, its) in enumerate(zip(found, expected.values(), strict=True))
    )


def _read_by_timm(name: str) -> dict[str, Tensor]:
    """Return what timm has for a network, from its cache or the Hub."""
    try:
        network: nn.Module = timm.create_model(name, pretrained=True)
    except RuntimeError as error:
        if "No pretrained weights" not in str(error):
            raise MltrError(reason_of(error)) from error
        known = timm.list_pretrained(f"{name.split('.')[0]}.*")
        hint = f"it has {', '.join(known)}" if known else "choose another network, or give a FILE"
        raise MltrError(f"timm has no weights for {name}; {hint}") from error
    except Exception as error:  # of the network, the Hub, the disk: each library has its own
        raise MltrError(reason_of(error)) from error
    return network.state_dict()


def _weights_file(place: str) -> Path:
    """Return the file with the weights of a file, a folder, or a name on the Hub."""
    if place.startswith(HUB_PREFIX):
        try:
            return fetch(place, [WEIGHT_FILES[0]]) / WEIGHT_FILES[0]
        except MltrError as error:
            if not isinstance(error.__cause__, EntryNotFoundError):
                raise
        return fetch(place, [WEIGHT_FILES[1]]) / WEIGHT_FILES[1]
    path = Path(place)
    if not path.is_dir():
        return path
    for name in WEIGHT_FILES:
        if (path / name).is_file():
            return path / name
    raise MltrError(f"{path} has no weights: expected {' or '.join(WEIGHT_FILES)}")


# -- what a recipe names -----------------------------------------------------------------------


def find_weights(name: str, init: str) -> TimmWeights | None:
    """Return what `model.init` of a network called `name` means; None if it isn't timm's.

    Then it is empty, a bundle, or another project's, which `mltr.weights.convert` knows. Raises
    `UsageError` for a network that it can't be of, `MltrError` for what isn't there.
    """
    if not init or init.startswith(("cat:", "swin:")):
        return None
    tagged = name.removeprefix(TIMM) if name.startswith(TIMM) else ""
    plain = tagged.split(".")[0]
    if init == PRETRAINED:
        if not tagged:
            raise UsageError(
                f"no pretrained weights are available for {name}; choose a network that has some "
                "with --model.name timm/NAME, or see docs/weights.md"
            )
        return TimmWeights(name, plain, _config_of(tagged))
    if not init.startswith(HUB_PREFIX) and Path(init).is_file():
        folder = Path(init).parent
        has_config = Path(init).name == WEIGHTS_FILE and (folder / CONFIG_FILE).is_file()
        if has_config and _read_folder_config(str(folder)) is None:
            raise UsageError(
                f"these are the weights of a run or bundle, which says what they need: use "
                f"--model.init {folder}"
            )
        if not tagged:
            raise UsageError(
                f"the origin of the weights is unknown: use cat:{init} or swin:{init}, or name "
                "timm's network with --model.name timm/NAME"
            )
        return TimmWeights(init, plain, _config_of(tagged), place=init)
    config = _read_folder_config(init)
    if config is None:
        return None
    found = _from_config(init, config)
    if found.architecture != plain:
        raise UsageError(
            f"these are weights of {TIMM}{found.architecture}, not of {name}: use --model.name "
            f"{init if init.startswith(HUB_PREFIX) else TIMM + found.architecture}"
        )
    return found


def read_folder(source: str) -> tuple[dict[str, Any], TimmWeights]:
    """Return the config.json of a folder of timm's, and the weights that it describes.

    Raises `MltrError` for another folder.
    """
    config = _read_folder_config(source)
    if config is None:
        raise UsageError(f"{source} is a bundle already: predict and serve take it as it is")
    return config, _from_config(source, config)


def _config_of(name: str) -> dict[str, Any]:
    """Return timm's configuration of a network, with or without the tag of its weights."""
    plain = name.split(".")[0]
    if not timm.is_model(plain):
        raise UsageError(f"timm has no model {plain!r}{did_you_mean(plain, timm.list_models())}")
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        known = timm.list_pretrained(f"{plain}.*")
        raise UsageError(f"timm has no weights {name!r}; known: {', '.join(known)}") from error
    return {} if config is None else dict(config.to_dict())  # type: ignore[no-untyped-call]


def _read_folder_config(init: str) -> dict[str, Any] | None:
    """Return the config.json of a folder or a name on the Hub; None if it is a bundle's."""
    try:
        folder = fetch(init, [CONFIG_FILE]) if init.startswith(HUB_PREFIX) else Path(init)
    except MltrError as error:
        if not lacks_file(error.__cause__):
            raise
        raise MltrError(
            f"{init} has no {CONFIG_FILE}, so the network of its weights is unknown: download its "
            "file, and give the network, too: --model.name timm/NAME --model.init FILE"
        ) from error
    path = folder / CONFIG_FILE
    if not path.is_file():
        weights = [name for name in WEIGHT_FILES if (folder / name).is_file()]
        if not weights:
            return None  # what is missing for a bundle is told by those who read one
        raise MltrError(
            f"{folder} has no {CONFIG_FILE}, so the network of its weights is unknown: give the "
            f"network and the file: --model.name timm/NAME --model.init {folder / weights[0]}"
        )
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise MltrError(f"{path} can't be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise MltrError(f"{path} must contain a JSON object, not {type(config).__name__}")
    return None if "format_version" in config else config


def _from_config(source: str, config: Mapping[str, Any]) -> TimmWeights:
    """Return the weights that a config.json in timm's words describes."""
    architecture = config.get("architecture")
    if isinstance(architecture, str):
        architecture = architecture.split(".")[0]  # without the tag of its weights
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        raise MltrError(
            f"{source}: its {CONFIG_FILE} names no timm network (architecture: "
            f"{architecture!r}); only timm networks and mltr bundles can be loaded"
        )
    for key in ("model_args", "pretrained_cfg"):
        if not isinstance(config.get(key) or {}, dict):
            raise MltrError(f"{source}: {key} in its {CONFIG_FILE} must be an object")
    given = dict(config.get("model_args") or {})
    arguments = {key: value for key, value in given.items() if key not in WEIGHT_SOURCES}
    known = dict(config.get("pretrained_cfg") or config)  # once all stood at the top
    size = arguments.get("img_size")
    if size is not None:
        side = size if isinstance(size, int) else size[-1]
        known["input_size"] = [3, side, side]
    inputs = known.get("input_size") or [3]
    if not isinstance(inputs, list) or not all(isinstance(side, int) for side in inputs):
        raise MltrError(f"{source}: input_size in its {CONFIG_FILE} must be a list of numbers")
    channels = arguments.get("in_chans") or inputs[0]
    if channels != 3:
        raise MltrError(f"{source}: its network needs images with {channels} channels, not RGB")
    if "num_classes" in config:
        arguments["num_classes"] = config["num_classes"]
    labels = config.get("label_names", known.get("label_names"))
    names = tuple(map(str, labels)) if isinstance(labels, list) else ()
    return TimmWeights(source, architecture, known, arguments, source, names)


@contextmanager
def blaming(source: str, option: str = "model.init") -> Iterator[None]:
    """Prefix errors with the option that they are about."""
    try:
        yield
    except MltrError as error:
        raise type(error)(f"{option} {source}: {error}") from error


def resolve_name(model: ModelConfig) -> ModelConfig:
    """Return the same with the network's own name where it was named by its place on the Hub.

    And with the place of the package's own weights where these are to start from.
    """
    same = {"image_size": model.image_size, "in_chans": 3}
    for key in sorted(ELSEWHERE.keys() & model.overrides.keys()):
        if model.overrides[key] == same.get(key):
            continue
        raise UsageError(f"model.overrides.{key}: {ELSEWHERE[key]}")
    for key in sorted(WEIGHT_SOURCES & model.overrides.keys()):
        raise UsageError(
            f"model.overrides.{key}: give the weights with --model.init pretrained, --model.init "
            "FILE or --model.init FOLDER"
        )
    if model.init == START:
        if model.name != START_NETWORK:
            raise UsageError(
                f"model.init {START}: these weights are of {START_NETWORK}, not of {model.name}; "
                "docs/weights.md lists others"
            )
        return replace(model, init=str(START_FOLDER))
    if not model.name.startswith(HUB_PREFIX):
        return model
    config = _read_folder_config(model.name)
    if config is None:
        raise UsageError(
            f"model.name {model.name} is an mltr bundle: name its network, and use --model.init "
            f"{model.name}"
        )
    found = _from_config(model.name, config)
    return replace(
        model,
        name=TIMM + found.architecture,
        init=model.name if model.init in ("", PRETRAINED) else model.init,
        overrides=found.overrides | model.overrides,
    )


def known_preprocessing(name: str, init: str, weights: TimmWeights | None) -> dict[str, Any]:
    """Return what the images of a network's first weights went through; empty without any.

    `weights` is what `find_weights` says of them. Besides what `Preprocess.from_config` takes there
    may be `image_size`, the weights' own.
    """
    if weights is not None:
        known = dict(weights.config)
        if known.get("input_size"):
            known["image_size"] = int(known["input_size"][-1])
        return known
    if init.startswith(("cat:", "swin:")):
        return dict(zip(("mean", "std"), IMAGENET, strict=True))
    if not init:
        return {}
    preprocess = dict(_bundle_config(init)["preprocess"])
    if not name.startswith(TIMM):
        preprocess.pop("image_size", None)  # MlTr's variants have a size of their own
    return preprocess


def overrides_of(name: str, init: str, side: int) -> dict[str, Any]:
    """Return how the network in a bundle was built otherwise than is usual, for one of its name.

    Of MlTr's variants only for images of the same size, as their windows fit these.
    """
    if not init or init.startswith(("cat:", "swin:")):
        return {}
    model = _bundle_config(init)["model"]
    theirs = dict(model["overrides"])
    is_same = model["name"].split(".")[0] == name.split(".")[0]  # but for the tag of its weights
    if not is_same or not (name.startswith(TIMM) or theirs.get("image_size") == side):
        return {}
    return {k: value for k, value in theirs.items() if k not in SET_ANEW and "drop" not in k}


def _bundle_config(init: str) -> dict[str, Any]:
    folder = fetch(init, [CONFIG_FILE]) if init.startswith(HUB_PREFIX) else Path(init)
    return read_config(folder)


# -- into a network ----------------------------------------------------------------------------


def read_fitting(backbone: nn.Module, weights: TimmWeights) -> tuple[dict[str, Tensor], bool]:
    """Return the weights for a network by timm, and whether names were told by their order.

    Position tables are resampled to the network's sizes, by timm. A classifier of another size is
    among the weights; anything else fits. Raises `MltrError` naming what doesn't.
    """
    tensors, by_order = weights.read()
    # So it is called all over timm: other names to timm's own, tables to the network's sizes.
    module = sys.modules[timm.models.model_entrypoint(weights.architecture).__module__]
    adapt = getattr(module, "checkpoint_filter_fn", lambda tensors, _: tensors)
    try:
        adapted = adapt(dict(tensors), backbone)
    except (KeyError, RuntimeError, ValueError, AttributeError, IndexError) as error:
        names = first_few(list(tensors))
        raise MltrError(f"its entries don't belong to {weights.architecture}: {names}") from error
    own = {name: tensor.shape for name, tensor in backbone.state_dict().items()}
    classifier = classifier_of(backbone)
    complaints = _misfits(adapted, own, classifier)
    if complaints:  # the network may have been built otherwise than the one of the weights
        theirs = weights.expected()
        expected = {name: own.get(name, shape) for name, shape in theirs.items()}
        complaints = _misfits(adapted, expected, classifier)
        if complaints and not _misfits(adapted, theirs, classifier):
            raise UsageError(
                f"{TIMM}{weights.architecture} takes images of the size of these weights alone: "
                f"leave out model.image_size ({complaints[0]})"
            )
    if complaints:
        raise MltrError(
            f"these are not weights of {TIMM}{weights.architecture}: {'; '.join(complaints)}"
        )
    if damaged := not_finite(adapted):
        raise MltrError(f"NaN or infinity in {first_few(damaged)}")
    return adapted, by_order


def _misfits(
    tensors: Tensors, expected: Mapping[str, torch.Size], classifier: tuple[str, ...]
) -> list[str]:
    """Say which entries are missing, unknown, or of another shape, the classifier left out."""

    def counts(name: str) -> bool:
        layer = name.rpartition(".")[0]
        return layer not in classifier and not name.endswith((*IGNORED, "num_batches_tracked"))

    missing = [name for name in expected if counts(name) and name not in tensors]
    unknown = [name for name in tensors if counts(name) and name not in expected]
    misshapen = [
        f"{name} {list(tensors[name].shape)} where {list(shape)} belongs"
        for name, shape in expected.items()
        if counts(name) and name in tensors and tensors[name].shape != shape
    ]
    groups = (("missing", missing), ("unknown", unknown), ("wrong shape", misshapen))
    return [f"{what}: {first_few(names)}" for what, names in groups if names]
