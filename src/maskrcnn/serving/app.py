"""The server's endpoints. Every error is {"error": one line}, with "field" where a parameter is at fault.

    GET    /                           the page
    GET    /api/about                  detectors by name with their classes and defaults, and the limits of an upload
    POST   /api/jobs?weights=nuclei    the picture's bytes as the body; 202 {"id", "state", ...}. Parameters, each
                                       optional: weights, name (of the picture), score_threshold, nms_iou,
                                       mask_nms_iou, class_agnostic_nms, max_detections, proposals, size (px, native)
                                           curl --data-binary @cells.png -H 'Content-Type: image/png' URL/api/jobs
    GET    /api/jobs/ID                {"id", "state": waiting | running | done | failed, "step", "done", "total",
                                       "ahead": jobs before this one, "found": objects, "error"}
    GET    /api/jobs/ID/report         every step from picture to mask, one HTML file
    GET    /api/jobs/ID/result.png     the picture with what was found
    GET    /api/jobs/ID/coco.json      a COCO document
    GET    /api/jobs/ID/polygons.json  outlines
    DELETE /api/jobs/ID                forget it, finished or not; 204

    400 another host   403 another page   404 no such job   408 the upload stalls   409 not done yet
    413 too large      415 no picture     422 a parameter   503 too busy

A job that is not done is dropped once nobody has asked for it for two minutes. Nothing is written to disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from maskrcnn import __version__
from maskrcnn.errors import InputError
from maskrcnn.model.mask_rcnn import Limits
from maskrcnn.predictor import Predictor
from maskrcnn.serving.guard import REPORT_POLICY, Guard
from maskrcnn.serving.jobs import Busy, Job, Jobs, Keeping, Order, Product, Work
from maskrcnn.serving.upload import MIB, Refused, check_picture, read_body
from maskrcnn.serving.work import produce, require_room

PAGE = Path(__file__).with_name("page")
_PAGE_FILES = {"page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}
_SWEEP = 5.0  # seconds between looks at what is to be forgotten
_MOST = 10_000  # detections or proposals that a client may ask for


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """What the server takes in."""

    upload_bytes: int = 50 * MIB
    pixels: int = 120_000_000  # of a picture; a 12000 x 9000 one has 108 million
    uploads: int = 4  # at once
    patience: float = 20.0  # seconds to wait for the next bytes of an upload


class Asked(BaseModel):
    """The parameters of a job; ranges are those of `Predictor.predict`, counts have a cap."""

    model_config = ConfigDict(extra="forbid")

    weights: str | None = None
    name: str = Field("picture", max_length=1000)
    score_threshold: float | None = Field(None, ge=0, le=1)
    nms_iou: float | None = Field(None, ge=0, le=1)
    mask_nms_iou: float | None = Field(None, ge=0, le=1)
    class_agnostic_nms: bool | None = None
    max_detections: int | None = Field(None, ge=1, le=_MOST)
    proposals: int | None = Field(None, ge=1, le=_MOST)
    size: Annotated[int, Field(ge=1, le=_MOST)] | Literal["native"] | None = None

    def limits(self) -> Limits:
        """The thresholds among them."""
        return Limits(
            score_threshold=self.score_threshold,
            nms_iou=self.nms_iou,
            max_detections=self.max_detections,
            proposals=self.proposals,
            class_agnostic_nms=self.class_agnostic_nms,
            mask_nms_iou=self.mask_nms_iou,
            size=self.size,
        )


_SHARE, _COUNT = "a number from 0 to 1", f"a whole number from 1 to {_MOST}"
_EXPECTED = {
    "name": "at most 1000 characters",
    "score_threshold": _SHARE,
    "nms_iou": _SHARE,
    "mask_nms_iou": _SHARE,
    "class_agnostic_nms": "true or false",
    "max_detections": _COUNT,
    "proposals": _COUNT,
    "size": f"{_COUNT}, in px, or native",
}


def make_app(
    detectors: Mapping[str, Predictor],
    *,
    host: str = "127.0.0.1",
    accepted: Accepted | None = None,
    keeping: Keeping | None = None,
    work: Work | None = None,
) -> FastAPI:
    """The application.

    detectors: by the names that clients use; the first is theirs unless they choose. host: what the server listens on.
    work: what is done with an order, in place of `produce`.
    """
    accepted = accepted or Accepted()
    jobs = Jobs(work or partial(produce, detectors), keeping)
    app = FastAPI(title="maskrcnn", version=__version__, docs_url=None, redoc_url=None, lifespan=_sweeping(jobs))
    app.state.jobs = jobs
    _add_errors(app)
    _add_page(app, detectors, accepted)
    _add_jobs(app, jobs, detectors, accepted)
    app.add_middleware(Guard, host=host)
    return app


def _sweeping(jobs: Jobs) -> Any:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async def sweep() -> None:
            while True:
                await asyncio.sleep(_SWEEP)
                jobs.sweep()

        task = asyncio.create_task(sweep())
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await run_in_threadpool(jobs.close)

    return lifespan


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return _error(error.status, error.line, error.field)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        field = str(first["loc"][1]) if len(first["loc"]) > 1 else "request"
        if first["type"] == "extra_forbidden":
            line = str(InputError("no such parameter", field=field, expected=", ".join(Asked.model_fields)))
        else:
            found = str(request.query_params.get(field, ""))
            line = str(InputError("impossible value", field=field, found=found, expected=_EXPECTED.get(field)))
        return _error(422, line, field)

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        return _error(error.status_code, str(error.detail).lower())

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=400)  # read by nobody

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> Response:
        return _error(500, f"{type(error).__name__} (unexpected)")


def _add_page(app: FastAPI, detectors: Mapping[str, Predictor], accepted: Accepted) -> None:
    texts = {name: (PAGE / name).read_bytes() for name in ("index.html", *_PAGE_FILES)}

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return Response(texts["index.html"], media_type="text/html")

    def add(name: str, kind: str) -> None:
        @app.get(f"/{name}", include_in_schema=False)
        async def file() -> Response:
            return Response(texts[name], media_type=kind)

    for name, kind in _PAGE_FILES.items():
        add(name, kind)

    @app.get("/api/about")
    async def about() -> dict[str, Any]:
        return {
            "version": __version__,
            "max_upload_bytes": accepted.upload_bytes,
            "max_pixels": accepted.pixels,
            "weights": [_described(name, detector) for name, detector in detectors.items()],
        }


def _described(name: str, detector: Predictor) -> dict[str, Any]:
    config = detector.model.config
    preprocess, detection = config.preprocess, config.detection
    by_factor = preprocess.scale is not None
    return {
        "name": name,
        "classes": list(detector.class_names),
        "defaults": {
            "score_threshold": detection.score_threshold,
            "nms_iou": detection.nms_iou,
            "max_detections": detection.max_detections,
            "proposals": None if config.rpn is None else config.rpn.post_nms_top_n,
            "size": f"{preprocess.scale:g} times its own" if by_factor else preprocess.shortest or "native",
        },
    }


def _add_jobs(app: FastAPI, jobs: Jobs, detectors: Mapping[str, Predictor], accepted: Accepted) -> None:
    uploads = 0

    @app.post("/api/jobs", status_code=202)
    async def begin(request: Request, asked: Annotated[Asked, Query()]) -> JSONResponse:
        nonlocal uploads
        weights = next(iter(detectors)) if asked.weights is None else asked.weights
        if weights not in detectors:
            line = InputError("no such weights", field="weights", found=weights, expected=" or ".join(detectors))
            raise Refused(422, str(line), "weights")
        _require_kind(request.headers.get("content-type", ""))
        if uploads >= accepted.uploads:
            raise _busy()
        uploads += 1
        try:
            told = request.headers.get("content-length")
            body = await read_body(aiter(request.stream()), told, accepted.upload_bytes, accepted.patience)
            size = await run_in_threadpool(check_picture, body, accepted.pixels)
        finally:
            uploads -= 1
        try:
            require_room(detectors[weights], size, asked.size)
        except InputError as error:
            raise Refused(422, str(error), "size") from None
        if await request.is_disconnected():
            raise ClientDisconnect
        try:
            job = jobs.accept(Order(body, plain_name(asked.name), weights, asked.limits()))
        except Busy:
            raise _busy() from None
        headers = {"location": f"/api/jobs/{job.id}"}
        return JSONResponse(_state(job, jobs), 202, headers)

    @app.get("/api/jobs/{job_id}")
    async def state(job_id: str) -> dict[str, Any]:
        return _state(_found(jobs, job_id), jobs)

    @app.delete("/api/jobs/{job_id}", status_code=204)
    async def drop(job_id: str) -> Response:
        if not jobs.drop(job_id):
            raise _unknown(jobs)
        return Response(status_code=204)

    @app.get("/api/jobs/{job_id}/report")
    async def report(job_id: str) -> Response:
        policy = {"content-security-policy": REPORT_POLICY}
        return Response(_finished(jobs, job_id)[1].report, media_type="text/html", headers=policy)

    @app.get("/api/jobs/{job_id}/result.png")
    async def overlay(job_id: str) -> Response:
        name, product = _finished(jobs, job_id)
        return Response(product.overlay, media_type="image/png", headers=_saved_as(name, "png"))

    @app.get("/api/jobs/{job_id}/coco.json")
    async def coco(job_id: str) -> Response:
        name, product = _finished(jobs, job_id)
        return Response(product.coco, media_type="application/json", headers=_saved_as(name, "coco.json"))

    @app.get("/api/jobs/{job_id}/polygons.json")
    async def polygons(job_id: str) -> Response:
        name, product = _finished(jobs, job_id)
        return Response(product.polygons, media_type="application/json", headers=_saved_as(name, "polygons.json"))


def plain_name(name: str) -> str:
    """What a client calls its picture, without folders and without characters that are none."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return "".join(c for c in last if c.isprintable())[:100].strip() or "picture"


