"""OpenVINO on a CPU: runs ONNX files, and networks of torch, which are converted in memory."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mltr.errors import MltrError, UsageError
from mltr.files.writing import sha256_of
from mltr.machine.choice import PRODUCT, is_faster, told_precision
from mltr.machine.threads import told_threads
from mltr.predict.exported import (
    CONFIG_KEY,
    check_black_image,
    find_onnx,
    read_exported_config,
    require,
)

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from mltr.predict.predictor import Network

Floats = NDArray[np.float32]

LOOPS = {"Loop", "TensorIterator"}  #: may have no end


@dataclass(frozen=True, eq=False)
class OpenVinoNetwork:
    """A compiled network for a `Predictor`; may be called from several threads at once."""

    full: Any  #: `openvino.CompiledModel` for `batch_size` images
    rest: Any  #: another for `rest_size` images
    batch_size: int
    rest_size: int | None  #: None for any number, 10 to 25 % slower
    takes_pixels: bool  #: whether uint8 [B, S, S, 3] go in, which the network scales itself
    origin: Path | Network  #: the file, or the network of torch, that this was made of

    def __call__(self, images: NDArray[Any]) -> Floats:
        """Return logits float32 [B, K] of the images; raises `MltrError` if that fails."""
        count = len(images)
        if count == self.batch_size:
            return run(self.full, images)[0]
        size = self.rest_size or count
        parts = [images[start : start + size] for start in range(0, count, size)]
        return np.concatenate([run(self.rest, part)[0] for part in parts])

    @property
    def fingerprint(self) -> str:
        """The same as of what this was made of."""
        return sha256_of(self.origin) if isinstance(self.origin, Path) else self.origin.fingerprint

    @property
    def reference(self) -> Network | None:
        """The network of torch that this was made of, if it was."""
        return None if isinstance(self.origin, Path) else self.origin


def is_installed() -> bool:
    """Return whether OpenVINO can be imported."""
    return importlib.util.find_spec("openvino") is not None


def load_openvino(
    path: str | Path, device: str | None = None, batch_size: int = 32
) -> tuple[OpenVinoNetwork, Any]:
    """Return the network of an ONNX file and its checked config, without torch or onnxruntime.

    It is fastest in batches of `batch_size`. Raises `MltrError` for a file that is missing, damaged
    or not written by `mltr export`, or that returns no logits for a black image.
    """
    path, config = find_onnx(path)
    check_device(device)
    with _failures(f"{path} can't be run by OpenVINO"):
        graph = _convert("onnx", str(path))
        if config is None:
            text = None
            if graph.has_rt_info(["framework", CONFIG_KEY]):
                text = str(graph.get_rt_info(["framework", CONFIG_KEY]).value)
            config = read_exported_config(text, path)
        if LOOPS & {node.get_type_name() for node in graph.get_ops()}:
            raise MltrError(f"{path} has a loop, which OpenVINO couldn't be stopped in")
        takes_pixels = config["export"]["input"] == "uint8"
        is_int8 = config["export"].get("precision") == "int8"
        network = make_network(graph, batch_size, takes_pixels, path, is_int8=is_int8)
    check_black_image(network, config, path)
    return network, config


def make_network(
    graph: Any,
    batch_size: int,
    takes_pixels: bool,
    origin: Path | Network,
    precision: str | None = None,
    is_int8: bool = False,
) -> OpenVinoNetwork:
    """Return a graph's network, which is fastest in batches of `batch_size`.

    `precision` is that of `compile_graph`. A graph in int8 takes other numbers of images one by
    one: if compiled for any number, its probabilities are wrong by 0.1 on average, or it can't be
    (OpenVINO 2026.4; the same graph is right for a number that is known).
    """
    rest_size = 1 if is_int8 else None
    full, rest = (compile_graph(graph, precision, size) for size in (batch_size, rest_size))
    return OpenVinoNetwork(full, rest, batch_size, rest_size, takes_pixels, origin)


def check_device(device: str | None) -> None:
    """Raise `UsageError` for a device that OpenVINO isn't used on here."""
    if device not in (None, "cpu"):
        raise UsageError(f"OpenVINO runs on the CPU, not on {device!r}: leave out --device")


