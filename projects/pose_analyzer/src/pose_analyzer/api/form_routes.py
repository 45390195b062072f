"""Routes about form: exercises, judging a sequence or a clip, references."""

import shutil
import tempfile
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import anyio
from anyio import to_thread
from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from pose_analyzer.api.clips import CLIP_FPS, ClipReader
from pose_analyzer.api.dependencies import (
    ClipsDep,
    ExercisesDep,
    SettingsDep,
    detector_or_default,
)
from pose_analyzer.api.form_choices import FormShelf, ShelfDep
from pose_analyzer.api.form_schemas import (
    ExerciseInfo,
    ExerciseList,
    FormQuestion,
    ReferenceInfo,
    ReferenceList,
    SetForm,
    Teaching,
)
from pose_analyzer.api.problems import UnknownReferenceError
from pose_analyzer.athlete_forms import FormWish
from pose_analyzer.errors import InvalidReferenceError, UnknownNameError
from pose_analyzer.exercises import Exercise, select_exercises
from pose_analyzer.form_patterns import TeachingSpec, taught_reference
from pose_analyzer.form_references import FormReference, signals_for
from pose_analyzer.form_sequences import judge_keypoints
from pose_analyzer.reference_files import (
    MAX_FILE_BYTES,
    check_name,
    format_reference,
    parse_reference,
    select_reference,
)
from pose_analyzer.settings import Settings
from pose_analyzer.stream_analyzer import AnalysisConfig
from shared_utils.problems import documented_problems

_KEPT: Final = documented_problems(
    HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.SERVICE_UNAVAILABLE
)
_NAMED: Final = documented_problems(HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY)
_CLIP_SCHEMA: Final = {
    "type": "object",
    "required": ["file"],
    "properties": {
        "file": {"type": "string", "format": "binary", "description": "A clip of a minute."},
        "exercise": {"type": "string", "default": "auto"},
        "reference": {"type": "string"},
        "language": {"type": "string"},
        "detector": {"type": "string"},
    },
}
_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": FormQuestion.model_json_schema()},
            "multipart/form-data": {"schema": _CLIP_SCHEMA},
        },
    }
}
# Judging five minutes of keypoints keeps a core busy for seconds: live streams need it too.
_turn: Final = anyio.CapacityLimiter(1)

router = APIRouter(tags=["form"])


@router.get("/exercises")
async def list_exercises(exercises: ExercisesDep, shelf: ShelfDep) -> ExerciseList:
    """Tell which exercises can be counted, and by what their form is judged."""
    shelved = await to_thread.run_sync(shelf.references)
    references = [one.reference for one in shelved.values()]
    library = shelf.library
    return ExerciseList(
        exercises=[
            ExerciseInfo.of(
                exercise,
                [r.name for r in references if r.exercise == exercise.name],
                {f.name: f.title for f in library.faults.values() if f.rules_for(exercise.name)},
            )
            for exercise in exercises.values()
        ],
        languages=sorted(library.texts),
    )


@router.post(
    "/analyze-form",
    openapi_extra=_BODY,
    responses=documented_problems(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
        HTTPStatus.SERVICE_UNAVAILABLE,
    ),
)
async def analyze_form(
    request: Request,
    settings: SettingsDep,
    exercises: ExercisesDep,
    shelf: ShelfDep,
    clips: ClipsDep,
) -> SetForm:
    """Judge each repetition of a sequence of keypoints (JSON), or of a short clip (multipart)."""
    desk = _Desk(settings, exercises, shelf)
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        return await _judge_upload(request, desk, clips)
    question = _parsed(FormQuestion, await request.body())
    wish = FormWish(question.reference, question.language or settings.language)

    def judge() -> SetForm:
        return SetForm.of(
            judge_keypoints(desk.config(question.exercise, wish), question.sequence())
        )

    return await to_thread.run_sync(judge, limiter=_turn)


@router.get("/references")
async def list_references(shelf: ShelfDep) -> ReferenceList:
    """Tell what form can be compared with."""
    shelved = await to_thread.run_sync(shelf.references)
    return ReferenceList(
        references=[ReferenceInfo.of(one.reference, one.athlete_id) for one in shelved.values()]
    )


@router.get("/references/{name}", responses=_NAMED, response_class=Response)
async def get_reference(name: str, shelf: ShelfDep) -> Response:
    """Fetch a reference whole, as `pose-analyzer teach` writes it."""
    shelved = await to_thread.run_sync(shelf.references)
    if name not in shelved:
        raise UnknownReferenceError(name)
    return Response(format_reference(shelved[name].reference), media_type="application/json")


@router.post("/references", status_code=HTTPStatus.CREATED, responses=_KEPT)
async def teach_reference(
    body: Teaching, settings: SettingsDep, exercises: ExercisesDep, shelf: ShelfDep
) -> ReferenceInfo:
    """Make a reference of keypoints of good repetitions."""
    desk = _Desk(settings, exercises, shelf)
    taught = await to_thread.run_sync(desk.teach, body, limiter=_turn)
    return ReferenceInfo.of(taught, body.athlete_id)


