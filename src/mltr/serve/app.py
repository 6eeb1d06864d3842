"""The HTTP application: an API for predictions and heat maps, and the page that uses it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import io
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib.resources import files
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import JSONResponse
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from fastapi.staticfiles import StaticFiles
from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from mltr import __version__
from mltr.data.hierarchy import ancestors
from mltr.data.images import open_image
from mltr.data.preprocess import Pixels
from mltr.diagnosis.overlay import HEAT_MAP_SIDE, overlay
from mltr.errors import BrokenImage, MltrError, UsageError, did_you_mean
from mltr.predict.predictor import Prediction, Predictor
from mltr.serve import schema
from mltr.serve.batching import Batcher, Busy
from mltr.serve.decoding import Decoder, Weight
from mltr.serve.gate import Gate
from mltr.serve.observe import SAFE_HEADERS, Metrics, Observer
from mltr.serve.replicas import Replicas
from mltr.serve.settings import Settings, limits
from mltr.serve.uploads import Intake, Linger, Upload

if TYPE_CHECKING:
    from mltr.diagnosis.evidence import Explanation

logger = logging.getLogger(__name__)

PAGE_FILES = {
    "": ("index.html", "text/html"),
    "page.css": ("page.css", "text/css"),
    "page.js": ("page.js", "text/javascript"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
}
MAX_ASPECT = 100  #: maximum ratio of an image's sides

Bearer = Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]
KeyHeader = Annotated[str | None, Depends(APIKeyHeader(name="X-API-Key", auto_error=False))]


def create_app(predictor: Predictor, settings: Settings | None = None) -> FastAPI:
    """Return the application for a network; its lifespan starts and stops the workers.

    Applications of the same process share no state.
    """
    settings = settings or Settings()
    service = _Service(predictor, settings)
    app = FastAPI(
        title=f"MlTr: {settings.name}",
        version=__version__,
        description=schema.DESCRIPTION,
        lifespan=service.lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    app.include_router(service.api())
    app.include_router(_page_router())
    app.get("/openapi.json", include_in_schema=False)(_describe)
    # FastAPI would load Swagger UI from a CDN; this package contains it.
    app.mount("/docs-assets", StaticFiles(packages=[("fastapi_offline", "static")]))
    app.add_exception_handler(Busy, _tell_busy)
    app.add_exception_handler(RequestValidationError, _tell_invalid)
    app.add_exception_handler(UsageError, _tell_usage)
    app.add_exception_handler(MltrError, _tell_failure)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["X-Request-ID", "Retry-After"],
        )
    app.add_middleware(Gate, settings=settings)
    app.add_middleware(Linger)
    app.add_middleware(Observer, metrics=service.metrics)
    return app


class _Service:
    """The routes of the API and the state that they share."""

    def __init__(self, predictor: Predictor, settings: Settings) -> None:
        self.metrics = Metrics()
        self._predictor = predictor
        self._explains = _explains(predictor)
        self._categories = dict(zip(predictor.classes, predictor.categories or (), strict=False))
        self._settings = settings
        self._key_digests = [_digest(key) for key in settings.keys]
        self._intake = Intake(settings)
        self._batcher = Batcher(predictor, settings, self.metrics.count_batch)
        self._decoder = Decoder(settings)
        self.metrics.pending.set_function(lambda: self._batcher.pending)
        self.metrics.held.set_function(lambda: self._intake.held_bytes)

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Start the workers, and stop them when the application ends."""
        await self._batcher.start()
        yield
        await self._batcher.stop()
        self._decoder.stop()

    def api(self) -> APIRouter:
        """Return the routes of the API."""
        routes = APIRouter()
        closed = APIRouter(dependencies=[Depends(self.check_key)] if self._key_digests else [])
        posted: dict[str, Any] = {
            "tags": ["pictures"],
            "openapi_extra": schema.IMAGES_BODY,
            "dependencies": [Depends(_check_options)],
        }
        closed.post(
            "/v1/predict", response_model=schema.Results, responses=schema.PROBLEMS, **posted
        )(self.predict)
        closed.post(
            "/v1/explain",
            response_model=schema.HeatMap,
            responses=schema.PROBLEMS | schema.EXPLAINED,
            **posted,
        )(self.explain)
        closed.get(
            "/v1/labels",
            tags=["pictures"],
            response_model_exclude_none=True,
            dependencies=[Depends(_check_options)],
            responses={status: schema.PROBLEMS[status] for status in (401, 422)},
        )(self.labels)
        closed.get("/metrics", tags=["state"], response_class=Response)(self.tell_metrics)
        routes.include_router(closed)
        routes.head("/healthz", include_in_schema=False)(self.healthz)  # as some monitors ask
        routes.head("/readyz", include_in_schema=False)(self.readyz)
        routes.get("/healthz", tags=["state"])(self.healthz)
        routes.get("/readyz", tags=["state"], responses={503: schema.PROBLEMS[503]})(self.readyz)
        return routes

    async def check_key(self, bearer: Bearer, header: KeyHeader) -> None:
        """Raise 401 unless the request has a valid key; compares in constant time."""
        given = _digest((bearer.credentials if bearer else header) or "")
        matches = [hmac.compare_digest(given, known) for known in self._key_digests]
        if not any(matches):
            raise HTTPException(
                401,
                "an API key is needed: Authorization: Bearer KEY, or X-API-Key: KEY",
                {"WWW-Authenticate": "Bearer"},
            )

    # -- pictures ------------------------------------------------------------------------------

    async def predict(
        self, request: Request, top: schema.Top = None, threshold: schema.Threshold = None
    ) -> Response:
        """Predict the labels of one or more pictures. An unreadable one has an `error` instead."""

        async def answer(uploads: list[Upload], weights: list[Weight]) -> Response:
            turns = self._decoder.turns()
            pairs = zip(uploads, weights, strict=True)
            found = await asyncio.gather(*(self._predict_one(*pair, turns) for pair in pairs))
            if all(isinstance(one, BrokenImage) for one in found):
                raise HTTPException(422, _tell_broken(uploads, found))
            results = [
                {"name": upload.name, "error": _reason(one)}
                if isinstance(one, BrokenImage)
                else {"name": upload.name, "labels": self._name(_choose(one, top, threshold))}
                for upload, one in zip(uploads, found, strict=True)
            ]
            return JSONResponse({"model": self._settings.name, "results": results})

        return await self._with_images(request, answer)

    def _name(self, labels: list[tuple[str, float]]) -> list[dict[str, Any]]:
        """Return labels as the API sends them; a model without categories sends none."""
        return [
            {"label": label, "prob": round(prob, 6)}
            | ({"category": self._categories.get(label)} if self._categories else {})
            for label, prob in labels
        ]

    async def explain(
        self,
        request: Request,
        label: schema.LabelName = None,
        method: schema.Method = "evidence",
        form: schema.Form = "overlay",
    ) -> Response:
        """Show where in a picture the evidence for a label lies."""
        if not self._explains:
            raise HTTPException(
                501,
                "this network has no heat maps: an exported one never has (serve the run that it "
                "was exported from), nor has one whose logits aren't a sum over positions",
            )
        if label is not None and label not in self._predictor.classes:
            known = did_you_mean(label, self._predictor.classes)
            raise HTTPException(422, f"no label {label[:100]!r}{known} (/v1/labels lists them)")

        async def answer(uploads: list[Upload], weights: list[Weight]) -> Response:
            if len(uploads) > 1:
                raise HTTPException(422, "only one image per request can be explained")
            try:
                return await self._explain_one(uploads[0], weights[0], label, method, form)
            except BrokenImage as error:
                raise HTTPException(422, _tell_broken(uploads, [error])) from error

        return await self._with_images(request, answer)

    async def labels(self) -> schema.ModelInfo:
        """List the labels with their thresholds, and the limits of this server."""
        predictor = self._predictor
        above = ancestors(predictor.classes, predictor.hierarchy)
        return schema.ModelInfo(
            model=self._settings.name,
            image_size=predictor.preprocess.image_size,
            explains=self._explains,
            limits={f.name: getattr(self._settings, f.name) for f in limits()},
            labels=[
                schema.LabelInfo(
                    label=label,
                    threshold=round(float(threshold), 6),
                    category=self._categories.get(label),
                    implies=[predictor.classes[other] for other in above.get(index, ())],
                )
                for index, (label, threshold) in enumerate(
                    zip(predictor.classes, predictor.thresholds, strict=True)
                )
            ],
        )

    async def _with_images(
        self, request: Request, answer: Callable[[list[Upload], list[Weight]], Awaitable[Response]]
    ) -> Response:
        """Read a request and answer it, within the limits of the queue and of time."""
        try:
            self._batcher.check_place(1)  # before the body is read
            async with self._intake.uploads(request) as uploads:
                request.scope["mltr"] = {
                    "images": len(uploads),
                    "bytes": sum(len(upload.data) for upload in uploads),
                }
                with self._batcher.accept(len(uploads)):
                    async with asyncio.timeout(self._settings.timeout_s):
                        return await answer(uploads, await self._decoder.weigh(uploads))
        except TimeoutError as error:
            self.metrics.images.labels("late").inc()
            raise HTTPException(504, f"no answer within {self._settings.timeout_s:g} s") from error

    async def _predict_one(
        self, upload: Upload, weight: Weight, turns: asyncio.Semaphore
    ) -> Prediction | BrokenImage:
        try:
            pixels = await self._decoder.decode(turns, weight, self._read, upload.data)
        except BrokenImage as error:
            self.metrics.images.labels("broken").inc()
            return error
        found = await self._batcher.predict(pixels)
        self.metrics.images.labels("predicted").inc()
        return found

    async def _explain_one(
        self, upload: Upload, weight: Weight, label: str | None, method: str, form: str
    ) -> Response:
        picture = await self._decoder.decode(self._decoder.turns(), weight, self._open, upload.data)
        labels = [label] if label else None
        found = await self._batcher.run(self._find_evidence, picture, labels, method)
        self.metrics.images.labels("explained").inc()
        if form == "overlay":
            drawn = await self._decoder.run(_draw, picture, found.heat)
            return Response(drawn, media_type="image/png")
        return JSONResponse(
            {
                "name": upload.name,
                "label": found.label,
                "prob": found.prob,
                "logit": found.logit,
                "is_exact": found.is_exact,
                "cells": found.cells.tolist(),
            }
        )

    def _find_evidence(
        self, picture: Image.Image, labels: list[str] | None, method: str
    ) -> Explanation:
        network = self._predictor.network
        if isinstance(network, Replicas):
            return network.explain(picture, labels, method, HEAT_MAP_SIDE)
        from mltr.diagnosis.evidence import explain

        return explain(self._predictor, picture, labels, method, HEAT_MAP_SIDE, 1)[0]

    def _open(self, data: bytes) -> Image.Image:
        return _checked(open_image(data, max_pixels=self._decoder.max_pixels))

    def _read(self, data: bytes) -> Pixels:
        picture, place = self._predictor.open(data, self._decoder.max_pixels)
        return self._predictor.resize(_checked(picture), place)

    # -- state ---------------------------------------------------------------------------------

    async def healthz(self) -> dict[str, str]:
        """Report that the process is alive."""
        return {"status": "alive"}

    async def readyz(self) -> dict[str, str]:
        """Report whether the network accepts images."""
        network = self._predictor.network
        has_network = not isinstance(network, Replicas) or await asyncio.to_thread(network.is_ready)
        if not (self._batcher.is_working and has_network):
            raise HTTPException(503, "the network is not ready", {"Retry-After": "1"})
        return {"status": "ready"}

    async def tell_metrics(self) -> Response:
        """Report counters in the Prometheus format."""
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)


