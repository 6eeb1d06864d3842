"""An ONNX classifier of other people's, made to take and to return what an exported run does.

Nodes in front turn uint8 pixels [B, S, S, 3] into the input that the classifier was made for; its
last layer, where that makes probabilities, is taken off or undone, so that logits come out.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mltr.data.preprocess import Preprocess
from mltr.errors import MltrError, UsageError
from mltr.files.download import first_line
from mltr.predict.exported import INPUT, LIMIT_S, OUTPUT, SILENT, OnnxNetwork, require
from mltr.weights.metadata import SOFTMAX, to_probs

if TYPE_CHECKING:
    import onnx

Floats = NDArray[np.float32]
Step = tuple[str, dict[str, Any], NDArray[Any] | None]  #: a node: type, attributes, a constant

LARGEST_FILE = 2**31 - 1  #: bytes; protobuf has no larger message
LEAST_OPSET = 8  #: the first in which all of our nodes broadcast
PREFIX = "tagger/"  #: of every name in the original graph, so that none meets one of ours
COLOURS = 3
NEAREST = 1e-7  #: of a probability to 0 and 1, where it becomes a logit
SUM_TOLERANCE = 1e-3  #: of the probabilities of a softmax, from 1
CHECK_TOLERANCE = 2e-3  #: of a probability in half precision, made a logit and back
LAYOUTS = ("nchw", "nhwc")
PASSING = ("Identity", "Cast", "Reshape", "Flatten")  #: nodes that change no number

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Input:
    """What a classifier takes."""

    channels_last: bool
    image_size: int  #: side in pixels; 0: any
    holds_bytes: bool  #: whether pixels go in as uint8


def _read(path: Path) -> onnx.ModelProto:
    require("onnx", "export", "converting a tagger")
    import onnx

    if not path.is_file():
        raise MltrError(f"{path}: no such file")
    if path.stat().st_size > LARGEST_FILE:
        raise MltrError(f"{path} is larger than an ONNX file can be")
    try:
        model: onnx.ModelProto = onnx.load(path, load_external_data=False)
    except Exception as error:  # of protobuf, which has several
        raise MltrError(f"{path} isn't an ONNX file: {first_line(error)}") from error
    if not model.graph.node:
        raise MltrError(f"{path} isn't an ONNX file: it has no nodes")
    return model


def load(path: Path) -> onnx.ModelProto:
    """Read an ONNX file with the weights that lie beside it; nothing else is opened.

    Raises `MltrError` for another file, weights outside its folder, and weights with NaN.
    """
    import onnx

    model = _read(path)
    outside = [name for name in _external_files(model) if not _lies_in(path.parent, name)]
    if outside:
        raise MltrError(
            f"{path} needs weights from {outside[0]}, which isn't a file in its own folder: it was "
            "not opened; put all files of the tagger into one folder"
        )
    try:
        onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
        _check_numbers(model, path)
    except (OSError, ValueError, TypeError, onnx.checker.ValidationError) as error:
        raise MltrError(f"{path}: its weights can't be read: {first_line(error)}") from error
    if model.ByteSize() > LARGEST_FILE:
        raise MltrError(f"{path}: {model.ByteSize() / 1e9:.1f} GB don't fit into one ONNX file")
    return model


def _external_files(model: onnx.ModelProto) -> list[str]:
    """Return the names of the files that a graph needs weights from."""
    entries = (
        entry
        for tensor in _tensors(model)
        if tensor.data_location == tensor.EXTERNAL
        for entry in tensor.external_data
    )
    return list(dict.fromkeys(entry.value for entry in entries if entry.key == "location"))


def _tensors(model: onnx.ModelProto) -> Iterator[Any]:
    """Yield all weights, also those within functions and inner graphs."""
    graphs: list[Any] = [model.graph, *model.functions]
    while graphs:
        graph = graphs.pop()
        yield from getattr(graph, "initializer", ())
        for attribute in (each for node in graph.node for each in node.attribute):
            yield from ([attribute.t] if attribute.HasField("t") else [])
            yield from attribute.tensors
            graphs += [attribute.g] if attribute.HasField("g") else []
            graphs += attribute.graphs


def _lies_in(folder: Path, name: str) -> bool:
    target = folder / name
    return target.is_file() and target.resolve().parent == folder.resolve()


def _check_numbers(model: onnx.ModelProto, path: Path) -> None:
    """Raise `MltrError` for weights with NaN; infinity may be a mask's."""
    import onnx

    for tensor in _tensors(model):
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype.kind == "f" and np.isnan(values).any():
            raise MltrError(f"{path}: the weights contain NaN in {tensor.name}")


