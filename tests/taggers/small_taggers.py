"""Small networks in exactly the layouts in which others publish theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import timm
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

SIDE = 16
WD_ROWS = (
    (9999999, "safe", 9, 900),
    (9999998, "explicit", 9, 100),
    (470575, "sea", 0, 800),
    (212816, "blue_sky", 0, 700),
    (13197, "sunset", 0, 600),
    (8601, "moby_dick", 4, 50),
)
NAMES = tuple(row[1] for row in WD_ROWS)
ONNX_TYPES = {np.float32: TensorProto.FLOAT, np.float16: TensorProto.FLOAT16}


def write_onnx(
    path: Path,
    *,
    outputs: int = 6,
    last: str = "Sigmoid",
    nhwc: bool = True,
    kind: Any = np.float32,
    batch: int | str = "batch",
    side: int | str = SIDE,
    extra: bool = False,
    nan: bool = False,
    gain: float = 1.0,
) -> Path:
    """Write a classifier: a convolution, its mean and a linear layer, then the layers `last`.

    `gain` is that of the convolution: 1 for pixels in 0..1.
    """
    rng = np.random.default_rng(0)
    weight = (gain * rng.normal(0, 1.0, (8, 3, 3, 3))).astype(kind)
    linear = rng.normal(0, 1.0, (outputs, 8)).astype(kind)
    if nan:
        linear[1, 2] = np.nan
    constants = {
        "weight": weight,
        "linear": linear,
        "bias": np.linspace(-1, 1, outputs).astype(kind),
    }
    nodes = (
        [helper.make_node("Transpose", ["input"], ["planes"], perm=[0, 3, 1, 2])] if nhwc else []
    )
    nodes += [
        helper.make_node("Conv", ["planes" if nhwc else "input", "weight"], ["maps"]),
        helper.make_node("Relu", ["maps"], ["active"]),
        helper.make_node("GlobalAveragePool", ["active"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("Gemm", ["features", "linear", "bias"], ["logits"], transB=1),
    ]
    source = "logits"
    for layer in last.split():
        nodes.append(helper.make_node(layer, [source], [f"{source}_{layer}"]))
        source = nodes[-1].output[0]
    nodes.append(helper.make_node("Identity", [source], ["output"]) if not last else nodes.pop())
    nodes[-1].output[0] = "output"
    shape = [batch, side, side, 3] if nhwc else [batch, 3, side, side]
    element = ONNX_TYPES[kind]
    results = [helper.make_tensor_value_info("output", element, [batch, outputs])]
    if extra:
        results.append(helper.make_tensor_value_info("features", element, [batch, 8]))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("input", element, shape)],
        results,
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def write_wd(folder: Path, **options: Any) -> Path:
    """Write a folder as the WD taggers are: NHWC in 0..255, and tags with their categories."""
    write_onnx(folder / "model.onnx", gain=1 / 64, **options)
    rows = [",".join(map(str, row)) for row in (("tag_id", "name", "category", "count"), *WD_ROWS)]
    (folder / "selected_tags.csv").write_text("\n".join(rows) + "\n")
    return folder


def write_timm(folder: Path, names: Any = None, num_classes: int = 6, **config: Any) -> Path:
    """Write a folder as timm pushes it to the Hub: a network of its own with random weights."""
    torch.manual_seed(0)
    network = timm.create_model("test_resnet.r160_in1k", num_classes=num_classes)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), folder / "model.safetensors")
    known = {
        "input_size": [3, 64, 64], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4],
        "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center",
        "num_classes": num_classes, "pool_size": [2, 2], "first_conv": "conv1", "classifier": "fc",
    }  # fmt: skip
    content: dict[str, Any] = {
        "architecture": "test_resnet",
        "num_classes": num_classes,
        "pretrained_cfg": known | config,
    }
    if names is not None:
        content["label_names"] = names
    (folder / "config.json").write_text(json.dumps(content))
    return folder
