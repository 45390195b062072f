import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pose_analyzer.form_patterns import TeachingSpec, taught_reference
from pose_analyzer.form_scorer import score_repetition
from pose_analyzer.form_types import Cue, Fault, FormUpdate
from pose_analyzer.reporting import (
    analysis_schema_json,
    write_analysis_json,
    write_angles_csv,
    write_report_html,
)
from pose_analyzer.reporting.document import AnalysisDocument
from pose_analyzer.reporting.form import beside, loss_sentence
from pose_analyzer.reporting.plots import choose_rows, plot_data
from pose_analyzer.reporting.summary import (
    repetition_table,
    tempo,
    unmeasured_angles,
    unreliable_angles,
)
from pose_analyzer.skeletons import ANGLE_INDEX, ANGLE_NAMES
from pose_analyzer.types import Phase

from .builders import person_analysis, repetition, video_analysis
from .form_tracks_of_squats import LEGS, squat_track

FORM_REFERENCE = taught_reference(TeachingSpec("good", "squat", LEGS, {}), [squat_track()])

SCHEMA = Path(__file__).parents[3] / "docs" / "schemas" / "analysis-v1.schema.json"
RECORDINGS = {
    "nobody": video_analysis(),
    "two people": video_analysis(
        [person_analysis(with_3d=True), person_analysis(track_id=2, exercise=None)],
        roi=(0.1, 0.2, 0.9, 1.0),
        problems=("The file ends early.",),
    ),
    "seen in no frame": video_analysis([person_analysis(0)]),
    "container without facts": video_analysis(
        [person_analysis(1)],
        source=replace(video_analysis().source, fps=np.nan, duration_s=np.nan, n_frames=None),
    ),
}


@pytest.fixture(params=RECORDINGS)
def recording(request):
    return RECORDINGS[request.param]


def test_published_schema_is_the_generated_one():
    assert SCHEMA.read_text(encoding="utf-8") == analysis_schema_json()


def test_json_follows_its_schema(recording, tmp_path):
    path = tmp_path / "analysis.json"
    write_analysis_json(recording, path)
    text = path.read_text(encoding="utf-8")
    AnalysisDocument.model_validate_json(text)
    assert "NaN" not in text
    assert list(tmp_path.iterdir()) == [path]
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    jsonschema.validate(json.loads(text), json.loads(SCHEMA.read_text(encoding="utf-8")))


def test_json_says_what_was_analysed(tmp_path):
    recording = RECORDINGS["two people"]
    write_analysis_json(recording, tmp_path / "analysis.json")
    document = json.loads((tmp_path / "analysis.json").read_text(encoding="utf-8"))
    assert (document["schema"], document["version"]) == ("pose-analyzer/analysis", 1)
    first, second = document["people"]
    assert first["repetitions"][1]["start_s"] == 2.0
    knee = first["frames"]["angles"]["left_knee"]
    expected_deg = recording.people[0].angles_deg[:, ANGLE_INDEX["left_knee"]]
    np.testing.assert_allclose(knee["deg"], expected_deg, atol=0.006)
    assert first["frames"]["angles"]["left_ankle"]["deg"] == [None] * 121
    assert first["frames"]["angles"]["left_elbow"]["trusted"] == [False] * 121
    assert second["exercise"] is None
    assert second["frames"]["angles"]["left_knee"]["deg_3d"] is None
    hip_x_px = first["frames"]["keypoints"]["left_hip"]["x_px"]
    np.testing.assert_allclose(hip_x_px, recording.people[0].keypoints_px[:, 11, 0], atol=0.006)


def test_csv_has_a_row_for_each_person_and_frame(recording, tmp_path):
    path = tmp_path / "angles.csv"
    write_angles_csv(recording, path)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(person.time_s) for person in recording.people)


