"""The service's requests that need no stream to be open."""

from collections.abc import AsyncIterator
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import httpx2
import msgspec

from pose_analyzer_client import wire
from pose_analyzer_client.addresses import ServiceAddress
from pose_analyzer_client.errors import (
    NoCapacityError,
    PoseAnalyzerClientError,
    ProtocolViolationError,
    RequestRefusedError,
    ServiceUnreachableError,
    StoreUnreachableError,
    UnreadableImageError,
)
from pose_analyzer_client.options import ClientOptions, StreamRequest
from pose_analyzer_client.results import Detection

Told = TypeVar("Told")

_DEFAULT_RETRY_S: Final = 1.0  # where the service does not say when to ask again


class RestClient:
    """One pool of HTTP connections to the service.

    Parameters
    ----------
    address
        The service's.
    options
        How long to wait.

    Raises
    ------
    ServiceUnreachableError
        Every request: nothing answers there.
    RequestRefusedError
        Every request: the service says no, and why.
    """

    def __init__(self, address: ServiceAddress, options: ClientOptions) -> None:
        self._address = address
        self._http = httpx2.AsyncClient(timeout=options.connect_timeout_s)
        self._start_timeout = httpx2.Timeout(
            options.connect_timeout_s, read=options.start_timeout_s
        )
        self._completion_timeout = httpx2.Timeout(
            options.connect_timeout_s, read=options.completion_timeout_s
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def start_stream(self, request: StreamRequest) -> wire.StreamStarted:
        """Ask for a new stream.

        Raises
        ------
        NoCapacityError
            The service has no room for it at present.
        """
        answer = await self._request(
            "POST", "/stream/start", json=request.as_json(), timeout=self._start_timeout
        )
        return _decoded(answer, wire.StreamStarted)

    async def detect_image(self, image: Path | bytes, detector: str | None) -> Detection:
        """Find the people in one image file; see `PoseAnalyzerClient.detect_image`."""
        name, data = ("upload", image) if isinstance(image, bytes) else _read(image)
        answer = await self._request(
            "POST",
            "/detect",
            files={"file": (name, data)},
            params={} if detector is None else {"detector": detector},
            timeout=self._start_timeout,
        )
        return Detection.of(_decoded(answer, wire.Detection))

    async def results(self, stream_id: str, since: int, limit: int) -> wire.ResultPage:
        """Recent answers of a stream after frame `since`."""
        path = f"/stream/{stream_id}/results"
        answer = await self._request("GET", path, params={"since": since, "limit": limit})
        return _decoded(answer, wire.ResultPage)

    async def streams(self) -> tuple[wire.StreamInfo, ...]:
        """All streams of the service, oldest first."""
        return _decoded(await self._request("GET", "/streams"), wire.StreamList).streams

    async def delete(self, stream_id: str) -> None:
        """End a stream."""
        await self._request("DELETE", f"/stream/{stream_id}")

    async def announce_video(self, announcement: dict[str, Any]) -> wire.Video:
        """Begin an upload in parts."""
        return _decoded(await self._request("POST", "/videos", json=announcement), wire.Video)

    async def videos(self, wanted: dict[str, str]) -> tuple[wire.Video, ...]:
        """Videos of which these things are true, the latest first."""
        return _decoded(await self._request("GET", "/videos", params=wanted), wire.VideoList).videos

    async def video(self, video_id: str) -> wire.Video:
        """One video."""
        return _decoded(await self._request("GET", f"/videos/{video_id}"), wire.Video)

    async def complete_video(self, video_id: str, asked: dict[str, Any]) -> wire.Video:
        """Have an upload put together and analysed."""
        path = f"/videos/{video_id}/complete"
        answer = await self._request("POST", path, json=asked, timeout=self._completion_timeout)
        return _decoded(answer, wire.Video)

    async def put(self, url: str, pieces: AsyncIterator[bytes], size_bytes: int) -> None:
        """Send bytes to an absolute address, or to a path of the service."""
        # S3 wants to know the size beforehand.
        headers = {"Content-Length": str(size_bytes), "Content-Type": "application/octet-stream"}
        if url.startswith("/"):
            await self._request("PUT", url, content=pieces, headers=headers)
            return
        try:
            answer = await self._http.put(url, content=pieces, headers=headers)
        except httpx2.TransportError as error:
            host = urlsplit(url).netloc
            raise StoreUnreachableError(host, _reason(error)) from error
        if not answer.is_success:
            raise RequestRefusedError(answer.status_code, "s3", answer.reason_phrase)

    async def _request(self, method: str, path: str, **content: Any) -> httpx2.Response:  # noqa: ANN401 - handed on
        try:
            answer = await self._http.request(method, self._address.http + path, **content)
        except httpx2.ReadTimeout as error:
            raise ServiceUnreachableError(self._address.http, "no answer in time") from error
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            raise ServiceUnreachableError(self._address.http, _reason(error)) from error
        if not answer.is_success:
            raise _refusal(answer)
        return answer


def _refusal(answer: httpx2.Response) -> PoseAnalyzerClientError:
    try:
        problem = msgspec.json.decode(answer.content, type=wire.Problem)
    except msgspec.DecodeError:
        problem = wire.Problem()
    detail = problem.detail or problem.title or answer.reason_phrase
    code = problem.type.rpartition(":")[2]
    if answer.status_code == HTTPStatus.SERVICE_UNAVAILABLE and code == "no-capacity":
        return NoCapacityError(detail, _retry_after_s(answer))
    return RequestRefusedError(
        answer.status_code, "http" if code in ("", "blank") else code, detail
    )


def _retry_after_s(answer: httpx2.Response) -> float:
    """The header's number of seconds; its other form, a date, is not used by the service."""
    try:
        return max(float(answer.headers.get("Retry-After", "")), 0.0)
    except ValueError:
        return _DEFAULT_RETRY_S


def _decoded(answer: httpx2.Response, kind: type[Told]) -> Told:
    try:
        return msgspec.json.decode(answer.content, type=kind)
    except msgspec.DecodeError as error:
        raise ProtocolViolationError(f"{answer.url.path}: {error}") from error


def _read(path: Path) -> tuple[str, bytes]:
    try:
        return path.name, path.read_bytes()
    except OSError as error:
        raise UnreadableImageError(f"{path} cannot be read: {error.strerror}") from error


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
