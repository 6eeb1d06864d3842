"""`mltr list`: the available networks and their sizes."""

from __future__ import annotations

import argparse

from mltr.terminal import make_console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--classes", type=int, default=80, help="number of classes (default: 80)")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON (- for stdout)")


def run(args: argparse.Namespace) -> int:
    """Print a line for each variant: parameters, image size, windows, depths."""
    import torch
    from rich.table import Table

    from mltr.files.writing import write_figures
    from mltr.network.model import create_model, list_models
    from mltr.network.variants import VARIANTS

    table = Table(caption="or timm/NAME for any timm backbone", caption_justify="left")
    for heading in ("model", "parameters", "image", "window", "width", "triples"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    figures = {}
    for name in list_models():
        variant = VARIANTS[name]
        with torch.device("meta"):
            model = create_model(name, num_classes=args.classes)
        parameters = sum(p.numel() for p in model.parameters())
        figures[name] = {"parameters": parameters}
        table.add_row(
            name,
            f"{parameters / 1e6:.2f} M",
            str(variant.image_size),
            str(variant.window_size),
            str(variant.embed_dim),
            ", ".join(map(str, variant.depths)),
        )
    if args.json:
        write_figures(args.json, figures)
    if args.json != "-":
        make_console().print(table)
    return 0
