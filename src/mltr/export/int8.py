"""int8 for `mltr export`: which products are worth it, calibrated on real images.

Activations are uint8 by tensor, weights int8 by channel and of 7 bits, as processors without VNNI
add two products up in 16 bits. What benchmarks/export.py shows to cost more than it brings stays
in float32: products between activations, narrow layers, the classifier, everything else.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

NARROWEST = 32  #: inputs and outputs of a linear layer that is worth quantising
BATCH = 8  #: images that are calibrated on at once


class _Batches(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, name: str, images: NDArray[Any]) -> None:
        starts = range(0, len(images), BATCH)
        self.feeds: Iterator[dict[str, NDArray[Any]]] = (
            {name: images[start : start + BATCH]} for start in starts
        )

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """Return the next batch, or None after the last."""
        return next(self.feeds, None)


def quantize(model: onnx.ModelProto, images: NDArray[Any]) -> onnx.ModelProto:
    """Return the graph with its convolutions and linear layers in int8.

    `images` [N, ...] is what goes into it; the ranges of all activations are taken from them.
    """
    with TemporaryDirectory() as folder:
        given, plain, found = (Path(folder) / f"{name}.onnx" for name in ("given", "plain", "int8"))
        onnx.save(model, given)  # from memory, what it is made of would be moved out of it
        quant_pre_process(given, plain, skip_symbolic_shape=True)  # constants become weights
        quantize_static(
            plain,
            found,
            _Batches(model.graph.input[0].name, images),
            quant_format=QuantFormat.QDQ,
            nodes_to_quantize=choose_nodes(onnx.load(plain).graph),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            # What follows a linear layer is in float32, so its output needn't be rounded.
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm"]},
        )
        quantized = onnx.load(found)
    for node in quantized.graph.node:
        if node.op_type == "Gelu":  # by tanh: faster, and nearer than the steps of int8
            del node.attribute[:]
            node.attribute.append(onnx.helper.make_attribute("approximate", "tanh"))
    return quantized


def choose_nodes(graph: onnx.GraphProto) -> list[str]:
    """Return the names of the nodes that int8 makes faster."""
    weights = {weight.name: tuple(weight.dims) for weight in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}

    def is_conv(value: str) -> bool:
        node = makers.get(value)
        if node is not None and node.op_type == "Transpose":
            return is_conv(node.input[0])
        return node is not None and node.op_type == "Conv"

    def is_chosen(node: onnx.NodeProto) -> bool:
        if node.op_type == "Gemm":
            return bool(min(weights.get(node.input[1], (0,))) >= NARROWEST)
        if node.op_type == "Add":  # of a residual convolution
            return any(map(is_conv, node.input))
        return node.op_type in ("Conv", "Relu")

    return [node.name for node in graph.node if is_chosen(node)]
