"""One table from error class to HTTP status; every refusal is an RFC 9457 problem document."""

import math
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import structlog
from fastapi import FastAPI, Request
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from pose_analyzer.api.schemas import Problem
from pose_analyzer.errors import (
    BackendFailedError,
    ModelUnavailableError,
    NoCapacityError,
    PoseAnalyzerError,
    SourceNotAllowedError,
    UnknownNameError,
    UnknownStreamError,
    UnreadableSourceError,
)

MEDIA_TYPE: Final = "application/problem+json"
TYPE_PREFIX: Final = "urn:problem-type:pose-analyzer:"

log = structlog.get_logger()


class TooManyPixelsError(PoseAnalyzerError):
    """An image that would take too much memory once decoded."""

    def __init__(self, max_pixels: int) -> None:
        super().__init__(
            f"The image has more than {max_pixels} pixels, which is the most that is accepted; "
            "send it scaled down."
        )
        self.max_pixels = max_pixels


@dataclass(frozen=True, slots=True)
class ProblemKind:
    """How one class of error is told over HTTP."""

    code: str
    """Stable end of the problem's type URI."""
    status: HTTPStatus
    title: str


PROBLEMS: Final[dict[type[PoseAnalyzerError], ProblemKind]] = {
    UnreadableSourceError: ProblemKind(
        "not-an-image", HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "The upload is not a readable image"
    ),
    TooManyPixelsError: ProblemKind(
        "too-many-pixels", HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The image is too large"
    ),
    UnknownNameError: ProblemKind(
        "unknown-name", HTTPStatus.UNPROCESSABLE_ENTITY, "There is nothing of that name"
    ),
    UnknownStreamError: ProblemKind(
        "unknown-stream", HTTPStatus.NOT_FOUND, "There is no such stream"
    ),
    SourceNotAllowedError: ProblemKind(
        "source-not-allowed", HTTPStatus.FORBIDDEN, "The service may not read this source"
    ),
    NoCapacityError: ProblemKind(
        "no-capacity", HTTPStatus.SERVICE_UNAVAILABLE, "There is no room for another stream"
    ),
    ModelUnavailableError: ProblemKind(
        "model-unavailable", HTTPStatus.SERVICE_UNAVAILABLE, "The model is not on this machine"
    ),
    BackendFailedError: ProblemKind(
        "detector-failed", HTTPStatus.SERVICE_UNAVAILABLE, "The detector failed"
    ),
}


def install_problem_handlers(app: FastAPI) -> None:
    """Make every error of the service end in a problem document."""
    for kind in PROBLEMS:
        app.add_exception_handler(kind, _on_known_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(Exception, _on_defect)


def documented_problems(*statuses: HTTPStatus) -> dict[int | str, dict[str, Any]]:
    """OpenAPI responses of a route that may refuse with these statuses."""
    return {
        status.value: {
            "description": status.phrase,
            "content": {MEDIA_TYPE: {"schema": Problem.model_json_schema()}},
        }
        for status in statuses
    }


async def _on_known_error(request: Request, error: Exception) -> JSONResponse:
    kind = next(PROBLEMS[parent] for parent in type(error).__mro__ if parent in PROBLEMS)
    log.info("request_refused", problem=kind.code, detail=str(error))
    response = _respond(
        request, kind.status, kind.title, str(error), type=f"{TYPE_PREFIX}{kind.code}"
    )
    if isinstance(error, NoCapacityError):
        response.headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    return response


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for this class only
    status = HTTPStatus(error.status_code)
    response = _respond(request, status, status.phrase, error.detail)
    response.headers.update(error.headers or {})
    return response


async def _on_invalid_request(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for this class only
    problems = [
        {"where": ".".join(map(str, item["loc"])), "what": item["msg"]} for item in error.errors()
    ]
    detail = "; ".join(f"{problem['where']}: {problem['what']}" for problem in problems)
    return _respond(
        request,
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "The request is not as documented",
        detail,
        type=f"{TYPE_PREFIX}invalid-request",
        errors=problems,
    )


async def _on_defect(request: Request, error: Exception) -> JSONResponse:
    log.error("request_failed", path=request.url.path, exc_info=error)
    status = HTTPStatus.INTERNAL_SERVER_ERROR
    return _respond(request, status, status.phrase, "A defect of the service; it is in its log.")


def _respond(
    request: Request, status: HTTPStatus, title: str, detail: str, **members: object
) -> JSONResponse:
    problem = Problem(
        status=status.value, title=title, detail=detail, instance=request.url.path, **members
    )
    body = jsonable_encoder(problem, exclude_none=True)
    return JSONResponse(body, status_code=status.value, media_type=MEDIA_TYPE)
