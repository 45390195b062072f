"""Routes about sessions that were kept: live streams and analysed recordings."""

from http import HTTPStatus
from typing import Annotated, Any, Final
from uuid import UUID

import anyio
import msgspec
import numpy as np
from anyio import to_thread
from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse

from pose_analyzer.api.dependencies import ArtifactsDep, DatabaseDep, StorageDep
from pose_analyzer.api.session_exports import (
    MEDIA_TYPES,
    ExportRequest,
    export_session,
    pieces,
)
from pose_analyzer.api.session_schemas import (
    ExportQuery,
    SessionList,
    SessionQuery,
    SessionReport,
    TimeSeries,
    TimeSeriesQuery,
    session_info,
)
from pose_analyzer.errors import UnknownNameError
from pose_analyzer.session_deletion import delete_session
from pose_analyzer.storage.sessions import describe_session, get_session, list_sessions
from pose_analyzer.storage.timeseries import SIGNALS, Course, read_courses
from shared_utils.problems import documented_problems

EXPORTS: Final = "exports"
"""Folder of the data folder where exported files are made."""
_DECIMALS: Final = 4
_LISTED: Final = documented_problems(
    HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.SERVICE_UNAVAILABLE
)
_NAMED: Final = documented_problems(
    HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.SERVICE_UNAVAILABLE
)
_EXPORTED: Final = {
    **documented_problems(
        HTTPStatus.NOT_FOUND,
        HTTPStatus.UNPROCESSABLE_ENTITY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.INSUFFICIENT_STORAGE,
    ),
    HTTPStatus.OK.value: {
        "description": "The file.",
        "content": {
            kind: {"schema": {"type": "string", "format": "binary"}}
            for kind in sorted({kind.partition(";")[0] for kind in MEDIA_TYPES.values()})
        },
    },
}
# Writing files keeps a core busy, which live streams need too.
_turn: Final = anyio.CapacityLimiter(1)

router = APIRouter(tags=["sessions"])


@router.get("/sessions", responses=_LISTED)
async def list_all(database: DatabaseDep, query: Annotated[SessionQuery, Query()]) -> SessionList:
    """Sessions, those that began last first."""

    def read() -> SessionList:
        with database.session() as session:
            page = list_sessions(session, query.filter, query.limit, query.offset)
            return SessionList(
                sessions=[session_info(row) for row in page.sessions], n_total=page.n_total
            )

    return await to_thread.run_sync(read)


@router.get("/sessions/{session_id}", responses=_NAMED)
async def show_session(session_id: UUID, database: DatabaseDep) -> SessionReport:
    """One session with its repetitions, their faults, and who was seen."""

    def read() -> SessionReport:
        with database.session() as session:
            return SessionReport.of(describe_session(session, session_id))

    return await to_thread.run_sync(read)


@router.get(
    "/sessions/{session_id}/timeseries",
    responses={**_NAMED, HTTPStatus.OK.value: {"model": TimeSeries}},
    response_model=None,
)
async def show_timeseries(
    session_id: UUID, database: DatabaseDep, query: Annotated[TimeSeriesQuery, Query()]
) -> Response:
    """Mean, least and largest value of each signal in buckets of time; gaps are gaps."""
    signals = tuple(dict.fromkeys(query.signal))
    for name in signals:
        if name not in SIGNALS:
            raise UnknownNameError("signal", name, SIGNALS)
    bucket_s = query.bucket.length_s

    def read() -> bytes:
        with database.session() as session:
            began = get_session(session, session_id).started_at
            courses = read_courses(session, query.rows_of(session_id), bucket_s, signals)
        return msgspec.json.encode(
            {
                "session_id": session_id,
                "started_at": began,
                "bucket_s": bucket_s,
                "tracks": [_course(course, bucket_s) for course in courses],
            }
        )

    return Response(await to_thread.run_sync(read), media_type="application/json")


@router.get("/sessions/{session_id}/export", responses=_EXPORTED, response_class=StreamingResponse)
async def export(
    session_id: UUID,
    database: DatabaseDep,
    storage: StorageDep,
    query: Annotated[ExportQuery, Query()],
) -> StreamingResponse:
    """Frames of a session as a table (csv, parquet) or as markers (trc, c3d) of one person."""
    asked = ExportRequest(session_id, query)
    file, n_bytes = await to_thread.run_sync(
        export_session, database, storage.data_dir / EXPORTS, asked, limiter=_turn
    )
    headers = {
        "Content-Disposition": f'attachment; filename="{asked.filename}"',
        "Content-Length": str(n_bytes),
    }
    return StreamingResponse(pieces(file), media_type=MEDIA_TYPES[query.format], headers=headers)


@router.delete("/sessions/{session_id}", status_code=HTTPStatus.NO_CONTENT, responses=_NAMED)
async def forget_session(session_id: UUID, database: DatabaseDep, artifacts: ArtifactsDep) -> None:
    """Delete a session with everything that belongs to it, files included."""
    await to_thread.run_sync(delete_session, database, artifacts, session_id)


def _course(course: Course, bucket_s: int) -> dict[str, Any]:
    buckets = course.first_bucket + np.arange(len(course.n_frames))
    return {
        "track_id": course.track_id,
        "start_s": (buckets * bucket_s).tolist(),
        "n_frames": course.n_frames.tolist(),
        "signals": {
            name: {
                "mean": found.mean.round(_DECIMALS).tolist(),
                "min": found.least.round(_DECIMALS).tolist(),
                "max": found.largest.round(_DECIMALS).tolist(),
            }
            for name, found in course.signals.items()
        },
    }
