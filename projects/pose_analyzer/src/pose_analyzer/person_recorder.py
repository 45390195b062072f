"""One person's frames, kept as rows of about a kilobyte until the recording ends."""

from collections import Counter
from typing import Final

import numpy as np

from pose_analyzer.form_session import SessionConfig, SessionState, recognised, repetitions
from pose_analyzer.skeletons import N_ANGLES, N_KEYPOINTS
from pose_analyzer.temporal_analyzer import phase_of
from pose_analyzer.types import JointAngles, PersonAnalysis, PersonFrame, Phase, View

_PHASES: Final = tuple(Phase)
_VIEWS: Final = tuple(View)
_FIRST_ROWS: Final = 256


def _row_type(n_movements: int) -> np.dtype[np.void]:
    return np.dtype(
        [
            ("frame_index", np.int64),
            ("time_s", np.float64),
            ("detected", np.bool_),
            ("score", np.float64),
            ("box_px", np.float64, 4),
            ("keypoints_px", np.float64, (N_KEYPOINTS, 2)),
            ("keypoints_sd_px", np.float64, N_KEYPOINTS),
            ("confidences", np.float64, N_KEYPOINTS),
            ("flags", np.uint8, N_KEYPOINTS),
            ("angles_deg", np.float64, N_ANGLES),
            ("angles_sd_deg", np.float64, N_ANGLES),
            ("angles_trusted", np.bool_, N_ANGLES),
            ("angles_3d_deg", np.float64, N_ANGLES),
            ("angles_3d_sd_deg", np.float64, N_ANGLES),
            ("angles_3d_trusted", np.bool_, N_ANGLES),
            ("yaw_deg", np.float64),
            ("view", np.uint8),
            # Of every movement: which one it is may be recognised late.
            ("progress", np.float64, n_movements),
            ("phase", np.uint8, n_movements),
            ("n_repetitions", np.int32, n_movements),
        ]
    )


_NO_ANGLES: Final = JointAngles(
    np.full(N_ANGLES, np.nan), np.full(N_ANGLES, np.nan), np.zeros(N_ANGLES, dtype=bool)
)


class PersonRecorder:
    """Collects one person's frames in order."""

    def __init__(self, session: SessionConfig) -> None:
        self._session = session
        self._rows = np.empty(_FIRST_ROWS, dtype=_row_type(len(session.movements)))
        self._n = 0
        self._state: SessionState | None = None

    def add(self, person: PersonFrame, state: SessionState) -> None:
        """Keep one frame and the session state after it."""
        if self._n == len(self._rows):
            self._rows = np.concatenate([self._rows, np.empty_like(self._rows)])
        row = self._rows[self._n]
        self._n += 1
        self._state = state
        for name in (
            "frame_index",
            "time_s",
            "detected",
            "score",
            "box_px",
            "keypoints_px",
            "keypoints_sd_px",
            "confidences",
            "flags",
        ):
            row[name] = getattr(person, name)
        for name, angles in (("angles", person.angles), ("angles_3d", person.angles_3d)):
            known = angles or _NO_ANGLES
            row[f"{name}_deg"] = known.values_deg
            row[f"{name}_sd_deg"] = known.sd_deg
            row[f"{name}_trusted"] = known.trusted
        row["yaw_deg"] = person.view.yaw_deg
        row["view"] = _VIEWS.index(person.view.label)
        for i, (movement, counter) in enumerate(
            zip(self._session.movements, state.counters, strict=True)
        ):
            row["progress"][i] = counter.progress
            row["phase"][i] = _PHASES.index(phase_of(movement, counter))
            row["n_repetitions"][i] = len(counter.repetitions)

    @property
    def span_s(self) -> float:
        """From the first to the last frame."""
        return float(self._rows["time_s"][self._n - 1] - self._rows["time_s"][0])

    @property
    def area_px2(self) -> float:
        """Sum of the box areas: how much of the picture the person was, for how long."""
        box = self._rows["box_px"][: self._n]
        return float(np.sum((box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])))

    def analysis(self, track_id: int) -> PersonAnalysis:
        """Everything kept, and what it amounts to.

        Raises
        ------
        ValueError
            If no frame was added.
        """
        if self._state is None:
            raise ValueError("nothing was recorded")
        rows = self._rows[: self._n]
        movement = recognised(self._session, self._state)
        no_3d = np.isnan(rows["angles_3d_deg"]).all()
        return PersonAnalysis(
            track_id=track_id,
            exercise=None if movement is None else self._session.movements[movement].exercise,
            repetitions=repetitions(self._session, self._state),
            frame_index=rows["frame_index"].copy(),
            time_s=rows["time_s"].copy(),
            detected=rows["detected"].copy(),
            box_px=rows["box_px"].copy(),
            keypoints_px=rows["keypoints_px"].copy(),
            keypoints_sd_px=rows["keypoints_sd_px"].copy(),
            confidences=rows["confidences"].copy(),
            flags=rows["flags"].copy(),
            angles_deg=rows["angles_deg"].copy(),
            angles_sd_deg=rows["angles_sd_deg"].copy(),
            angles_trusted=rows["angles_trusted"].copy(),
            angles_3d_deg=None if no_3d else rows["angles_3d_deg"].copy(),
            angles_3d_sd_deg=None if no_3d else rows["angles_3d_sd_deg"].copy(),
            angles_3d_trusted=None if no_3d else rows["angles_3d_trusted"].copy(),
            yaw_deg=rows["yaw_deg"].copy(),
            view=_commonest_view(rows["view"]),
            phase=tuple(
                Phase.UNKNOWN if movement is None else _PHASES[code]
                for code in (rows["phase"][:, movement or 0]).tolist()
            ),
            progress=np.full(self._n, np.nan)
            if movement is None
            else rows["progress"][:, movement].copy(),
            n_repetitions=np.zeros(self._n, dtype=np.int64)
            if movement is None
            else rows["n_repetitions"][:, movement].astype(np.int64),
            score=rows["score"].copy(),
        )


def _commonest_view(codes: np.ndarray) -> View:
    known = Counter(_VIEWS[code] for code in codes.tolist())
    del known[View.UNKNOWN]
    return known.most_common(1)[0][0] if known else View.UNKNOWN
