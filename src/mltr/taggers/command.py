"""`mltr convert tagger`: make a bundle of another project's tagger or image classifier.

There are three kinds of SOURCE. A folder with model.onnx and selected_tags.csv, like those of the
WD taggers, needs no options. A folder in timm's format, with config.json and model.safetensors,
needs --activation unless its classes are ImageNet's. Any other ONNX classifier needs --labels, and
the options below for what its graph doesn't say.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mltr.errors import UsageError

if TYPE_CHECKING:
    from mltr.taggers.convert import Tagger

#: Options that only an ONNX file needs: a folder of timm's says all of it.
ONNX_OPTIONS = (
    "image_size", "layout", "channels", "range", "mean", "std", "padding", "crop_pct",
    "interpolation",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``mltr convert tagger``."""
    add = parser.add_argument
    add("source", metavar="SOURCE", help="a folder, a file model.onnx, or hf-hub:OWNER/NAME")
    add("--out", required=True, metavar="BUNDLE", help="folder for the bundle")
    add("--overwrite", action="store_true", help="replace an existing bundle")
    add(
        "--labels",
        metavar="FILE",
        help="the labels in the order of the outputs: a text file with one per line, or a CSV with "
        "columns name and category (default: a file of SOURCE)",
    )
    add(
        "--threshold",
        metavar="T",
        help="minimum probability of a label, or one for each category: 0.35,character=0.85 "
        "(default: 0.5; for WD taggers as in this example)",
    )
    add(
        "--activation",
        choices=["sigmoid", "softmax"],
        help="turns logits into probabilities: sigmoid if an image can have several labels, "
        "softmax if it has one (default: from the graph; softmax for ImageNet's classes)",
    )
    group = parser.add_argument_group("preprocessing of an ONNX file")
    add = group.add_argument
    add("--image-size", type=int, metavar="N", help="side in pixels (default: from the graph)")
    add("--layout", choices=["nchw", "nhwc"], help="default: from the graph")
    add("--channels", choices=["rgb", "bgr"], help="order of the colours (default: rgb)")
    add(
        "--range",
        type=int,
        choices=[1, 255],
        help="largest pixel value, before --mean and --std (default: 1; 255 for nhwc and uint8)",
    )
    add(
        "--mean",
        metavar="R,G,B",
        help="subtracted, in the order of --channels (default: ImageNet's for a range of "
        "1, else 0)",
    )
    add("--std", metavar="R,G,B", help="divisor after that (default: as for --mean)")
    add("--interpolation", choices=["bilinear", "bicubic"], help="default: bilinear")
    add(
        "--padding",
        metavar="COLOUR",
        help="borders that make an image square, such as white (default: the image is squashed)",
    )
    add(
        "--crop-pct",
        type=float,
        metavar="SHARE",
        help="centre crop: its share of the shorter side, such as 0.875",
    )


def run(args: argparse.Namespace) -> int:
    """Convert, check against the original, and write a bundle."""
    from mltr.predict.thresholds import parse_thresholds
    from mltr.taggers.convert import convert_onnx, convert_timm, locate
    from mltr.weights.bundle import public_name, refuse_overwriting
    from mltr.weights.metadata import ONNX_FILE

    out = Path(args.out)
    refuse_overwriting(out, args.overwrite)
    thresholds = {} if args.threshold is None else parse_thresholds(args.threshold)
    source = locate(args.source)
    if out.exists() and source.resolve() in (out.resolve(), (out / ONNX_FILE).resolve()):
        raise UsageError(f"--out {out} is SOURCE itself: choose another folder")
    tagger: Tagger
    if source.is_dir():
        _refuse_options(args)
        tagger = convert_timm(source, args.labels, args.activation)
    else:
        tagger = convert_onnx(source, args)
    tagger.set_thresholds(thresholds)
    tagger.write(out, f"tagger: {public_name(args.source)}")
    for line in tagger.report():
        print(line)
    return 0


def _refuse_options(args: argparse.Namespace) -> None:
    for name in ONNX_OPTIONS:
        if getattr(args, name) is not None:
            option = name.replace("_", "-")
            raise UsageError(f"--{option} is for ONNX files; {args.source} says that itself")
