"""Capture times of a live stream: its clients' clocks, broken connections, no clock at all."""

from dataclasses import dataclass, replace

_SMALLEST_STEP_S = 1e-3


@dataclass(frozen=True, slots=True)
class StreamClock:
    """Maps frames to seconds since the stream's first one.

    A client that states capture times keeps its own spacing, exactly; one that states none is
    timed by arrival. After a new connection the client's clock is followed if it went on, and
    joined to the service's if it started over.
    """

    time_s: float = 0.0
    """Of the latest frame."""
    received_s: float | None = None
    """When the service had it; None before the first one."""
    offset_s: float | None = None
    """What to add to the client's clock; None until it states a time."""
    rejoin: bool = False
    """The next stated time comes from a new connection."""

    def stamp(self, captured_s: float | None, received_s: float) -> "StreamClock":
        """Clock after a frame, whose time is its `time_s`.

        Within a connection stated times are taken as they are, even if they do not increase;
        the caller drops such frames.
        """
        elapsed_s = 0.0 if self.received_s is None else max(received_s - self.received_s, 0.0)
        by_arrival_s = self.time_s
        if self.received_s is not None:
            by_arrival_s += max(elapsed_s, _SMALLEST_STEP_S)
        if captured_s is None:
            return replace(self, time_s=by_arrival_s, received_s=received_s, rejoin=False)
        offset_s = self.offset_s
        if offset_s is None or (self.rejoin and captured_s + offset_s <= self.time_s):
            offset_s = by_arrival_s - captured_s
        return StreamClock(captured_s + offset_s, received_s, offset_s)

    def reconnected(self) -> "StreamClock":
        """Clock after a new connection, on which the client's clock may have started over."""
        return replace(self, rejoin=True)
