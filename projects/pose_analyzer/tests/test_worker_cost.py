"""The cost table says what the arithmetic gives."""

import json

import pytest
from typer.testing import CliRunner

from pose_analyzer.cli import app
from pose_analyzer.worker_cost import INSTANCES, per_day_usd, per_video_usd, workers_for

T4 = INSTANCES[0]


def test_a_day_of_workers():
    costs = [per_day_usd(T4, n, hours) for n, hours in ((1, 24.0), (3, 8.0), (5, 24.0))]
    assert costs == pytest.approx([12.624, 12.624, 63.12])


def test_a_video_costs_its_chunks_time():
    # 30 chunks of 10 s of machine time.
    assert per_video_usd(T4, 900.0, 30.0) == pytest.approx(0.526 * 300.0 / 3600.0)
    assert per_video_usd(T4, 900.0, 15.0) == pytest.approx(0.526 * 300.0 / 3600.0)


def test_workers_keep_up():
    assert workers_for(T4, videos_per_hour=4.0, video_s=900.0) == 1
    assert workers_for(T4, videos_per_hour=24.0, video_s=900.0) == 2


def test_what_is_not_known_is_not_made_up():
    unknown = INSTANCES[1]
    assert per_video_usd(unknown, 900.0, 30.0) is None
    assert workers_for(unknown, 4.0, 900.0) is None


def test_the_command_prints_the_table():
    shown = CliRunner().invoke(app, ["cost"])
    assert shown.exit_code == 0
    assert "12.62" in shown.stdout
    asked = ["cost", "--instance", "g6.xlarge", "--seconds-per-chunk", "4", "--json"]
    (row,) = json.loads(CliRunner().invoke(app, asked).stdout)["instances"]
    assert row["basis"] == "as given"
    assert row["usd_per_video"] == pytest.approx(0.8048 * 120.0 / 3600.0)


def test_an_unknown_machine_is_named():
    failed = CliRunner().invoke(app, ["cost", "--instance", "p5"])
    assert failed.exit_code == 2
