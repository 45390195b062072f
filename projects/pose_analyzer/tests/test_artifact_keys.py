"""Keys of stored files."""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pose_analyzer import artifact_keys as keys

SESSION, JOB = uuid.UUID(int=1), uuid.UUID(int=3)


@given(session=st.uuids(), job=st.uuids(), n=st.integers(0, 99_999))
def test_keys_are_what_they_must_be_and_tell_parts_apart(
    session: uuid.UUID, job: uuid.UUID, n: int
) -> None:
    made = [
        keys.original_key(session, ".mp4"),
        keys.original_key(session, ""),
        keys.part_key(session, n),
        keys.chunk_key(session, job, n),
        keys.result_key(session, job),
        keys.report_key(session, job),
        keys.overlay_key(session, job),
    ]
    assert len(set(made)) == len(made)
    for key in made:
        assert keys.check_key(key).startswith(keys.session_prefix(session))
    assert keys.part_number(keys.part_key(session, n)) == n
    assert keys.part_number(keys.chunk_key(session, job, n)) is None


def test_keys_are_those_of_the_plan() -> None:
    folder = f"coach_plus/sessions/{SESSION}"
    assert keys.original_key(SESSION, ".mp4") == f"{folder}/original.mp4"
    assert keys.chunk_key(SESSION, JOB, 0) == f"{folder}/analysis/jobs/{JOB}/chunks/chunk_0000.json"
    assert keys.result_key(SESSION, JOB) == f"{folder}/analysis/jobs/{JOB}/final_results.json"


@pytest.mark.parametrize("suffix", ["/x", "..", ".mp4/..", ".MP4", ".m p", "mp4", ".\0"])
def test_a_suffix_is_no_way_out(suffix: str) -> None:
    with pytest.raises(ValueError, match="suffix"):
        keys.original_key(SESSION, suffix)
