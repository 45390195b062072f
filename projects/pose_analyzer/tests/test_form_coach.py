"""The coach says one thing at a time, seldom, what comes back, and praises what is mended."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pose_analyzer.fault_files import load_coaching
from pose_analyzer.form_coach import CoachConfig, CoachState, advise
from pose_analyzer.form_faults import FaultFindings
from pose_analyzer.form_types import Fault
from pose_analyzer.settings import Settings
from pose_analyzer.types import Phase

CONFIG = CoachConfig()
TEXTS = load_coaching(Settings().coaching_dir)
NAMES = tuple(TEXTS["en"].corrections)


def fault(name):
    return Fault(name, 0.5, "knee", "left", Phase.BOTTOM, 1, 10.0, "deg", 1.0)


def findings(*names, absent=()):
    return FaultFindings(tuple(fault(name) for name in names), tuple(absent), ())


def coached(repetitions, every_s=3.0, language="en"):
    """Cues after each of these findings."""
    state, cues = CoachState(), []
    for number, one in enumerate(repetitions, start=1):
        state, cue = advise(CONFIG, TEXTS[language], state, one, number, number * every_s)
        cues.append(cue)
    return cues


def test_a_single_bad_repetition_is_let_pass():
    good = findings(absent=["heels_lifting"])
    assert coached([findings("heels_lifting"), good, good, good]) == [None] * 4


def test_what_comes_back_is_said_once_and_praised_when_mended():
    bad, good = findings("heels_lifting"), findings(absent=["heels_lifting"])
    cues = coached([bad, bad, bad, good, good, good])
    assert [cue and cue.key for cue in cues] == [
        None,
        "correct.heels_lifting",
        None,
        None,
        "praise.heels_lifting",
        None,
    ]
    assert cues[1].text == "Keep your heels on the floor."


def test_the_most_urgent_comes_first():
    cues = coached([findings("rounded_back", "heels_lifting")] * 2)
    assert cues[1].fault == "rounded_back"


def test_german():
    cues = coached([findings("heels_lifting")] * 2, language="de")
    assert cues[1].text == "Lass die Fersen am Boden."


@given(
    st.lists(st.lists(st.sampled_from(NAMES), max_size=4, unique=True), max_size=60),
    st.floats(0.4, 10.0),
)
def test_never_too_often(repetitions, every_s):
    given_ = [
        findings(*names, absent=[n for n in NAMES if n not in names]) for names in repetitions
    ]
    cues = [cue for cue in coached(given_, every_s) if cue is not None]
    times_s = [cue.time_s for cue in cues]
    assert all(b - a >= CONFIG.cooldown_s for a, b in pairwise(times_s))
    for start_s in times_s:
        within = [t for t in times_s if start_s <= t < start_s + 60.0]
        assert len(within) <= CONFIG.max_per_minute
    for name in NAMES:
        said = [c.time_s for c in cues if c.kind == "correction" and c.fault == name]
        mended = [c.time_s for c in cues if c.kind == "praise" and c.fault == name]
        for a, b in pairwise(said):
            assert b - a >= CONFIG.repeat_s or any(a < t < b for t in mended)
