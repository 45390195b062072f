"""Four cameras at 30 frames a second on the live service, as a table.

Options of ``benchmarks/bench_streams.py`` may follow, such as ``--seconds 60``.
"""

import os
import sys
from pathlib import Path

BENCHMARK = Path(__file__).resolve().parents[1] / "benchmarks" / "bench_streams.py"


def main() -> None:
    """Become that benchmark."""
    command = [sys.executable, str(BENCHMARK), "--streams", "4", "--fps", "30", *sys.argv[1:]]
    os.execv(command[0], command)  # noqa: S606 - our own command


if __name__ == "__main__":
    main()