def convert(program: ExportedProgram) -> Any:
    """Return a program of torch as OpenVINO's graph; raises `MltrError` if there is none."""
    _import()
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    with _failures("OpenVINO can't convert the network"), _without_notes():
        return _convert("pytorch", TorchFXPythonDecoder.from_exported_program(program))


def _convert(framework: str, source: Any) -> Any:
    """Return the graph in a source that only one framework writes: others would complain of it."""
    _import()
    from openvino.frontend import FrontEndManager

    frontend = FrontEndManager().load_by_framework(framework)
    return frontend.convert(frontend.load(source))


@contextmanager
def _failures(what: str) -> Iterator[None]:
    """Turn OpenVINO's errors, which have no base of their own, into `MltrError`."""
    try:
        yield
    except MltrError:
        raise
    except Exception as error:
        # The lines before the last say where in OpenVINO it was.
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
        raise MltrError(f"{what}: {reason}") from error


def compile_graph(graph: Any, precision: str | None = None, batch_size: int | None = None) -> Any:
    """Return a graph ready to be run on the CPU, with as many threads as torch would have.

    With a `batch_size` it takes no other, and more operations are computed together.
    `precision` is fp32 or bf16; by default bf16 if the CPU is faster in it, unless MLTR_PRECISION
    says otherwise.
    """
    chosen = precision or told_precision() or ("bf16" if _gains_by_bf16() else "fp32")
    if batch_size is not None:
        graph = graph.clone()
        shape = graph.input(0).get_partial_shape()
        shape[0] = batch_size
        graph.reshape(shape)
    return _compile(graph, chosen)


def _compile(graph: Any, precision: str, threads: int = 0) -> Any:
    settings = {
        "PERFORMANCE_HINT": "LATENCY",  # all threads in one batch; a stream for each was slower
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        "INFERENCE_NUM_THREADS": threads or told_threads(),
    }
    return _core().compile_model(graph, "CPU", settings)


@cache
def _gains_by_bf16() -> bool:
    """Return whether OpenVINO is faster in bf16 than in float32; a product of matrices tells.

    There are processors whose instructions for bf16 are half as fast as those for float32.
    """
    core = _core()
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return False
    from openvino import Model, opset13

    rows = opset13.parameter([PRODUCT, PRODUCT])
    weight = np.ones((PRODUCT, PRODUCT), np.float32)
    graph = Model([opset13.matmul(rows, weight, False, True)], [rows])
    # Several threads would wait for one another where other programs run.
    half, full = (_compile(graph, precision, threads=1) for precision in ("bf16", "fp32"))
    return is_faster(lambda: run(half, weight), lambda: run(full, weight))


def run(compiled: Any, images: NDArray[Any]) -> list[Floats]:
    """Return the outputs for the images; raises `MltrError` if that fails."""
    with _failures("the network fails in OpenVINO"):
        request = compiled.create_infer_request()
        request.infer({0: np.ascontiguousarray(images)}, share_inputs=True)
        return [np.array(output.data, np.float32) for output in request.output_tensors]


@cache
def _core() -> Any:
    """Return the one core of this process, which lasts as long as it does.

    A core has signals handled on a stack of its own, and puts back the stack of the one before it
    when it goes. Where that one went first, its stack is no longer there: the next signal, such as
    Ctrl-C or the end of a child, would end the process.
    """
    return _import().Core()


def _import() -> Any:
    """Import OpenVINO, which would tell its makers so if this package of its own were there."""
    modules: dict[str, Any] = sys.modules
    modules.setdefault("openvino_telemetry", None)
    return require("openvino", "openvino", "--engine openvino")


@contextmanager
def _without_notes() -> Iterator[None]:
    """Keep back what the decoder tells of operations that this torch doesn't decompose."""

    def is_other(record: logging.LogRecord) -> bool:
        return "not found in decomp table" not in str(record.msg)

    logging.root.addFilter(is_other)
    try:
        yield
    finally:
        logging.root.removeFilter(is_other)
