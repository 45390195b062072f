"""What one stream of a load saw, and the figures made of it. Pure.

A load is open-loop: picture `n` of a stream is due at ``first_s + n * period_s`` whatever became of
the ones before it. A picture that is not sent, because its connection is gone, counts as one that
was not answered.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

STAGES = ("queue", "decode", "infer", "postprocess", "server_total")
PERCENTILES = (50, 95, 99)


@dataclass(frozen=True, slots=True, eq=False)
class StreamRecord:
    """Everything one stream saw on one connection. Times are the generator's monotonic clock."""

    number: int
    first_s: float
    """When its first picture was due."""
    period_s: float
    sent_s: Float64[np.ndarray, " pictures"]
    """Just before each picture was handed to the socket."""
    done_s: Float64[np.ndarray, " taken"]
    """When the socket had taken it; one less if the connection broke meanwhile."""
    answered: Int64[np.ndarray, " answers"]
    """Which picture each answer was for, counted from 0 on this connection."""
    answered_s: Float64[np.ndarray, " answers"]
    stages_s: Float64[np.ndarray, "answers 5"]
    """What the service says it spent, in the order of `STAGES`."""
    drops: tuple[dict[str, int], ...]
    """With each answer: pictures dropped since the last one, by cause."""
    peopled: Bool[np.ndarray, " answers"]
    """Which answers have somebody in them."""
    errors: Counter[str] = field(default_factory=Counter)
    """Error messages by code."""
    states: tuple[str, ...] = ()
    """State messages, with their reasons."""
    close_code: int | None = None
    """With which the service closed the connection; None if it did not."""
    device: str = ""
    detector: str = ""


@dataclass(frozen=True, slots=True)
class Window:
    """The time that counts."""

    begin_s: float
    end_s: float

    @property
    def length_s(self) -> float:
        """How long it is."""
        return self.end_s - self.begin_s


@dataclass(frozen=True, slots=True, eq=False)
class _Counted:
    """The part of a record that lies in the window."""

    n_due: int
    n_sent: int
    answers: Bool[np.ndarray, " answers"]
    """Which answers are for pictures that were due in the window."""


def back_and_forth(n_pictures: int, begin: int = 0) -> Iterator[int]:
    """Endless order of a clip's pictures, forwards then backwards, so that nobody ever jumps."""
    there_and_back = [*range(n_pictures), *range(n_pictures - 2, 0, -1)]
    step = begin
    while True:
        yield there_and_back[step % len(there_and_back)]
        step += 1


def is_steady(
    counts: Sequence[tuple[float, int]], span_s: float = 2.0, tolerance: float = 0.05
) -> bool:
    """Whether the last two spans brought the same number of answers, within the tolerance.

    Parameters
    ----------
    counts
        Readings of (time, answers so far), oldest first.
    span_s
        Length of one span.
    tolerance
        Largest relative difference.
    """
    if not counts or counts[-1][0] - counts[0][0] < 2 * span_s:
        return False
    end_s = counts[-1][0]
    times_s, answers = zip(*counts, strict=True)
    before, middle, now = np.interp([end_s - 2 * span_s, end_s - span_s, end_s], times_s, answers)
    earlier, later = middle - before, now - middle
    return bool(later > 0 and abs(later - earlier) <= max(tolerance * later, 1.0))


def search_most(holds: Callable[[int], bool], first: int, precision: float = 0.03) -> int:
    """Most streams that still hold, if fewer always do when more do.

    Doubles from `first` until one fails, then halves the interval to a share of its lower end.

    Returns
    -------
    int
        0 if not even one stream holds.
    """
    good, bad = 0, first
    while holds(bad):
        good, bad = bad, 2 * bad
    while bad - good > max(1.0, precision * good):
        middle = (good + bad) // 2
        if holds(middle):
            good = middle
        else:
            bad = middle
    return good


def percentiles_ms(seconds: Float64[np.ndarray, " n"]) -> dict[str, float | None]:
    """p50, p95, p99 and the largest, in milliseconds; None where there is nothing to rank."""
    names = [*(f"p{q}_ms" for q in PERCENTILES), "max_ms"]
    if seconds.size == 0:
        return dict.fromkeys(names)
    values = [*np.percentile(seconds, PERCENTILES), seconds.max()]
    return {name: round(1e3 * float(value), 3) for name, value in zip(names, values, strict=True)}


