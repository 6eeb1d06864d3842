"""Images with labels: readers, splits, preprocessing and batches.

The names are imported when first used: the readers need no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mltr.data.detect import detect_format
    from mltr.data.images import open_image
    from mltr.data.loading import ImageDataset, make_loader
    from mltr.data.preprocess import Preprocess
    from mltr.data.readers.coco import read_coco
    from mltr.data.readers.folders import read_class_folders, read_folder
    from mltr.data.readers.nuswide import read_nuswide
    from mltr.data.readers.scenes import read_scenes
    from mltr.data.readers.table import read_csv, read_parquet
    from mltr.data.readers.voc import read_voc
    from mltr.data.records import Box, Record, Split, Splits
    from mltr.data.sources import open_splits
    from mltr.data.stratify import stratified_split
    from mltr.data.walk import find_images

_HOMES = {
    "readers.coco": ("read_coco",),
    "detect": ("detect_format",),
    "readers.folders": ("read_class_folders", "read_folder"),
    "images": ("open_image",),
    "loading": ("ImageDataset", "make_loader"),
    "readers.nuswide": ("read_nuswide",),
    "preprocess": ("Preprocess",),
    "records": ("Box", "Record", "Split", "Splits"),
    "readers.scenes": ("read_scenes",),
    "sources": ("open_splits",),
    "stratify": ("stratified_split",),
    "readers.table": ("read_csv", "read_parquet"),
    "readers.voc": ("read_voc",),
    "walk": ("find_images",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Box", "ImageDataset", "Preprocess", "Record", "Split", "Splits", "detect_format",
    "find_images", "make_loader", "open_image", "open_splits", "read_class_folders", "read_coco",
    "read_csv", "read_folder", "read_nuswide", "read_parquet", "read_scenes", "read_voc",
    "stratified_split",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(importlib.import_module(f"mltr.data.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module 'mltr.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
