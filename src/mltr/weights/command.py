"""`mltr convert`: convert weights of CAT or Swin to a bundle, and report where each came from."""

from __future__ import annotations

import argparse
import shlex

from mltr.errors import MltrError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``mltr convert``."""
    parser.add_argument("family", choices=["cat", "swin"], help="origin of the weights")
    parser.add_argument(
        "source", metavar="SOURCE", help="a .pth or .safetensors file, or timm's name for a Swin"
    )
    parser.add_argument(
        "--variant",
        metavar="NAME",
        help="variant, see `mltr list` (default for CAT: the variant of the file)",
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder for the bundle")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    parser.epilog = "For a tagger with labels of its own, see `mltr convert tagger --help`."


def run(args: argparse.Namespace) -> int:
    """Convert, write a bundle, and report where each weight came from."""
    from mltr.data.preprocess import IMAGENET, Preprocess
    from mltr.network.model import default_image_size
    from mltr.network.variants import get_variant
    from mltr.weights.bundle import drop_others, public_name, refuse_overwriting, save_bundle
    from mltr.weights.convert import convert, imagenet_classes, read_source
    from mltr.weights.metadata import WEIGHTS_FILE

    if args.variant is not None:
        get_variant(args.variant)  # a misspelt name is told before anything is read
    refuse_overwriting(args.out, args.overwrite)
    tensors = read_source(args.family, args.source)
    try:
        name, overrides, model, report = convert(args.family, tensors, args.variant)
    except MltrError as error:
        raise type(error)(f"{args.source}: {error}") from error
    image_size = overrides.get("image_size", default_image_size(name))
    save_bundle(
        args.out,
        model=model,
        name=name,
        overrides=overrides,
        classes=imagenet_classes(model.num_classes),
        preprocess=Preprocess(image_size, *IMAGENET),
        extra={
            "converted_from": f"{args.family}: {public_name(args.source)}",
            "taken": report.taken,
        },
    )
    drop_others(args.out, WEIGHTS_FILE)
    print(report)
    init = shlex.quote(args.out)
    print(f"{args.out}: {name}; train from it: mltr train RECIPE --model.init {init}")
    return 0
