"""The limits, timeouts and keys of a server. Every field is checked when it is set."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from mltr.errors import MltrError, UsageError

KEYS_VARIABLE = "MLTR_API_KEYS"
MIN_KEY_LENGTH = 16  #: shorter keys can be guessed
MEGABYTE = 1_000_000
ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^/?#\s]+")  #: as browsers send it


def _limit(default: float, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Settings:
    """Limits of a server, and who may use it."""

    name: str = "mltr"  #: name of the model on the page
    max_files: int = _limit(32, "images in one request")
    max_body_mb: float = _limit(32, "size of one request, in megabytes")
    max_megapixels: float = _limit(64, "size of one image, in millions of pixels")
    max_decoded_mb: float = _limit(
        1000, "decoded size of the images of one request, and memory of all being decoded"
    )
    max_held_mb: float = _limit(256, "total size of the requests in memory, in megabytes")
    max_queue: int = _limit(128, "images accepted and not yet answered; beyond it 503")
    max_batch: int = _limit(32, "images per batch of the network")
    max_wait_ms: float = _limit(5, "milliseconds that an image waits for others of its batch")
    network_threads: int = _limit(1, "batches in the network at a time")
    max_connections: int = _limit(
        1000, "open connections; beyond it the longest idle one is closed"
    )
    head_timeout_s: float = _limit(10, "seconds to receive the head of a request; beyond it 408")
    body_timeout_s: float = _limit(30, "seconds to receive one request; beyond it 408")
    timeout_s: float = _limit(30, "seconds from a complete request to its response; beyond it 504")
    keys: tuple[str, ...] = ()  #: API keys, one of which each request must have; empty: open to all
    cors_origins: tuple[str, ...] = ()  #: other sites whose pages may call the API
    hosts: tuple[str, ...] = ()  #: accepted host names; empty: any

    def __post_init__(self) -> None:
        for limit in limits():
            value = getattr(self, limit.name)
            least = 0 if limit.name == "max_wait_ms" else 1 if limit.type == "int" else 1e-3
            if not least <= value < math.inf:
                raise UsageError(
                    f"{limit.name}={value} ({limit.metadata['help']}) must be at least {least:g}"
                )
        if self.max_queue < self.max_files:
            raise UsageError(
                f"max_queue={self.max_queue} must be at least max_files={self.max_files}: "
                "a full request would never fit"
            )
        if self.max_held_mb < self.max_body_mb:
            raise UsageError(
                f"max_held_mb={self.max_held_mb:g} must be at least max_body_mb="
                f"{self.max_body_mb:g}: a full request would never fit"
            )
        for origin in self.cors_origins:
            if not ORIGIN.fullmatch(origin) or origin != origin.lower():
                raise UsageError(
                    f"cors {origin!r} must be SCHEME://NAME in small letters, as in "
                    "https://photos.example, with nothing after it, or * for all sites"
                )
        for key in self.keys:
            if len(key) < MIN_KEY_LENGTH or not (key.isascii() and key.isprintable()) or " " in key:
                raise UsageError(
                    f"an API key must have at least {MIN_KEY_LENGTH} characters, all of them ASCII "
                    "and none a blank; a comment in a file of keys has a line of its own"
                )


def limits() -> list[Field[Any]]:
    """Return the fields that are limits; the metadata of each contains its `help`."""
    return [f for f in fields(Settings) if "help" in f.metadata]


def read_keys(
    path: str | Path | None, environment: Mapping[str, str] = os.environ
) -> tuple[str, ...]:
    """Return the API keys in a file, one per line with `#` for comments, and in `MLTR_API_KEYS`.

    Raises `MltrError` for a file that can't be read, or if it or the variable contains no key.
    """
    keys = [key.strip() for key in environment.get(KEYS_VARIABLE, "").split(",")]
    if KEYS_VARIABLE in environment and not any(keys):
        raise MltrError(f"{KEYS_VARIABLE} is set, but contains no key")
    if path is not None:
        try:
            lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            raise MltrError(f"can't read the API keys in {path}: {error}") from error
        written = [line.strip() for line in lines if not line.lstrip().startswith("#")]
        if not any(written):
            raise MltrError(f"{path} contains no API key: write one per line")
        keys += written
    return tuple(key for key in keys if key)
