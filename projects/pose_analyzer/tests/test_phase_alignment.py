"""Laying repetitions onto references, finished and under way."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pose_analyzer.phase_alignment import BAND_RATIO, PhaseState, advance, align, rows_at

PHASES = np.linspace(0.0, 1.0, 25)
COURSE = np.stack([np.sin(np.pi * PHASES), np.cos(np.pi * PHASES)], axis=1)


def bent(share):
    """The same course with its middle moved by a share of its length."""
    warped = PHASES + share * np.sin(2.0 * np.pi * PHASES) / 2.0
    return np.stack([np.sin(np.pi * warped), np.cos(np.pi * warped)], axis=1)


def test_the_same_course_lies_on_itself():
    alignment = align(COURSE, COURSE)
    assert alignment.rows == pytest.approx(np.arange(25))
    assert alignment.distance == pytest.approx(0.0)


@given(share=st.floats(-0.15, 0.15))
def test_a_delay_within_the_band_is_taken_out(share):
    other = bent(share)
    alignment = align(COURSE, other)
    assert np.all(np.diff(alignment.rows) >= 0.0)
    assert np.all(np.abs(alignment.rows - np.arange(25)) <= round(BAND_RATIO * 25))
    aligned = np.abs(rows_at(other, alignment.rows) - COURSE).mean()
    assert aligned <= np.abs(other - COURSE).mean() + 1e-12


def test_unknown_signals_are_left_out():
    holed = COURSE.copy()
    holed[3, 1] = np.nan
    assert align(COURSE, holed).distance == pytest.approx(0.0)
    nothing = align(COURSE, np.full_like(COURSE, np.nan))
    assert nothing.rows == pytest.approx(np.arange(25))
    assert np.isnan(nothing.distance)


KNOWN = np.ones((2, 2), dtype=bool)


@pytest.mark.parametrize("n_frames", [15, 40, 90])
def test_live_frames_find_their_phase(n_frames):
    state, found = PhaseState(), []
    shown = np.linspace(0.0, 24.0, n_frames)
    for row in rows_at(COURSE, shown):
        state, phases = advance(COURSE, state, np.stack([row, row]), KNOWN)
        found.append(phases)
    assert np.abs(np.array(found) - shown[:, None]).max() < 2.0


def test_a_frame_that_shows_nothing_changes_nothing():
    state, _ = advance(COURSE, PhaseState(), COURSE[:2], KNOWN)
    after, phases = advance(COURSE, state, COURSE[:2], KNOWN & [[True], [False]])
    assert phases is None
    assert after is state