def read_input(model: onnx.ModelProto, path: Path, layout: str | None) -> Input:
    """Return what a graph takes; raises `MltrError` for what isn't one batch of colour images.

    `layout` is one of `LAYOUTS` where the graph doesn't tell, else None.
    """
    import onnx

    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [each for each in model.graph.input if each.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(each.name for each in inputs) or "none"
        raise MltrError(f"{path} has {len(inputs)} inputs ({names}); expected one, of images")
    kind = inputs[0].type.tensor_type
    kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.UINT8)
    sizes = [dim.dim_value for dim in kind.shape.dim]
    if len(sizes) != 4 or kind.elem_type not in kinds:
        raise MltrError(
            f"{path}: its input is {_describe(kind)}; expected images, four dimensions of float32, "
            "float16 or uint8"
        )
    told = [name for name, place in zip(LAYOUTS, (1, 3), strict=True) if sizes[place] == COLOURS]
    if layout is None and len(told) != 1:
        raise UsageError(f"{path}: its input is {_describe(kind)}; give --layout nchw or nhwc")
    channels_last = (layout or told[0]) == "nhwc"
    colours = sizes[3 if channels_last else 1]
    if colours not in (0, COLOURS):
        raise MltrError(f"{path}: its input is {_describe(kind)}, which isn't in three colours")
    high, wide = sizes[1:3] if channels_last else sizes[2:4]
    if high and wide and high != wide:
        raise MltrError(f"{path} takes images of {wide} x {high} pixels, and only squares can be")
    return Input(channels_last, high or wide, kind.elem_type == onnx.TensorProto.UINT8)


def _describe(kind: Any) -> str:
    import onnx

    sizes = [str(dim.dim_value or dim.dim_param or "?") for dim in kind.shape.dim]
    return f"{onnx.TensorProto.DataType.Name(kind.elem_type).lower()} [{', '.join(sizes)}]"


def _prefix_in_branches(graph: onnx.GraphProto, outer: set[str], *, inner: bool = False) -> None:
    """Give the weights of a graph that its branches use the prefix that they have in it.

    `compose.add_prefix` leaves them as they were called.
    """
    for node in graph.node:
        for place, name in enumerate(node.input):
            if inner and name in outer:
                node.input[place] = PREFIX + name
        for attribute in node.attribute:
            for branch in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else ())):
                own = {tensor.name for tensor in branch.initializer}
                _prefix_in_branches(branch, outer - own, inner=True)


