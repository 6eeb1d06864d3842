"""A bundle on disk: weights, network, classes, preprocessing and thresholds in one folder.

A bundle is a folder with ``model.safetensors`` and ``config.json``; the folder of a training run
is one. Nothing in it is pickled, so loading a bundle executes no code from it.
"""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from mltr import __version__
from mltr.data.preprocess import Preprocess
from mltr.errors import MltrError, UsageError
from mltr.files.download import HUB_PREFIX, fetch
from mltr.files.writing import Writer, text_writer, to_json, write_atomically, write_together
from mltr.network.model import create_model
from mltr.weights.metadata import (
    CONFIG_FILE,
    FORMAT_VERSION,
    LOG_FILE,
    METRICS_FILE,
    ONNX_FILE,
    PREDICTIONS_FILE,
    RECIPE_FILE,
    SPLITS_FILE,
    WEIGHTS_FILE,
    Calibration,
    Floats,
    holds_onnx,
    parse_config,
    read_calibration,
    read_categories,
    read_config_file,
)

# Arguments by which a timm backbone would fetch weights; a bundle brings its own.
WEIGHT_SOURCES = {"pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"}


@dataclass(frozen=True)
class Bundle:
    """A trained network in eval mode, with everything needed to use it."""

    model: nn.Module  #: images [B, 3, H, W] to logits [B, K]
    classes: tuple[str, ...]  #: K names, in the order of the logits
    preprocess: Preprocess  #: PIL image to float32 [3, S, S]
    thresholds: tuple[float, ...] | None  #: per class, on probabilities; None: 0.5 for all
    config: dict[str, Any]  #: all of ``config.json``
    calibration: Calibration | None = None  #: of the probabilities; None: plain sigmoid
    categories: tuple[str, ...] | None = None  #: K names of kinds of classes, if they have any


@dataclass(frozen=True, eq=False)
class TorchNetwork:
    """A network on its device, for a `Predictor`: numpy in, numpy out."""

    model: nn.Module  #: in eval mode
    device: torch.device

    def __call__(self, images: Floats) -> Floats:
        """Return logits float32 [B, K] of preprocessed images float32 [B, 3, S, S]."""
        with torch.inference_mode():
            logits: Tensor = self.model(torch.from_numpy(images).to(self.device))
            found: Floats = logits.float().cpu().numpy()
        return found

    @property
    def fingerprint(self) -> str:
        """Checksum of the weights."""
        return f"{_crc32({name: t.cpu() for name, t in self.model.state_dict().items()}):08x}"


def checkpoint_writer(state: Mapping[str, Any]) -> Writer:
    """Return a writer, for `write_atomically`, of a training state by `torch.save`.

    It turns what torch raises on a full disk, a `RuntimeError` about file positions, back into
    the operating system's own error.
    """

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from error
                raise

    return write


def public_name(source: str) -> str:
    """Return a source of weights as strangers may know it: of a file here, the name at its end."""
    return Path(source).resolve().name if Path(source).exists() else source


def refuse_overwriting(folder: str | Path, overwrite: bool) -> None:
    """Raise `UsageError` if `folder` contains weights or settings that must not be overwritten.

    Those of a training run never are: its figures and predictions would pass for the new ones'.
    """
    of_runs = (LOG_FILE, METRICS_FILE, PREDICTIONS_FILE)
    if any((Path(folder) / name).exists() for name in of_runs):
        raise UsageError(f"{folder} holds a training run: choose another --out")
    replaced = (WEIGHTS_FILE, ONNX_FILE, CONFIG_FILE, RECIPE_FILE, SPLITS_FILE)
    held = [name for name in replaced if (Path(folder) / name).exists()]
    if held and not overwrite:
        raise UsageError(
            f"{folder} already holds {held[0]}: choose another --out, or use --overwrite"
        )


def drop_others(folder: str | Path, weights: str) -> None:
    """Delete what the bundle that was in `folder` before had beside the file called `weights`."""
    for name in {WEIGHTS_FILE, ONNX_FILE, RECIPE_FILE, SPLITS_FILE} - {weights}:
        (Path(folder) / name).unlink(missing_ok=True)


