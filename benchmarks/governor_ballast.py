"""How fast the service sheds streams when another program fills the GPU, and has them back.

python benchmarks/governor_ballast.py --frames FOLDER --out docs/reports/governor_ballast.json

Starts the service, sends it pictures on several streams, lets a process of its own take memory
until NVML shows 92% of the card in use, and frees it later. Times count from the moment the memory
is asked for, or given back, until a client has the message. Needs a GPU that is otherwise less than
70% full.
"""

import argparse
import asyncio
import itertools
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import torch
from streams.pictures import read_pictures
from streams.service import Service, started_service
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from pose_analyzer.stream_types import StreamState
from pose_analyzer.vram_governor import GovernorConfig
from pose_analyzer.wire import JSON_SUBPROTOCOL, Ready, Result, ServerMessage, State
from shared_utils.gpu import GpuReader

TOLD_LIMIT_S = 2.0
BACK_LIMIT_S = 10.0
WARM_UP_ANSWERS = 60
WARM_UP_TIMEOUT_S = 120.0
AFTERWARDS_S = BACK_LIMIT_S + 5.0


@dataclass(slots=True)
class Client:
    """What one stream was told, by this program's monotonic clock."""

    priority: int
    device: str = ""
    states: list[tuple[float, StreamState, str]] = field(default_factory=list)
    answers_s: list[float] = field(default_factory=list)
    lost: str | None = None
    """Why the connection ended before its time."""

    def told_s(self, state: StreamState, since_s: float) -> float | None:
        """Seconds from `since_s` to the first message of that state; None if it never came."""
        times_s = (at_s for at_s, told, _ in self.states if told is state and at_s >= since_s)
        return next((at_s - since_s for at_s in times_s), None)

    def n_answers(self, begin_s: float, end_s: float) -> int:
        return sum(begin_s <= at_s < end_s for at_s in self.answers_s)


def hold_ballast(commands: Connection, used_ratio: float) -> None:
    """Fill the first GPU when told to, free it when told to; report the times and NVML's view."""
    reader = GpuReader(0, os.environ.get("CUDA_VISIBLE_DEVICES"))
    # The context takes memory itself: make it before anything is measured.
    torch.empty(1, device="cuda:0")
    commands.send(used_share(reader))
    commands.recv()
    began_s = time.monotonic()
    used_bytes, total_bytes = read_memory(reader)
    missing_bytes = int(used_ratio * total_bytes) - used_bytes
    ballast = torch.empty(missing_bytes, dtype=torch.uint8, device="cuda:0")
    commands.send((began_s, time.monotonic() - began_s, used_share(reader)))
    commands.recv()
    began_s = time.monotonic()
    del ballast
    torch.cuda.empty_cache()
    commands.send((began_s, time.monotonic() - began_s, used_share(reader)))
    reader.close()


def read_memory(reader: GpuReader) -> tuple[int, int]:
    """Bytes in use, by all programs, and bytes there are."""
    snapshot = reader.read()
    if snapshot is None or snapshot.used_bytes is None or not snapshot.total_bytes:
        raise SystemExit("NVML does not tell how full the GPU is.")
    return snapshot.used_bytes, snapshot.total_bytes


def used_share(reader: GpuReader) -> float:
    used_bytes, total_bytes = read_memory(reader)
    return used_bytes / total_bytes


@contextmanager
def ballast_process(used_ratio: float) -> Iterator[Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=hold_ballast, args=(theirs, used_ratio))
    process.start()
    theirs.close()  # else its end would not be noticed as EOFError
    try:
        yield ours
    finally:
        process.terminate()
        process.join()


async def ask(ballast: Connection) -> tuple[float, float, float]:
    """Have the ballast process do its next step: when it began, how long it took, fullness."""
    ballast.send(None)
    answer: tuple[float, float, float] = await asyncio.to_thread(ballast.recv)
    return answer


async def send(socket: ClientConnection, pictures: list[bytes], fps: float) -> None:
    began_s = time.monotonic()
    for number, picture in enumerate(itertools.cycle(pictures)):
        await asyncio.sleep(max(0.0, began_s + number / fps - time.monotonic()))
        await socket.send(picture)


async def listen(socket: ClientConnection, client: Client) -> None:
    decoder = msgspec.json.Decoder(ServerMessage)
    async for text in socket:
        message, now_s = decoder.decode(text), time.monotonic()
        if isinstance(message, Ready):
            client.device = message.device
        elif isinstance(message, State):
            client.states.append((now_s, message.state, message.reason))
        elif isinstance(message, Result):
            client.answers_s.append(now_s)


async def run_client(url: str, client: Client, pictures: list[bytes], fps: float) -> None:
    """Send and listen until cancelled; a connection that is lost is noted, not hidden."""
    subprotocols = [Subprotocol(JSON_SUBPROTOCOL)]
    async with connect(
        url, subprotocols=subprotocols, compression=None, max_size=None, proxy=None
    ) as socket:
        sending = asyncio.create_task(send(socket, pictures, fps))
        try:
            await listen(socket, client)
            client.lost = f"closed with code {socket.close_code}"
        except ConnectionClosed as error:
            client.lost = str(error)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)