def take_pixels(
    model: onnx.ModelProto, path: Path, given: Input, preprocess: Preprocess, is_bgr: bool
) -> onnx.ModelProto:
    """Return the graph with `INPUT`, pixels, in front and `OUTPUT`, [B, K], behind.

    What comes out is still what came out before. Raises `MltrError` for several outputs.
    """
    from onnx import TensorProto, compose, helper

    if len(model.graph.output) != 1:
        names = ", ".join(each.name for each in model.graph.output)
        raise MltrError(
            f"{path} has {len(model.graph.output)} outputs ({names}); expected one, with a number "
            "for each label: ask its author for such a file, or take the others out"
        )
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset < LEAST_OPSET:
        raise MltrError(
            f"{path} is of ONNX opset {opset}; convert it to {LEAST_OPSET} or later with "
            "onnx.version_converter"
        )
    outer = {tensor.name for tensor in model.graph.initializer}
    model = compose.add_prefix(model, PREFIX)
    graph = model.graph
    _prefix_in_branches(graph, outer)
    weights = {tensor.name for tensor in graph.initializer}
    source = next(each for each in graph.input if each.name not in weights)
    steps: list[Step] = [("Cast", {"to": TensorProto.FLOAT}, None)]
    scale = 1 / (255 * np.array(preprocess.std))
    shift = -np.array(preprocess.mean) / np.array(preprocess.std)
    if not np.allclose(scale, 1, rtol=1e-9):
        steps.append(("Mul", {}, scale.astype(np.float32)))
    if shift.any():
        steps.append(("Add", {}, shift.astype(np.float32)))
    if is_bgr:
        steps.append(("Gather", {"axis": 3}, np.array([2, 1, 0])))
    if not given.channels_last:
        steps.append(("Transpose", {"perm": [0, 3, 1, 2]}, None))
    steps.append(("Cast", {"to": source.type.tensor_type.elem_type}, None))
    added = _chain(graph, steps, INPUT, source.name)
    nodes = [*added, *graph.node, helper.make_node("Flatten", [graph.output[0].name], [OUTPUT])]
    side = preprocess.image_size
    shape: list[str | int | None] = ["batch", side, side, COLOURS]
    inputs = [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, shape)]
    inputs += [each for each in graph.input if each.name in weights]
    _replace(graph, nodes, inputs, graph.output[0].type.tensor_type.elem_type)
    return model


def _chain(graph: Any, steps: list[Step], start: str, end: str) -> list[Any]:
    """Return a row of nodes, each with its attributes and perhaps a constant."""
    from onnx import helper, numpy_helper

    nodes: list[Any] = []
    for number, (kind, attributes, constant) in enumerate(steps):
        inputs = [nodes[-1].output[0] if nodes else start]
        if constant is not None:
            inputs.append(f"{end}/constant_{number}")
            graph.initializer.append(numpy_helper.from_array(constant, inputs[1]))
        output = end if number == len(steps) - 1 else f"{end}/step_{number}"
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
    return nodes


def _replace(graph: Any, nodes: list[Any], inputs: list[Any], kind: int) -> None:
    """Give a graph these nodes and inputs, and `OUTPUT`, of this type."""
    from onnx import helper

    nodes, inputs = list(nodes), list(inputs)
    for field in ("node", "input", "output", "value_info"):  # the last: of another batch size
        graph.ClearField(field)
    graph.node.extend(nodes)
    graph.input.extend(inputs)
    graph.output.append(helper.make_tensor_value_info(OUTPUT, kind, ["batch", None]))


def score(model: onnx.ModelProto, path: Path, side: int) -> Floats:
    """Return what a graph of `take_pixels` says of four images: black and noise, [4, K].

    Raises `MltrError` where it fails, returns NaN, or depends on the size of the batch.
    """
    ort = require("onnxruntime", "onnx", str(path))
    options = ort.SessionOptions()
    options.log_severity_level = SILENT
    try:
        content = model.SerializeToString()
        session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no base of their own
        raise MltrError(f"{path} can't be run by onnxruntime: {first_line(error)}") from error
    network = OnnxNetwork(session, path, takes_pixels=True, limit_s=LIMIT_S)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (4, side, side, COLOURS), np.uint8)
    pixels[0] = 0
    first = network(pixels[:1])
    if first.ndim != 2 or not np.isfinite(first).all():
        raise MltrError(f"{path} predicts NaN for a black image: its weights are damaged")
    try:
        found = network(pixels)
    except MltrError as error:
        raise MltrError(
            f"{path} takes only one image at a time: export it again with a batch of any size"
        ) from error
    if found.shape != (4, first.shape[1]) or not np.isfinite(found).all():
        raise MltrError(f"{path} predicts {list(found.shape)} values for 4 images, or NaN")
    return found.astype(np.float32)


