"""Names, kinds, parts and addresses of uploads."""

import uuid

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pose_analyzer.upload_addresses import sign_part, signature_holds
from pose_analyzer.upload_errors import InvalidFileNameError, UnsupportedVideoTypeError
from pose_analyzer.upload_rules import (
    MAX_NAME_BYTES,
    MAX_PARTS,
    PartPlan,
    check_content_type,
    check_filename,
    plan_parts,
    video_suffix,
)

ODD = st.text(
    st.sampled_from("./\\:\0\r\n\t\x7f\u202e\u200d\u2028\ufeff\uff0f\uff3c\u2024\u2025\ud800aZ é😀")
)


@given(st.text() | ODD)
@example("\uff0e\uff0e\uff0f\uff0e\uff0e\uff0fetc/passwd")
@example("\u2025")
@example(" .. ")
@example("C:secret.mp4")
def test_no_name_that_is_accepted_can_be_taken_for_a_path(name: str) -> None:
    try:
        accepted = check_filename(name)
    except InvalidFileNameError:
        return
    assert accepted.strip(" .")
    assert not set(accepted) & set("/\\\0\r\n\t\u202e\u2028")
    assert len(accepted.encode()) <= MAX_NAME_BYTES
    assert check_filename(accepted) == accepted


@pytest.mark.parametrize(
    "name",
    [
        "squats.mp4",
        "Kniebeugen größer.MOV",
        "スクワット 3.mp4",
        "🏋🏽‍♀️.mp4",
        "a..b.mp4",
        "نیم‌بها.mkv",
        "IMG (1) [50%].mp4",
    ],
)
def test_names_people_use_are_kept(name: str) -> None:
    assert check_filename(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "", "   ", ".", "..", "...", "../../etc/passwd", "/etc/passwd", "a/b.mp4", "..\\b.mp4",
        "C:\\videos\\b.mp4", "C:b.mp4", "a\0.mp4", "a\nb.mp4", "a\x1b[2J.mp4", "a\u202e4pm.exe",
        "\uff0e\uff0e\uff0fb.mp4", "\u2025", "a\ud800.mp4", "x" * 256, "é" * 128,
    ],
)  # fmt: skip
def test_names_that_would_be_dangerous_are_refused(name: str) -> None:
    with pytest.raises(InvalidFileNameError, match=r"such as squats\.mp4"):
        check_filename(name)


def test_composed_and_decomposed_names_are_one() -> None:
    assert check_filename("Mu\u0308ller.mp4") == "M\u00fcller.mp4"


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("a.mp4", ".mp4"), ("a.b.MOV", ".mov"), ("video", ""), (".mp4", ""), ("a.", "")],
)
def test_the_kind_is_told_by_the_end_of_the_name(name: str, suffix: str) -> None:
    assert video_suffix(name) == suffix


@pytest.mark.parametrize("name", ["a.txt", "a.exe", "a.mp4.zip", "a.jpg"])
def test_other_kinds_are_refused_with_those_that_are_known(name: str) -> None:
    with pytest.raises(UnsupportedVideoTypeError, match=r"\.mp4, .*\.webm"):
        video_suffix(name)


def test_what_says_it_is_no_video_is_refused() -> None:
    for kind in (None, "", "video/mp4", "VIDEO/quicktime; codecs=x", "application/octet-stream"):
        check_content_type(kind)
    for kind in ("image/png", "text/html", "application/zip", "nonsense"):
        with pytest.raises(UnsupportedVideoTypeError):
            check_content_type(kind)


@given(st.integers(1, 2**44), st.integers(1, 2**40))
def test_a_plan_covers_the_file_exactly(size_bytes: int, more_bytes: int) -> None:
    plan = plan_parts(size_bytes)
    assert 1 <= plan.n_parts <= MAX_PARTS
    last = plan.n_parts - 1
    assert 0 < plan.size_of(last) <= plan.part_bytes
    assert last * plan.part_bytes + plan.size_of(last) == size_bytes
    assert plan_parts(size_bytes + more_bytes).part_bytes >= plan.part_bytes


@given(st.integers(1, 500), st.integers(1, 60), st.data())
def test_parts_are_missing_until_they_have_their_size(
    size_bytes: int, part_bytes: int, data: st.DataObject
) -> None:
    plan = PartPlan(size_bytes, part_bytes)
    numbers = list(range(plan.n_parts))
    there = data.draw(st.sets(st.sampled_from(numbers)))
    damaged = data.draw(st.sets(st.sampled_from(numbers)))
    stored = {n: plan.size_of(n) + (n in damaged) for n in there} | {plan.n_parts: part_bytes}
    assert plan.missing(stored) == tuple(n for n in numbers if n not in there - damaged)
    assert plan.missing({n: plan.size_of(n) for n in numbers}) == ()


@given(st.uuids(), st.integers(0, 999), st.integers(0, 2**40), st.text())
def test_a_signature_holds_for_its_own_part_only(
    video_id: uuid.UUID, number: int, expires_at: int, forged: str
) -> None:
    signature = sign_part(b"secret", video_id, number, expires_at)
    assert signature_holds(b"secret", video_id, number, expires_at, signature)
    assert not signature_holds(b"other", video_id, number, expires_at, signature)
    assert not signature_holds(b"secret", video_id, number + 1, expires_at, signature)
    assert not signature_holds(b"secret", video_id, number, expires_at + 1, signature)
    assert not signature_holds(
        b"secret", uuid.UUID(int=video_id.int ^ 1), number, expires_at, signature
    )
    assert signature_holds(b"secret", video_id, number, expires_at, forged) == (forged == signature)
