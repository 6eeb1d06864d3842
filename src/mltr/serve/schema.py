"""Requests and responses of the API, for its OpenAPI description."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Query
from pydantic import BaseModel, Field

from mltr.serve.uploads import IMAGE_TYPES, JsonImage

ADDRESS = "ADDRESS"  #: placeholder for the server's address in the description
DESCRIPTION = """
Predicts the labels of pictures. Send them as form data, as JSON with base64, or one as the body:

    curl -F images=@beach.jpg -F images=@forest.jpg ADDRESS/v1/predict
    curl --data-binary @beach.jpg -H 'Content-Type: image/jpeg' ADDRESS/v1/predict

Every error has the form `{"detail": "what is wrong, and how to fix it"}`. Pictures are not kept.
"""


Category = Annotated[str | None, Field(description="kind of label, if the model tells kinds apart")]


class Label(BaseModel):
    """A label and its probability."""

    label: str
    prob: Annotated[float, Field(ge=0, le=1)]
    category: Category = None


class Result(BaseModel):
    """The labels of one image, or the reason why it can't be read."""

    name: Annotated[str, Field(description="name of the file, as sent")]
    labels: Annotated[list[Label] | None, Field(description="best first")] = None
    error: Annotated[
        str | None, Field(description="set instead of `labels` if the image can't be read")
    ] = None


class Results(BaseModel):
    """One result per image, in the order of the request."""

    model: str
    results: list[Result]


class LabelInfo(BaseModel):
    """A label that the network knows."""

    label: str
    threshold: Annotated[
        float, Field(description="minimum probability at which the label is predicted")
    ]
    category: Category = None
    implies: Annotated[
        list[str], Field(description="labels that hold wherever this one is predicted")
    ] = []


class ModelInfo(BaseModel):
    """The labels of the network and the limits of the server."""

    model: str
    image_size: Annotated[int, Field(description="side of the network's square input, in pixels")]
    explains: Annotated[bool, Field(description="whether heat maps are available")]
    limits: dict[str, int | float]
    labels: list[LabelInfo]


class HeatMap(BaseModel):
    """The evidence for a label on the network's own grid."""

    name: str
    label: str
    prob: Annotated[float, Field(ge=0, le=1)]
    logit: float
    is_exact: Annotated[bool, Field(description="the cells sum to the logit minus a bias")]
    cells: Annotated[list[list[float]], Field(description="rows from the top")]


class Problem(BaseModel):
    """An error."""

    detail: str


PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": meaning}
    for status, meaning in {
        400: "The request is malformed",
        401: "An API key is missing or wrong",
        403: "The request comes from another site's page, or its Host is not accepted",
        408: "The request took too long to arrive",
        413: "The request is too large, has too many images, or too much data once decoded",
        415: "The content type is not supported",
        422: "No image can be read, or an option is wrong",
        503: "Too busy: retry after the seconds in Retry-After",
        504: "No response in time",
    }.items()
}
EXPLAINED: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}},
    501: {"model": Problem, "description": "The network has no heat maps"},
}
IMAGES_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["images"],
                    "properties": {
                        "images": {
                            "type": "array",
                            "minItems": 1,
                            "items": {"type": "string", "format": "binary"},
                        }
                    },
                }
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["images"],
                    "additionalProperties": False,
                    "properties": {
                        "images": {
                            "type": "array",
                            "minItems": 1,
                            "items": JsonImage.model_json_schema(),
                        }
                    },
                }
            },
        }
        | {kind: {"schema": {"type": "string", "format": "binary"}} for kind in IMAGE_TYPES},
    }
}

Top = Annotated[
    int | None,
    Query(ge=1, description="only the K best labels; without `threshold`, whatever their prob"),
]
Threshold = Annotated[
    float | None,
    Query(ge=0, le=1, description="minimum probability of a label (default: the model's own)"),
]
LabelName = Annotated[
    str | None, Query(description="label to explain (default: the most probable)")
]
Method = Annotated[
    Literal["evidence", "rollout"],
    Query(description="evidence: terms of the logit; rollout: traced through the attention maps"),
]
Form = Annotated[
    Literal["overlay", "grid"],
    Query(description="overlay: PNG, red for and blue against; grid: JSON with the numbers"),
]