async def _check_options(request: Request) -> None:
    """Raise `HTTPException` (422) for a query option that the route doesn't have."""
    known = [field.alias for field in request.scope["route"].dependant.query_params]
    for name in request.query_params:
        if name not in known:
            words = f"known: {', '.join(known)}" if known else "it has none"
            raise HTTPException(
                422, f"no option {name[:100]!r}{did_you_mean(name[:100], known)} ({words})"
            )


def _checked(picture: Image.Image) -> Image.Image:
    """Return the picture unchanged; raises `BrokenImage` if it is too narrow."""
    width, height = picture.size
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise BrokenImage(f"{width} x {height} pixels: too narrow to show anything")
    return picture


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _choose(found: Prediction, top: int | None, threshold: float | None) -> list[tuple[str, float]]:
    """Return the labels that `mltr predict` would print with the same options."""
    if threshold is not None:
        found = replace(found, thresholds=np.full_like(found.thresholds, threshold))
    labels = found.labels
    if top is not None:
        labels = found.top(top) if threshold is None else labels[:top]
    return labels


def _reason(error: BrokenImage) -> str:
    return str(error).removeprefix("image from memory: ")


def _tell_broken(uploads: list[Upload], errors: list[Any]) -> str:
    """Return a message on why none of the images can be read."""
    pairs = zip(uploads, errors, strict=True)
    reasons = [f"{u.name}: {_reason(e)}" if u.name else _reason(e) for u, e in pairs]
    return "; ".join(reasons)


