"""What a server allows: sizes, times, keys. Every field is checked when it is set."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from mltr.errors import MltrError, UsageError

KEYS_VARIABLE = "MLTR_API_KEYS"
MIN_KEY_LENGTH = 16  #: shorter keys can be guessed
MEGABYTE = 1_000_000


def _limit(default: float, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Settings:
    """Limits of a server, and who may use it."""

    name: str = "mltr"  #: of the model, as the page shows it
    max_files: int = _limit(32, "images in one request")
    max_body_mb: float = _limit(32, "size of one request, in megabytes")
    max_megapixels: float = _limit(64, "size of one image, in millions of pixels")
    max_decoded_mb: float = _limit(
        1000, "what the images of one request unpack to, and what decoding may take at a time"
    )
    max_held_mb: float = _limit(256, "size of all requests held at a time, in megabytes")
    max_queue: int = _limit(128, "images accepted and not answered yet; beyond it 503")
    max_batch: int = _limit(32, "images that go through the network together")
    max_wait_ms: float = _limit(5, "time that an image waits for others of its batch")
    network_threads: int = _limit(1, "batches that go through the network at a time")
    max_connections: int = _limit(1000, "open at a time; beyond it the longest idle one is closed")
    head_timeout_s: float = _limit(10, "time for the head of a request; beyond it 408")
    body_timeout_s: float = _limit(30, "time for sending one request; beyond it 408")
    timeout_s: float = _limit(30, "time from a whole request to its answer; beyond it 504")
    keys: tuple[str, ...] = ()  #: of which a request has to bring one; none: open to all
    cors_origins: tuple[str, ...] = ()  #: other sites whose pages may call the API
    hosts: tuple[str, ...] = ()  #: names that requests may call this server by; none: any

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
        for key in self.keys:
            if len(key) < MIN_KEY_LENGTH or not (key.isascii() and key.isprintable()):
                raise UsageError(
                    f"an API key must have at least {MIN_KEY_LENGTH} characters, all of them ASCII"
                )


def limits() -> list[Field[Any]]:
    """Return the fields that are limits; the metadata of each has its `help`."""
    return [f for f in fields(Settings) if "help" in f.metadata]


def read_keys(
    path: str | Path | None, environment: Mapping[str, str] = os.environ
) -> tuple[str, ...]:
    """Return the API keys of a file, one a line, `#` for comments, and of `MLTR_API_KEYS`.

    Raises `MltrError` for a file that can't be read or holds no key.
    """
    keys = [key.strip() for key in environment.get(KEYS_VARIABLE, "").split(",")]
    if path is not None:
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise MltrError(f"can't read the API keys in {path}: {error}") from error
        written = [line.strip() for line in lines if not line.lstrip().startswith("#")]
        if not any(written):
            raise MltrError(f"{path} holds no API key: write one a line")
        keys += written
    return tuple(key for key in keys if key)
