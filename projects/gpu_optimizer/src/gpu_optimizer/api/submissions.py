"""What a client submits: JSON, or a form with a model file beside it."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from anyio import to_thread
from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException

from gpu_optimizer.api.schemas import RunRequest
from gpu_optimizer.bounded.json import parse_json
from gpu_optimizer.model_files.hf_configs import CONFIG_LIMITS

_MAX_FIELDS: Final = 10


def request_body(schema: type[RunRequest]) -> dict[str, Any]:
    """Describe both forms of a request in OpenAPI's words."""
    return {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": f"#/components/schemas/{schema.__name__}"}},
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": ["file"],
                        "properties": {
                            "file": {
                                "type": "string",
                                "format": "binary",
                                "description": "config.json, .safetensors (its head is enough: "
                                "send `head=true`), or a .pt2 of torch.export.save",
                            },
                            "request": {
                                "type": "string",
                                "description": f"{schema.__name__} as JSON, without `model`",
                            },
                            "head": {"type": "boolean", "default": False},
                        },
                    }
                },
            },
        }
    }


@dataclass(frozen=True, slots=True)
class Submission:
    """A checked request, and the file that came with it."""

    request: RunRequest
    payload: dict[str, Any]
    """For the job; JSON."""
    cleanup: Callable[[], None]
    """Removes the stored file."""


async def read_submission(request: Request, schema: type[RunRequest] = RunRequest) -> Submission:
    """Read a request of either form.

    Parameters
    ----------
    request
        As it came.
    schema
        What it has to be.

    Raises
    ------
    RequestValidationError
        It is not as documented.
    InvalidModelError
        JSON beyond all bounds.
    HTTPException
        Another content type, or a form that cannot be parsed.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _read_form(request, schema)
    if kind != "application/json":
        raise HTTPException(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Send application/json or multipart/form-data."
        )
    checked = _checked(await request.body(), schema)
    if checked.model is None:
        raise _invalid("model", "name a registered model, give a config, or upload a file")
    return Submission(checked, checked.model_dump(mode="json"), _nothing)


async def _read_form(request: Request, schema: type[RunRequest]) -> Submission:
    try:
        async with request.form(max_files=1, max_fields=_MAX_FIELDS) as form:
            file, text, head = form.get("file"), form.get("request", "{}"), form.get("head", "")
            if not isinstance(file, UploadFile) or not isinstance(text, str):
                raise _invalid("file", "a form needs the model's file in the field `file`")
            checked = _checked(text.encode(), schema)
            if checked.model is not None:
                raise _invalid("model", "either name a model or upload one")
            name = Path(file.filename or "upload").name[:200]
            path = await to_thread.run_sync(_store, await file.read())
    except MultiPartException as error:
        raise HTTPException(HTTPStatus.BAD_REQUEST, error.message) from error
    payload = checked.model_dump(mode="json") | {
        "path": str(path),
        "name": name,
        "complete": head != "true",
    }
    return Submission(checked, payload, path.unlink)


def _checked(body: bytes, schema: type[RunRequest]) -> RunRequest:
    document = parse_json(body, "request", CONFIG_LIMITS)
    try:
        return schema.model_validate(document)
    except ValidationError as error:
        raise RequestValidationError(
            error.errors(include_input=False, include_url=False)
        ) from error


def _store(content: bytes) -> Path:
    with tempfile.NamedTemporaryFile(prefix="gpu-optimizer-upload-", delete=False) as file:
        file.write(content)
        return Path(file.name)


def _invalid(field: str, message: str) -> RequestValidationError:
    return RequestValidationError([{"loc": ("body", field), "msg": message, "type": "value"}])


def _nothing() -> None:
    pass
