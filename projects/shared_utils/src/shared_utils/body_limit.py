"""Uploads within bounds: bytes are counted while they arrive."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OwnLimit = Callable[[Scope], int | None]
"""Largest upload of a request; None leaves it to the general limit."""

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
    own_limit
        For requests whose route takes larger or smaller files; such a route must not keep them in
        memory.
    """

    def __init__(
        self, app: ASGIApp, max_upload_bytes: int, own_limit: OwnLimit | None = None
    ) -> None:
        self._app = app
        self._max_upload_bytes = max_upload_bytes
        self._own_limit = own_limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a counting `receive`."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        n_bytes = 0
        declared_bytes = _declared_length(scope)
        own_bytes = None if self._own_limit is None else self._own_limit(scope)
        limit_bytes = self._max_upload_bytes if own_bytes is None else own_bytes
        max_bytes = limit_bytes + ENVELOPE_BYTES

        async def counted() -> Message:
            nonlocal n_bytes
            if declared_bytes > max_bytes:
                raise _refusal(limit_bytes)
            message = await receive()
            n_bytes += len(message.get("body", b""))
            if n_bytes > max_bytes:
                raise _refusal(limit_bytes)
            return message

        await self._app(scope, counted, send)


def _refusal(limit_bytes: int) -> HTTPException:
    # FastAPI turns any other exception met while it parses a body into a 400.
    return HTTPException(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"At most {limit_bytes} bytes are accepted.",
        headers={"Connection": "close"},
    )


def _declared_length(scope: Scope) -> int:
    value = dict(scope["headers"]).get(b"content-length", b"0")
    return int(value) if value.isdigit() else 0
