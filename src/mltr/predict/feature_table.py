"""A table of features: paths and float16 lists in Parquet, and what computed them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mltr.data.tables.sheet import open_parquet
from mltr.errors import MltrError
from mltr.files.writing import write_atomically
from mltr.predict.results import ROW_GROUP, Row

Floats = NDArray[np.float32]

KEY = b"mltr"  #: of the schema's metadata
NAMES, FEATURES = "path", "features"


@dataclass(frozen=True)
class Origin:
    """What made a table of features."""

    network: str  #: the run or the bundle, by its absolute path
    fingerprint: str  #: of its backbone
    folder: str  #: which relative paths of images start from


class Near(NamedTuple):
    """An image and how similar it is."""

    path: str
    similarity: float  #: cosine of the angle between the features


@dataclass(frozen=True)
class FeatureTable:
    """A file that `mltr embed` wrote, read group by group: memory doesn't grow with it."""

    path: Path
    origin: Origin

    @classmethod
    def open(cls, path: Path) -> FeatureTable:
        """Raise `MltrError` if the file isn't there, damaged, or another one."""
        if not path.is_file():
            raise MltrError(f"{path}: no such table of features; `mltr embed` writes one")
        with open_parquet(path) as file:
            about = (file.schema_arrow.metadata or {}).get(KEY, b"")
            try:
                origin = Origin(**json.loads(about))
            except (ValueError, TypeError) as error:
                raise MltrError(f"{path} wasn't written by `mltr embed`") from error
        return cls(path, origin)

    def locate(self, name: str) -> Path:
        """Return where an image of the table lies."""
        return Path(self.origin.folder, name)

    def find(self, photo: str) -> tuple[str, Floats] | None:
        """Return the name and the features [D] of a photo that is in the table.

        A name that the table has counts if there is no such file here.
        """
        wanted = os.path.abspath(photo)  # noqa: PTH100 - links stay what they are
        is_here = os.path.lexists(photo)
        for names, features in self._groups():
            for row, name in enumerate(names):
                is_name = name == photo and not is_here
                if is_name or os.path.normpath(self.locate(name)) == wanted:
                    return name, features[row]
        return None

    def nearest(self, vector: Floats, count: int, but: str | None = None) -> list[Near]:
        """Return the images most similar to features [D], best first, less the one named `but`.

        Raises `MltrError` if they aren't as many as the table's.
        """
        best: list[Near] = []
        for names, features in self._groups():
            if features.shape[1] != len(vector):
                raise MltrError(
                    f"{self.path} has {features.shape[1]} features for an image, and this network "
                    f"{len(vector)}: run mltr embed again"
                )
            lengths = np.linalg.norm(features, axis=1) * np.linalg.norm(vector)
            similar = features @ vector / np.maximum(lengths, np.finfo(np.float32).tiny)
            rows = [row for row in np.argsort(-similar)[: count + 1] if names[row] != but]
            best += [Near(names[row], float(similar[row])) for row in rows]
            best = sorted(best, key=lambda near: -near.similarity)[:count]
        return best

    def _groups(self) -> Iterator[tuple[list[str], Floats]]:
        with open_parquet(self.path) as file:
            for batch in file.iter_batches(ROW_GROUP, columns=[NAMES, FEATURES]):
                values = batch.column(FEATURES).flatten().to_numpy(zero_copy_only=False)
                yield (
                    batch.column(NAMES).to_pylist(),
                    values.reshape(len(batch), -1).astype(np.float32),
                )


def write_features(path: Path, rows: Iterable[Row], origin: Origin, follow_links: bool) -> None:
    """Write the rows of images that can be read; `probs` of a row are its features.

    Raises `MltrError` for features beyond what float16 holds, and if the file can't be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds: list[tuple[str, Any]] = [(NAMES, pa.string()), (FEATURES, pa.list_(pa.float16()))]
    schema = pa.schema(kinds, metadata={KEY: json.dumps(asdict(origin))})
    readable = (row for row in rows if row.probs is not None)

    def write(temporary: Path) -> None:
        with pq.ParquetWriter(temporary, schema) as writer:
            while group := list(islice(readable, ROW_GROUP)):
                values = np.stack([row.probs for row in group if row.probs is not None])
                if np.abs(values).max() > np.finfo(np.float16).max:
                    raise MltrError("the network's features are too large for float16")
                starts = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
                flat = pa.array(values.astype(np.float16).ravel())
                names = pa.array([row.name for row in group])
                features = pa.ListArray.from_arrays(pa.array(starts), flat)
                writer.write_batch(pa.record_batch([names, features], schema=schema))

    write_atomically(path, write, follow_links=follow_links)
