"""Figures of the load benchmark are right for answers that are known; no load is run here."""

import math
import sys
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import bench_streams
from streams.records import (
    StreamRecord,
    Window,
    back_and_forth,
    is_steady,
    n_unaccounted,
    percentiles_ms,
    search_most,
    slope_per_s,
    summarise,
)
from streams.report import page

PERIOD_S = 0.1


def record(answered, *, n_sent=100, latency_s=0.02, late_s=0.0, taking_s=0.001, drops=None):
    """A stream at 10 pictures a second from time 0, each sent `late_s` after it was due."""
    answered = np.array(answered, np.int64)
    sent_s = np.arange(n_sent) * PERIOD_S + late_s
    return StreamRecord(
        number=0,
        first_s=0.0,
        period_s=PERIOD_S,
        sent_s=sent_s,
        done_s=sent_s + taking_s,
        answered=answered,
        answered_s=sent_s[answered] + latency_s,
        stages_s=np.tile([0.001, 0.002, 0.003, 0.004, 0.01], (answered.size, 1)),
        drops=tuple(drops or [{}] * answered.size),
        peopled=answered % 2 == 0,
    )


def test_only_pictures_due_in_the_window_count():
    summary = summarise([record(range(100))], Window(2.0, 4.0))
    assert (summary["frames_due"], summary["frames_sent"], summary["frames_answered"]) == (20,) * 3
    assert summary["answered_ratio"] == 1.0
    assert summary["answered_per_s"] == 10.0
    assert summary["peopled_ratio"] == 0.5
    assert summary["latency"]["p99_ms"] == pytest.approx(20.0)
    assert summary["stages"]["server_total"]["p50_ms"] == pytest.approx(10.0)


def test_pictures_never_sent_are_not_answered():
    summary = summarise([record(range(30), n_sent=30)], Window(2.0, 4.0))
    assert (summary["frames_due"], summary["frames_sent"]) == (20, 10)
    assert summary["answered_ratio"] == 0.5


def test_sending_late_is_not_let_off():
    summary = summarise([record(range(100), late_s=0.05)], Window(2.0, 4.0))
    assert summary["latency"]["p50_ms"] == pytest.approx(20.0)
    assert summary["latency_from_schedule"]["p50_ms"] == pytest.approx(70.0)
    assert summary["generator_lateness"]["p50_ms"] == pytest.approx(50.0)


def test_waiting_for_a_full_socket_is_not_the_generators_lateness():
    held_up = record(range(100), late_s=0.05, taking_s=PERIOD_S)
    summary = summarise([held_up], Window(2.0, 4.0))
    assert summary["generator_lateness"]["max_ms"] == pytest.approx(0.0, abs=1e-6)
    assert summary["socket_taking"]["p50_ms"] == pytest.approx(100.0)


def test_worst_stream_and_drops_by_cause():
    half = record(range(1, 100, 2), drops=[{"stale": 1}] * 50)
    summary = summarise([record(range(100)), half], Window(2.0, 4.0), n_refused=3)
    assert summary["stream_answered_ratio_min"] == 0.5
    assert summary["stream_answered_per_s_min"] == 5.0
    assert summary["stream_answered_per_s_max"] == 10.0
    assert summary["dropped"] == {"stale": 10}
    assert summary["n_refused"] == 3
    assert summary["frames_unaccounted"] == 0


def test_pictures_that_vanish_are_noticed():
    assert n_unaccounted(record([0, 1, 5], drops=[{}, {}, {"stale": 2, "overload": 1}])) == 0
    assert n_unaccounted(record([0, 1, 5], drops=[{}, {}, {"stale": 1}])) == 2
    assert n_unaccounted(record([])) == 0


def test_no_stream_at_all_is_a_summary_too():
    summary = summarise([], Window(0.0, 1.0), n_refused=4)
    assert summary["answered_ratio"] == 0.0
    assert summary["latency"] == dict.fromkeys(["p50_ms", "p95_ms", "p99_ms", "max_ms"])


