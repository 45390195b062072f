"""Jobs that behave badly, for the tests of the worker; in no table of the product."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from gpu_optimizer.errors import InvalidModelError


def echo(payload, report):
    report({"stage": "half", "ratio": 0.5})
    print("noise on standard output")
    return {"echo": payload}


def surroundings(payload, report):
    return {
        "environment": dict(os.environ),
        "cwd": str(Path.cwd()),
        "files": [path.name for path in Path.cwd().iterdir()],
        "session": os.getsid(0) == os.getpid(),
        "umask": os.umask(0o077),
    }


def refuse(payload, report):
    raise InvalidModelError("x.json", "too large.")


def fail(payload, report):
    raise KeyError("internal")


def hang(payload, report):
    time.sleep(600)


def hang_deaf(payload, report):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=time.sleep, args=(600,)).start()
    report({"pid": os.getpid()})
    while True:
        time.sleep(600)


def spin(payload, report):
    while True:
        pass


def hoard(payload, report):
    kept = []
    while True:
        kept.append(bytearray(8 << 20))
        time.sleep(payload.get("pause_s", 0.0))


def hoard_in_children(payload, report):
    code = "import time; kept = bytearray(120 << 20); time.sleep(600)"
    children = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    for child in children:
        child.wait()


def hoard_tensors(payload, report):
    import torch

    return {"n": torch.ones(1 << 34).numel()}


def vanish(payload, report):
    os._exit(0)


def crash(payload, report):
    os.kill(os.getpid(), 11)


def chatter(payload, report):
    while True:
        report({"text": "x" * 10_000})


def one_long_line(payload, report):
    return {"text": "x" * (8 << 20)}


def noise(payload, report):
    for _ in range(2_000):
        os.write(2, b"y" * 10_000)
    return {}


def not_json(payload, report):
    return {"value": float("nan")}


def breed(payload, report):
    children = [
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) for _ in range(12)
    ]
    for child in children:
        child.wait()


def leave_child(payload, report):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    return {"pid": child.pid}


def big_file(payload, report):
    Path("big").write_bytes(bytes(8 << 20))
    return {}


def connect(payload, report):
    try:
        with socket.create_connection(("127.0.0.1", payload["port"]), timeout=5):
            return {"connected": True}
    except OSError as error:
        return {"connected": False, "error": type(error).__name__}


def connect_with_hook(payload, report):
    from gpu_optimizer.profiling_worker.confinement import refuse_sockets

    refuse_sockets()
    return connect(payload, report)
