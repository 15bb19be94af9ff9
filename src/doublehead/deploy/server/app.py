"""Routes of the server."""

from __future__ import annotations

import asyncio
import hmac
import io
import logging
from collections.abc import AsyncIterator, Awaitable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.staticfiles import StaticFiles
from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

import doublehead
from doublehead.common.errors import DoubleheadError
from doublehead.common.pages.pages import COLOURS
from doublehead.data.images import read_image
from doublehead.data.synthetic import scene
from doublehead.deploy.server.batcher import Admission, Batcher, Room
from doublehead.deploy.server.edge import Edge
from doublehead.deploy.server.engine import Choice, Engine
from doublehead.deploy.server.intake import FIELD, Sent, count_pixels, decode, read_images
from doublehead.deploy.server.metrics import ServerMetrics
from doublehead.deploy.server.refusals import Refused
from doublehead.deploy.server.schema import (
    BODY,
    TEXT,
    Answer,
    Answered,
    Asked,
    Class,
    Found,
    Head,
    Limits,
    ModelInfo,
    Models,
    State,
    problems,
)
from doublehead.deploy.server.settings import ServerSettings
from doublehead.inference.detections import Detections, class_colour
from doublehead.inference.exported import Exported
from doublehead.inference.predictor import Predictor

PAGE = Path(__file__).parent / "page"
DECODERS = 2  # threads, which bounds the memory that decoding takes
ROUTES = ("/", "/v1/detect", "/v1/models", "/health", "/ready", "/metrics")

log = logging.getLogger(__name__)


class Service:
    """State shared by the routes.

    Args:
        predictor: the model.
        name: name of the model.
        settings: limits and batching.

    Raises:
        DoubleheadError: the sample cannot be read.
    """

    def __init__(self, predictor: Predictor, name: str, settings: ServerSettings) -> None:
        self.name, self.settings = name, settings
        self.sample = _sample(settings.sample)
        self.engine = Engine(predictor)
        self.room = Room(settings.queue, settings.queue_pixels, lambda: self.batcher.pace)
        self.metrics = ServerMetrics(settings.batch_size, lambda: self.room.images)
        wait = settings.batch_wait / 1000
        self.batcher = Batcher(self.engine.detect, settings.batch_size, wait, self.metrics.saw_batch)
        self.decoders = ThreadPoolExecutor(DECODERS, "decoder")

    async def detect(self, images: list[Sent], choice: Choice | None, place: Admission) -> list[tuple[Any, Detections]]:
        """Decode images and detect objects. Returns each image as a tensor, with its detections.

        Raises:
            Refused: an image is invalid, or the queue is full.
        """
        settings, loop = self.settings, asyncio.get_running_loop()
        place.grow(images=len(images) - 1)
        pixels = await loop.run_in_executor(self.decoders, count_pixels, images, settings.formats, settings.max_pixels)
        place.grow(pixels=pixels)
        decoding = [loop.run_in_executor(self.decoders, decode, image, settings.formats) for image in images]
        tensors = await asyncio.gather(*decoding)
        answers = [asyncio.wrap_future(self.batcher.submit(tensor, choice)) for tensor in tensors]
        try:
            return list(zip(tensors, await asyncio.gather(*answers), strict=True))
        finally:
            for answer in answers:
                answer.cancel()  # where one failed or the client left, the others are not worth the work

    def warm_up(self) -> None:
        """Run the model once before any request, to complete lazy initialisation."""
        self.engine.detect([torch.zeros(3, 64, 64, dtype=torch.uint8)], [self.engine.own])

    def close(self) -> None:
        """Finish all accepted work."""
        self.batcher.close()
        self.decoders.shutdown()