@given(st.lists(st.floats(0.0, 10.0), min_size=1))
def test_percentiles_are_in_order(seconds):
    values = list(percentiles_ms(np.array(seconds)).values())
    assert values == sorted(values)
    assert values[-1] == pytest.approx(1e3 * max(seconds), abs=1e-3)


@given(st.integers(0, 500), st.integers(1, 64))
def test_search_finds_the_limit(limit, first):
    asked = Counter()

    def holds(n_streams):
        asked[n_streams] += 1
        return n_streams <= limit

    most = search_most(holds, first)
    assert most <= limit <= most + max(1, math.ceil(0.03 * most))
    assert max(asked.values()) == 1


@given(st.integers(1, 30), st.integers(0, 100))
def test_clip_is_played_without_a_jump(n_pictures, begin):
    order = list(islice(back_and_forth(n_pictures, begin), 100))
    assert set(order) <= set(range(n_pictures))
    assert all(abs(b - a) == (n_pictures > 1) for a, b in pairwise(order))


def test_steady_means_the_same_rate_twice():
    def counted(rate_at):
        counts, total = [], 0.0
        for step in range(25):
            counts.append((step / 4, int(total)))
            total += rate_at(step / 4) / 4
        return counts

    assert is_steady(counted(lambda _: 100.0))
    assert not is_steady(counted(lambda time_s: 20.0 * time_s))
    assert not is_steady(counted(lambda _: 0.0))
    assert not is_steady(counted(lambda _: 100.0)[:10])


def test_growth_per_second():
    assert slope_per_s([5.0, 6.0, 7.0], [10, 12, 14]) == pytest.approx(2.0)


def test_options():
    options = bench_streams.parse(["--streams", "1", "4", "--detector", "mediapipe"])
    assert options.streams == [1, 4]
    assert bench_streams.service_environment(options) == {"POSE_DETECTOR": "mediapipe"}


@pytest.mark.parametrize(
    "arguments",
    [["--no-service-start"], ["--url", "ws://127.0.0.1:1"], ["--frames", "a", "--clip", "b"]],
)
def test_options_that_contradict_each_other(arguments, capsys):
    with pytest.raises(SystemExit):
        bench_streams.parse(arguments)
    assert "error" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answered_ratio", "p99_ms", "n_refused", "held"),
    [(0.98, 100.0, 0, True), (0.97, 10.0, 0, False), (1.0, 101.0, 0, False), (1.0, 10.0, 1, False)],
)
def test_what_counts_as_held(answered_ratio, p99_ms, n_refused, held):
    load = {
        "answered_ratio": answered_ratio,
        "latency": {"p99_ms": p99_ms},
        "n_refused": n_refused,
    }
    assert bench_streams.holds(load) is held


def test_page_has_a_row_for_each_load_and_what_spoils_it():
    load = summarise([record(range(0, 100, 2), late_s=0.05)], Window(2.0, 4.0), n_refused=1) | {
        "fps": 10.0,
        "steady": False,
        "refusals": ["503: full"],
        "gpu_used_bytes_max": None,
        "gpu_service_bytes_max": None,
    }
    text = page(
        {
            "command": "python benchmarks/bench_streams.py",
            "settings": {"POSE_DETECTOR": "mediapipe"},
            "machine": {
                "cpu": "a processor",
                "cpu_cores": 2,
                "gpu": None,
                "python": "3.11",
                "load_average_1_min": 0.1,
                "versions": {"torch": "2"},
            },
            "gpu_used_bytes_before": None,
            "pictures": "two",
            "loads": [load],
            "most_streams": None,
            "ultralytics": None,
        }
    )
    assert "`POSE_DETECTOR=mediapipe python benchmarks/bench_streams.py`" in text
    assert "| 1 x 10 | 50.00% | 5.0 | 100% | 20.0 |" in text
    for sentence in ("late by 50.0 ms", "not become steady", "(503: full)", "neither answered"):
        assert sentence in text
