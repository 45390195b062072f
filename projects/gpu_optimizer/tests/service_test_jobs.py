"""Jobs for tests of the service, run in its worker processes."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from gpu_optimizer.errors import InvalidModelError

Report = Callable[[Mapping[str, Any]], None]


def echo(payload: Mapping[str, Any], report: Report) -> Mapping[str, Any]:
    """Answer with the request; what it asks for by `batch_size` happens first."""
    match payload["batch_size"]:
        case 2:
            for step in range(3):
                report({"step": step})
                time.sleep(0.05)
        case 3:
            time.sleep(600)
        case 4:
            raise InvalidModelError("model", "it cannot be run like this.")
        case 5:
            raise ZeroDivisionError
    return {"payload": dict(payload)}