def create_app(predictor: Predictor, name: str, settings: ServerSettings) -> FastAPI:
    """Create the server as an ASGI application.

    Args:
        predictor: the model to serve.
        name: name of the model.
        settings: limits and batching.

    Raises:
        DoubleheadError: the sample image cannot be read.
    """
    service = Service(predictor, name, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="doublehead",
        version=doublehead.__version__,
        description=f"Object detection with {name}.",
        docs_url=None,  # FastAPI's pages fetch their scripts from the network; ours at /docs does not
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    app.include_router(_api, dependencies=[Depends(_authorised)] if settings.api_key else [])
    app.include_router(_public)
    app.mount("/page", StaticFiles(directory=PAGE))
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _failed)
    app.add_middleware(
        Edge,
        max_bytes=settings.max_bytes,
        seconds=settings.timeout,
        seen=lambda method, path, status, seconds: service.metrics.saw_request(
            path if path in ROUTES else "other", status, seconds
        ),
    )
    _complete(app.openapi(), service)
    return app


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _authorised(
    service: Annotated[Service, Depends(_service)],
    given: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))],
) -> None:
    """Check the API key in constant time, so that response times reveal nothing about it."""
    key = service.settings.api_key
    assert key is not None
    if given is None or not hmac.compare_digest(given.credentials.encode(), key.get_secret_value().encode()):
        raise Refused(401, "unauthorized", "this server asks for its API key: send `Authorization: Bearer KEY`")


_api = APIRouter()
_public = APIRouter()
Serving = Annotated[Service, Depends(_service)]


@_api.post(
    "/v1/detect",
    openapi_extra=BODY,
    responses=problems(400, 401, 408, 413, 415, 422, 500, 503),
    summary="Detect objects in images",
)
async def detect(request: Request, service: Serving, asked: Annotated[Asked, Query()]) -> Answer:
    """Send files in the multipart field `images`, or one image as the body. Nothing is stored, no URL is fetched."""
    try:
        choice = service.engine.choose(asked.scores, asked.boxes, asked.nms, asked.limit)
    except DoubleheadError as error:
        raise Refused(422, "no_such_choice", str(error)) from error
    with service.room.place() as place:
        images = await read_images(request, service.settings.max_images)
        found = await _unless_left(request, service, service.detect(images, choice, place))
    least = service.engine.predictor.decision_threshold if asked.score is None else asked.score
    answers = []
    for image, (tensor, detections) in zip(images, found, strict=True):
        kept = detections.above(least)
        service.metrics.detections.inc(len(kept))
        height, width = tensor.shape[1:]
        items = [Found.model_validate(item) for item in kept.to_dicts()]
        answers.append(Answered(name=image.name, width=width, height=height, detections=items))
    heads = (choice.scores, choice.boxes) if choice else (None, None)
    return Answer(model=service.name, scores=heads[0], boxes=heads[1], images=answers)


