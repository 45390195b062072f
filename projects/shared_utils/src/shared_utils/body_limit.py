"""Uploads within bounds: bytes are counted while they arrive."""

from http import HTTPStatus
from typing import Final

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ENVELOPE_BYTES: Final = 1 << 14
"""Room for the multipart headers around a file."""


class BodyLimit:
    """ASGI middleware that stops reading a request once its upload exceeds a limit.

    Parameters
    ----------
    app
        The service.
    max_upload_bytes
        Largest file; a little more may come around it.
    """

    def __init__(self, app: ASGIApp, max_upload_bytes: int) -> None:
        self._app = app
        self._max_upload_bytes = max_upload_bytes
        self._max_bytes = max_upload_bytes + ENVELOPE_BYTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a counting `receive`."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        n_bytes = 0
        declared_bytes = _declared_length(scope)

        async def counted() -> Message:
            nonlocal n_bytes
            if declared_bytes > self._max_bytes:
                raise self._refusal()
            message = await receive()
            n_bytes += len(message.get("body", b""))
            if n_bytes > self._max_bytes:
                raise self._refusal()
            return message

        await self._app(scope, counted, send)

    def _refusal(self) -> HTTPException:
        # FastAPI turns any other exception met while it parses a body into a 400.
        return HTTPException(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"At most {self._max_upload_bytes} bytes are accepted.",
            headers={"Connection": "close"},
        )


def _declared_length(scope: Scope) -> int:
    value = dict(scope["headers"]).get(b"content-length", b"0")
    return int(value) if value.isdigit() else 0
