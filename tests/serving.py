"""Servers and networks for tests of `mltr serve`."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from making import save_untrained
from PIL import Image

from mltr.data.preprocess import Preprocess
from mltr.predict.predictor import Predictor

COLOURS = ("red", "green", "blue")
TINY: dict[str, Any] = {"image_size": 32, "depths": [0, 1], "conv_depths": [1, 0]}


def colour_network(images: np.ndarray) -> np.ndarray:
    """Return logits of red, green and blue: the distance of the channel's mean from the middle."""
    logits: np.ndarray = 20 * (images.mean(axis=(2, 3)) - 0.5)
    return logits


def colour_predictor(network: Any = colour_network) -> Predictor:
    """Return a predictor without torch whose results are obvious."""
    return Predictor(network, COLOURS, Preprocess(8), np.full(3, 0.5, np.float32))


def save_tiny_bundle(folder: Path) -> Path:
    """Save an untrained network for the three colours; it has heat maps."""
    return save_untrained(folder, COLOURS, TINY, thresholds=[0.4, 0.45, 0.9])


def picture(colour: str = "red", size: tuple[int, int] = (30, 20), form: str = "PNG") -> bytes:
    """Return the file of a picture of one colour."""
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, form)
    return stream.getvalue()


@contextmanager
def live_server(app: Any, settings: Any = None) -> Iterator[Any]:
    """Serve an application in a thread; yield the server with its `port` on this machine."""
    import uvicorn

    from mltr.serve.connections import protocol
    from mltr.serve.settings import Settings

    http = protocol(settings or Settings())
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(
            uvicorn.Config(
                app, http=http, ws="none", log_config=None, lifespan="on", loop="asyncio"
            )
        )
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        try:
            server.port = listener.getsockname()[1]
            yield server
        finally:
            server.should_exit = True
            thread.join()