def _require_kind(content_type: str) -> None:
    """Also keeps out what a browser sends for a foreign page without asking first: forms and plain text."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind != "application/octet-stream" and not kind.startswith("image/"):
        found, expected = kind or "none", "image/... or application/octet-stream, with the picture's bytes as the body"
        raise Refused(415, str(InputError("is no picture's", field="Content-Type", found=found, expected=expected)))


def _found(jobs: Jobs, job_id: str) -> Job:
    job = jobs.find(job_id)
    if job is None:
        raise _unknown(jobs)
    return job


def _finished(jobs: Jobs, job_id: str) -> tuple[str, Product]:
    """(name of the picture, product)"""
    job = _found(jobs, job_id)
    if job.product is None:
        raise Refused(409, job.error or f"the job is not done yet: {job.step}")
    return job.name, job.product


def _state(job: Job, jobs: Jobs) -> dict[str, Any]:
    return {
        "id": job.id,
        "name": job.name,
        "state": job.state,
        "step": job.step,
        "done": job.done,
        "total": job.total,
        "ahead": jobs.ahead(job),
        "seconds": None if job.ended is None else round(job.ended - job.begun, 3),
        "found": None if job.product is None else job.product.found,
        "error": job.error,
    }


def _unknown(jobs: Jobs) -> Refused:
    keeping = jobs.keeping
    minutes = f"{keeping.age / 60:g} minutes"
    return Refused(404, f"no such job; results are kept for {minutes}, the last {keeping.results} of them")


def _busy() -> Refused:
    return Refused(503, "too many pictures at once; try again in a few seconds")


def _error(status: int, line: str, field: str | None = None) -> Response:
    headers = {"retry-after": "5"} if status == 503 else None
    return JSONResponse({"error": line} | ({} if field is None else {"field": field}), status, headers)


def _saved_as(name: str, ending: str) -> dict[str, str]:
    """The header that tells a browser to save, and as what; RFC 6266."""
    file = f"{Path(name).stem}.{ending}"
    return {"content-disposition": f"attachment; filename*=UTF-8''{quote(file, safe='')}"}
