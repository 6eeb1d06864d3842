"""Exported networks: ONNX runs on onnxruntime alone, a .pt2 program on torch.

Both files contain the JSON of a bundle's ``config.json``, with an entry `export` on how it was made
and its input: uint8 pixels [B, S, S, 3], or preprocessed float32 [B, 3, S, S]. The output is logits
float32 [B, K]. `mltr export` writes them.
"""

from __future__ import annotations

import importlib
import shlex
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mltr.data.preprocess import Preprocess
from mltr.errors import MltrError, UsageError
from mltr.files.download import first_line
from mltr.files.writing import sha256_of
from mltr.machine.threads import told_threads
from mltr.weights.metadata import CONFIG_FILE, ONNX_FILE, parse_config, read_config_file

if TYPE_CHECKING:
    import onnxruntime
    import torch

    from mltr.predict.predictor import Network

Floats = NDArray[np.float32]

CONFIG_KEY = "mltr"  #: of the metadata in an ONNX file
CONFIG_ENTRY = "mltr.json"  #: of the archive that a .pt2 file is
INPUT, OUTPUT = "images", "logits"  #: names in the graph
LIMIT_S = 60.0  #: for one image through an ONNX file, on whatever machine
SILENT = 4  #: of onnxruntime's levels: what it would write to stderr, its exceptions say too


@dataclass(frozen=True, eq=False)
class OnnxNetwork:
    """An ONNX file for a `Predictor`; may be called from several threads at once."""

    session: onnxruntime.InferenceSession
    path: Path
    takes_pixels: bool  #: whether uint8 [B, S, S, 3] go in, which the network scales itself
    limit_s: float  #: for one image: a file may hold a loop without end

    def __call__(self, images: NDArray[Any]) -> Floats:
        """Return logits float32 [B, K] of the images; raises `MltrError` if that fails."""
        import onnxruntime

        options = onnxruntime.RunOptions()
        options.log_severity_level = SILENT
        limit_s = self.limit_s * max(1, len(images))
        watch = threading.Timer(limit_s, setattr, (options, "terminate", True))
        watch.daemon = True
        watch.start()
        inputs = {INPUT: np.ascontiguousarray(images)}
        try:
            logits: Floats = self.session.run([OUTPUT], inputs, options)[0]
        except Exception as error:  # its errors have no base of their own
            if options.terminate:
                raise MltrError(f"{self.path} returns no result within {limit_s:g} s") from error
            raise MltrError(f"{self.path} fails in onnxruntime: {first_line(error)}") from error
        finally:
            watch.cancel()
        return logits

    @property
    def fingerprint(self) -> str:
        """Checksum of the file."""
        return sha256_of(self.path)


@dataclass(frozen=True, eq=False)
class ProgramNetwork:
    """A program by `torch.export` for a `Predictor`."""

    program: torch.nn.Module
    path: Path
    device: torch.device
    takes_pixels: bool  #: as in `OnnxNetwork`

    def __call__(self, images: NDArray[Any]) -> Floats:
        """Return logits float32 [B, K] of the images."""
        return run_program(self.program, images, self.device)

    @property
    def fingerprint(self) -> str:
        """Checksum of the file."""
        return sha256_of(self.path)


def run_program(program: torch.nn.Module, images: NDArray[Any], device: torch.device) -> Floats:
    """Return what a module of torch on a device returns for the images."""
    import torch

    with torch.inference_mode():
        logits: Floats = program(torch.from_numpy(images).to(device)).cpu().numpy()
    return logits