def save_bundle(
    folder: str | Path,
    *,
    model: nn.Module,
    name: str,
    overrides: Mapping[str, Any],
    classes: Sequence[str],
    preprocess: Preprocess,
    thresholds: Sequence[float] | None = None,
    calibration: Calibration | None = None,
    categories: Sequence[str] | None = None,
    hierarchy: Mapping[str, str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a bundle to `folder` atomically, replacing a previous one.

    `name` and `overrides` are the arguments of `create_model` that built `model`; `hierarchy` has
    the parents of labels that imply others; `extra` is any JSON-serialisable data, stored under
    that key. Raises `MltrError` if the disk is full or the
    weights contain NaN or infinity; the previous bundle is then unchanged.
    """
    tensors = {
        key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, tensor in model.state_dict().items()
    }
    _check_finite(tensors, f"{folder}: not saved, because the weights")
    config = {
        "format_version": FORMAT_VERSION,
        "mltr_version": __version__,
        "model": {"name": name, "overrides": _without_weight_sources(overrides)},
        "classes": list(classes),
        "preprocess": preprocess.to_dict(),
        "thresholds": None if thresholds is None else [float(value) for value in thresholds],
        "calibration": None if calibration is None else calibration.to_dict(),
        "categories": None if categories is None else list(categories),
        "hierarchy": dict(hierarchy or {}),
        "weights_crc32": _crc32(tensors),
        "extra": dict(extra or {}),
    }
    text = to_json(config)
    parse_config(text, Path(folder) / CONFIG_FILE)  # what can't be loaded isn't saved

    def write_tensors(temporary: Path) -> None:
        try:
            # The copy of the config tells which one belongs to these weights: see `_pick_config`.
            safetensors.torch.save_file(tensors, temporary, metadata={"mltr": text})
        except SafetensorError as error:
            raise _as_os_error(error) from error

    write_together(
        {
            Path(folder) / WEIGHTS_FILE: write_tensors,
            Path(folder) / CONFIG_FILE: text_writer(text),
        }
    )


def _as_os_error(error: SafetensorError) -> OSError:
    """Give back the operating system's error that safetensors reports as text."""
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES):
        if f"os error {number})" in str(error):
            return OSError(number, os.strerror(number))
    return OSError(str(error))


def _without_weight_sources(overrides: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in overrides.items() if key not in WEIGHT_SOURCES}


def _crc32(tensors: Mapping[str, Tensor]) -> int:
    """Checksum of all tensors in the order of their names."""
    checksum = 0
    for name in sorted(tensors):
        flat = tensors[name].contiguous().reshape(-1)
        checksum = zlib.crc32(flat.view(torch.uint8).numpy().data, checksum)
    return checksum


def _check_finite(tensors: Mapping[str, Tensor], subject: str) -> None:
    if bad := not_finite(tensors):
        raise MltrError(f"{subject} contain NaN or infinity in {_first_few(bad)}")


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors with NaN or infinity."""
    return [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]


def _first_few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def load_bundle(path: str | Path, device: str | torch.device = "cpu") -> Bundle:
    """Load the bundle, or the training run, in the folder `path`, with the model in eval mode.

    ``hf-hub:OWNER/NAME`` is fetched from the Hugging Face Hub. Raises `MltrError`, which names the
    file and says what to do, if anything is missing, damaged, from a newer version, or
    inconsistent.
    """
    folder = _locate(path)
    _check_folder(folder)
    shapes, own_text = _read_header(folder / WEIGHTS_FILE)
    config = _pick_config(folder / CONFIG_FILE, own_text)
    classes = tuple(config["classes"])
    try:
        preprocess = Preprocess.from_dict(config["preprocess"])
    except MltrError as error:
        raise MltrError(f"{folder / CONFIG_FILE}: {error}") from error
    # What doesn't fit is told before anything of its size is allocated.
    _check_depth(config["model"]["overrides"], len(shapes), folder / CONFIG_FILE)
    try:
        with torch.device("meta"):
            planned = _build_model(config, len(classes), folder / CONFIG_FILE)
    except (NotImplementedError, RuntimeError):  # a backbone that computes while it is built
        planned = _build_model(config, len(classes), folder / CONFIG_FILE)
    _check_fit({name: t.shape for name, t in planned.state_dict().items()}, shapes, folder)
    model = _build_model(config, len(classes), folder / CONFIG_FILE)
    tensors = _read_tensors(folder / WEIGHTS_FILE)
    if config.get("weights_crc32", (actual := _crc32(tensors))) != actual:
        raise MltrError(
            f"{folder / WEIGHTS_FILE} is damaged: its content doesn't match the checksum in "
            f"{CONFIG_FILE}; copy or train it again"
        )
    _check_finite(tensors, f"{folder / WEIGHTS_FILE}: the weights")
    model.load_state_dict(tensors)
    thresholds = None if config["thresholds"] is None else tuple(config["thresholds"])
    return Bundle(
        model.eval().to(device),
        classes,
        preprocess,
        thresholds,
        config,
        read_calibration(config),
        read_categories(config),
    )


def _locate(path: str | Path) -> Path:
    if str(path).startswith(HUB_PREFIX):
        return fetch(str(path), [WEIGHTS_FILE, CONFIG_FILE])
    return Path(path)


def read_config(folder: str | Path) -> dict[str, Any]:
    """Return the validated config of a bundle; its weights aren't read and may be absent.

    Raises `MltrError` as `load_bundle` does.
    """
    if not (Path(folder) / CONFIG_FILE).is_file():
        _check_folder(Path(folder))
    weights = Path(folder) / WEIGHTS_FILE
    own_text = _read_header(weights)[1] if weights.is_file() else None
    return _pick_config(Path(folder) / CONFIG_FILE, own_text)


def update_config(folder: str | Path, changes: Mapping[str, Any]) -> None:
    """Replace some keys of a bundle's ``config.json`` atomically; the weights aren't touched.

    The copy of the config within the weights yields to this file, as `_pick_config` says. Raises
    `MltrError` as `load_bundle` does, and for values that it would refuse.
    """
    if not holds_onnx(folder):
        _check_folder(Path(folder))
    path = Path(folder) / CONFIG_FILE
    text = to_json(read_config(folder) | dict(changes))
    parse_config(text, path)  # what can't be loaded isn't saved
    write_atomically(path, text_writer(text))


def _check_folder(folder: Path) -> None:
    expected = f"a folder with {WEIGHTS_FILE} and {CONFIG_FILE}, such as `mltr train` writes"
    if not folder.exists():
        kind = "file" if folder.suffix in (".pth", ".pt", ".safetensors") else "folder"
        raise MltrError(f"no such {kind}: {folder}; expected {expected}")
    if not folder.is_dir():
        hint = f"; give the folder {folder.parent}" if folder.name == WEIGHTS_FILE else ""
        raise MltrError(f"{folder} is a file; expected {expected}{hint}")
    if holds_onnx(folder):
        raise MltrError(
            f"{folder} holds a network in ONNX, for predict, serve, evaluate and calibrate; "
            "everything else needs one in PyTorch"
        )
    missing = [name for name in (WEIGHTS_FILE, CONFIG_FILE) if not (folder / name).is_file()]
    if missing:
        hint = ""
        if (folder / RECIPE_FILE).is_file():
            hint = "; a run has them once it has ended, or was stopped by Ctrl-C after a validation"
        raise MltrError(f"{folder} has no {' and no '.join(missing)}; expected {expected}{hint}")


@contextmanager
def _open_weights(path: Path) -> Iterator[Any]:
    """Open a file of weights, whose header is checked against its size."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError) as error:
        raise MltrError(
            f"{path} is damaged or cut short and can't be read ({error}); copy or train it again"
        ) from error


def _read_header(path: Path) -> tuple[dict[str, torch.Size], str | None]:
    """Return the shapes of the tensors, and the text of the config saved with them, if any."""
    with _open_weights(path) as file:
        shapes = {key: torch.Size(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        return shapes, (file.metadata() or {}).get("mltr")


def _read_tensors(path: Path) -> dict[str, Tensor]:
    with _open_weights(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def _check_depth(overrides: Mapping[str, Any], num_tensors: int, path: Path) -> None:
    """Raise `MltrError` for more blocks than there are tensors, which would take long to build."""
    for key, value in overrides.items():
        blocks = sum(value) if isinstance(value, list | tuple) else value
        if "depth" in key and blocks > num_tensors:
            raise MltrError(f"{path}: {key} {value} doesn't fit {num_tensors} tensors of weights")


def _pick_config(path: Path, own_text: str | None) -> dict[str, Any]:
    """Read ``config.json``, unless it belongs to other weights.

    That happens only if the machine stopped between the two renames of a save; the weights then
    bring the right config with them.
    """
    config = read_config_file(path)
    if own_text is not None:
        own = parse_config(own_text, path.with_name(WEIGHTS_FILE))
        if own.get("weights_crc32") != config.get("weights_crc32"):
            return own
    return config


def _build_model(config: Mapping[str, Any], num_classes: int, path: Path) -> nn.Module:
    overrides = _without_weight_sources(config["model"]["overrides"])
    try:
        return create_model(config["model"]["name"], num_classes=num_classes, **overrides)
    except (MltrError, TypeError, ValueError) as error:
        raise MltrError(f"{path}: the model can't be built: {error}") from error


def _check_fit(
    expected: Mapping[str, torch.Size], found: Mapping[str, torch.Size], folder: Path
) -> None:
    """Raise `MltrError` naming the first few tensors that are missing, unknown or misshapen."""
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected]
    misshapen = [
        f"{name} {list(found[name])} where {list(expected[name])} belongs"
        for name in expected
        if name in found and found[name] != expected[name]
    ]
    complaints = [
        f"{what} {_first_few(names)}"
        for what, names in (("missing", missing), ("unknown", unknown), ("wrong shape", misshapen))
        if names
    ]
    if complaints:
        raise MltrError(
            f"{folder / WEIGHTS_FILE} doesn't fit the model in {CONFIG_FILE}: "
            f"{'; '.join(complaints)}; both files must come from the same save"
        )
