"""Which of our machines is this: print cpu or cuda, and write ~/.ml_pipeline_gpu.json.

Only that word goes to standard output, for use in scripts; what was found goes to standard error.
A machine without a GPU is normal.
"""

import argparse
import json
import sys
from pathlib import Path

from gpu_optimizer.machines.detection import Host, detect_host
from gpu_optimizer.machines.registry import default_machines_file, load_machines


def main(arguments: list[str] | None = None) -> int:
    """Detect, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path.home() / ".ml_pipeline_gpu.json", help="file to write"
    )
    out = parser.parse_args(arguments).out
    host = detect_host(load_machines(default_machines_file()))
    print(describe(host), file=sys.stderr)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(host.as_document(), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        print(f"Error: {out} cannot be written: {error.strerror}.", file=sys.stderr)
        return 1
    print(host.device)
    return 0


def describe(host: Host) -> str:
    """Say in one sentence what was found."""
    if host.gpu is None:
        return f"No NVIDIA GPU; PyTorch {host.pytorch_version} computes on the CPU."
    where = host.machine or "a machine that config/machines.yml does not list"
    document = host.as_document()
    able = "uses it" if host.device == "cuda" else "cannot use it"
    return (
        f"{host.gpu}, {document['vram_gb']} GiB, compute capability "
        f"{document['compute_capability']}: {where}; PyTorch {host.pytorch_version} {able}."
    )


if __name__ == "__main__":
    sys.exit(main())
