"""Routes about uploaded videos: announce, send in parts, complete; or all in one form."""

import time
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any, Final
from uuid import UUID

import anyio
from anyio import to_thread
from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import AwareDatetime, ValidationError

from pose_analyzer.api.dependencies import StorageDep
from pose_analyzer.api.request_bodies import FormReader, IncomingFile, feed_body
from pose_analyzer.api.video_dependencies import (
    RequestMaker,
    RequestMakerDep,
    UploadsDep,
    check_address,
    part_address,
)
from pose_analyzer.api.video_limits import is_form
from pose_analyzer.api.video_schemas import (
    AnalysisWishes,
    UploadPart,
    VideoAnnouncement,
    VideoInfo,
    VideoList,
    VideoUpload,
    WholeVideo,
)
from pose_analyzer.storage.models import VideoState
from pose_analyzer.storage.videos import VideoFilter, VideoRecord
from pose_analyzer.storage_settings import StorageSettings
from pose_analyzer.upload_errors import (
    MalformedFormError,
    PartTooLargeError,
    VideoTooLargeError,
    WrongPartSizeError,
)
from pose_analyzer.upload_rules import PartPlan
from pose_analyzer.video_uploads import VideoUploads
from shared_utils.body_limit import ENVELOPE_BYTES
from shared_utils.problems import documented_problems

ADDRESS_LIFE_S: Final = 6 * 3600.0
_MAX_PAGE: Final = 1000
_NAMED: Final = documented_problems(
    HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.SERVICE_UNAVAILABLE
)
_SENT: Final = documented_problems(
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.NOT_FOUND,
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.CONFLICT,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.INSUFFICIENT_STORAGE,
)
_FORM_SCHEMA: Final = {
    "type": "object",
    "required": ["file"],
    "properties": {"file": {"type": "string", "format": "binary"}}
    | WholeVideo.model_json_schema()["properties"],
}
_ANNOUNCEMENT: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": VideoAnnouncement.model_json_schema(),
                "example": {"filename": "squats.mp4", "size_bytes": 48_211_042},
            },
            "multipart/form-data": {"schema": _FORM_SCHEMA},
        },
    }
}
_ANY_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
# Reading gigabytes keeps disk and a core busy, which live streams need too.
_turn: Final = anyio.CapacityLimiter(1)

router = APIRouter(tags=["videos"])


@router.post(
    "/videos", status_code=HTTPStatus.CREATED, openapi_extra=_ANNOUNCEMENT, responses=_SENT
)
async def announce_video(
    request: Request, uploads: UploadsDep, storage: StorageDep, request_maker: RequestMakerDep
) -> VideoInfo:
    """Begin an upload in parts (JSON), or send a whole video at once (multipart form)."""
    if is_form(request.scope):
        return await _receive_form(request, uploads, storage, request_maker)
    body = _parsed(VideoAnnouncement, await request.body())
    await to_thread.run_sync(request_maker, AnalysisWishes(exercise=body.exercise), None)
    video = await to_thread.run_sync(uploads.announce, body.told())
    return await to_thread.run_sync(_described, uploads, video, storage)


@router.get("/videos", responses=_NAMED)
async def list_videos(
    uploads: UploadsDep,
    athlete_id: UUID | None = None,
    state: VideoState | None = None,
    sha256: Annotated[str | None, Query(pattern=r"^[0-9a-f]{64}$")] = None,
    before: AwareDatetime | None = None,
    limit: Annotated[int, Query(ge=1, le=_MAX_PAGE)] = 100,
) -> VideoList:
    """List videos, the latest first; go on with `before` = the last one's `created_at`."""
    wanted = VideoFilter(athlete_id, state, sha256, before, limit)
    found = await to_thread.run_sync(uploads.find, wanted)
    return VideoList(videos=[VideoInfo.of(video) for video in found])


@router.get("/videos/{video_id}", responses=_NAMED)
async def get_video(video_id: UUID, uploads: UploadsDep, storage: StorageDep) -> VideoInfo:
    """Tell about a video, and during its upload which parts are there and where others go."""
    video = await to_thread.run_sync(uploads.read, video_id)
    return await to_thread.run_sync(_described, uploads, video, storage)


