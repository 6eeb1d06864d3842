"""`mltr resize`: a bundle for another image or window size, by resampling what depends on places.

Three kinds of weights know where a pixel is: absolute positions, relative position tables, and
the cross-window projections, whose features are the P pixels of a window.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from timm.layers import resize_rel_pos_bias_table_simple
from torch import Tensor, nn

from mltr.errors import UsageError
from mltr.model import CrossWindowAttention, create_model, resize_position

if TYPE_CHECKING:
    from mltr.weights import Bundle

RECIPE_FILE = "config.yaml"


def adapt(model: nn.Module, name: str, tensor: Tensor) -> Tensor | None:
    """Return `tensor` in the shape of the model's entry `name`, resampled if need be.

    None if they differ in more than the sizes of image and windows.
    """
    expected = model.state_dict()[name].shape
    if tensor.shape == expected:
        return tensor
    owner, _, entry = name.rpartition(".")
    if entry == "position" and len(expected) == 4 and tensor.shape[3:] == expected[3:]:
        return resize_position(tensor, (expected[1], expected[2]))
    if entry == "relative_position_bias_table" and tensor.shape[1] == expected[1]:
        w = (math.isqrt(expected[0]) + 1) // 2
        table: Tensor = resize_rel_pos_bias_table_simple(tensor.float(), (w, w), tuple(expected))
        return table.to(tensor.dtype)
    attention, _, linear = owner.rpartition(".")
    is_cross = bool(attention) and isinstance(model.get_submodule(attention), CrossWindowAttention)
    if is_cross and _is_square(tensor.shape[0] // (3 if linear == "qkv" else 1)):
        return resize_cross_window(tensor, expected[0], is_qkv=linear == "qkv")
    return None


def _is_square(number: int) -> bool:
    return math.isqrt(number) ** 2 == number


def resize_cross_window(tensor: Tensor, rows: int, *, is_qkv: bool) -> Tensor:
    """Resample the weight or bias of a cross-window projection to another size of windows.

    A window of the new size is resampled to the old one, projected, and resampled back: W becomes
    U W D, with D to the old size and U to the new one. Keys go back by D transposed, so that their
    products with queries stay what they were (D U = 1 where windows grow), times what undoes the
    change of the scale P^-0.5. So enlarged windows get the enlarged answer, exactly.
    """
    parts = 3 if is_qkv else 1
    old, new = math.isqrt(tensor.shape[0] // parts), math.isqrt(rows // parts)
    up, down = _between_windows(old, new)
    scale = (new / old) ** 0.5  # on queries and keys: P^-0.5 is 1 / old
    ways = (scale * up, scale * down.T, up) if is_qkv else (up,)
    resized = []
    for part, way in zip(tensor.double().chunk(parts), ways, strict=True):
        there = way @ part
        resized.append(there @ down if part.ndim == 2 else there)
    return torch.cat(resized).to(tensor.dtype)


def _between_windows(old: int, new: int) -> tuple[Tensor, Tensor]:
    """Return U [P_new, P_old] and D [P_old, P_new]; one is the pseudo-inverse of the other.

    The one that enlarges is bicubic, so that there and back again changes nothing.
    """
    small, large = sorted((old, new))
    pixels = torch.eye(small**2, dtype=torch.float64).view(-1, 1, small, small)
    enlarged = F.interpolate(pixels, (large, large), mode="bicubic", align_corners=False)
    enlarge = enlarged.flatten(1).T
    shrink = torch.linalg.pinv(enlarge)
    return (enlarge, shrink) if new >= old else (shrink, enlarge)


def resize_bundle(bundle: Bundle, image_size: int, window_size: int | None = None) -> Bundle:
    """Return the bundle for images of `image_size` pixels a side, and windows of `window_size`.

    For a timm backbone only the images change; a transformer's own tables are resampled by timm.
    Raises `UsageError` for sizes that are not positive, and for windows of a timm backbone.
    """
    if image_size < 1:
        raise UsageError(f"image size {image_size} must be positive")
    name, overrides = bundle.config["model"]["name"], dict(bundle.config["model"]["overrides"])
    overrides["image_size"] = image_size
    if window_size is not None:
        if name.startswith("timm/"):
            raise UsageError(f"{name}: only MlTr's windows can be resized")
        overrides["window_size"] = window_size
    model = create_model(name, num_classes=len(bundle.classes), **overrides)
    own: Mapping[str, Tensor] = bundle.model.state_dict()
    if name.startswith("timm/"):
        own = _resized_by_timm(bundle.model, own, model, name, image_size)
    model.load_state_dict({key: _adapted(model, key, own[key]) for key in model.state_dict()})
    # A first squash to fewer pixels than the network sees would only blur.
    base_size = bundle.preprocess.base_size if bundle.preprocess.base_size >= image_size else 0
    return replace(
        bundle,
        model=model.eval(),
        preprocess=replace(bundle.preprocess, image_size=image_size, base_size=base_size),
        config=bundle.config | {"model": {"name": name, "overrides": overrides}},
    )


def _adapted(model: nn.Module, name: str, tensor: Tensor) -> Tensor:
    adapted = adapt(model, name, tensor)
    if adapted is None:
        raise UsageError(f"{name} {list(tensor.shape)} can't be resized")
    return adapted


def _resized_by_timm(
    source: Any, tensors: Mapping[str, Tensor], model: nn.Module, name: str, image_size: int
) -> Mapping[str, Tensor]:
    """Return the weights of a timm backbone for another image size."""
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    if all(tensors[key].shape == shape for key, shape in shapes.items()):
        return tensors
    backbone = getattr(source, "backbone", source)
    if not hasattr(backbone, "set_input_size"):
        raise UsageError(f"{name} is built for one image size, and timm can't change it")
    backbone.set_input_size((image_size, image_size))
    resized: Mapping[str, Tensor] = source.state_dict()
    return resized


# The command.


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``mltr resize``."""
    parser.add_argument("bundle", metavar="RUN", help="a training run, or a folder with weights")
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="side of the images")
    parser.add_argument("--window-size", type=int, metavar="W", help="side of the windows")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the new bundle goes")
    parser.add_argument("--overwrite", action="store_true", help="replace a bundle in that folder")


