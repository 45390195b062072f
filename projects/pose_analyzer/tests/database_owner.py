"""Run as a script: owns an embedded server until its standard input ends or it is killed."""

import json
import resource
import sys
from pathlib import Path

from pose_analyzer.errors import DatabaseUnavailableError
from pose_analyzer.storage.embedded import EmbeddedConfig, EmbeddedServer


def main(folder: str, max_file_bytes: str = "") -> None:
    if max_file_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(max_file_bytes), int(max_file_bytes)))
    server = EmbeddedServer(Path(folder), EmbeddedConfig(durable=False))
    try:
        server.start()
    except DatabaseUnavailableError as error:
        print(json.dumps({"refused": error.reason}), flush=True)
        return
    print(json.dumps({"is_owner": server.is_owner}), flush=True)
    sys.stdin.read()
    server.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
