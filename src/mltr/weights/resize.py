"""`mltr resize`: adapt a bundle to another image or window size."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mltr.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mltr.weights.bundle import Bundle


def resize_bundle(bundle: Bundle, image_size: int, window_size: int | None = None) -> Bundle:
    """Return the bundle for an image side of `image_size` pixels and windows of `window_size`.

    For a timm backbone only the image size changes; timm resamples a transformer's own tables.
    Raises `UsageError` for sizes that are not positive, and for windows of a timm backbone.
    """
    from mltr.data.preprocess import first_side
    from mltr.network.features import check_image_size
    from mltr.network.model import create_model

    if image_size < 1:
        raise UsageError(f"image size {image_size} must be positive")
    name, overrides = bundle.config["model"]["name"], dict(bundle.config["model"]["overrides"])
    overrides["image_size"] = image_size
    if window_size is not None:
        if name.startswith("timm/"):
            raise UsageError(f"{name}: only MlTr has windows that can be resized")
        overrides["window_size"] = window_size
    model = create_model(name, num_classes=len(bundle.classes), **overrides)
    own: Mapping[str, Tensor] = bundle.model.state_dict()
    if name.startswith("timm/"):
        own = _resized_by_timm(bundle.model, own, model, name, image_size)
    model.load_state_dict({key: _adapted(model, key, own[key]) for key in model.state_dict()})
    check_image_size(model, image_size, "image size")
    base_size = first_side(bundle.preprocess.base_size, image_size)
    return replace(
        bundle,
        model=model.eval(),
        preprocess=replace(bundle.preprocess, image_size=image_size, base_size=base_size),
        config=bundle.config | {"model": {"name": name, "overrides": overrides}},
    )


def _adapted(model: nn.Module, name: str, tensor: Tensor) -> Tensor:
    from mltr.network.resampling import adapt

    adapted = adapt(model, name, tensor)
    if adapted is None:
        raise UsageError(f"{name} {list(tensor.shape)} can't be resized")
    return adapted


def _resized_by_timm(
    source: Any, tensors: Mapping[str, Tensor], model: nn.Module, name: str, image_size: int
) -> Mapping[str, Tensor]:
    """Return the weights of a timm backbone for another image size."""
    backbone = getattr(source, "backbone", source)
    own = "" if backbone is source else "backbone."  # a head of ours is resampled by us
    shapes = {key: value.shape for key, value in model.state_dict().items() if key.startswith(own)}
    if all(tensors[key].shape == shape for key, shape in shapes.items()):
        return tensors
    if not hasattr(backbone, "set_input_size"):
        raise UsageError(f"{name} is built for one image size, and timm can't change it")
    backbone.set_input_size((image_size, image_size))
    resized: Mapping[str, Tensor] = source.state_dict()
    return resized


# The command.


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``mltr resize``."""
    parser.add_argument("bundle", metavar="RUN", help="a training run, or a folder with weights")
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="new side of the images")
    parser.add_argument("--window-size", type=int, metavar="W", help="new side of the windows")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder for the new bundle")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle")


def run(args: argparse.Namespace) -> int:
    """Resize a bundle and write it to another folder."""
    from mltr.weights.bundle import drop_others, load_bundle, refuse_overwriting, save_bundle
    from mltr.weights.metadata import WEIGHTS_FILE

    if args.image_size is None and args.window_size is None:
        raise UsageError("nothing to do: give --image-size, --window-size, or both")
    if Path(args.out).resolve() == Path(args.bundle).resolve():
        raise UsageError("--out must be another folder: the run's own weights are not replaced")
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
        categories=resized.categories,
        hierarchy=resized.config.get("hierarchy"),
        extra={
            **{k: v for k, v in resized.config.get("extra", {}).items() if k == "calibrated"},
            "resized_from": Path(args.bundle).name,
            "image_size_before": before,
        },
    )
    drop_others(args.out, WEIGHTS_FILE)
    _write_recipe(Path(args.bundle), Path(args.out), resized)
    out = shlex.quote(args.out)
    print(
        f"{args.out}: {resized.config['model']['name']} for {resized.preprocess.image_size} px "
        f"(before: {before} px). The figures of {args.bundle} no longer apply: check it with mltr "
        f"evaluate {out}, or continue training: mltr train RECIPE --model.name "
        f"{resized.config['model']['name']} --model.init {out} --model.image_size "
        f"{resized.preprocess.image_size}"
    )
    return 0


def _write_recipe(run: Path, out: Path, resized: Bundle) -> None:
    """Give the new bundle its run's recipe and splits, so that it is judged on the same images."""
    from mltr.config.recipe import load_recipe, to_yaml
    from mltr.files.writing import text_writer, write_atomically
    from mltr.weights.metadata import RECIPE_FILE, SPLITS_FILE

    if not (run / RECIPE_FILE).is_file():
        return
    if (run / SPLITS_FILE).is_file():
        write_atomically(out / SPLITS_FILE, text_writer((run / SPLITS_FILE).read_text("utf-8")))
    config = load_recipe(run / RECIPE_FILE)
    config.model.image_size = resized.preprocess.image_size
    config.data.base_size = resized.preprocess.base_size
    config.data.cache = config.data.cache and config.data.base_size > 0
    overrides = resized.config["model"]["overrides"]
    if "window_size" in overrides:
        config.model.overrides["window_size"] = overrides["window_size"]
    write_atomically(out / RECIPE_FILE, text_writer(to_yaml(config)))
