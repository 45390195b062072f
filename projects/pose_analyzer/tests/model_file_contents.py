"""Small files that pass for models, and a host that offers them."""

import io
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from pose_analyzer.model_files.registry import HttpSource


def archive(text: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("weights", text)
    return buffer.getvalue()


def put(folder: Path, name: str, content: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(content)
    return path


@contextmanager
def serving(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[HttpSource]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.end_headers()

        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield HttpSource(f"http://127.0.0.1:{server.server_port}/example.task")
        server.shutdown()


def send(content: bytes, declared_bytes: int | None = None) -> Callable[..., None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(declared_bytes or len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    return answer
