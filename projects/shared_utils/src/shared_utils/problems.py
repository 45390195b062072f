"""Every refusal of a service is an RFC 9457 problem document; one table says which error is which.

For services, which bring FastAPI themselves.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import structlog
from fastapi import FastAPI, Request
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

from shared_utils.errors import ProjectError

MEDIA_TYPE: Final = "application/problem+json"

log = structlog.get_logger()


class Problem(BaseModel):
    """RFC 9457 problem details."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    instance: str
    errors: list[dict[str, str]] | None = None
    """For a request that is not as documented: where and what."""


@dataclass(frozen=True, slots=True)
class ProblemKind:
    """How one class of error is told over HTTP."""

    code: str
    """Stable end of the problem's type URI."""
    status: HTTPStatus
    title: str


class ProblemHandlers:
    """Makes every error of a service end in a problem document.

    Parameters
    ----------
    service
        Name for the problems' type URIs.
    kinds
        Which errors are expected; subclasses count as their nearest parent. An error with a field
        `retry_after_s` also gets the header ``Retry-After``.
    """

    def __init__(self, service: str, kinds: Mapping[type[ProjectError], ProblemKind]) -> None:
        self._prefix = f"urn:problem-type:{service}:"
        self._kinds = kinds

    def install(self, app: FastAPI) -> None:
        """Answer for this app from now on."""
        for kind in self._kinds:
            app.add_exception_handler(kind, self._on_known_error)
        app.add_exception_handler(HTTPException, _on_http_error)
        app.add_exception_handler(RequestValidationError, self._on_invalid_request)
        app.add_exception_handler(Exception, _on_defect)

    async def _on_known_error(self, request: Request, error: Exception) -> JSONResponse:
        kind = next(self._kinds[parent] for parent in type(error).__mro__ if parent in self._kinds)
        log.info("request_refused", problem=kind.code, detail=str(error))
        response = _respond(
            request, kind.status, kind.title, str(error), type=f"{self._prefix}{kind.code}"
        )
        retry_after_s = getattr(error, "retry_after_s", None)
        if retry_after_s is not None:
            response.headers["Retry-After"] = str(math.ceil(retry_after_s))
        return response

    async def _on_invalid_request(self, request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for it only
        problems = [
            {"where": ".".join(map(str, item["loc"])), "what": item["msg"]}
            for item in error.errors()
        ]
        detail = "; ".join(f"{problem['where']}: {problem['what']}" for problem in problems)
        return _respond(
            request,
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "The request is not as documented",
            detail,
            type=f"{self._prefix}invalid-request",
            errors=problems,
        )


def documented_problems(*statuses: HTTPStatus) -> dict[int | str, dict[str, Any]]:
    """OpenAPI responses of a route that may refuse with these statuses."""
    return {
        status.value: {
            "description": status.phrase,
            "content": {MEDIA_TYPE: {"schema": Problem.model_json_schema()}},
        }
        for status in statuses
    }


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for this class only
    status = HTTPStatus(error.status_code)
    response = _respond(request, status, status.phrase, error.detail)
    response.headers.update(error.headers or {})
    return response


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
