"""Send the memory service bodies that nobody should send: no answer of 500, memory flat.

    python benchmarks/fuzz_optimizer_api.py --url http://127.0.0.1:8002 --bodies 10000

Bodies are requests with members replaced, removed, doubled and nested, numbers beyond all bounds,
texts that are no JSON, and bytes. Only requests that are refused at once are wanted: whatever would
start a job names a model that there is not. Ends with 1 if an answer was 500 or more.
"""

import argparse
import json
import random
import sys
import time
from collections import Counter
from typing import Any

import httpx2 as httpx
import psutil

STRANGE: tuple[Any, ...] = (
    None, True, -1, 0, 10**12, 10**400, -0.0, 1e308, float("nan"), float("inf"), "", "\0",
    "é" * 500, "../../etc/passwd", "__class__", "resnet50; rm -rf /", [], {}, [[[[]]]],
    {"auto_map": {"x": "y"}},
)  # fmt: skip
FIELDS = ("model", "mode", "batch_size", "n_tokens", "image_size_px", "dtype", "optimizer", "gpu")
DEEP = 5_000


def body(choice: random.Random) -> bytes:
    """One request's body."""
    kind = choice.random()
    if kind < 0.1:
        return choice.randbytes(choice.randrange(300))
    if kind < 0.15:
        depth = choice.randrange(DEEP)
        return (b"[" * depth + b"]" * depth) if choice.random() < 0.5 else b'{"model":' * depth
    request: dict[str, Any] = {"model": "no such model", "mode": "infer", "batch_size": 1}
    for name in choice.sample(FIELDS, choice.randrange(1, 5)):
        request[name] = choice.choice(STRANGE)
    if choice.random() < 0.3:
        request[choice.choice(("verify", "trust_remote_code", "path", "__proto__"))] = "x"
    if choice.random() < 0.3:
        config = {
            "model_type": choice.choice(("llama", "bert", "nonsense")),
            "auto_map": {"a": "b"},
        }
        config[choice.choice(("hidden_size", "num_hidden_layers", "vocab_size"))] = choice.choice(
            STRANGE
        )
        request["model"] = config
    text = json.dumps(request)
    if kind < 0.3:
        cut = choice.randrange(len(text))
        text = text[:cut] + choice.choice(('"', "}", ",", "\\u0000", "")) + text[cut + 1 :]
    return text.encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8002")
    parser.add_argument("--bodies", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pid", type=int, help="the service, to read its memory")
    options = parser.parse_args()
    choice, answers = random.Random(options.seed), Counter[str]()  # noqa: S311
    process = psutil.Process(options.pid) if options.pid else None
    before = process.memory_info().rss if process else 0
    began_s = time.perf_counter()
    with httpx.Client(base_url=options.url, timeout=60.0) as client:
        for number in range(options.bodies):
            path = ("/profile", "/predict", "/optimize")[number % 3]
            answer = client.post(
                path, content=body(choice), headers={"content-type": "application/json"}
            )
            answers[f"{answer.status_code}"] += 1
            if answer.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
                print(path, answer.text[:500])
    print(f"{options.bodies:,} bodies in {time.perf_counter() - began_s:.0f} s: {dict(answers)}")
    if process is not None:
        after = process.memory_info().rss
        print(f"resident memory {before / 1e6:.0f} -> {after / 1e6:.0f} MB")
    alive = httpx.get(f"{options.url}/health").status_code
    sys.exit(int(alive != httpx.codes.OK or any(int(code) >= 500 for code in answers)))


if __name__ == "__main__":
    main()
