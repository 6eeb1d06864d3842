"""`mltr export`: write one file that runs elsewhere, verified against the original network."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from mltr.errors import UsageError

SUFFIX = {"onnx": ".onnx", "torch": ".pt2"}
PRECISIONS = {"onnx": ("fp32", "fp16", "int8"), "torch": ("fp32", "fp16", "bf16")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``mltr export``."""
    add = parser.add_argument
    add("bundle", metavar="RUN", help="a training run, or a folder with weights")
    add(
        "--to",
        choices=["onnx", "torch"],
        default="onnx",
        help="ONNX, for onnxruntime and most other engines (default), or a torch.export program",
    )
    add(
        "--out", metavar="FILE", help="default: in RUN, model.onnx, model.int8.onnx, model.pt2, ..."
    )
    add(
        "--precision",
        choices=["fp32", "fp16", "bf16", "int8"],
        default="fp32",
        help="precision of the computation; int8 (ONNX) is calibrated on real images, bf16 is for "
        "torch",
    )
    add(
        "--input",
        choices=["uint8", "float32"],
        default="uint8",
        help="input of the file: pixels [B, S, S, 3], which it scales itself (default), or scaled "
        "and normalised images [B, 3, S, S]",
    )
    add(
        "--images",
        metavar="FOLDER",
        help="photos to verify the file with (default: the run's validation images)",
    )
    add("--overwrite", action="store_true", help="replace an existing file")


def run(args: argparse.Namespace, overrides: Sequence[str] = ()) -> int:
    """Export a run to a checked file and describe it."""
    from mltr.export.checking import tell
    from mltr.export.writing import export

    if args.precision not in PRECISIONS[args.to]:
        raise UsageError(
            f"--to {args.to} supports {', '.join(PRECISIONS[args.to])}, not {args.precision}"
        )
    out = _choose_out(args)
    result = export(
        args.bundle,
        out,
        to=args.to,
        precision=args.precision,
        takes_pixels=args.input == "uint8",
        images=args.images,
        overrides=overrides,
    )
    print(f"{out}: {args.precision}, {out.stat().st_size / 1e6:.1f} MB, takes {args.input}")
    print("\n".join(f"  {line}" for line in tell(result)))
    print(f"To use it: mltr predict {shlex.quote(str(out))} PHOTOS")
    return 0


def _choose_out(args: argparse.Namespace) -> Path:
    from mltr.files.download import HUB_PREFIX

    suffix = SUFFIX[args.to]
    if args.out is None and args.bundle.startswith(HUB_PREFIX):
        raise UsageError("--out FILE is needed for a bundle from the Hub")
    infix = "" if args.precision == "fp32" else f".{args.precision}"
    out = Path(args.out or Path(args.bundle) / f"model{infix}{suffix}")
    if out.suffix != suffix:
        raise UsageError(f"--out {out}: with --to {args.to}, the name must end in {suffix}")
    if out.exists() and not args.overwrite:
        raise UsageError(f"{out} already exists: choose another --out, or use --overwrite")
    return out
