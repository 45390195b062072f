import base64
import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pose_analyzer.form_patterns import TeachingSpec, taught_reference
from pose_analyzer.form_scorer import score_repetition
from pose_analyzer.form_types import Cue, Fault, FormUpdate
from pose_analyzer.repetition_features import SIGNAL_NAMES
from pose_analyzer.reporting import (
    analysis_schema_json,
    write_analysis_json,
    write_angles_csv,
    write_report_html,
)
from pose_analyzer.reporting.document import AnalysisDocument
from pose_analyzer.reporting.form import form_section
from pose_analyzer.reporting.html import MAX_PICTURES
from pose_analyzer.reporting.moments import (
    MAX_MOMENTS,
    PICTURE_SIZE,
    Square,
    laid_over,
    loss_sentence,
    worst_moments,
)
from pose_analyzer.reporting.pictures import MAX_BYTES, SIDE_PX, cut_picture
from pose_analyzer.reporting.plots import choose_rows, plot_data
from pose_analyzer.reporting.summary import (
    repetition_table,
    tempo,
    unmeasured_angles,
    unreliable_angles,
)
from pose_analyzer.skeletons import ANGLE_INDEX, ANGLE_NAMES, KEYPOINT_NAMES
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
    write_report_html(video_analysis([person]), path, forms=[form])
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


def shallow_squats(n=1):
    """Somebody who leans and does not go deep enough, and what is said of it."""
    score = score_repetition(squat_track(depth=0.6, lean_px=60.0), FORM_REFERENCE)
    fault = Fault("heels_lifting", 0.5, "ankle", "both", Phase.BOTTOM, 1, 0.1, "body_ratio", 1.0)
    people = [person_analysis(121, track_id=number) for number in range(1, n + 1)]
    forms = [FormUpdate(number, 1, score, (fault,), (), None, None) for number in range(1, n + 1)]
    return people, forms


def test_worst_moments_are_faults_then_the_largest_losses():
    (person,), forms = shallow_squats()
    moments = worst_moments(person, forms)
    assert 2 <= len(moments) <= MAX_MOMENTS
    assert (moments[0].sentence, moments[0].points) == ("heels lifting", None)
    points = [moment.points for moment in moments[1:]]
    assert points == sorted(points, reverse=True)
    for moment in moments:
        assert moment.time_s in person.time_s
        assert moment.reference
        assert all(0.0 <= number <= PICTURE_SIZE for line in moment.person for number in line)
        assert moment.joint is not None


def test_what_was_said_before_the_exercise_was_known_is_left_out():
    (person,), (form,) = shallow_squats()
    other = replace(form, repetition=7, exercise="deadlift")
    squat = replace(form, exercise="squat")
    section = form_section(person, [other, squat])
    assert section.rows == (squat,)


def test_pictures_of_the_worst_moments_are_in_the_page(tmp_path):
    people, forms = shallow_squats(n=5)
    asked_s = []

    def still_at(time_s):
        asked_s.append(time_s)
        return np.full((400, 640, 3), 200, np.uint8)

    path = tmp_path / "report.html"
    write_report_html(video_analysis(people), path, forms=forms, still_at=still_at)
    html = path.read_text(encoding="utf-8")
    pictures = re.findall(r'<image href="data:image/jpeg;base64,([^"]+)"', html)
    assert len(pictures) == len(asked_s) == MAX_PICTURES
    assert all(base64.b64decode(picture)[:2] == b"\xff\xd8" for picture in pictures)
    assert not re.search(r'<(image|img|script|link)[^>]* (src|href)="https?:', html)


def test_a_moment_without_a_picture_is_drawn_all_the_same(tmp_path):
    people, forms = shallow_squats()
    path = tmp_path / "report.html"
    write_report_html(video_analysis(people), path, forms=forms, still_at=lambda _: None)
    html = path.read_text(encoding="utf-8")
    assert "<image" not in html
    assert 'class="reference"' in html


@pytest.mark.parametrize("side_px", [1.0, 90.0, 360.0, 2000.0])
def test_pictures_are_small_in_every_sense(side_px):
    noise = np.random.default_rng(1).integers(0, 256, (700, 900, 3), dtype=np.uint8)
    jpeg = cut_picture(noise, Square(-100.0, 50.0, side_px))
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert image.shape[0] == image.shape[1] <= SIDE_PX
    assert len(jpeg) <= 1.5 * MAX_BYTES


def test_what_lies_beyond_the_frame_is_black():
    white = np.full((100, 100, 3), 255, np.uint8)
    jpeg = cut_picture(white, Square(-100.0, 0.0, 200.0))
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert image[50, 50].max() < 20
    assert image[50, 150].min() > 235
    assert image[150, 150].max() < 20


@given(
    turn_deg=st.floats(-180.0, 180.0),
    mirrored=st.booleans(),
    size=st.floats(0.2, 5.0),
    row=st.integers(0, 24),
)
def test_a_reference_lies_on_who_does_the_same(turn_deg, mirrored, size, row):
    pattern = FORM_REFERENCE.patterns[0]
    rows = np.arange(25)
    body = np.full((25, 17, 2), np.nan)
    for joint in range(5, 17):
        for axis, name in enumerate(("forward", "up")):
            signal = SIGNAL_NAMES.index(f"{KEYPOINT_NAMES[joint]}_{name}")
            body[:, joint, axis] = pattern.mean[rows, signal]
    turn = np.radians(turn_deg)
    up = np.array([np.sin(turn), -np.cos(turn)])
    across = np.array([-up[1], up[0]]) * (-1.0 if mirrored else 1.0)
    frames = 500.0 + 300.0 * size * body @ np.stack([across, up])
    laid = laid_over(frames[row], body[row], frames)
    # Sizes are taken from the longest limbs, and upright is the mean of the repetition.
    off_px = np.linalg.norm(laid - frames[row], axis=1)[5:].max()
    assert off_px < 0.12 * 300.0 * size


@given(keypoints=arrays.arrays(np.float64, (3, 17, 2), elements=st.floats(-1e6, 1e6)))
def test_a_reference_is_laid_over_any_body_or_none(keypoints):
    laid = laid_over(keypoints[0], keypoints[1] / 1e6, keypoints)
    assert laid is None or np.isfinite(laid).all()


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
