"""Bodies are read up to the limit of their route."""

import asyncio
from typing import Any

import pytest
from starlette.exceptions import HTTPException

from shared_utils.body_limit import ENVELOPE_BYTES, BodyLimit

PIECE = bytes(10_000)


def n_read(path: str, n_pieces: int, declared_bytes: int | None = None) -> tuple[int, int | None]:
    """How many bytes of a request an application gets, and how it is then refused."""
    read = 0

    async def application(scope: Any, receive: Any, send: Any) -> None:
        nonlocal read
        for _ in range(n_pieces):
            message = await receive()
            read += len(message["body"])

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": PIECE, "more_body": True}

    async def send(message: Any) -> None:
        raise AssertionError

    limited = BodyLimit(
        application, 20_000, own_limit=lambda scope: 100_000 if scope["path"] == "/large" else None
    )
    headers = [] if declared_bytes is None else [(b"content-length", str(declared_bytes).encode())]
    scope = {"type": "http", "path": path, "headers": headers}
    try:
        asyncio.run(limited(scope, receive, send))
    except HTTPException as error:
        return read, error.status_code
    return read, None


@pytest.mark.parametrize(("path", "limit_bytes"), [("/", 20_000), ("/large", 100_000)])
def test_each_route_has_its_limit(path: str, limit_bytes: int) -> None:
    within = (limit_bytes + ENVELOPE_BYTES) // len(PIECE)
    assert n_read(path, within) == (within * len(PIECE), None)
    assert n_read(path, within + 5) == (within * len(PIECE), 413)
    assert n_read(path, 1, limit_bytes + ENVELOPE_BYTES) == (len(PIECE), None)
    assert n_read(path, 1, limit_bytes + ENVELOPE_BYTES + 1) == (0, 413)