def test_csv_counts_repetitions_and_leaves_unknown_cells_empty(tmp_path):
    write_angles_csv(RECORDINGS["two people"], tmp_path / "angles.csv")
    with (tmp_path / "angles.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[:121]
    assert [int(rows[k]["repetitions"]) for k in (0, 59, 60, 119, 120)] == [0, 0, 1, 1, 2]
    assert rows[30]["phase"] == "bottom"
    assert rows[30]["left_ankle_deg"] == ""
    assert (rows[30]["left_knee_deg"], rows[30]["left_knee_3d_deg"]) == ("80.00", "81.00")
    assert (rows[30]["left_knee_trusted"], rows[30]["left_elbow_trusted"]) == ("1", "0")


def test_report_needs_no_network(recording, tmp_path):
    path = tmp_path / "report.html"
    write_report_html(recording, path, "over lay#1.mp4")
    own_html = re.sub(
        r"<script>.*?</script>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL
    )
    assert re.findall(r"(?:src|href)=\"([^\"]*)\"", own_html) == ["over%20lay%231.mp4"]
    assert "http" not in own_html
    assert list(tmp_path.iterdir()) == [path]


def test_report_escapes_what_others_wrote(tmp_path):
    evil = "<script>alert(1)</script>"
    recording = RECORDINGS["two people"]
    source = replace(recording.source, name=evil)
    write_report_html(replace(recording, source=source, problems=(evil,)), tmp_path / "r.html")
    html = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert evil not in html
    assert html.count("&lt;script&gt;alert(1)") >= 3


def test_report_plots_the_first_people_and_lists_the_others(tmp_path):
    people = [person_analysis(10, track_id=number) for number in range(1, 9)]
    write_report_html(video_analysis(people), tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    plots = re.findall(r'<script type="application/json" class="plot-data">(.*?)</script>', html)
    assert [len(json.loads(plot)["time"]) for plot in plots] == [10] * 6
    assert "Other people" in html
    assert "<video" not in html


def test_report_says_what_the_view_cannot_show():
    person = person_analysis()
    assert unreliable_angles(person) == ("both elbows",)
    assert unmeasured_angles(person) == ("both ankles",)
    person.angles_trusted[:, ANGLE_INDEX["right_knee"]] = False
    assert unreliable_angles(person) == ("both elbows", "right knee")


def test_report_tells_scores_reasons_and_cues(tmp_path):
    person = person_analysis(121)
    track = squat_track(depth=0.7, lean_px=25.0)
    score = score_repetition(track, FORM_REFERENCE)
    fault = Fault("heels_lifting", 0.5, "ankle", "both", Phase.BOTTOM, 1, 0.1, "body_ratio", 1.0)
    cue = Cue("correct.heels_lifting", "Heels <down>.", "correction", "heels_lifting", 1, 2.2)
    form = FormUpdate(1, 1, score, (fault,), (), None, cue)
    path = tmp_path / "report.html"
    write_report_html(
        video_analysis([person]), path, forms=[form], references={"good": FORM_REFERENCE}
    )
    write_analysis_json(video_analysis([person]), tmp_path / "analysis.json", [form])
    document = json.loads((tmp_path / "analysis.json").read_text(encoding="utf-8"))
    AnalysisDocument.model_validate(document)
    (told,) = document["people"][0]["form"]
    assert told["score"] == pytest.approx(score.total, abs=1e-3)
    assert told["cue"]["text"] == "Heels <down>."
    html = path.read_text(encoding="utf-8")
    assert f"{score.total:.0f} of 100" in html
    assert "heels lifting" in html
    assert "Heels &lt;down&gt;." in html
    assert 'class="reference"' in html
    assert loss_sentence(score.losses[0]) in html


@given(keypoints=arrays.arrays(np.float64, (17, 2), elements=st.floats(-1e6, 1e6)))
def test_the_reference_is_laid_over_any_body(keypoints):
    keypoints[:5] = np.nan
    laid = beside(keypoints, keypoints * [-1.0, 1.0])
    if laid is not None and np.ptp(keypoints[5:]) > 1.0:
        assert np.isfinite(laid[5:]).all()


def test_failed_report_leaves_the_old_one(tmp_path):
    path = tmp_path / "angles.csv"
    path.write_text("old", encoding="utf-8")
    broken = replace(person_analysis(), phase=(Phase.TOP,))
    with pytest.raises(IndexError):
        write_angles_csv(video_analysis([broken]), path)
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_tempo_is_the_mean_of_the_repetitions():
    assert tempo(()) is None
    slow = replace(repetition(2), eccentric_s=1.8, end_s=5.0)
    mean = tempo([repetition(1), slow])
    assert (mean.duration_s, mean.eccentric_s) == (pytest.approx(2.5), pytest.approx(1.3))


def test_table_puts_trusted_and_large_ranges_first():
    table = repetition_table([repetition(1), replace(repetition(2), ranges=())])
    assert table.angles == ("left hip", "left knee", "left elbow")
    assert table.rows[1][1] == (None, None, None)


@given(st.integers(0, 500), st.integers(1, 60))
def test_plots_are_thinned_to_what_was_asked(n_frames, max_points):
    sampling = choose_rows(np.arange(n_frames, dtype=np.int64), max_points)
    assert len(sampling.rows) <= max_points
    assert sampling.step == 1 or n_frames > max_points
    assert (np.diff(sampling.rows) == sampling.step).all()


def test_lines_break_where_the_person_was_away():
    person = person_analysis(20)
    person.frame_index[10:] += 30
    person.time_s[10:] += 1.0
    plot = plot_data(person)
    assert plot["time"] == sorted(plot["time"])
    knee = plot["rows"][0]["angles"][0]["deg"]
    assert [k for k, value in enumerate(knee) if value is None] == [10, 11]
    assert knee[9] == pytest.approx(person.angles_deg[9, ANGLE_NAMES.index("left_knee")], abs=0.06)
