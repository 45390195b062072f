"""Live streams over REST: begin, look, pause, end; the frames go over WebSocket."""

from http import HTTPStatus
from typing import Annotated, Any, Final

import msgspec
from anyio import to_thread
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from pose_analyzer.api.asyncapi import asyncapi_document
from pose_analyzer.api.dependencies import (
    DetectorsDep,
    ExercisesDep,
    ManagerDep,
    MetricsDep,
    SettingsDep,
    detector_or_default,
)
from pose_analyzer.api.form_choices import ShelfDep
from pose_analyzer.api.live_sources import open_stream_source
from pose_analyzer.api.stream_schemas import StreamInfo, StreamList, StreamStart, StreamStarted
from pose_analyzer.athlete_forms import FormWish
from pose_analyzer.exercises import select_exercises
from pose_analyzer.form_types import FormChoice
from pose_analyzer.live_stream import KeptResult
from pose_analyzer.skeletons import ANGLE_NAMES, KEYPOINT_NAMES
from pose_analyzer.stream_types import Encoding, StreamOptions
from pose_analyzer.wire import Result
from shared_utils.problems import documented_problems

_MAX_PAGE: Final = 1000
_MAX_FRAME_INDEX: Final = 2**53

# FastAPI would tell of a 422 in a form of its own.
_STREAM_PROBLEMS: Final = documented_problems(HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY)
_RESULT_PAGE: Final = {
    "type": "object",
    "required": ["results", "next"],
    "properties": {
        "results": {
            "type": "array",
            "items": {"type": "object", "description": "A `Result` of /asyncapi.json."},
        },
        "next": {"type": "integer", "description": "The next request's `since`."},
    },
}

router = APIRouter(tags=["streams"])


async def _chosen_form(
    body: StreamStart, settings: SettingsDep, exercises: ExercisesDep, shelf: ShelfDep
) -> FormChoice:
    """By what the exercises that are asked for are judged."""
    selected = select_exercises(exercises, body.exercise)
    wish = FormWish(body.reference, body.language or settings.language, body.athlete_id)
    return await to_thread.run_sync(shelf.choose, selected, wish)


@router.post(
    "/stream/start",
    status_code=HTTPStatus.CREATED,
    responses=documented_problems(
        HTTPStatus.FORBIDDEN,
        HTTPStatus.NOT_FOUND,
        HTTPStatus.UNPROCESSABLE_ENTITY,
        HTTPStatus.SERVICE_UNAVAILABLE,
    ),
)
async def start_stream(
    body: StreamStart,
    request: Request,
    settings: SettingsDep,
    detectors: DetectorsDep,
    manager: ManagerDep,
    form: Annotated[FormChoice, Depends(_chosen_form)],
) -> StreamStarted:
    """Begin a stream; send its frames to `ws_url`."""
    shown, source = None, None
    if body.source is not None:
        shown, source = await to_thread.run_sync(open_stream_source, body.source, settings)
    options = StreamOptions(
        exercise=body.exercise,
        detector=await detectors.model_of(detector_or_default(body.detector, settings)),
        fps=body.fps,
        sample_fps=body.sample_fps,
        roi=body.roi,
        priority=body.priority,
        form=form,
        source=shown,
        athlete_id=body.athlete_id,
    )
    stream = await manager.start(options, source)
    pipeline = manager.pipeline_of(stream.stream_id)
    url = request.url_for("stream", stream_id=stream.stream_id)
    return StreamStarted(
        stream_id=stream.stream_id,
        session_id=stream.session_id,
        ws_url=str(url.replace(scheme="wss" if request.url.scheme == "https" else "ws")),
        detector=pipeline.name,
        device=pipeline.device,
        exercise=body.exercise,
        keypoint_names=KEYPOINT_NAMES,
        angle_names=ANGLE_NAMES,
    )


@router.get("/streams")
async def list_streams(manager: ManagerDep) -> StreamList:
    """All streams."""
    return StreamList(streams=[StreamInfo.of(stream) for stream in manager.streams])


@router.get("/stream/{stream_id}", responses=_STREAM_PROBLEMS)
async def show_stream(stream_id: str, manager: ManagerDep) -> StreamInfo:
    """One stream."""
    return StreamInfo.of(manager.get(stream_id))


@router.get(
    "/stream/{stream_id}/results",
    responses={
        **_STREAM_PROBLEMS,
        HTTPStatus.OK.value: {"content": {"application/json": {"schema": _RESULT_PAGE}}},
    },
    response_class=Response,
    response_model=None,
)
async def list_results(
    stream_id: str,
    manager: ManagerDep,
    since: Annotated[
        int,
        Query(ge=-1, le=_MAX_FRAME_INDEX, description="Only answers to later frames than this."),
    ] = -1,
    limit: Annotated[int, Query(ge=1, le=_MAX_PAGE)] = 100,
) -> Response:
    """Recent answers, oldest first; go on with ``since`` = ``next``."""
    kept = [one for one in manager.get(stream_id).results if one.frame_index > since][:limit]
    page = {
        "results": [_as_json(one) for one in kept],
        "next": kept[-1].frame_index if kept else since,
    }
    return Response(msgspec.json.encode(page), media_type="application/json")


@router.post("/stream/{stream_id}/pause", responses=_STREAM_PROBLEMS)
async def pause_stream(stream_id: str, manager: ManagerDep) -> StreamInfo:
    """Drop the stream's frames until it is resumed."""
    return StreamInfo.of(manager.pause(stream_id))


@router.post("/stream/{stream_id}/resume", responses=_STREAM_PROBLEMS)
async def resume_stream(stream_id: str, manager: ManagerDep) -> StreamInfo:
    """Analyse the stream's frames again."""
    return StreamInfo.of(manager.resume(stream_id))


@router.delete(
    "/stream/{stream_id}",
    status_code=HTTPStatus.NO_CONTENT,
    responses=_STREAM_PROBLEMS,
)
async def end_stream(stream_id: str, manager: ManagerDep) -> None:
    """End the stream and forget its results."""
    manager.end(stream_id, "ended by the client")


@router.get("/metrics", response_class=PlainTextResponse, response_model=None)
async def metrics(collectors: MetricsDep) -> Response:
    """Prometheus metrics of this process."""
    return Response(generate_latest(collectors.registry), media_type=CONTENT_TYPE_LATEST)


@router.get("/asyncapi.json")
async def asyncapi(request: Request) -> dict[str, Any]:
    """Return the AsyncAPI description of the WebSocket."""
    return asyncapi_document(request.app.version)


def _as_json(kept: KeptResult) -> Any:  # noqa: ANN401 - whatever msgspec writes
    if kept.encoding is Encoding.JSON:
        return msgspec.Raw(kept.message)
    return msgspec.msgpack.decode(kept.message, type=Result)
