"""What options of `mltr predict` and other commands can be. Imports nothing heavy."""

from __future__ import annotations

from mltr.errors import UsageError, did_you_mean

DEFAULT_THRESHOLD = 0.5
SHEET_PICTURES = 60  #: a contact sheet shows the first so many images
NAMINGS = ("photo.jpg.xmp", "photo.xmp")  #: digiKam, darktable and most; Lightroom and Adobe's
ENGINES = ("auto", "torch", "onnx", "openvino")
#: Formats of the output by the ending of its name.
FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
TOOLS = ("fiftyone", "label-studio")  #: formats that --format alone chooses
#: Views of one image, whose probabilities are averaged: mirrored, and enlarged parts of it.
MIRROR, TILES = "mirror", "tiles"
VIEWS = (MIRROR, TILES)
VIEWS_HELP = (
    "average the probabilities of several views of each image: mirror, tiles (the whole image and "
    "four overlapping parts of it), or mirror,tiles"
)


def parse_views(text: str | None) -> tuple[str, ...]:
    """Return the views in an option such as ``mirror,tiles``; raises `UsageError` for others."""
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    for name in names:
        if name not in VIEWS:
            raise UsageError(f"--views {name}: no such view{did_you_mean(name, VIEWS)}; known: "
                             f"{', '.join(VIEWS)}")  # fmt: skip
    return tuple(name for name in VIEWS if name in names)
