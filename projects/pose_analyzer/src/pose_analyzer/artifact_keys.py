"""Where each stored file is: keys of identifiers and fixed words, the same in a folder and in S3.

Nothing a client names ever becomes part of a key.
"""

import re
import uuid
from typing import Final

SESSIONS: Final = "coach_plus/sessions"
_UUID: Final = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
# Each segment begins with a letter or digit: there is no "..", no hidden file, no empty segment.
_KEY: Final = re.compile(rf"{SESSIONS}/{_UUID}(?:/[A-Za-z0-9][A-Za-z0-9_.-]{{0,63}}){{1,8}}")
_SUFFIX: Final = re.compile(r"(?:\.[a-z0-9]{1,8})?")
_PART: Final = re.compile(r"part_([0-9]{5})")


def session_prefix(session_id: uuid.UUID) -> str:
    """Beginning of all keys of a session, with a slash at the end."""
    return f"{SESSIONS}/{session_id}/"


def original_key(session_id: uuid.UUID, suffix: str) -> str:
    """Key of the recording as it was uploaded.

    Parameters
    ----------
    session_id
        Whose it is.
    suffix
        Kind of container, such as ``.mp4``; may be empty.

    Raises
    ------
    ValueError
        Not such a suffix.
    """
    if not _SUFFIX.fullmatch(suffix):
        raise ValueError(f"not a suffix: {suffix!r}")
    return f"{session_prefix(session_id)}original{suffix}"


def upload_prefix(session_id: uuid.UUID) -> str:
    """Beginning of the keys of parts that are not put together yet."""
    return f"{session_prefix(session_id)}upload/"


def part_key(session_id: uuid.UUID, number: int) -> str:
    """Key of one part of an upload, counted from 0."""
    if not 0 <= number <= 99_999:
        raise ValueError(f"no such part: {number}")
    return f"{upload_prefix(session_id)}part_{number:05d}"


def part_number(key: str) -> int | None:
    """Which part a key names; None if it names something else."""
    found = _PART.fullmatch(key.rpartition("/")[2])
    return int(found[1]) if found else None


def job_prefix(session_id: uuid.UUID, job_id: uuid.UUID) -> str:
    """Beginning of all keys of one analysis."""
    return f"{session_prefix(session_id)}analysis/jobs/{job_id}/"


def plan_key(session_id: uuid.UUID, job_id: uuid.UUID) -> str:
    """Key of how the recording was cut for an analysis."""
    return f"{job_prefix(session_id, job_id)}plan.json"


def chunk_key(session_id: uuid.UUID, job_id: uuid.UUID, index: int) -> str:
    """Key of what one worker found in one chunk."""
    if index < 0:
        raise ValueError(f"no such chunk: {index}")
    return f"{job_prefix(session_id, job_id)}chunks/chunk_{index:04d}.json"


def result_key(session_id: uuid.UUID, job_id: uuid.UUID) -> str:
    """Key of an analysis' result."""
    return f"{job_prefix(session_id, job_id)}final_results.json"


def report_key(session_id: uuid.UUID, job_id: uuid.UUID) -> str:
    """Key of an analysis' report as a page."""
    return f"{job_prefix(session_id, job_id)}report.html"


def overlay_key(session_id: uuid.UUID, job_id: uuid.UUID) -> str:
    """Key of the recording with what was found drawn into it."""
    return f"{job_prefix(session_id, job_id)}overlay.mp4"


def check_key(key: str) -> str:
    """Give the key back if it is of the form these functions make.

    Raises
    ------
    ValueError
        It is not.
    """
    if not _KEY.fullmatch(key):
        raise ValueError(f"not a key of a stored file: {key!r}")
    return key


def check_prefix(prefix: str) -> str:
    """Give the prefix back if it names a session, or a folder within one.

    Raises
    ------
    ValueError
        It does not.
    """
    if not prefix.endswith("/"):
        raise ValueError(f"not a prefix of stored files: {prefix!r}")
    check_key(f"{prefix}x")
    return prefix
