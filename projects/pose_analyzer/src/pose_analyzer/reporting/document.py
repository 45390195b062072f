"""`analysis.json`: the whole analysis as one versioned document.

The pydantic models are the definition of the format; the published JSON Schema is made of them.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Literal, cast

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from pose_analyzer.form_types import FormUpdate
from pose_analyzer.reporting.atomic import open_atomically
from pose_analyzer.reporting.form_document import FormDocument
from pose_analyzer.skeletons import ANGLE_NAMES, KEYPOINT_NAMES
from pose_analyzer.types import PersonAnalysis, Phase, Repetition, SourceInfo, VideoAnalysis, View

SCHEMA_NAME: Final = "pose-analyzer/analysis"
SCHEMA_VERSION: Final = 1

# Finer than any detector: 0.01 px, 0.01 degrees, 0.1 ms.
_PIXEL_DECIMALS: Final = 2
_ANGLE_DECIMALS: Final = 2
_TIME_DECIMALS: Final = 4
_RATIO_DECIMALS: Final = 3

Number = float | None
"""A number, or null where it is not known."""
Ratio = Annotated[float, Field(ge=0, le=1)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="null")


class SourceDocument(_Model):
    """The recording; sizes as displayed, rotation applied."""

    name: str
    width_px: int
    height_px: int
    fps: Number
    duration_s: Number
    n_frames: int | None


class RangeDocument(_Model):
    """Extremes of one joint angle within a repetition."""

    angle: str
    min_deg: Number
    max_deg: Number
    trusted: bool


class RepetitionDocument(_Model):
    """One counted repetition; times are seconds of the source."""

    exercise: str
    number: Annotated[int, Field(ge=1)]
    start_s: float
    turn_s: Annotated[Number, Field(description="When the extreme position was reached.")]
    end_s: float
    eccentric_s: Number
    hold_s: Number
    concentric_s: Number
    depth: Annotated[
        Number,
        Field(description="Largest progress from start (0) to full (1) position, may exceed 1."),
    ]
    ranges: list[RangeDocument]


class KeypointColumns(_Model):
    """One keypoint over time, smoothed, in pixels of the original image."""

    x_px: list[Number]
    y_px: list[Number]
    sd_px: list[Number]
    confidence: Annotated[
        list[Number], Field(description="As detected, 0..1; 0 where not measured.")
    ]
    flags: Annotated[
        list[int], Field(description="Sum of 1 bridged, 2 left/right swapped back, 4 rejected.")
    ]


class AngleColumns(_Model):
    """One angle over time, in degrees."""

    deg: Annotated[list[Number], Field(description="In the image plane.")]
    sd_deg: list[Number]
    trusted: Annotated[
        list[bool],
        Field(description="False where this view or the keypoints cannot show the angle."),
    ]
    deg_3d: Annotated[
        list[Number] | None,
        Field(description="From world landmarks; null when the detector gives none."),
    ]
    sd_3d_deg: list[Number] | None
    trusted_3d: list[bool] | None


class FrameColumns(_Model):
    """Columns with one entry for each frame in which the person was followed."""

    frame_index: list[int]
    time_s: list[float]
    detected: Annotated[
        list[bool], Field(description="False: not found in this frame, bridged from others.")
    ]
    box_px: Annotated[list[list[Number]], Field(description="x0, y0, x1, y1.")]
    yaw_deg: Annotated[
        list[Number], Field(description="0 faces towards or away from the camera, 90 side view.")
    ]
    phase: list[Phase]
    progress: Annotated[
        list[Number], Field(description="0 at the start position, 1 at the full position.")
    ]
    keypoints: Annotated[
        dict[str, KeypointColumns], Field(description="By COCO name, such as left_knee.")
    ]
    angles: Annotated[dict[str, AngleColumns], Field(description="By name, such as left_knee.")]


class PersonDocument(_Model):
    """One person over the recording."""

    track_id: int
    exercise: str | None
    view: Annotated[View, Field(description="The most frequent view.")]
    repetitions: list[RepetitionDocument]
    form: Annotated[
        list[FormDocument],
        Field(default_factory=list, description="Of those repetitions that could be judged."),
    ]
    frames: FrameColumns


class AnalysisDocument(_Model):
    """What one recording shows. Numbers that are not known are null."""

    schema_name: Literal["pose-analyzer/analysis"] = Field(alias="schema")
    version: Literal[1]
    source: SourceDocument
    detector: str
    device: str
    exercise_requested: Annotated[str, Field(description="auto or the name of an exercise.")]
    sample_fps: float | None
    roi: Annotated[
        tuple[Ratio, Ratio, Ratio, Ratio] | None,
        Field(description="x0, y0, x1, y1 of the analysed zone as fractions of the image."),
    ]
    n_frames: Annotated[int, Field(description="Frames analysed.")]
    problems: Annotated[list[str], Field(description="What a reader of the results must know.")]
    elapsed_s: float
    stage_s: Annotated[dict[str, float], Field(description="Wall seconds by stage.")]
    people: Annotated[
        list[PersonDocument],
        Field(description="The person who was exercising, or else was largest for longest, first."),
    ]


def write_analysis_json(
    analysis: VideoAnalysis, path: Path, forms: Sequence[FormUpdate] = ()
) -> None:
    """Write `analysis` to `path` as an `AnalysisDocument`, person by person to save memory.

    `forms` is what was said of everybody's repetitions.
    """
    head = _head(analysis).model_dump_json(by_alias=True, exclude={"people"})
    with open_atomically(path) as file:
        file.write(head.removesuffix("}") + ',"people":[')
        for position, person in enumerate(analysis.people):
            file.write(",\n" if position else "\n")
            file.write(_person(person, forms).model_dump_json())
        file.write("]}\n")


def analysis_schema_json() -> str:
    """JSON Schema (draft 2020-12) of `analysis.json`, as published in the documentation."""
    schema = AnalysisDocument.model_json_schema(mode="serialization")
    title = f"{SCHEMA_NAME} version {SCHEMA_VERSION}"
    dialect = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps({"$schema": dialect, **schema, "title": title}, indent=2) + "\n"


def _head(analysis: VideoAnalysis) -> AnalysisDocument:
    return AnalysisDocument(
        schema=SCHEMA_NAME,
        version=SCHEMA_VERSION,
        source=_source(analysis.source),
        detector=analysis.detector,
        device=analysis.device,
        exercise_requested=analysis.exercise_requested,
        sample_fps=analysis.sample_fps,
        roi=analysis.roi,
        n_frames=analysis.n_frames,
        problems=list(analysis.problems),
        elapsed_s=round(analysis.elapsed_s, 3),
        stage_s={stage: round(seconds, 3) for stage, seconds in analysis.stage_s.items()},
        people=[],
    )


def _source(source: SourceInfo) -> SourceDocument:
    return SourceDocument(
        name=source.name,
        width_px=source.width_px,
        height_px=source.height_px,
        fps=source.fps,
        duration_s=source.duration_s,
        n_frames=source.n_frames,
    )


def _person(person: PersonAnalysis, forms: Sequence[FormUpdate]) -> PersonDocument:
    return PersonDocument(
        track_id=person.track_id,
        exercise=person.exercise,
        view=person.view,
        repetitions=[_repetition(repetition) for repetition in person.repetitions],
        form=[FormDocument.of(form) for form in forms if form.track_id == person.track_id],
        frames=FrameColumns(
            frame_index=person.frame_index.tolist(),
            time_s=np.round(person.time_s, _TIME_DECIMALS).tolist(),
            detected=person.detected.tolist(),
            box_px=np.round(person.box_px, _PIXEL_DECIMALS).tolist(),
            yaw_deg=_rounded(person.yaw_deg, _ANGLE_DECIMALS),
            phase=list(person.phase),
            progress=_rounded(person.progress, _RATIO_DECIMALS),
            keypoints={name: _keypoint(person, k) for k, name in enumerate(KEYPOINT_NAMES)},
            angles={name: _angle(person, k) for k, name in enumerate(ANGLE_NAMES)},
        ),
    )


def _repetition(repetition: Repetition) -> RepetitionDocument:
    return RepetitionDocument(
        exercise=repetition.exercise,
        number=repetition.number,
        start_s=round(repetition.start_s, _TIME_DECIMALS),
        turn_s=round(repetition.turn_s, _TIME_DECIMALS),
        end_s=round(repetition.end_s, _TIME_DECIMALS),
        eccentric_s=round(repetition.eccentric_s, _TIME_DECIMALS),
        hold_s=round(repetition.hold_s, _TIME_DECIMALS),
        concentric_s=round(repetition.concentric_s, _TIME_DECIMALS),
        depth=round(repetition.depth, _RATIO_DECIMALS),
        ranges=[
            RangeDocument(
                angle=extremes.angle,
                min_deg=round(extremes.min_deg, _ANGLE_DECIMALS),
                max_deg=round(extremes.max_deg, _ANGLE_DECIMALS),
                trusted=extremes.trusted,
            )
            for extremes in repetition.ranges
        ],
    )


def _keypoint(person: PersonAnalysis, k: int) -> KeypointColumns:
    return KeypointColumns(
        x_px=_rounded(person.keypoints_px[:, k, 0], _PIXEL_DECIMALS),
        y_px=_rounded(person.keypoints_px[:, k, 1], _PIXEL_DECIMALS),
        sd_px=_rounded(person.keypoints_sd_px[:, k], _PIXEL_DECIMALS),
        confidence=_rounded(person.confidences[:, k], _RATIO_DECIMALS),
        flags=person.flags[:, k].tolist(),
    )


def _angle(person: PersonAnalysis, k: int) -> AngleColumns:
    deg_3d, sd_3d = person.angles_3d_deg, person.angles_3d_sd_deg
    trusted_3d = person.angles_3d_trusted
    return AngleColumns(
        deg=_rounded(person.angles_deg[:, k], _ANGLE_DECIMALS),
        sd_deg=_rounded(person.angles_sd_deg[:, k], _ANGLE_DECIMALS),
        trusted=person.angles_trusted[:, k].tolist(),
        deg_3d=None if deg_3d is None else _rounded(deg_3d[:, k], _ANGLE_DECIMALS),
        sd_3d_deg=None if sd_3d is None else _rounded(sd_3d[:, k], _ANGLE_DECIMALS),
        trusted_3d=None if trusted_3d is None else trusted_3d[:, k].tolist(),
    )


def _rounded(values: np.ndarray, decimals: int) -> list[Number]:
    """Plain numbers; what is not finite becomes null when pydantic writes it."""
    return cast("list[Number]", np.round(values.astype(np.float64), decimals).tolist())
