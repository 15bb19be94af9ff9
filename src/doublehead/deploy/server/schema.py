"""What goes in and comes out, as the OpenAPI document has it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from doublehead.common.strict import Strict
from doublehead.deploy.server.engine import MOST
from doublehead.deploy.server.intake import FIELD
from doublehead.deploy.server.refusals import MEANING

_BYTES = {"schema": {"type": "string", "format": "binary", "minLength": 1}}

BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "Files in one multipart field, or the bytes of one image.",
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [FIELD],
                    "additionalProperties": False,
                    "properties": {FIELD: {"type": "array", "minItems": 1, "items": _BYTES["schema"]}},
                },
            },
            "image/jpeg": _BYTES,
            "image/png": _BYTES,
            "application/octet-stream": _BYTES,
        },
    }
}
"""The body of /v1/detect."""


class Asked(Strict):
    """Query parameters of a detection."""

    score: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Minimum score of a detection; default: the model's decision_threshold. The model gives none below "
        "its own score_threshold.",
    )
    nms: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="IoU above which hard NMS drops the lesser of two of a class; 1 keeps all; null: the model's.",
    )
    limit: int | None = Field(default=None, ge=1, le=MOST, description="Most detections per image. Else the model's.")
    scores: str | None = Field(default=None, description="The head whose class scores count, or `fused`.")
    boxes: str | None = Field(default=None, description="The head whose boxes count.")


class Found(BaseModel):
    """One detection."""

    name: str = Field(description="Of the class.")
    label: int = Field(ge=1, description="Of the class inside the model, from 1.")
    category_id: int = Field(description="Of the class in the dataset that the model learnt from.")
    score: float = Field(ge=0, le=1)
    box: tuple[float, float, float, float] = Field(description="x1, y1, x2, y2 in pixels of the upright image.")


class Answered(BaseModel):
    """One image."""

    name: str = Field(description="The file's name, where it came with one.")
    width: int = Field(description="In pixels, upright as its EXIF orientation says.")
    height: int
    detections: list[Found] = Field(description="In falling order of score.")


class Answer(BaseModel):
    """All images of a request, in its order."""

    model: str
    scores: str | None = Field(description="The head whose class scores these are; null where it cannot be chosen.")
    boxes: str | None = Field(description="The head whose boxes these are; null where it cannot be chosen.")
    images: list[Answered]


class Class(BaseModel):
    """A class that the model knows."""

    name: str
    label: int
    category_id: int
    colour: str = Field(description="In which the page draws its boxes: #rrggbb.")


class Head(BaseModel):
    """A head that could be asked."""

    name: str
    reason: str | None = Field(description="Why it cannot be asked; null where it can.")


class ModelInfo(BaseModel):
    """The model served, and what may be asked of it."""

    name: str
    preset: str
    device: str
    precision: str
    classes: list[Class]
    scores: list[Head] = Field(description="Values of the parameter `scores`; empty if there is no choice.")
    boxes: list[Head] = Field(description="Values of the parameter `boxes`; empty if there is no choice.")
    fixed: str | None = Field(description="Why nothing can be chosen, such as `in an ensemble`; null if it can.")
    own: dict[str, str | float | int] | None = Field(
        description="Its own `scores`, `boxes`, `nms` and `limit`; null if these cannot be chosen."
    )
    score_threshold: float | None = Field(description="Minimum score of the model's detections.")
    decision_threshold: float = Field(description="Minimum score unless `score` is given.")


class Limits(BaseModel):
    """What a request may bring."""

    bytes: int
    pixels: int
    images: int
    seconds: float
    formats: list[str]


class Models(BaseModel):
    """What is served here."""

    models: list[ModelInfo]
    limits: Limits


class State(BaseModel):
    """How the server is."""

    status: str


class Problem(BaseModel):
    """Why a request was refused."""

    status: int
    error: str = Field(description="A word that programs can rely on.")
    detail: str = Field(description="A sentence that says how to fix it.")


TEXT: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
"""The answer of /metrics."""


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The refusals of a route, for the OpenAPI document."""
    found: dict[int | str, dict[str, Any]] = {
        status: {"model": Problem, "description": MEANING[status]} for status in statuses
    }
    if 503 in found:
        seconds = {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}
        found[503]["headers"] = {"Retry-After": seconds}
    return found
