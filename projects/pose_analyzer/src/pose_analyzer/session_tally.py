"""What a session's repetitions amount to: numbers that stay unique, exercise, score. Pure."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from statistics import fmean

from pose_analyzer.session_records import RepetitionRecord, Withdrawn


@dataclass(slots=True, eq=False)
class _Count:
    """Repetitions of one person since counting last began anew."""

    offset: int
    """What to add to their numbers: as many were counted before."""
    scores: dict[int, float | None] = field(default_factory=dict)
    """By the number they have in the session."""
    latest_s: float = float("-inf")


class SessionTally:
    """Keeps count of the repetitions of one session, as they are told.

    A client may have something else counted for a while, and an analysis process may die: counting
    then begins at 1 again. Where the exercise is recognised, another one may be counted at first
    than it turns out to be.
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[int, int, str], _Count] = {}
        self._last: dict[tuple[int, str], int] = defaultdict(int)

    def numbered(self, told: RepetitionRecord) -> int:
        """Take in a repetition, and give it a number no other of its person and exercise has."""
        person = told.track_id, told.exercise
        count = self._counts.get((told.count, *person))
        if count is None or told.number + count.offset in count.scores:
            # The same count may begin anew in another process.
            count = _Count(self._last[person], {} if count is None else count.scores)
            self._counts[told.count, *person] = count
        number = told.number + count.offset
        count.scores[number] = told.score
        count.latest_s = told.end_s
        self._last[person] = max(self._last[person], number)
        return number

    def withdrawn(self) -> list[Withdrawn]:
        """What was taken for another exercise: of each person and count, the rarer ones.

        Among equals the one whose latest repetition is older, as `form_session.recognised` has it.
        """
        rivals: dict[tuple[int, int], list[tuple[int, float, str]]] = defaultdict(list)
        for (n_count, track_id, exercise), count in self._counts.items():
            rivals[n_count, track_id].append((len(count.scores), count.latest_s, exercise))
        return [
            Withdrawn(track_id, exercise, sorted(self._counts[n_count, track_id, exercise].scores))
            for (n_count, track_id), found in rivals.items()
            for _, _, exercise in sorted(found)[:-1]
        ]

    def summary(self) -> "Summary":
        """What is left of it all."""
        gone = {(one.track_id, one.exercise, n) for one in self.withdrawn() for n in one.numbers}
        kept = [
            (exercise, score)
            for (_, track_id, exercise), count in self._counts.items()
            for number, score in count.scores.items()
            if (track_id, exercise, number) not in gone
        ]
        scores = [score for _, score in kept if score is not None]
        commonest = Counter(exercise for exercise, _ in kept).most_common(1)
        return Summary(
            n_repetitions=len(kept),
            exercise=commonest[0][0] if commonest else None,
            score=fmean(scores) if scores else None,
        )


@dataclass(frozen=True, slots=True)
class Summary:
    """A session in short."""

    n_repetitions: int
    exercise: str | None
    """The one done most; None if none was."""
    score: float | None
    """Mean of the repetitions that could be scored, as `form_scorer.score_set` has it."""