def require(package: str, extra: str, why: str) -> Any:
    """Import a package of an extra; raises `UsageError` that says how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UsageError(f"{why} needs {package}: pip install 'mltr[{extra}]'") from error


def load_onnx(
    path: str | Path,
    device: str | None = None,
    threads: int | None = None,
    limit_s: float = LIMIT_S,
) -> tuple[OnnxNetwork, dict[str, Any]]:
    """Return the network of an ONNX file and its checked config. Torch isn't imported.

    `path` is a file by `mltr export`, or the folder that `mltr convert tagger` writes.
    `device` is cpu, cuda or cuda:N, by default a GPU if this onnxruntime can use one; `threads` is
    how many one call may use, by default OMP_NUM_THREADS, as for torch, or all cores. Raises
    `MltrError` for a file that is missing, damaged or not written by `mltr export`, and for one
    that returns no logits for a black image within `limit_s`.
    """
    path, config = find_onnx(path)
    ort = require("onnxruntime", "onnx", str(path))
    options = ort.SessionOptions()
    options.log_severity_level = SILENT
    options.intra_op_num_threads = threads or told_threads()
    providers = _choose_providers(ort, device)
    try:
        session = ort.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # its errors have no base of their own
        raise MltrError(f"{path} can't be run by onnxruntime: {first_line(error)}") from error
    if config is None:
        text = session.get_modelmeta().custom_metadata_map.get(CONFIG_KEY)
        config = read_exported_config(text, path)
    takes_pixels = config["export"]["input"] == "uint8"
    network = OnnxNetwork(session, Path(path), takes_pixels, limit_s)
    check_black_image(network, config, path)
    return network, config


def check_black_image(network: Network, config: Mapping[str, Any], path: str | Path) -> None:
    """Raise `MltrError` unless a file's network returns a number for each class of an image."""
    side = Preprocess.from_dict(config["preprocess"]).image_size
    takes_pixels = config["export"]["input"] == "uint8"
    shape, kind = ((side, side, 3), np.uint8) if takes_pixels else ((3, side, side), np.float32)
    logits = network(np.zeros((1, *shape), kind))
    if logits.shape != (1, len(config["classes"])):
        raise MltrError(
            f"{path} returns {list(logits.shape)} values for an image, not one for each of its "
            f"{len(config['classes'])} classes; export the run again"
        )
    if not np.isfinite(logits).all():
        raise MltrError(f"{path} predicts NaN for a black image; export the run again")


def _choose_providers(ort: Any, device: str | None) -> list[Any]:
    kind, _, number = (device or "").partition(":")
    has_cuda = "CUDAExecutionProvider" in ort.get_available_providers()
    if kind == "cuda" and not has_cuda:
        raise UsageError(
            f"device {device!r} can't be used: this onnxruntime has no CUDA; "
            "pip install onnxruntime-gpu, or use cpu"
        )
    if kind not in ("", "cpu", "cuda") or (number and not number.isdecimal()):
        raise UsageError(f"device {device!r} is not one of onnxruntime's: use cpu, cuda or cuda:N")
    if has_cuda and kind != "cpu":
        cuda = ("CUDAExecutionProvider", {"device_id": int(number or 0)})
        return [cuda, "CPUExecutionProvider"]
    return ["CPUExecutionProvider"]


def load_program(path: str | Path, device: torch.device) -> tuple[ProgramNetwork, dict[str, Any]]:
    """Return the network of a .pt2 file and its checked config; raises as `load_onnx` does.

    `torch.export` may unpickle parts of such a file: load only those whose origin you trust.
    """
    import torch
    from torch.export.passes import move_to_device_pass

    check_file(path)
    texts = {CONFIG_ENTRY: ""}
    try:
        with Path(path).open("rb") as file:
            program = torch.export.load(file, extra_files=texts)
    except Exception as error:  # anything, from the archive's format to the operators in it
        raise MltrError(f"{path} can't be run by torch: {first_line(error)}") from error
    config = read_exported_config(texts[CONFIG_ENTRY], path)
    if device.type != "cpu":
        program = move_to_device_pass(program, device)
    takes_pixels = config["export"]["input"] == "uint8"
    return ProgramNetwork(program.module(), Path(path), device, takes_pixels), config


def find_onnx(path: str | Path) -> tuple[Path, dict[str, Any] | None]:
    """Return the ONNX file that `path` is, or holds with its config beside it, and that config.

    Raises `MltrError` if there is none.
    """
    config, file = None, Path(path)
    if file.is_dir():
        config, file = _read_config_beside(file), file / ONNX_FILE
    check_file(file)
    return file, config


def check_file(path: str | Path) -> None:
    """Raise `MltrError` if an exported file isn't there."""
    if not Path(path).is_file():
        raise MltrError(f"no such file: {path}; `mltr export RUN` writes such files")


def read_exported_config(text: str | None, path: str | Path) -> dict[str, Any]:
    """Return the checked config in the metadata of an exported file; raises `MltrError`."""
    if not text:
        raise MltrError(
            f"{path} contains no labels, so it wasn't written by `mltr export`; export the run"
        )
    return _with_export(parse_config(text, Path(path)), path)


def _read_config_beside(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise MltrError(
            f"{folder} is no bundle: make one of it with "
            f"`mltr convert tagger {shlex.quote(str(folder))} --out BUNDLE`"
        )
    return _with_export(read_config_file(path), path)


def _with_export(config: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """Return a config that says what goes into the network; raises `MltrError` for another."""
    export = config.get("export")
    if not isinstance(export, dict) or export.get("input") not in ("uint8", "float32"):
        raise MltrError(f"{path}: export.input must be uint8 or float32")
    return config
