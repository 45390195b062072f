"""One process of the load generator: real connections that send on an absolute schedule."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import uvloop
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from pose_analyzer.wire import MSGPACK_SUBPROTOCOL, Error, Pong, Ready, State, WrittenResult
from streams.pictures import read_pictures
from streams.records import STAGES, StreamRecord, back_and_forth

_CONNECT_TIMEOUT_S = 60.0
_DRAIN_S = 2.0  # for so long answers are waited for after the last picture
_POLL_S = 0.005
_PICTURES_APART = 7  # by which streams begin at other pictures

_NOBODY = (b"[]", b"\x90")  # an empty list, as JSON and as MessagePack

# Its people are not unpacked, which would cost the generator more than the service.
_Message = Ready | WrittenResult | State | Error | Pong


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """One stream of the load."""

    number: int
    url: str
    phase_s: float
    """Its first picture is due so long after the load begins."""


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What one process does."""

    streams: tuple[StreamPlan, ...]
    folder: Path
    """Of JPEG files."""
    fps: float
    subprotocol: str


@dataclass(frozen=True, slots=True)
class LoadClock:
    """Memory shared with the process that commands: three ctypes values and one counter."""

    begin_s: Any
    """When the load begins; 0 until that is known."""
    stop_s: Any
    """Pictures due from here on are not sent."""
    n_answers: Any
    """Answers so far, one counter per process."""


@dataclass(slots=True, eq=False)
class _Log:
    sent_s: list[float] = field(default_factory=list)
    done_s: list[float] = field(default_factory=list)
    answered: list[int] = field(default_factory=list)
    answered_s: list[float] = field(default_factory=list)
    stages_s: list[tuple[float, ...]] = field(default_factory=list)
    drops: list[dict[str, int]] = field(default_factory=list)
    peopled: list[bool] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    states: list[str] = field(default_factory=list)
    close_code: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Stream:
    plan: StreamPlan
    connection: ClientConnection
    ready: Ready
    decoder: Any


def generate(plan: LoadPlan, clock: LoadClock, index: int, pipe: Connection) -> None:
    """Body of the process: connect, say so, send until told to stop, hand the records over."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        pipe.send(runner.run(_generate(plan, clock, index, pipe)))


async def _generate(
    plan: LoadPlan, clock: LoadClock, index: int, pipe: Connection
) -> list[StreamRecord]:
    jpegs = read_pictures(plan.folder)
    decoder = _decoder(plan.subprotocol)
    connections = await asyncio.gather(
        *(_connect(stream.url, plan.subprotocol) for stream in plan.streams)
    )
    ready = [decoder.decode(await connection.recv()) for connection in connections]
    pipe.send("connected")
    while clock.begin_s.value == 0.0:  # noqa: ASYNC110 - another process sets it
        await asyncio.sleep(_POLL_S)
    records = await asyncio.gather(
        *(
            _drive(_Stream(stream, connection, hello, decoder), plan, jpegs, clock, index)
            for stream, connection, hello in zip(plan.streams, connections, ready, strict=True)
        )
    )
    await asyncio.gather(*(connection.close() for connection in connections))
    return records


async def _connect(url: str, subprotocol: str) -> ClientConnection:
    return await connect(
        url,
        compression=None,
        subprotocols=[Subprotocol(subprotocol)],
        max_size=None,
        proxy=None,
        open_timeout=_CONNECT_TIMEOUT_S,
        ping_interval=None,
        close_timeout=1.0,
    )


async def _drive(
    stream: _Stream, plan: LoadPlan, jpegs: Sequence[bytes], clock: LoadClock, index: int
) -> StreamRecord:
    log = _Log()
    first_s = clock.begin_s.value + stream.plan.phase_s
    order = back_and_forth(len(jpegs), _PICTURES_APART * stream.plan.number)
    listening = asyncio.create_task(_listen(stream, log, clock.n_answers, index))
    pictures = (jpegs[number] for number in order)
    await _send(stream.connection, pictures, (first_s, 1 / plan.fps), clock, log)
    await asyncio.wait([listening], timeout=_DRAIN_S)
    listening.cancel()
    await asyncio.wait([listening])
    return _record(stream, log, first_s, 1 / plan.fps)


async def _send(
    connection: ClientConnection,
    pictures: Iterator[bytes],
    first_and_period_s: tuple[float, float],
    clock: LoadClock,
    log: _Log,
) -> None:
    """Send each picture when it is due, or as soon after as the socket takes it."""
    first_s, period_s = first_and_period_s
    due_s = first_s
    while due_s < clock.stop_s.value:
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        log.sent_s.append(time.monotonic())
        try:
            await connection.send(next(pictures))
        except ConnectionClosed:
            return
        log.done_s.append(time.monotonic())
        due_s = first_s + len(log.sent_s) * period_s


async def _listen(
    stream: _Stream,
    log: _Log,
    n_answers: Any,  # noqa: ANN401 - a shared array
    index: int,
) -> None:
    with contextlib.suppress(ConnectionClosed):
        async for text in stream.connection:
            now_s = time.monotonic()
            match stream.decoder.decode(text):
                case WrittenResult() as result:
                    log.answered.append(result.frame - stream.ready.next_frame)
                    log.answered_s.append(now_s)
                    log.stages_s.append(_stages_s(result))
                    log.drops.append(result.dropped)
                    log.peopled.append(bytes(result.people) not in _NOBODY)
                    n_answers[index] += 1
                case Error(code=code):
                    log.errors[code] += 1
                case State() as state:
                    log.states.append(f"{state.state}: {state.reason}")
    log.close_code = stream.connection.close_code


def _stages_s(result: WrittenResult) -> tuple[float, ...]:
    timing = result.timing
    return (
        timing.queue_s,
        timing.decode_s,
        timing.infer_s,
        timing.postprocess_s,
        result.answered_s - result.received_s,
    )


def _decoder(subprotocol: str) -> Any:  # noqa: ANN401 - of JSON or of MessagePack
    if subprotocol == MSGPACK_SUBPROTOCOL:
        return msgspec.msgpack.Decoder(_Message)
    return msgspec.json.Decoder(_Message)


def _record(stream: _Stream, log: _Log, first_s: float, period_s: float) -> StreamRecord:
    return StreamRecord(
        number=stream.plan.number,
        first_s=first_s,
        period_s=period_s,
        sent_s=np.array(log.sent_s, np.float64),
        done_s=np.array(log.done_s, np.float64),
        answered=np.array(log.answered, np.int64),
        answered_s=np.array(log.answered_s, np.float64),
        stages_s=np.array(log.stages_s, np.float64).reshape(-1, len(STAGES)),
        drops=tuple(log.drops),
        peopled=np.array(log.peopled, np.bool_),
        errors=log.errors,
        states=tuple(log.states),
        close_code=log.close_code,
        device=stream.ready.device,
        detector=stream.ready.detector,
    )
