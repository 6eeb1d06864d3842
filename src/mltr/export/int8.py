"""int8 quantisation for `mltr export`, calibrated on real images.

Activations are uint8 per tensor. Weights are int8 per channel, reduced to 7 bits because CPUs
without VNNI add two products in 16 bits. Only convolutions and wide linear layers are quantised;
benchmarks/export.py shows no gain for products between activations, narrow layers and the
classifier.
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

NARROWEST = 32  #: minimum inputs and outputs of a quantised linear layer
BATCH = 8  #: batch size of the calibration


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

    `images` [N, ...] are inputs of the graph, from which the ranges of activations are measured.
    """
    with TemporaryDirectory() as folder:
        given, plain, found = (Path(folder) / f"{name}.onnx" for name in ("given", "plain", "int8"))
        onnx.save(model, given)  # quantising in memory would consume the caller's model
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
            # The output of a linear layer stays in float32, as the next operation needs it.
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm"]},
        )
        quantized = onnx.load(found)
    for node in quantized.graph.node:
        if node.op_type == "Gelu":  # the tanh form is faster; its error is below that of int8
            del node.attribute[:]
            node.attribute.append(onnx.helper.make_attribute("approximate", "tanh"))
    return quantized


def choose_nodes(graph: onnx.GraphProto) -> list[str]:
    """Return the names of the nodes to quantise."""
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
        if node.op_type == "Add":  # residual of a convolution
            return any(map(is_conv, node.input))
        if node.op_type == "Clip":  # ReLU6: 8 bits for what it cuts off would be lost
            return is_conv(node.input[0])
        return node.op_type in ("Conv", "Relu")

    return [node.name for node in graph.node if is_chosen(node)]
