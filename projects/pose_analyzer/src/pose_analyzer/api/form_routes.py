"""Routes about form: exercises, judging a sequence or a clip, references."""

import shutil
import tempfile
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

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
    LibraryDep,
    SettingsDep,
    detector_or_default,
)
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
from pose_analyzer.errors import InvalidReferenceError, UnknownNameError
from pose_analyzer.exercises import Exercise, select_exercises
from pose_analyzer.form_library import FormLibrary
from pose_analyzer.form_patterns import TeachingSpec, taught_reference
from pose_analyzer.form_references import FormReference, signals_for
from pose_analyzer.form_sequences import judge_keypoints
from pose_analyzer.form_types import FormChoice
from pose_analyzer.reference_files import (
    MAX_FILE_BYTES,
    check_name,
    delete_reference,
    format_reference,
    parse_reference,
    save_reference,
    select_reference,
)
from pose_analyzer.settings import Settings
from pose_analyzer.stream_analyzer import AnalysisConfig
from shared_utils.problems import documented_problems

_INVALID: Final = documented_problems(HTTPStatus.UNPROCESSABLE_ENTITY)
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
async def list_exercises(exercises: ExercisesDep, library: LibraryDep) -> ExerciseList:
    """Tell which exercises can be counted, and by what their form is judged."""
    references = await to_thread.run_sync(library.references)
    return ExerciseList(
        exercises=[
            ExerciseInfo.of(
                exercise,
                [r.name for r in references.values() if r.exercise == exercise.name],
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
    library: LibraryDep,
    clips: ClipsDep,
) -> SetForm:
    """Judge each repetition of a sequence of keypoints (JSON), or of a short clip (multipart)."""
    desk = _Desk(settings, exercises, library)
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        return await _judge_upload(request, desk, clips)
    question = _parsed(FormQuestion, await request.body())
    choice = FormChoice(question.reference, question.language or settings.language)

    def judge() -> SetForm:
        return SetForm.of(
            judge_keypoints(desk.config(question.exercise, choice), question.sequence())
        )

    return await to_thread.run_sync(judge, limiter=_turn)


@router.get("/references")
async def list_references(library: LibraryDep) -> ReferenceList:
    """Tell what form can be compared with."""
    references = await to_thread.run_sync(library.references)
    return ReferenceList(references=[ReferenceInfo.of(one) for one in references.values()])


@router.get("/references/{name}", responses=_NAMED, response_class=Response)
async def get_reference(name: str, library: LibraryDep) -> Response:
    """Fetch a reference whole, as `pose-analyzer teach` writes it."""
    references = await to_thread.run_sync(library.references)
    if name not in references:
        raise UnknownReferenceError(name)
    return Response(format_reference(references[name]), media_type="application/json")


@router.post("/references", status_code=HTTPStatus.CREATED, responses=_INVALID)
async def teach_reference(
    body: Teaching, settings: SettingsDep, exercises: ExercisesDep, library: LibraryDep
) -> ReferenceInfo:
    """Make a reference of keypoints of good repetitions."""
    desk = _Desk(settings, exercises, library)
    taught = await to_thread.run_sync(desk.teach, body, limiter=_turn)
    return ReferenceInfo.of(taught)


@router.put("/references/{name}", responses=_INVALID)
async def store_reference(
    name: str, request: Request, settings: SettingsDep, exercises: ExercisesDep, library: LibraryDep
) -> ReferenceInfo:
    """Store a reference that `pose-analyzer teach` has written, under its own name."""
    check_name(name)
    data = await request.body()
    if len(data) > MAX_FILE_BYTES:
        raise InvalidReferenceError(name, f"larger than {MAX_FILE_BYTES} bytes")
    reference = parse_reference(data, name)
    if reference.name != name:
        raise InvalidReferenceError(name, f"the document calls it {reference.name!r}")
    desk = _Desk(settings, exercises, library)
    await to_thread.run_sync(desk.store, reference)
    return ReferenceInfo.of(reference)


@router.delete("/references/{name}", status_code=HTTPStatus.NO_CONTENT, responses=_NAMED)
async def forget_reference(name: str, settings: SettingsDep) -> None:
    """Forget a reference that was taught or stored; the built-in ones stay."""
    try:
        await to_thread.run_sync(delete_reference, settings.taught_references_dir, name)
    except UnknownNameError as error:
        raise UnknownReferenceError(name) from error


class _Desk:
    """What judging needs of the service."""

    def __init__(
        self, settings: Settings, exercises: dict[str, Exercise], library: FormLibrary
    ) -> None:
        self.settings = settings
        self._exercises = exercises
        self._library = library

    def config(self, exercise: str, choice: FormChoice) -> AnalysisConfig:
        """How to analyse; says if there is no such exercise, reference or language."""
        chosen = select_exercises(self._exercises, exercise)
        judge = self._library.judge_config(chosen, choice)
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
        general = select_reference(self._library.references(), body.exercise)
        try:
            reference = taught_reference(spec, judged.tracks, general)
        except ValueError as error:
            raise InvalidReferenceError(body.name, str(error)) from error
        self.store(reference)
        return reference

    def store(self, reference: FormReference) -> None:
        """Keep a reference, unless its name is that of a built-in one."""
        if reference.exercise not in self._exercises:
            raise UnknownNameError("exercise", reference.exercise, tuple(self._exercises))
        built_in = self.settings.references_dir / f"{reference.name}.json"
        if built_in.exists():
            raise InvalidReferenceError(reference.name, "a built-in reference has this name")
        save_reference(self.settings.taught_references_dir, reference)


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
        choice = FormChoice(asked.get("reference"), language)
        config = await to_thread.run_sync(desk.config, exercise, choice)
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
