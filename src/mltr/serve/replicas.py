"""Replicas of the network under Ray Serve; the rest of a server stays in the front process.

Accepted requests are held by the front process. If a replica dies, another one gets its images and
Ray starts a replacement.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mltr.data.preprocess import Pixels
from mltr.errors import MltrError
from mltr.predict.cluster import ADDRESS_VARIABLE, connected, divide, load_same, locate, reason
from mltr.predict.predictor import Predictor, load
from mltr.serve.settings import Settings

if TYPE_CHECKING:
    from PIL import Image

    from mltr.diagnosis.evidence import Explanation

Floats = NDArray[np.float32]

logger = logging.getLogger(__name__)

DEPLOYMENT = "network"
MAX_DEATHS = 5  #: deaths of replicas over the same batch, after which it fails
HEALTH_CHECK_S = 1  #: seconds between health checks
STARTS = 2  #: attempts to start a replica


class Replica:
    """A replica of the network, in its own process on some machine of the cluster."""

    def __init__(self, bundle: str, device: str | None, threads: int, fingerprint: str) -> None:
        self._predictor = load_same(bundle, fingerprint, device, threads)
        side = self._predictor.preprocess.image_size
        self._predictor.logits(np.zeros((1, side, side, 3), np.uint8))  # warm-up

    async def logits(self, pixels: Pixels) -> Floats:
        """Return logits float32 [B, K] of images uint8 [B, S, S, 3]."""
        return await asyncio.to_thread(self._predictor.logits, pixels)

    async def explain(self, *args: Any) -> Explanation:
        """Return the first result of `mltr.diagnosis.evidence.explain`."""
        from mltr.diagnosis.evidence import explain

        return (await asyncio.to_thread(explain, self._predictor, *args))[0]


@dataclass(frozen=True)
class Replicas:
    """All replicas as the network of a `Predictor`; safe to call from any thread."""

    handle: Any
    application: str
    fingerprint: str
    explains: bool
    timeout_s: float  #: time limit of a call in seconds, including retries
    takes_pixels = True

    def __call__(self, images: NDArray[Any]) -> Floats:
        """Return logits float32 [B, K] of images uint8 [B, S, S, 3]."""
        logits: Floats = self._ask("logits", images)
        return logits

    def explain(
        self, picture: Image.Image, labels: Sequence[str] | None, method: str, longest: int
    ) -> Explanation:
        """Return the result of `mltr.diagnosis.evidence.explain` for the first label."""
        found: Explanation = self._ask("explain", picture, labels, method, longest, 1)
        return found

    def is_ready(self) -> bool:
        """Return whether any replica runs."""
        from ray import serve

        application = serve.status().applications.get(self.application)
        states = application.deployments[DEPLOYMENT].replica_states if application else {}
        return any(state == "RUNNING" and count for state, count in states.items())

    def _ask(self, method: str, *args: Any) -> Any:
        """Call a method of a replica; if it dies, retry on another one (calls are idempotent)."""
        from ray.exceptions import RayActorError, RayTaskError

        end = time.monotonic() + self.timeout_s
        deaths = 0
        while True:
            response = getattr(self.handle, method).remote(*args)
            try:
                return response.result(timeout_s=max(0, end - time.monotonic()))
            except RayTaskError as error:
                raise error.cause from None
            except RayActorError:
                deaths += 1
                if deaths == MAX_DEATHS:
                    raise
                logger.warning("a replica died; another one gets its images")
            except TimeoutError:
                response.cancel()
                raise


@contextlib.contextmanager
def running(
    bundle: str | Path, device: str | None, count: int, settings: Settings
) -> Iterator[Predictor]:
    """Yield the predictor of a bundle whose network runs in `count` replicas.

    Each replica loads the bundle. The replicas share the cores, and each processes
    `settings.network_threads` batches at a time. Raises `MltrError` if they don't start.
    """
    predictor = load(bundle, "cpu")  # for classes, thresholds and preprocessing, and as a check
    with connected() as ray, _application_name() as application:
        from ray import serve

        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        part = divide(ray, device, count)
        threads = max(1, part.threads // settings.network_threads)
        serve.start(proxy_location="Disabled")
        deployment: Any = serve.deployment(
            Replica,
            name=DEPLOYMENT,
            num_replicas=count,
            ray_actor_options=part.resources,
            max_ongoing_requests=settings.network_threads,
            health_check_period_s=HEALTH_CHECK_S,
            max_constructor_retry_count=STARTS,
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )
        try:
            handle = serve.run(
                deployment.bind(locate(bundle), device, threads, predictor.fingerprint),
                name=application,
                route_prefix=None,
            )
        except RuntimeError as error:
            raise MltrError(f"the replicas don't start: {_reason(application)}") from error
        from mltr.diagnosis.evidence import has_maps

        explains = has_maps(predictor)
        fingerprint = predictor.network.fingerprint
        network = Replicas(handle, application, fingerprint, explains, settings.timeout_s)
        yield replace(predictor, network=network)


@contextlib.contextmanager
def _application_name() -> Iterator[str]:
    """Yield a unique application name; delete the application from the cluster at the end."""
    name = f"mltr-{uuid.uuid4().hex[:8]}"
    try:
        yield name
    finally:
        if os.environ.get(ADDRESS_VARIABLE):  # otherwise Ray itself is shut down
            from ray import serve

            serve.delete(name)


def _reason(application: str) -> str:
    """Return the last line of Serve's message on the replicas, without the error's type."""
    from ray import serve

    message = serve.status().applications[application].deployments[DEPLOYMENT].message
    return reason(message)
