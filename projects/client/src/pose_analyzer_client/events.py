"""What happens to a stream beside its answers."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StateChanged:
    """The stream was paused, shed for lack of memory, resumed or ended."""

    state: str
    """``active``, ``paused``, ``shed`` or ``ended``."""
    reason: str


@dataclass(frozen=True, slots=True)
class ConnectionInterrupted:
    """The connection broke; the client is trying to make it again."""

    reason: str


@dataclass(frozen=True, slots=True)
class ConnectionResumed:
    """The same stream goes on over a new connection; its counts were kept."""

    stream_id: str
    n_lost: int
    """Frames that were on their way when the connection broke."""


@dataclass(frozen=True, slots=True)
class StreamRestarted:
    """The service no longer knew the stream; a new one counts from zero."""

    old_stream_id: str
    stream_id: str
    n_lost: int


@dataclass(frozen=True, slots=True)
class ServiceComplaint:
    """Something that was sent could not be used; the stream goes on."""

    code: str
    """Such as ``undecodable-frame`` or ``overload``."""
    detail: str
    frame: int | None


Event = (
    StateChanged | ConnectionInterrupted | ConnectionResumed | StreamRestarted | ServiceComplaint
)
OnEvent = Callable[[Event], None]
