"""What is committed names no package registry's host and no place on somebody's machine."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# In two pieces, so that this file passes its own test.
REGISTRIES = (
    ("py", "pi.org"),
    ("files.py", "thonhosted.org"),
    ("download.py", "torch.org"),
    ("registry.np", "mjs.org"),
    ("deb.deb", "ian.org"),
)
HOST = re.compile("|".join(re.escape(first + rest) for first, rest in REGISTRIES))
HOME = re.compile(r"(?<![\w.~$}])/(?:home/\w|root/|Users/\w)")


def texts() -> list[tuple[str, str]]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    paths = [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    return [(name, (ROOT / name).read_bytes().decode("utf-8", "replace")) for name in paths]


@pytest.mark.parametrize("pattern", [HOST, HOME], ids=["registry host", "home folder"])
def test_nothing_of_a_machine_is_committed(pattern):
    found = [(name, match[0]) for name, text in texts() if (match := pattern.search(text))]
    assert not found