async def _unless_left(request: Request, service: Service, work: Awaitable[Any]) -> Any:
    """Await work within the time limit; cancel it if the client disconnects."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(left())
    try:
        await asyncio.wait({working, leaving}, timeout=service.settings.timeout, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        if leaving.done():
            raise Refused(499, "left", "the client left")  # nobody sees it
        raise Refused(503, "timeout", "it took too long; try again later", service.room.retry_after)
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.wait({working, leaving})


@_api.get("/v1/models", responses=problems(401, 422, 500), summary="The model and the limits")
async def models(service: Serving) -> Models:
    """The model served, what may be asked of it, and what a request may bring."""
    settings = service.settings
    limits = Limits(
        bytes=settings.max_bytes,
        pixels=settings.max_pixels,
        images=settings.max_images,
        seconds=settings.timeout,
        formats=list(settings.formats),
    )
    return Models(models=[_describe(service)], limits=limits)


def _describe(service: Service) -> ModelInfo:
    engine, predictor = service.engine, service.engine.predictor
    pairs = enumerate(predictor.categories.pairs, 1)
    config = engine.model.config if engine.model is not None else None
    own = engine.own
    return ModelInfo(
        name=service.name,
        preset="exported" if isinstance(predictor.inside, Exported) else predictor.inside.config.preset,
        device=str(predictor.device),
        precision=str(predictor.precision or torch.float32).removeprefix("torch."),
        classes=[
            Class(name=name, label=label, category_id=number, colour="#{:02x}{:02x}{:02x}".format(*class_colour(label)))
            for label, (name, number) in pairs
        ],
        scores=[Head(name=name, reason=engine.lacks("scores", name)) for name in engine.names("scores")],
        boxes=[Head(name=name, reason=engine.lacks("boxes", name)) for name in engine.names("boxes")],
        fixed=engine.fixed,
        own={"scores": own.scores, "boxes": own.boxes, "nms": own.nms, "limit": own.limit} if own else None,
        score_threshold=predictor.options.score_threshold if config else None,
        decision_threshold=predictor.decision_threshold,
    )


@_api.get(
    "/metrics",
    response_class=Response,
    responses=TEXT | problems(401, 500),
    summary="Counts for Prometheus",
)
async def metrics(service: Serving) -> Response:
    """Requests, batches, waiting images, memory."""
    return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


@_public.get("/health", responses=problems(500, 503), summary="Whether the process can go on")
async def health(service: Serving) -> State:
    """Answers 503 once the device has failed, which only a restart of the process changes."""
    if service.batcher.lost:
        raise service.batcher.lost
    return State(status="alive")


@_public.get("/ready", responses=problems(500, 503), summary="Whether images can be answered")
async def ready(service: Serving) -> State:
    """Answers 503 where the model no longer runs, and says why."""
    if service.batcher.lost:
        raise service.batcher.lost
    if not service.batcher.alive:
        raise Refused(503, "not_ready", "the model does not run", 1)
    return State(status="ready")


@_public.get("/", include_in_schema=False)
async def page() -> FileResponse:
    """The page."""
    return FileResponse(PAGE / "index.html")


@_public.get("/docs", include_in_schema=False)
async def docs() -> FileResponse:
    """The OpenAPI document, to read."""
    return FileResponse(PAGE / "docs.html")


@_public.get("/page/colours.css", include_in_schema=False)
async def colours() -> FileResponse:
    """The colours that all pages share, reports too."""
    return FileResponse(COLOURS)


@_public.get("/sample", include_in_schema=False)
async def sample(service: Serving) -> Response:
    """The image that the page offers."""
    return Response(service.sample, media_type="image/jpeg")


def _sample(path: Path | None) -> bytes:
    """The page's sample: the file named, or a scene drawn."""
    return as_jpeg(read_image(path) if path else scene())


def as_jpeg(picture: Image.Image) -> bytes:
    """An RGB picture as the bytes of a JPEG file."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=92)
    return file.getvalue()


def _complete(document: dict[str, Any], service: Service) -> None:
    """Put into the OpenAPI document what depends on model and settings: the names of heads, the number of images."""
    post, engine = document["paths"]["/v1/detect"]["post"], service.engine
    for parameter in post["parameters"]:
        able = [name for name in engine.names(parameter["name"]) if not engine.lacks(parameter["name"], name)]
        if able:
            parameter["schema"] = {"type": "string", "enum": able}
    form = post["requestBody"]["content"]["multipart/form-data"]["schema"]
    form["properties"][FIELD]["maxItems"] = service.settings.max_images


def _problem(error: Refused) -> JSONResponse:
    content = {"status": error.status, "error": error.error, "detail": error.detail}
    return JSONResponse(content, error.status, error.headers)


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refused)
    return _problem(error)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    findings = [f"{'.'.join(map(str, item['loc'][1:]))}: {item['msg']}" for item in error.errors()]
    return _problem(Refused(422, "invalid", "; ".join(findings)))


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    word = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http")
    response = _problem(Refused(error.status_code, word, f"{request.method} {request.url.path}: {error.detail}"))
    response.headers.update(error.headers or {})
    return response


async def _failed(request: Request, error: Exception) -> JSONResponse:
    return _problem(Refused(500, "failed", "the server failed; its log says how"))