def _explains(predictor: Predictor) -> bool:
    if isinstance(predictor.network, Replicas):
        return predictor.network.explains
    if not predictor.has_model:
        return False
    from mltr.diagnosis.evidence import has_maps

    return has_maps(predictor)


def _draw(picture: Image.Image, heat: Any) -> bytes:
    """Return a picture overlaid with a heat map, as PNG."""
    stream = io.BytesIO()
    overlay(picture, heat).save(stream, "PNG")
    return stream.getvalue()


# -- the page, the API description, and errors -------------------------------------------------


def _page_router() -> APIRouter:
    """Return the routes of the page and of the API description."""
    router = APIRouter(include_in_schema=False)
    for path, (name, kind) in PAGE_FILES.items():
        content = (files("mltr.serve") / "page" / name).read_bytes()
        router.api_route(f"/{path}", methods=["GET", "HEAD"])(_file_sender(content, kind))
    look = get_swagger_ui_html(
        openapi_url="openapi.json",
        title="MlTr: the API",
        swagger_js_url="docs-assets/swagger-ui-bundle.js",
        swagger_css_url="docs-assets/swagger-ui.css",
        swagger_favicon_url="icon.svg",
    )
    router.get("/docs")(_file_sender(look.body, "text/html", _docs_policy(bytes(look.body))))
    return router