def summarise(
    records: Sequence[StreamRecord], window: Window, n_refused: int = 0
) -> dict[str, Any]:
    """Figures of all streams together and of the worst of them.

    Parameters
    ----------
    records
        One per stream that was accepted.
    window
        Pictures due in it count, whenever they were answered.
    n_refused
        Streams the service did not accept.
    """
    counted = [_count(record, window) for record in records]
    n_due = sum(part.n_due for part in counted)
    n_answered = sum(int(part.answers.sum()) for part in counted)
    ratios = [_ratio(int(part.answers.sum()), part.n_due) for part in counted]
    pairs = list(zip(records, counted, strict=True))
    drops: Counter[str] = Counter()
    for record, part in pairs:
        for index in np.flatnonzero(part.answers):
            drops.update(record.drops[index])
    stages_s = _joined([record.stages_s[part.answers] for record, part in pairs], (0, len(STAGES)))
    return {
        "n_streams": len(records),
        "n_refused": n_refused,
        "window_s": round(window.length_s, 3),
        "frames_due": n_due,
        "frames_sent": sum(part.n_sent for part in counted),
        "frames_answered": n_answered,
        "answered_ratio": _ratio(n_answered, n_due),
        "peopled_ratio": _ratio(
            sum(int(record.peopled[part.answers].sum()) for record, part in pairs), n_answered
        ),
        "answered_per_s": round(n_answered / window.length_s, 2),
        "stream_answered_ratio_min": min(ratios, default=None),
        "stream_answered_ratio_max": max(ratios, default=None),
        "stream_answered_per_s_min": _per_s(min, counted, window),
        "stream_answered_per_s_max": _per_s(max, counted, window),
        "latency": percentiles_ms(_joined([_latency_s(*pair) for pair in pairs])),
        "latency_from_schedule": percentiles_ms(_joined([_schedule_s(*pair) for pair in pairs])),
        "stages": {name: percentiles_ms(stages_s[:, column]) for column, name in enumerate(STAGES)},
        "dropped": dict(sorted(drops.items())),
        "frames_unaccounted": sum(n_unaccounted(record) for record in records),
        "generator_lateness": percentiles_ms(_joined([_lateness_s(r, window) for r in records])),
        "socket_taking": percentiles_ms(_joined([_taking_s(r, window) for r in records])),
        "errors": dict(sum((record.errors for record in records), Counter())),
        "states": dict(Counter(text for record in records for text in record.states)),
        "closed": dict(Counter(str(r.close_code) for r in records if r.close_code is not None)),
    }


def n_unaccounted(record: StreamRecord) -> int:
    """Pictures up to the last answer that were neither answered nor named as dropped; 0 is right.

    Negative: more were said to be dropped than were sent.
    """
    if record.answered.size == 0:
        return 0
    n_dropped = sum(sum(drops.values()) for drops in record.drops)
    return int(record.answered.max()) + 1 - record.answered.size - n_dropped


def slope_per_s(times_s: Sequence[float], values: Sequence[float]) -> float:
    """Least-squares growth per second; NaN with fewer than two readings."""
    if len(times_s) < 2:
        return math.nan
    return float(np.polyfit(np.asarray(times_s) - times_s[0], np.asarray(values), 1)[0])


def _due_range(record: StreamRecord, window: Window) -> tuple[int, int]:
    """First picture due in the window, and the first after it."""
    # A hair's breadth, so that rounding never moves a picture that is due exactly at an end.
    bounds = [
        max(0, math.ceil((at_s - record.first_s) / record.period_s - 1e-6))
        for at_s in (window.begin_s, window.end_s)
    ]
    return bounds[0], bounds[1]


def _count(record: StreamRecord, window: Window) -> _Counted:
    begin, end = _due_range(record, window)
    answers = (record.answered >= begin) & (record.answered < end)
    n_sent = max(0, min(end, record.sent_s.size) - begin)
    return _Counted(end - begin, n_sent, answers)


def _latency_s(record: StreamRecord, part: _Counted) -> Float64[np.ndarray, " n"]:
    answered = record.answered[part.answers]
    return record.answered_s[part.answers] - record.sent_s[answered]


def _schedule_s(record: StreamRecord, part: _Counted) -> Float64[np.ndarray, " n"]:
    due_s = record.first_s + record.answered[part.answers] * record.period_s
    return record.answered_s[part.answers] - due_s


def _lateness_s(record: StreamRecord, window: Window) -> Float64[np.ndarray, " n"]:
    """How late the generator itself was: waiting for a full socket is not its fault."""
    due_s = record.first_s + np.arange(record.sent_s.size) * record.period_s
    free_s = np.concatenate([[-np.inf], record.done_s])[: record.sent_s.size]
    begin, end = _due_range(record, window)
    return (record.sent_s - np.maximum(due_s, free_s))[begin:end]


def _taking_s(record: StreamRecord, window: Window) -> Float64[np.ndarray, " n"]:
    begin, end = _due_range(record, window)
    n_done = record.done_s.size
    return (record.done_s - record.sent_s[:n_done])[begin:end]


def _joined(
    arrays: Sequence[np.ndarray], empty_shape: tuple[int, ...] = (0,)
) -> Float64[np.ndarray, "..."]:
    return np.concatenate(arrays) if arrays else np.empty(empty_shape)


def _ratio(part: int, whole: int) -> float:
    return round(part / whole, 5) if whole else 0.0


def _per_s(pick: Callable[..., int], counted: Sequence[_Counted], window: Window) -> float | None:
    if not counted:
        return None
    return round(pick(int(part.answers.sum()) for part in counted) / window.length_s, 2)
