"""Errors of the client: structured fields, one message that says what to do next."""

from typing import Final

START_COMMAND: Final = "python -m pose_analyzer.api.main --port 8001"


class PoseAnalyzerClientError(Exception):
    """Root of this package's errors."""


class InvalidAddressError(PoseAnalyzerClientError):
    """An address that cannot be that of a service."""

    def __init__(self, address: str) -> None:
        super().__init__(
            f"{address!r} is not an address of the service; give one such as ws://localhost:8001 "
            "(ws, wss, http and https are accepted)."
        )
        self.address = address


class ServiceUnreachableError(PoseAnalyzerClientError):
    """Nothing that speaks the service's protocol answers at the address."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(
            f"No pose analyzer answers at {address} ({reason}). Start one with "
            f"`{START_COMMAND}`, or give the address of one that runs."
        )
        self.address = address
        self.reason = reason


class StoreUnreachableError(PoseAnalyzerClientError):
    """The service keeps videos at a place this client cannot reach."""

    def __init__(self, host: str, reason: str) -> None:
        super().__init__(
            f"The service keeps videos at {host}, which cannot be reached from here ({reason}). "
            "Send them through the service: VideoOptions(direct=False), or --through-service."
        )
        self.host = host
        self.reason = reason


class RequestRefusedError(PoseAnalyzerClientError):
    """The service understood a request and refused it."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(f"The service refused ({status}, {code}): {detail}")
        self.status = status
        """HTTP status."""
        self.code = code
        """Stable name, such as ``unknown-name``; ``http`` when the service gives none."""
        self.detail = detail


class NoCapacityError(RequestRefusedError):
    """The service has no room for another stream at present."""

    def __init__(self, reason: str, retry_after_s: float) -> None:
        super().__init__(503, "no-capacity", f"{reason} Ask again in {retry_after_s:g} s.")
        self.reason = reason
        self.retry_after_s = retry_after_s


class ControlRefusedError(PoseAnalyzerClientError):
    """The stream did not take a control message; it goes on as before."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"The stream refused ({code}): {detail}")
        self.code = code
        self.detail = detail


class ControlLostError(PoseAnalyzerClientError):
    """The connection broke, or nothing came, before a control message was answered."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(f"Whether the stream took {kind!r} is not known: {reason}. Send it again.")
        self.kind = kind
        self.reason = reason


class UnreadableImageError(PoseAnalyzerClientError):
    """Something that is not an image was given as one."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"Not an image: {reason}. Give an array (height, width, 3) of uint8, a PIL image, "
            "or the bytes of a JPEG, PNG or WebP file."
        )
        self.reason = reason


class UnreadableVideoError(PoseAnalyzerClientError):
    """A file that cannot be played."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class UnansweredFrameError(PoseAnalyzerClientError):
    """Base: one frame got no answer; the stream goes on."""

    def __init__(self, frame: int, message: str) -> None:
        super().__init__(f"Frame {frame} got no answer: {message}")
        self.frame = frame


class FrameDroppedError(UnansweredFrameError):
    """The service dropped the frame."""

    def __init__(self, frame: int, causes: tuple[str, ...]) -> None:
        super().__init__(
            frame,
            f"the service dropped it ({', '.join(causes) or 'cause unknown'}). "
            "Send fewer frames at once.",
        )
        self.causes = causes
        """Why frames were dropped since the answer before: stale, overload, paused, ..."""


class FrameRefusedError(UnansweredFrameError):
    """The service could not use the frame."""

    def __init__(self, frame: int, code: str, detail: str) -> None:
        super().__init__(frame, f"{detail} ({code})")
        self.code = code
        self.detail = detail


class FrameLostError(UnansweredFrameError):
    """The connection broke before the answer came."""

    def __init__(self, frame: int, *, received: bool) -> None:
        where = "after it had arrived" if received else "on its way"
        super().__init__(frame, f"the connection broke {where}. Send the next one.")
        self.received = received
        """Whether the service had the frame."""


class DisorderedFrameError(UnansweredFrameError):
    """The frame was not newer than the one before it, and was not sent."""

    def __init__(self, frame: int, captured_s: float) -> None:
        super().__init__(
            frame,
            f"its capture time, {captured_s} s, is not later than that of the frame before. "
            "Give each frame its own time, or none.",
        )
        self.captured_s = captured_s


class AnswerTimeoutError(UnansweredFrameError):
    """The answer did not come in time."""

    def __init__(self, frame: int, timeout_s: float) -> None:
        super().__init__(
            frame,
            f"none came within {timeout_s:g} s. The service is overloaded, or the stream paused; "
            "send fewer frames, or allow more time with ClientOptions(answer_timeout_s=...).",
        )
        self.timeout_s = timeout_s


class StreamPausedError(PoseAnalyzerClientError):
    """A frame was to be analysed while the stream is paused."""

    def __init__(self, state: str, reason: str) -> None:
        remedy = "Call resume()." if state == "paused" else "It resumes by itself; try again later."
        super().__init__(f"The stream is {state} ({reason}). {remedy}")
        self.state = state
        self.reason = reason


class StreamClosedError(PoseAnalyzerClientError):
    """Base: the stream is over for this client."""


class StreamEndedError(StreamClosedError):
    """The stream was deleted, or its source is finished."""

    def __init__(self, stream_id: str) -> None:
        super().__init__(f"Stream {stream_id} has ended. Open a new client for another one.")
        self.stream_id = stream_id


class StreamTakenOverError(StreamClosedError):
    """Another connection has continued this stream."""

    def __init__(self, stream_id: str) -> None:
        super().__init__(
            f"Another connection took stream {stream_id} over. Only one client can hold a stream; "
            "open a new client for one of your own."
        )
        self.stream_id = stream_id


class FrameTooLargeError(StreamClosedError):
    """A picture was larger than the service accepts."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            "A picture was larger than the service accepts"
            f"{f' ({reason})' if reason else ''}. Send smaller ones, or lower "
            "ClientOptions(jpeg_quality=...)."
        )
        self.reason = reason


class UndecodableFramesError(StreamClosedError):
    """The service could not read too many pictures in a row."""

    def __init__(self) -> None:
        super().__init__(
            "The service could not read the last pictures. Send whole JPEG, PNG or WebP files, or "
            "arrays, which the client encodes."
        )


class SlowReaderError(StreamClosedError):
    """Answers were left unread for too long."""

    def __init__(self) -> None:
        super().__init__(
            "The service gave up since its answers were not read. Something blocks the event loop "
            "of this client; move slow work into a thread (asyncio.to_thread)."
        )


class TooManyMessagesError(StreamClosedError):
    """More messages were sent than the service accepts."""

    def __init__(self) -> None:
        super().__init__(
            "The service accepts fewer messages a second than were sent. Limit the frame rate."
        )


class ProtocolViolationError(StreamClosedError):
    """Client and service do not understand each other."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"Client and service do not understand each other: {reason}. "
            "Install the client of the service's version."
        )
        self.reason = reason


class ConnectionLostError(StreamClosedError):
    """The connection broke and could not be made again."""

    def __init__(self, stream_id: str, n_attempts: int, reason: str) -> None:
        super().__init__(
            f"The connection of stream {stream_id} is lost; {n_attempts} attempts to continue it "
            f"failed ({reason}). See that the service runs (`{START_COMMAND}`), then open a new "
            "client."
        )
        self.stream_id = stream_id
        self.n_attempts = n_attempts
        self.reason = reason
