"""What became of the frames, as the client saw it."""

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

_N_ROUND_TRIPS: Final = 1_000


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counts since the client was made."""

    n_sent: int
    n_answered: int
    n_lost: int
    """Were on their way when a connection broke. Those the service had not yet received are sent
    again, and counted as sent again, unless the input is live."""
    n_unanswered: int
    """Given up since no answer came in time."""
    n_skipped: int
    """Of live frames, not sent, since a newer one came before there was room."""
    n_unsampled: int
    """Not sent, since fewer frames a second were asked for."""
    dropped: Mapping[str, int]
    """Sent, and dropped by the service, by cause."""
    n_reconnects: int
    n_restarts: int
    """Of the reconnects, those that had to begin a new stream."""
    round_trip_p50_s: float
    """Median of the last 1,000 answers; NaN before the first."""
    round_trip_p95_s: float


@dataclass(slots=True)
class Tally:
    """Counts while they grow."""

    n_sent: int = 0
    n_answered: int = 0
    n_lost: int = 0
    n_unanswered: int = 0
    n_skipped: int = 0
    n_unsampled: int = 0
    n_reconnects: int = 0
    n_restarts: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    round_trips_s: deque[float] = field(default_factory=lambda: deque(maxlen=_N_ROUND_TRIPS))

    def snapshot(self) -> Statistics:
        """The counts as they are now."""
        p50_s = p95_s = float("nan")
        if self.round_trips_s:
            p50_s, p95_s = np.percentile(self.round_trips_s, (50, 95)).tolist()
        return Statistics(
            n_sent=self.n_sent,
            n_answered=self.n_answered,
            n_lost=self.n_lost,
            n_unanswered=self.n_unanswered,
            n_skipped=self.n_skipped,
            n_unsampled=self.n_unsampled,
            dropped=dict(self.dropped),
            n_reconnects=self.n_reconnects,
            n_restarts=self.n_restarts,
            round_trip_p50_s=p50_s,
            round_trip_p95_s=p95_s,
        )