async def warm_up(clients: list[Client]) -> None:
    give_up_s = time.monotonic() + WARM_UP_TIMEOUT_S
    while any(len(client.answers_s) < WARM_UP_ANSWERS for client in clients):
        if time.monotonic() > give_up_s or any(client.lost for client in clients):
            raise SystemExit(f"The streams did not get going: {clients}")
        await asyncio.sleep(0.1)
    if not all(client.device.startswith("cuda") for client in clients):
        raise SystemExit("The service detects on the CPU: there is no GPU memory to govern.")


async def measure(
    urls: list[str], ballast: Connection, pictures: list[bytes], arguments: argparse.Namespace
) -> dict[str, Any]:
    clients = [Client(priority) for priority in range(len(urls))]
    tasks = [
        asyncio.create_task(run_client(url, client, pictures, arguments.fps))
        for url, client in zip(urls, clients, strict=True)
    ]
    try:
        await warm_up(clients)
        filled_s, fill_took_s, full_ratio = await ask(ballast)
        await asyncio.sleep(arguments.hold_s)
        freed_s, free_took_s, free_ratio = await ask(ballast)
        await asyncio.sleep(AFTERWARDS_S)
        end_s = time.monotonic()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return {
        "used_ratio_filled": full_ratio,
        "used_ratio_freed": free_ratio,
        "fill_took_s": fill_took_s,
        "free_took_s": free_took_s,
        "hold_s": arguments.hold_s,
        "streams": [
            {
                "priority": client.priority,
                "shed_told_s": client.told_s(StreamState.SHED, filled_s),
                "back_told_s": client.told_s(StreamState.ACTIVE, freed_s),
                "answers_filled": client.n_answers(filled_s, freed_s),
                "answers_freed": client.n_answers(freed_s, end_s),
                "states": [
                    {"s_since_filled": at_s - filled_s, "state": state.value, "reason": reason}
                    for at_s, state, reason in client.states
                ],
                "lost": client.lost,
            }
            for client in clients
        ],
    }


def judge(result: dict[str, Any]) -> dict[str, Any]:
    """The figures that count; a stream that was shed and never came back makes `back_s` None."""
    shed = [stream for stream in result["streams"] if stream["shed_told_s"] is not None]
    told = [stream["shed_told_s"] for stream in shed]
    back = [stream["back_told_s"] for stream in shed]
    back_s = max(back) if back and None not in back else None
    kept = [stream for stream in result["streams"] if stream["shed_told_s"] is None]
    return {
        "n_streams": len(result["streams"]),
        "n_shed": len(shed),
        "first_told_s": min(told, default=None),
        "last_told_s": max(told, default=None),
        "back_s": back_s,
        "lost": sum(stream["lost"] is not None for stream in result["streams"]),
        "least_important_first": all(
            lower["priority"] < higher["priority"] for lower in shed for higher in kept
        ),
        "held": bool(told)
        and max(told) <= TOLD_LIMIT_S
        and back_s is not None
        and back_s <= BACK_LIMIT_S
        and all(stream["lost"] is None for stream in result["streams"]),
    }


def markdown(result: dict[str, Any]) -> str:
    def seconds(value: float | None) -> str:
        return "never" if value is None else f"{value:.2f}"

    summary = result["summary"]
    return "\n".join(
        [
            "| GPU | streams | in use | shed | told, s (first, last) | all back, s | held |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            f"| {result['gpu']} | {summary['n_streams']} | {result['used_ratio_filled']:.1%}"
            f" | {summary['n_shed']} | {seconds(summary['first_told_s'])},"
            f" {seconds(summary['last_told_s'])} | {seconds(summary['back_s'])}"
            f" | {'yes' if summary['held'] else 'no'} |",
        ]
    )


def start_streams(service: Service, arguments: argparse.Namespace) -> list[str]:
    """Addresses of the streams, the least important first."""
    urls = []
    for priority in range(arguments.streams):
        answer = service.start_stream(
            exercise="auto", detector=arguments.detector, fps=arguments.fps, priority=priority
        )
        if answer.status != 201:
            raise SystemExit(f"Stream {priority} was refused with {answer.status}: {answer.body}")
        urls.append(service.address(answer))
    return urls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=Path, required=True, help="folder of JPEG pictures")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--fps", type=float, default=30.0)
    parser.add_argument("--detector", help="such as yolo11n-pose; default: the service's")
    parser.add_argument("--used-ratio", type=float, default=0.92, help="what the ballast fills to")
    parser.add_argument("--hold-s", type=float, default=10.0, help="how long the ballast stays")
    arguments = parser.parse_args()
    pictures = read_pictures(arguments.frames)
    with (
        tempfile.TemporaryDirectory() as folder,
        ballast_process(arguments.used_ratio) as ballast,
        started_service(Path(folder) / "service.log") as service,
    ):
        used_before = ballast.recv()
        if used_before >= GovernorConfig(max_batch=1).low_ratio:
            raise SystemExit(f"The GPU is {used_before:.0%} full already; free it first.")
        urls = start_streams(service, arguments)
        result = asyncio.run(measure(urls, ballast, pictures, arguments))
    result |= {"gpu": torch.cuda.get_device_name(0), "summary": judge(result)}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(markdown(result))


if __name__ == "__main__":
    main()