def return_logits(
    model: onnx.ModelProto, path: Path, scores: Floats, activation: str | None
) -> tuple[onnx.ModelProto, str]:
    """Return the graph with logits as its `OUTPUT`, and what makes its probabilities of them.

    `scores` are what `score` found. If they are probabilities, the last layer is taken off, or
    undone where it isn't known. Else `activation` says it. Raises `UsageError` if that is None, or
    contradicts the graph.
    """
    import onnx
    from onnx import TensorProto

    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    *nodes, flatten = graph.node
    source, maker = flatten.input[0], _maker(nodes, flatten.input[0])
    last = "" if maker is None else maker.op_type.lower()
    is_known = last == "sigmoid" or (last == "softmax" and _is_over_labels(maker))
    told = last if is_known else _guess(scores, activation)
    if told and activation not in (None, told):
        raise UsageError(
            f"{path} returns probabilities, by a {told}: leave --activation {activation} out"
        )
    if maker is not None and is_known:
        source = maker.input[0]
    elif told:
        return _undone(result, source, told), told
    told = told or activation
    if told is None:
        raise UsageError(
            f"{path} returns logits, and doesn't tell what makes probabilities of them: give "
            "--activation sigmoid if an image can have several labels, softmax if it has one"
        )
    steps: list[Step] = [("Flatten", {}, None), ("Cast", {"to": TensorProto.FLOAT}, None)]
    nodes += _chain(graph, steps, source, OUTPUT)
    _replace(graph, nodes, list(graph.input), TensorProto.FLOAT)
    return result, told


def _maker(nodes: Sequence[Any], result: str) -> Any:
    """Return the node that makes a result, before it is cast or reshaped; None for an input."""
    node = next((node for node in nodes if result in node.output), None)
    if node is not None and node.op_type in PASSING:
        return _maker(nodes, node.input[0])
    return node


def _guess(scores: Floats, activation: str | None) -> str | None:
    """Return what made probabilities of these scores [N, K], or None if they may be logits."""
    if scores.min() < 0 or scores.max() > 1:
        return None
    if np.allclose(scores.sum(axis=1), 1, atol=SUM_TOLERANCE):
        return "softmax"
    if activation is None:
        return "sigmoid"
    log.warning(
        "all outputs lie in 0..1, and are taken for logits, as --activation is given: if they are "
        "probabilities, leave it out"
    )
    return None


def _is_over_labels(softmax: Any) -> bool:
    return all(a.i in (-1, 1) for a in softmax.attribute if a.name == "axis")


def _undone(model: onnx.ModelProto, source: str, activation: str) -> onnx.ModelProto:
    """Return the graph with logits of the probabilities `source`: ``log(p / (1 - p))``."""
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    nodes = list(graph.node)[:-1]
    steps: list[Step] = [
        ("Flatten", {}, None),
        ("Cast", {"to": TensorProto.FLOAT}, None),
        ("Max", {}, np.array(NEAREST, np.float32)),
    ]
    if activation == "softmax":  # any logits do whose differences are the same
        nodes += _chain(graph, [*steps, ("Log", {}, None)], source, OUTPUT)
    else:
        steps.append(("Min", {}, np.array(1 - NEAREST, np.float32)))
        nodes += _chain(graph, steps, source, "probs")
        graph.initializer.append(numpy_helper.from_array(np.array(1, np.float32), "one"))
        nodes.append(helper.make_node("Sub", ["one", "probs"], ["others"]))
        nodes.append(helper.make_node("Div", ["probs", "others"], ["odds"]))
        nodes.append(helper.make_node("Log", ["odds"], [OUTPUT]))
    _replace(graph, nodes, list(graph.input), TensorProto.FLOAT)
    return model


def check(path: Path, scores: Floats, logits: Floats, activation: str) -> None:
    """Raise `MltrError` if logits don't give the scores, which are they or their probabilities."""
    calibration = SOFTMAX if activation == "softmax" else None
    for found in (logits, to_probs(logits, calibration)):
        if np.allclose(found, scores, rtol=1e-4, atol=CHECK_TOLERANCE):
            return
    raise MltrError(
        f"{path} predicts otherwise once its last layer is taken off: ask its author for a file "
        "that ends before it, with logits"
    )