@router.put("/references/{name}", responses=_KEPT)
async def store_reference(
    name: str,
    request: Request,
    settings: SettingsDep,
    exercises: ExercisesDep,
    shelf: ShelfDep,
    athlete_id: UUID | None = None,
) -> ReferenceInfo:
    """Store a reference that `pose-analyzer teach` has written, under its own name."""
    check_name(name)
    data = await request.body()
    if len(data) > MAX_FILE_BYTES:
        raise InvalidReferenceError(name, f"larger than {MAX_FILE_BYTES} bytes")
    reference = parse_reference(data, name)
    if reference.name != name:
        raise InvalidReferenceError(name, f"the document calls it {reference.name!r}")
    desk = _Desk(settings, exercises, shelf)
    await to_thread.run_sync(desk.store, reference, athlete_id)
    return ReferenceInfo.of(reference, athlete_id)


@router.delete("/references/{name}", status_code=HTTPStatus.NO_CONTENT, responses=_KEPT)
async def forget_reference(name: str, shelf: ShelfDep) -> None:
    """Forget a reference that was taught or stored; the built-in ones stay."""
    try:
        await to_thread.run_sync(shelf.forget, name)
    except UnknownNameError as error:
        raise UnknownReferenceError(name) from error


class _Desk:
    """What judging needs of the service."""

    def __init__(
        self, settings: Settings, exercises: dict[str, Exercise], shelf: FormShelf
    ) -> None:
        self.settings = settings
        self._exercises = exercises
        self._shelf = shelf

    def config(self, exercise: str, wish: FormWish) -> AnalysisConfig:
        """How to analyse; says if there is no such exercise, reference or language."""
        chosen = select_exercises(self._exercises, exercise)
        choice = self._shelf.choose(chosen, wish)
        judge = self._shelf.library.judge_config(chosen, choice)
        return AnalysisConfig(chosen, exercise, CLIP_FPS, judge=judge)

    def teach(self, body: Teaching) -> FormReference:
        """Make a reference and store it."""
        chosen = select_exercises(self._exercises, body.exercise)
        if len(chosen) != 1:
            raise InvalidReferenceError(body.name, "name one exercise")
        judged = judge_keypoints(AnalysisConfig(chosen, body.exercise), body.sequence())
        if not judged.tracks:
            reason = f"no repetition of {body.exercise} was counted in it"
            raise InvalidReferenceError(body.name, reason)
        spec = TeachingSpec(
            name=body.name,
            exercise=body.exercise,
            signals=signals_for(chosen[0].main_angles),
            provenance={"source": "keypoints sent to the service", "made_by": "POST /references"},
            for_everyone=body.for_everyone,
        )
        shelved = self._shelf.references()
        general = select_reference(
            {name: one.reference for name, one in shelved.items()}, body.exercise
        )
        try:
            reference = taught_reference(spec, judged.tracks, general)
        except ValueError as error:
            raise InvalidReferenceError(body.name, str(error)) from error
        self.store(reference, body.athlete_id)
        return reference

    def store(self, reference: FormReference, athlete_id: UUID | None) -> None:
        """Keep a reference, unless its name is that of a built-in one."""
        if reference.exercise not in self._exercises:
            raise UnknownNameError("exercise", reference.exercise, tuple(self._exercises))
        self._shelf.keep(reference, athlete_id)


async def _judge_upload(request: Request, desk: _Desk, clips: ClipReader) -> SetForm:
    async with request.form(max_files=1, max_fields=8) as form:
        upload = form.get("file")
        if not isinstance(upload, UploadFile):
            raise RequestValidationError(
                [{"type": "missing", "loc": ("body", "file"), "msg": "Field required"}]
            )
        asked = {name: value for name, value in form.items() if isinstance(value, str)}
        exercise = asked.get("exercise", "auto")
        language = asked.get("language", desk.settings.language)
        wish = FormWish(asked.get("reference"), language)
        config = await to_thread.run_sync(desk.config, exercise, wish)
        detector = detector_or_default(asked.get("detector"), desk.settings)
        with tempfile.TemporaryDirectory(prefix="pose-clip-") as folder:
            path = Path(folder) / "clip"
            await to_thread.run_sync(_copy, upload, path)
            name = upload.filename or "upload"
            return SetForm.of(await clips.judge(path, name, detector, config))


def _copy(upload: UploadFile, path: Path) -> None:
    with path.open("wb") as file:
        shutil.copyfileobj(upload.file, file)


def _parsed(kind: type[FormQuestion], data: bytes) -> FormQuestion:
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False, include_context=False)
        raise RequestValidationError(found) from error
