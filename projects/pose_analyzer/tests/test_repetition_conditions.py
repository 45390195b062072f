"""Which movements count: the conditions of an exercise."""

from dataclasses import replace

import numpy as np
import pytest

from pose_analyzer.repetition_evidence import Condition

from .progress_signals import CURL, DT_S, SQUAT, line, observe, run


def profile(**features):
    """Two seconds' rest, down, rest, up; other features at the (start, full) position."""
    wave = line((0, 0), (1, 0), (2, 1), (3, 1), (4, 0), (5, 0))
    values = {name: low + (high - low) * wave for name, (low, high) in features.items()}
    frames = range(len(wave))
    return [observe(i * DT_S, wave[i], **{n: v[i] for n, v in values.items()}) for i in frames]


class TestConditions:
    @pytest.mark.parametrize(
        ("condition", "holds"),
        [
            (Condition("knee_deg", at="full", max=100.0), True),
            (Condition("knee_deg", at="full", min=100.0), False),
            (Condition("knee_deg", at="start", min=150.0), True),
            (Condition("knee_deg", at="start", max=150.0), False),
            (Condition("knee_deg", at="all", statistic="range", min=90.0), True),
            (Condition("knee_deg", at="all", statistic="range", max=90.0), False),
            (Condition("knee_deg", at="all", statistic="min", max=85.0), True),
            (Condition("knee_deg", at="all", statistic="max", max=85.0), False),
            (Condition("knee_deg", at="all", min=120.0, max=140.0), True),
            (Condition("elbow_deg", at="full", max=180.0), False),
            (Condition("elbow_deg", at="all", statistic="range", min=0.0), False),
        ],
    )
    def test_each_kind(self, condition, holds):
        observations = profile(knee_deg=(180.0, 80.0))
        state = run(replace(SQUAT, conditions=((condition,),)), observations)[-1]
        assert len(state.repetitions) == holds
        assert state.n_rejected == (not holds)

    @pytest.mark.parametrize(
        ("condition", "holds"),
        [
            (Condition("knee_deg", at="full", max=120.0), True),
            (Condition("knee_deg", at="full", min=120.0), False),
            (Condition("knee_deg", at="start", min=150.0), True),
            (Condition("knee_deg", at="start", max=150.0), False),
            (Condition("knee_deg", at="all", statistic="range", min=60.0), True),
            (Condition("knee_deg", at="all", statistic="max", max=150.0), False),
        ],
    )
    def test_counted_at_the_full_position_they_are_judged_on_arrival(self, condition, holds):
        observations = profile(knee_deg=(180.0, 80.0))
        state = run(replace(CURL, conditions=((condition,),)), observations)[-1]
        assert len(state.repetitions) == holds
        assert state.n_rejected == (not holds)

    def test_all_must_hold_and_of_alternatives_one(self):
        observations = profile(knee_deg=(180.0, 80.0), elbow_deg=(170.0, 170.0))
        deep = Condition("knee_deg", max=100.0)
        bent, straight = Condition("elbow_deg", max=90.0), Condition("elbow_deg", min=150.0)

        def counts(*conditions):
            return bool(run(replace(SQUAT, conditions=conditions), observations)[-1].repetitions)

        assert counts((deep,), (straight,))
        assert not counts((deep,), (bent,))
        assert counts((deep,), (bent, straight))
        assert not counts((bent, Condition("shoulder_deg", max=90.0)))

    def test_a_position_is_judged_by_its_latest_moments(self):
        # Settles at the bottom: the knee is at 120 on arrival and at 80 when leaving.
        wave = line((0, 0), (1, 0), (2, 1), (5, 1), (6, 0), (7, 0))
        knee = np.interp(np.arange(len(wave)) * DT_S, [0, 2, 3, 7], [120.0, 120.0, 80.0, 80.0])
        observations = [
            observe(i * DT_S, p, knee_deg=k)
            for i, (p, k) in enumerate(zip(wave, knee, strict=True))
        ]
        settled = replace(SQUAT, conditions=((Condition("knee_deg", max=85.0),),))
        assert len(run(settled, observations)[-1].repetitions) == 1

    def test_each_repetition_is_judged_by_itself(self):
        bad, good = profile(knee_deg=(180.0, 150.0)), profile(knee_deg=(180.0, 80.0))
        later = [replace(o, time_s=o.time_s + 8.0) for o in good]
        deep = Condition("knee_deg", at="all", statistic="min", max=90.0)
        state = run(replace(SQUAT, conditions=((deep,),)), bad + later)[-1]
        assert [r.number for r in state.repetitions] == [1]
        assert state.repetitions[0].start_s > 8.0
