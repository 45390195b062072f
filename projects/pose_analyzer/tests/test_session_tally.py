"""What a session's repetitions amount to, however counting began anew."""

from hypothesis import given
from hypothesis import strategies as st

from pose_analyzer.session_records import Withdrawn
from pose_analyzer.session_tally import SessionTally, Summary

from .session_examples import repetition


def test_numbers_go_on_where_counting_begins_anew() -> None:
    tally = SessionTally()
    told = [(0, 1), (0, 2), (1, 1), (2, 1), (2, 2), (0, 1), (0, 2), (0, 3)]
    numbers = [
        tally.numbered(repetition(number, count=count, end_s=float(at)))
        for at, (count, number) in enumerate(told)
    ]
    assert numbers == [1, 2, 3, 4, 5, 6, 7, 8]
    assert tally.withdrawn() == []
    assert tally.summary().n_repetitions == 8


@given(
    st.lists(st.tuples(st.integers(1, 3), st.sampled_from(["squat", "lunge"])), max_size=40),
    st.lists(st.integers(0, 39), max_size=4),
)
def test_no_two_repetitions_have_the_same_number(
    done: list[tuple[int, str]], restarts: list[int]
) -> None:
    tally = SessionTally()
    counted: dict[tuple[int, str], int] = {}
    seen = set()
    for at, person in enumerate(done):
        if at in restarts:
            counted.clear()
        counted[person] = counted.get(person, 0) + 1
        told = repetition(counted[person], track_id=person[0], exercise=person[1])
        key = *person, tally.numbered(told)
        assert key not in seen
        seen.add(key)


def test_what_was_taken_for_another_exercise_is_withdrawn() -> None:
    tally = SessionTally()
    for number, exercise in enumerate(["lunge", "lunge", "squat", "squat", "squat"]):
        tally.numbered(
            repetition(number % 2 + 1 if exercise == "lunge" else number - 1, exercise=exercise)
        )
    tally.numbered(repetition(1, exercise="lunge", track_id=2, score=None))
    assert tally.withdrawn() == [Withdrawn(1, "lunge", [1, 2])]
    assert tally.summary() == Summary(4, "squat", 82.0)


def test_among_equals_the_latest_is_meant() -> None:
    tally = SessionTally()
    tally.numbered(repetition(1, exercise="squat", end_s=2.0))
    tally.numbered(repetition(1, exercise="lunge", end_s=4.0))
    assert tally.withdrawn() == [Withdrawn(1, "squat", [1])]


def test_what_a_client_asked_for_one_after_the_other_stays() -> None:
    tally = SessionTally()
    tally.numbered(repetition(1, exercise="squat"))
    tally.numbered(repetition(1, exercise="lunge", count=1))
    assert tally.withdrawn() == []
    assert tally.summary().n_repetitions == 2


def test_an_empty_session_is_nothing() -> None:
    assert SessionTally().summary() == Summary(0, None, None)
