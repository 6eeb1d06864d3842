"""Views of one image, whose probabilities are averaged: mirrored, and enlarged parts of it."""

from __future__ import annotations

from mltr.errors import UsageError, did_you_mean

MIRROR, TILES = "mirror", "tiles"
VIEWS = (MIRROR, TILES)
HELP = (
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
