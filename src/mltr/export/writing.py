"""Writes a network with its labels and preprocessing to one file."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.export import ExportedProgram

from mltr import __version__
from mltr.data.preprocess import Pixels
from mltr.errors import MltrError, UsageError
from mltr.export.checking import (
    BATCH,
    Check,
    as_input,
    check,
    find_photos,
    seconds_per_image,
)
from mltr.files.download import first_line
from mltr.files.writing import to_json, write_atomically
from mltr.predict.exported import (
    CONFIG_ENTRY,
    CONFIG_KEY,
    INPUT,
    OUTPUT,
    load_onnx,
    load_program,
    require,
)
from mltr.predict.graph import trace
from mltr.weights.bundle import Bundle, load_bundle

if TYPE_CHECKING:
    import onnx

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LARGEST_ONNX = 2**31 - 1  #: maximum bytes of a protobuf message


def write_program(program: ExportedProgram, path: Path, config: Mapping[str, Any]) -> None:
    """Write a .pt2 file that contains the config."""
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files={CONFIG_ENTRY: to_json(config)})


def to_onnx(program: ExportedProgram) -> onnx.ModelProto:
    """Return the program as an ONNX graph; raises `MltrError` if ONNX can't express it."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    try:
        with _quiet():
            found = torch.onnx.export(
                program, input_names=[INPUT], output_names=[OUTPUT], dynamo=True, verbose=False
            )
    except torch.onnx.OnnxExporterError as error:
        raise MltrError(f"can't be exported to ONNX: {first_line(error)}") from error
    assert found is not None
    ClearMetadataAndDocStringPass()(found.model)  # removes stack traces with local paths
    return found.model_proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings and logs of the exporter and the quantiser."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def write_onnx(model: onnx.ModelProto, path: Path, config: Mapping[str, Any]) -> None:
    """Write an ONNX file that contains the config."""
    import onnx

    if model.ByteSize() > LARGEST_ONNX:
        raise MltrError(
            f"{model.ByteSize() / 1e9:.1f} GB don't fit into one ONNX file (2 GB at most): use "
            "--precision fp16 or --to torch"
        )
    onnx.helper.set_model_props(model, {CONFIG_KEY: to_json(config)})
    path.write_bytes(model.SerializeToString())


def export(
    run: str,
    out: str | Path,
    *,
    to: str = "onnx",
    precision: str = "fp32",
    takes_pixels: bool = True,
    images: str | None = None,
    overrides: Sequence[str] = (),
) -> Check:
    """Write a run's network, labels and preprocessing to one file, and check it.

    `images` is a folder of photos for the check (default: the run's validation images). Raises
    `MltrError`, without writing, if the file's network deviates from the run's.
    """
    if to == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            require(package, "export", "exporting to ONNX")
    bundle = load_bundle(run)
    if not bundle.classes:
        raise MltrError(f"{run} has no labels yet: train it before exporting it")
    photos = find_photos(run, bundle, images, overrides)
    if precision == "int8" and not len(photos.calibration):
        raise UsageError(
            f"int8 needs real images for calibration; the images here are {photos.source}"
        )
    program = trace(bundle, takes_pixels, DTYPES.get(precision, torch.float32), to)
    entry = {
        "input": "uint8" if takes_pixels else "float32",
        "precision": precision,
        "mltr_version": __version__,
        "torch_version": torch.__version__,
    }
    config = bundle.config | {"export": entry}
    found: list[Check] = []

    def write(temporary: Path) -> None:
        if to == "torch":
            write_program(program, temporary, config)
            loaded = load_program(temporary, torch.device("cpu"))[0]
            found.append(check(loaded, bundle, photos, precision))
            return
        model, speeds = to_onnx(program), None
        if precision == "int8":
            write_onnx(model, temporary, config)
            plain = load_onnx(temporary, "cpu")[0]
            model = _quantize(model, bundle, photos.calibration, takes_pixels)
        write_onnx(model, temporary, config)
        network = load_onnx(temporary, "cpu")[0]
        result = check(network, bundle, photos, precision)
        if precision == "int8":
            batch = as_input(photos.pixels[:BATCH], bundle.preprocess, takes_pixels)
            speeds = seconds_per_image([plain, network], [batch, batch])
        found.append(replace(result, seconds=speeds))

    write_atomically(out, write)
    return found[0]


def _quantize(
    model: onnx.ModelProto, bundle: Bundle, pixels: Pixels, takes_pixels: bool
) -> onnx.ModelProto:
    from mltr.export.int8 import quantize

    with _quiet():
        return quantize(model, as_input(pixels, bundle.preprocess, takes_pixels))