@router.put(
    "/videos/{video_id}/parts/{number}",
    status_code=HTTPStatus.NO_CONTENT,
    openapi_extra=_ANY_BODY,
    responses=_SENT,
    dependencies=[Depends(check_address)],
)
async def send_part(
    video_id: UUID,
    number: Annotated[int, Path(ge=0, le=99_999)],
    request: Request,
    uploads: UploadsDep,
) -> None:
    """Send one part, as raw bytes; again, it takes the place of the earlier one."""
    expected_bytes = await to_thread.run_sync(uploads.expected_bytes, video_id, number)
    told_bytes = _declared_bytes(request)
    if told_bytes is not None and told_bytes != expected_bytes:
        raise _wrong_size(number, expected_bytes, told_bytes)
    with uploads.incoming_file() as path:
        too_large = PartTooLargeError(number, expected_bytes, "more arrived")
        with IncomingFile(path, expected_bytes, lambda: too_large) as file:
            await feed_body(request.stream(), file.write)
        if file.n_bytes != expected_bytes:
            raise _wrong_size(number, expected_bytes, file.n_bytes)
        await to_thread.run_sync(uploads.store_part, video_id, number, path)


@router.post("/videos/{video_id}/complete", responses=_SENT)
async def complete_video(
    video_id: UUID, uploads: UploadsDep, request_maker: RequestMakerDep, wishes: AnalysisWishes
) -> VideoInfo:
    """Put the parts together, check size, SHA-256 and content, and have the video analysed.

    One that is stored already is only told about.
    """
    video = await to_thread.run_sync(uploads.read, video_id)
    asked = await to_thread.run_sync(request_maker, wishes, video.exercise)
    stored = await to_thread.run_sync(uploads.complete, video_id, asked, limiter=_turn)
    return VideoInfo.of(stored)


@router.delete("/videos/{video_id}", status_code=HTTPStatus.NO_CONTENT, responses=_NAMED)
async def delete_video(video_id: UUID, uploads: UploadsDep) -> None:
    """Delete a video, or end its upload; its session and all that was found in it go with it."""
    await to_thread.run_sync(uploads.delete, video_id)


async def _receive_form(
    request: Request, uploads: VideoUploads, storage: StorageSettings, request_maker: RequestMaker
) -> VideoInfo:
    told_bytes = _declared_bytes(request) or 0
    await to_thread.run_sync(uploads.check_room, max(told_bytes - ENVELOPE_BYTES, 0))
    too_large = VideoTooLargeError(storage.max_video_bytes)
    with uploads.incoming_file() as path:
        with IncomingFile(path, storage.max_video_bytes, lambda: too_large) as file:
            form = FormReader(request.headers["content-type"], file)
            await feed_body(request.stream(), form.feed)
            form.finish()
        if not file.n_bytes:
            raise MalformedFormError("the file is empty")
        whole = _checked(WholeVideo, form.fields)
        told = whole.told(form.filename or "", form.file_type, file.n_bytes)
        asked = await to_thread.run_sync(request_maker, whole.wishes(), None)
        stored = await to_thread.run_sync(
            uploads.store_whole, path, told, file.sha256, asked, limiter=_turn
        )
        return VideoInfo.of(stored)


def _described(uploads: VideoUploads, video: VideoRecord, storage: StorageSettings) -> VideoInfo:
    if video.state is not VideoState.UPLOADING:
        return VideoInfo.of(video)
    missing = uploads.missing_parts(video)
    expires_at = int(time.time() + ADDRESS_LIFE_S)
    urls = uploads.direct_addresses(video, missing, ADDRESS_LIFE_S)
    if urls is None:
        urls = [part_address(storage, video.video_id, number, expires_at) for number in missing]
    url_of = dict(zip(missing, urls, strict=True))
    plan = PartPlan(video.size_bytes, video.part_bytes)
    parts = [
        UploadPart(
            number=number,
            size_bytes=plan.size_of(number),
            stored=number not in url_of,
            url=url_of.get(number),
        )
        for number in range(plan.n_parts)
    ]
    return VideoInfo.of(
        video,
        VideoUpload(
            part_bytes=plan.part_bytes,
            expires_at=datetime.fromtimestamp(expires_at, UTC),
            parts=parts,
        ),
    )


def _wrong_size(number: int, expected_bytes: int, told_bytes: int) -> WrongPartSizeError:
    kind = PartTooLargeError if told_bytes > expected_bytes else WrongPartSizeError
    return kind(number, expected_bytes, f"{told_bytes} came")


def _declared_bytes(request: Request) -> int | None:
    value = request.headers.get("content-length", "")
    return int(value) if value.isdecimal() and value.isascii() else None


def _parsed(kind: type[VideoAnnouncement], data: bytes) -> VideoAnnouncement:
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise _as_invalid_request(error) from error


def _checked(kind: type[WholeVideo], fields: dict[str, str]) -> WholeVideo:
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise _as_invalid_request(error) from error


def _as_invalid_request(error: ValidationError) -> RequestValidationError:
    return RequestValidationError(
        error.errors(include_input=False, include_url=False, include_context=False)
    )
