"""The pictures that are sent: JPEG files in a folder, held in memory by every generator."""

from pathlib import Path


def read_pictures(folder: Path) -> list[bytes]:
    """Content of all JPEG files of a folder, by name."""
    pictures = [path.read_bytes() for path in sorted(folder.glob("*.jp*g"))]
    if not pictures:
        raise SystemExit(f"{folder} holds no JPEG files; name another folder with --frames.")
    return pictures