def _file_sender(
    content: bytes | memoryview, kind: str, policy: str | None = None
) -> Callable[[], Awaitable[Response]]:
    async def send() -> Response:
        headers = {"Content-Security-Policy": policy} if policy else {}
        return Response(content, media_type=kind, headers=headers)

    return send


def _docs_policy(page: bytes) -> str:
    """Return a policy that also allows the inline script and styles of Swagger's page."""
    found = re.search(rb"<script>(.*?)</script>", page, re.DOTALL)
    assert found is not None
    allowed = base64.b64encode(hashlib.sha256(found[1]).digest()).decode()
    policy = SAFE_HEADERS["Content-Security-Policy"]
    policy = policy.replace("script-src 'self'", f"script-src 'self' 'sha256-{allowed}'")
    policy = policy.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'")
    return policy.replace("img-src 'self'", "img-src 'self' data:")


async def _describe(request: Request) -> Response:
    """Send the OpenAPI description, with the requested address in its examples."""
    described = request.app.openapi()
    address = str(request.base_url).rstrip("/")
    text = described["info"]["description"].replace(schema.ADDRESS, address)
    return JSONResponse(described | {"info": described["info"] | {"description": text}})


async def _tell_busy(request: Request, error: Any) -> Response:
    return JSONResponse(
        {"detail": f"too busy: retry in {error.retry_after_s} s"},
        503,
        {"Retry-After": str(error.retry_after_s)},
    )


async def _tell_invalid(request: Request, error: Any) -> Response:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    return JSONResponse({"detail": f"{where}: {first['msg']}"}, 422)


async def _tell_failure(request: Request, error: Any) -> Response:
    logger.error("%s", error)
    return JSONResponse({"detail": str(error)}, 500)


async def _tell_usage(request: Request, error: Any) -> Response:
    return JSONResponse({"detail": str(error)}, 422)
