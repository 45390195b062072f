"""Analysis of one live stream: poses in, the answer's people out, already encoded."""

import time
from collections.abc import Sequence
from dataclasses import replace

import structlog

from pose_analyzer import wire
from pose_analyzer.errors import BackendFailedError, InvalidReferenceError
from pose_analyzer.exercises import Exercise
from pose_analyzer.form_judge import JudgeConfig
from pose_analyzer.form_library import FormLibrary
from pose_analyzer.form_session import repetitions
from pose_analyzer.form_types import NO_CHOICE, FormChoice, FormUpdate
from pose_analyzer.frame_rows import pack_people
from pose_analyzer.session_records import RepetitionRecord, write_repetitions
from pose_analyzer.stream_analyzer import AnalysisConfig, StreamAnalyzer
from pose_analyzer.stream_types import AnalysedFrame, Encoding
from pose_analyzer.types import PersonFrame, Pose

ANALYSIS_NAME = "analysis"

log = structlog.get_logger()


class LiveSession:
    """A stream's people. Frames must come in order.

    Parameters
    ----------
    exercises
        One: count it. Several: recognise which one it is.
    library
        What form is judged by; None: it is not.
    form
        Which reference, and which language.
    with_rows
        Whether rows and finished repetitions are wanted beside the answers.

    Raises
    ------
    UnknownNameError
        There is no such reference or language.
    InvalidReferenceError
        A reference file is invalid.
    """

    def __init__(
        self,
        exercises: tuple[Exercise, ...],
        library: FormLibrary | None = None,
        form: FormChoice = NO_CHOICE,
        *,
        with_rows: bool = False,
    ) -> None:
        self._exercises = exercises
        self._library = library
        self._form = form
        self.with_rows = with_rows
        """Whether rows and finished repetitions are told."""
        self._n_changes = 0
        self._over: list[RepetitionRecord] = []
        judge = None if library is None else library.judge_config(exercises, form)
        config = AnalysisConfig(exercises, judge=judge)
        self._analyzer = StreamAnalyzer(None, config, collect=with_rows)
        self._n_repetitions: dict[int, int] = {}
        self._forms: dict[int, tuple[FormUpdate, wire.Form]] = {}
        self._time_s = float("-inf")
        self._latest: tuple[Sequence[Pose], Encoding] | None = None
        self._understudy: LiveSession | None = None
        self._n_rehearsals = 0

    def change_exercises(self, exercises: tuple[Exercise, ...]) -> None:
        """Count others from the next frame on, from zero; judge by their general references."""
        self._exercises = exercises
        self._analyzer.change_exercises(exercises, self._judge_config(exercises))
        self._over = self._settled()
        self._n_changes += 1
        self._n_repetitions.clear()
        self._forms.clear()
        self._understudy = None

    def _judge_config(self, exercises: tuple[Exercise, ...]) -> JudgeConfig | None:
        """By the general references; None if a file was spoiled while the stream runs."""
        if self._library is None:
            return None
        try:
            return self._library.judge_config(exercises, replace(self._form, reference=None))
        except InvalidReferenceError as error:
            log.warning("form_not_judged", reason=str(error))
            return None

    def analyse(
        self, frame_index: int, time_s: float, poses: Sequence[Pose], encoding: Encoding
    ) -> AnalysedFrame:
        """Follow everybody one frame further.

        Raises
        ------
        BackendFailedError
            The frame is not newer than the one before; it was not looked at.
        """
        began_s = time.perf_counter()
        if not time_s > self._time_s:
            reason = f"frame {frame_index} at {time_s} s is not newer than {self._time_s} s"
            raise BackendFailedError(ANALYSIS_NAME, reason)
        self._time_s = time_s
        self._latest = poses, encoding
        people = self._analyzer.observe(poses, frame_index, time_s)
        written = wire.encode([self._written(person) for person in people], encoding)
        return AnalysedFrame(
            people=written,
            n_people=len(people),
            n_new_repetitions=self._count_new(people),
            rows=self._rows(people) if self.with_rows else b"",
            repetitions=write_repetitions(self._settled()),
            analyse_s=time.perf_counter() - began_s,
        )

    def finish(self) -> bytes:
        """Repetitions that are over because no more frames come."""
        self._analyzer.finish()
        return write_repetitions(self._settled())

    def _rows(self, people: Sequence[PersonFrame]) -> bytes:
        scores = {}
        for person in people:
            form = self._analyzer.form(person.track_id)
            if form is not None and form.score is not None:
                scores[person.track_id] = form.score.total
        return pack_people(people, scores)

    def _settled(self) -> list[RepetitionRecord]:
        """Repetitions that are over, each once."""
        over, self._over = self._over, []
        return over + [
            RepetitionRecord.of(one.track_id, one.repetition, one.form, self._n_changes)
            for one in self._analyzer.take_settled()
        ]

    def rehearse(self) -> None:
        """Analyse the latest poses once more for nobody, in another session; changes nothing.

        What has slept since the frame before is out of the processor's caches, and a step takes
        three times as long (1.5 ms, not 0.5). So it is woken while the detector is still at work.
        """
        if self._latest is None:
            return
        if self._understudy is None:
            self._understudy = LiveSession(self._exercises)
        self._n_rehearsals += 1
        poses, encoding = self._latest
        self._understudy.analyse(self._n_rehearsals, self._n_rehearsals / 30.0, poses, encoding)

    def _written(self, person: PersonFrame) -> wire.Person:
        counted = repetitions(self._analyzer.session, self._analyzer.state(person.track_id))
        form = self._analyzer.form(person.track_id)
        return wire.Person.of(
            person,
            counted[-1] if counted else None,
            None if form is None else self._written_form(form),
            self._analyzer.form_now(person.track_id),
        )

    def _written_form(self, form: FormUpdate) -> wire.Form:
        """Put into words once what is told with every frame until the next repetition is over."""
        kept = self._forms.get(form.track_id)
        if kept is None or kept[0] is not form:
            kept = self._forms[form.track_id] = form, wire.Form.of(form)
        return kept[1]

    def _count_new(self, people: Sequence[PersonFrame]) -> int:
        """Repetitions that were not there in the frame before."""
        n_new = 0
        for person in people:
            n_before = self._n_repetitions.get(person.track_id, 0)
            n_new += max(person.n_repetitions - n_before, 0)
            self._n_repetitions[person.track_id] = person.n_repetitions
        if len(self._n_repetitions) > len(self._analyzer.track_ids):
            known = self._analyzer.track_ids
            self._n_repetitions = {k: n for k, n in self._n_repetitions.items() if k in known}
            self._forms = {k: form for k, form in self._forms.items() if k in known}
        return n_new