def run(args: argparse.Namespace) -> int:
    """Resize a bundle and write it to another folder."""
    from mltr.weights import load_bundle, refuse_overwriting, save_bundle

    if args.image_size is None and args.window_size is None:
        raise UsageError("nothing to do: give --image-size, --window-size, or both")
    if Path(args.out).resolve() == Path(args.bundle).resolve():
        raise UsageError("--out must be another folder: the run's own weights stay as they are")
    refuse_overwriting(args.out, args.overwrite)
    bundle = load_bundle(args.bundle)
    before = bundle.preprocess.image_size
    image_size = before if args.image_size is None else args.image_size
    resized = resize_bundle(bundle, image_size, args.window_size)
    save_bundle(
        args.out,
        model=resized.model,
        name=resized.config["model"]["name"],
        overrides=resized.config["model"]["overrides"],
        classes=resized.classes,
        preprocess=resized.preprocess,
        thresholds=resized.thresholds,
        calibration=resized.calibration,
        extra={"resized_from": Path(args.bundle).name, "image_size_before": before},
    )
    _write_recipe(Path(args.bundle) / RECIPE_FILE, Path(args.out) / RECIPE_FILE, resized)
    print(
        f"{args.out}: {resized.config['model']['name']} for {resized.preprocess.image_size} px "
        f"(before: {before} px). Its figures are no longer those of {args.bundle}: check it by "
        f"mltr evaluate {args.out}, or train on: mltr train RECIPE --model.init {args.out}"
    )
    return 0


def _write_recipe(source: Path, target: Path, resized: Bundle) -> None:
    """Give the new bundle the recipe of its run, so that it can be evaluated on the same images."""
    from mltr.files import text_writer, write_atomically
    from mltr.recipe import load_recipe, to_yaml

    if not source.is_file():
        return
    config = load_recipe(source)
    config.model.image_size = resized.preprocess.image_size
    config.data.base_size = resized.preprocess.base_size
    config.data.cache = config.data.cache and config.data.base_size > 0
    overrides = resized.config["model"]["overrides"]
    if "window_size" in overrides:
        config.model.overrides["window_size"] = overrides["window_size"]
    write_atomically(target, text_writer(to_yaml(config)))
