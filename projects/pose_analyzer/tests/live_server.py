"""The real service on a loopback port, for tests that need real sockets."""

import asyncio
import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import cv2
import msgspec
import numpy as np
from fastapi import FastAPI
from websockets.sync.client import ClientConnection, connect

from pose_analyzer.api.main import Server, server_config


@dataclass
class LiveServer:
    """How to talk to it."""

    port: int
    server: Server
    thread: threading.Thread

    def call(self, method: str, path: str, body: object = None) -> tuple[int, Any, dict[str, str]]:
        """Status, JSON and headers of an answer."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            data,
            {"Content-Type": "application/json"},
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
                text = answer.read()
                return answer.status, json.loads(text) if text else None, dict(answer.headers)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read()), dict(error.headers)

    def start_stream(self, **body: object) -> dict[str, Any]:
        status, answer, _ = self.call("POST", "/stream/start", body)
        assert status == 201, answer
        return answer

    def connect(self, stream: dict[str, Any], *subprotocols: str) -> ClientConnection:
        return connect(
            stream["ws_url"], subprotocols=subprotocols or None, max_size=None, compression=None
        )

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(10)
        assert not self.thread.is_alive()


@contextmanager
def serving(app: FastAPI, port: int = 0) -> Iterator[LiveServer]:
    """Serve until the block ends; without a port, on any."""
    listener = socket.create_server(("127.0.0.1", port))
    port = listener.getsockname()[1]
    config = server_config(app, "127.0.0.1", port)
    config.log_config = None
    server = Server(config)
    thread = threading.Thread(
        target=lambda: asyncio.run(server.serve([listener])), name="service", daemon=True
    )
    thread.start()
    while not server.started:
        assert thread.is_alive()
        thread.join(0.01)
    live = LiveServer(port, server, thread)
    try:
        yield live
    finally:
        live.stop()
        listener.close()


def receive(socket_: ClientConnection, kind: str = "result") -> dict[str, Any]:
    """Next message of that type."""
    while True:
        message = socket_.recv(timeout=10)
        read = msgspec.json.decode if isinstance(message, str) else msgspec.msgpack.decode
        content = read(message)
        if content["type"] == kind:
            return content


def send(socket_: ClientConnection, picture: bytes, captured_s: float | None = None) -> None:
    """Send a picture, and when it was taken."""
    if captured_s is not None:
        socket_.send(json.dumps({"type": "frame", "captured_s": captured_s}))
    socket_.send(picture)


def png(image_bgr: np.ndarray) -> bytes:
    """Lossless file of a picture."""
    return cv2.imencode(".png", image_bgr)[1].tobytes()
