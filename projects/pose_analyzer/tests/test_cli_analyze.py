"""The commands that analyse videos: what they write, print and return."""

import csv
import importlib
import json
import os
import wave
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import typer
import yaml
from typer.testing import CliRunner

from pose_analyzer.cli import analysis as analysis_module
from pose_analyzer.cli import app
from pose_analyzer.cli.analysis import AnalysisJob, AnalysisResult, ResultFiles, run_analysis
from pose_analyzer.cli.analyze import (
    analysis_progress,
    angle_range_deg,
    parse_roi,
    people_table,
)
from pose_analyzer.cli.demo import ROOF
from pose_analyzer.errors import (
    BackendFailedError,
    ModelUnavailableError,
    VoiceUnavailableError,
)
from pose_analyzer.rendering import voices
from pose_analyzer.settings import Settings
from pose_analyzer.sources import open_source
from pose_analyzer.types import SourceInfo

from .builders import (
    FakeDetector,
    FakeSource,
    person_analysis,
    repetition,
    squat_exercise,
    squat_pose,
    squat_progress,
    video_analysis,
)

# By its full name, since the package has a function of the same name.
demo_module = importlib.import_module("pose_analyzer.cli.demo")
WIDTH, HEIGHT, FPS, DURATION_S = 320, 240, 20, 3.0
ALL_FILES = {"analysis.json", "angles.csv", "report.html", "overlay.mp4"}


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds of grey."""
    path = tmp_path_factory.mktemp("video") / "squats.mp4"
    picture = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for _ in range(round(DURATION_S * FPS)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        container.mux(stream.encode(None))
    return path


def one_squat(time_s: float):
    return [squat_pose(squat_progress(time_s, 0.4, 1), (160.0, 220.0), 160.0)]


class Factory:
    """Stands for `create_detector`; remembers what was asked of it."""

    def __init__(self) -> None:
        self.people = one_squat
        self.error: Exception | None = None
        self.asked: list[tuple[str, dict]] = []
        self.made: list[FakeDetector] = []

    def __call__(self, name, settings, **options):
        self.asked.append((name, options))
        if self.error is not None:
            raise self.error
        self.made.append(FakeDetector(self.people))
        return self.made[-1]


@pytest.fixture
def factory(monkeypatch: pytest.MonkeyPatch) -> Factory:
    made = Factory()
    monkeypatch.setattr(analysis_module, "create_detector", made)
    return made


@pytest.fixture
def exercises_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "exercises"
    folder.mkdir()
    (folder / "squat.yml").write_text(yaml.safe_dump(squat_exercise().model_dump(mode="json")))
    return folder


@pytest.fixture
def runner(exercises_dir: Path) -> CliRunner:
    return CliRunner(env={"POSE_EXERCISES_DIR": str(exercises_dir), "COLUMNS": "160"})


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "results"


def analyze(runner, video, out, *options):
    return runner.invoke(app, ["analyze", str(video), "--out", str(out), *options])


def unavailable():
    raise VoiceUnavailableError("eSpeak NG", voices.INSTALL)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


class TestAnalyze:
    def test_it_writes_four_files_and_prints_a_table(self, runner, factory, video, out):
        result = analyze(runner, video, out)
        assert result.exit_code == 0, result.output
        assert names(out) == ALL_FILES
        document = json.loads((out / "analysis.json").read_text())
        assert "squat" in json.dumps(document)
        with (out / "angles.csv").open(newline="") as file:
            assert len(list(csv.reader(file))) > DURATION_S * FPS - 5
        n_pictures = len(list(open_source(out / "overlay.mp4").frames()))
        assert n_pictures == DURATION_S * FPS
        assert "overlay.mp4" in (out / "report.html").read_text(encoding="utf-8")
        assert "squat" in result.stdout
        assert "60 frames" in result.stdout
        assert all(str(out / name) in result.stdout for name in ALL_FILES)
        assert result.stderr == ""
        (detector,) = factory.made
        assert detector.closed
        assert factory.asked[0][1]["mode"] == "video"

    def test_pictures_of_the_video_are_in_the_report_unless_unwanted(
        self, runner, factory, video, out, tmp_path
    ):
        assert analyze(runner, video, out).exit_code == 0
        assert analyze(runner, video, tmp_path / "plain", "--no-photos").exit_code == 0
        photographed, plain = (
            (folder / "report.html").read_text(encoding="utf-8")
            for folder in (out, tmp_path / "plain")
        )
        assert "data:image/jpeg" in photographed
        assert "data:image/jpeg" not in plain

    def test_cues_are_spoken_into_a_file_and_the_overlay(
        self, runner, factory, video, out, monkeypatch
    ):
        asked = []

        class Beeper:
            rate_hz = 8000

            def __init__(self, name):
                asked.append(name)

            def __enter__(self):
                return self

            def __exit__(self, *_):
                pass

            def say(self, text):
                return np.full(len(text) * 400, 12_000, np.int16)

        monkeypatch.setattr(analysis_module, "EspeakVoice", Beeper)
        result = analyze(runner, video, out, "--speak", "--language", "de")
        assert result.exit_code == 0, result.output
        assert names(out) == ALL_FILES | {"speech.wav"}
        assert str(out / "speech.wav") in result.stdout
        assert "silent" in result.stdout
        with av.open(str(out / "overlay.mp4")) as container:
            assert len(container.streams.audio) == len(container.streams.video) == 1
        n_pictures = len(list(open_source(out / "overlay.mp4").frames()))
        assert n_pictures == DURATION_S * FPS
        with wave.open(str(out / "speech.wav")) as file:
            assert file.getnframes() == pytest.approx(DURATION_S * 8000, rel=0.1)
        assert analyze(runner, video, out, "--speak", "--voice", "en+f3").exit_code == 0
        assert asked == ["de", "en+f3"]

    def test_no_voice_is_found_out_before_the_work(self, runner, factory, video, out, monkeypatch):
        monkeypatch.setattr(voices, "_espeak", unavailable)
        result = analyze(runner, video, out, "--speak")
        assert (result.exit_code, names(out)) == (1, set())
        assert "pose-analyzer[speech]" in result.stderr
        assert not factory.made

    def test_a_voice_that_is_not_to_speak(self, runner, factory, video, out):
        result = analyze(runner, video, out, "--voice", "en")
        assert (result.exit_code, names(out)) == (2, set())
        assert "--speak" in result.output

    def test_results_go_beside_where_it_was_started(
        self, runner, factory, video, tmp_path, monkeypatch
    ):
        monkeypatch.chdir(tmp_path)
        result = runner.invoke(app, ["analyze", str(video), "--no-overlay", "--quiet"])
        assert result.exit_code == 0
        assert names(tmp_path / "squats-analysis") == ALL_FILES - {"overlay.mp4"}

    def test_json_is_all_of_stdout(self, runner, factory, video, out):
        result = analyze(runner, video, out, "--json", "--exercise", "squat", "--no-overlay")
        summary = json.loads(result.stdout)
        assert summary["source"] == "squats.mp4"
        assert summary["frames"] == DURATION_S * FPS
        assert summary["frames_per_second"] > 0
        assert summary["detector"] == "fake"
        (person,) = summary["people"]
        assert 0.0 < person.pop("score") <= 100.0
        assert person == {"track_id": 1, "exercise": "squat", "repetitions": 1, "cues": []}
        assert summary["problems"] == []
        assert {Path(path).name for path in summary["files"].values()} == names(out)
        assert "overlay" not in summary["files"]
        assert "overlay.mp4" not in (out / "report.html").read_text(encoding="utf-8")
        assert result.stderr == ""

    def test_quiet_prints_nothing(self, runner, factory, video, out):
        result = analyze(runner, video, out, "--quiet", "--no-overlay")
        assert result.exit_code == 0
        assert result.output == ""

    def test_options_reach_the_analysis(self, runner, factory, video, out, monkeypatch):
        options = ["--roi", "0.25,0,1,1", "--sample-fps", "10", "--people", "3"]
        options += ["--detector", "yolo", "--no-overlay", "--json"]
        result = analyze(runner, video, out, *options)
        assert json.loads(result.stdout)["frames"] == DURATION_S * 10
        ((name, asked),) = factory.asked
        assert name == "yolo"
        assert asked["n_people"] == 3
        assert set(factory.made[0].shapes) == {(HEIGHT, 240, 3)}
        every = analyze(runner, video, out, "--sample-fps", "0", "--no-overlay", "--json")
        assert json.loads(every.stdout)["frames"] == DURATION_S * FPS

    def test_auto_takes_the_detector_of_the_settings(self, runner, factory, video, out):
        runner.env = {**runner.env, "POSE_DETECTOR": "mediapipe"}
        analyze(runner, video, out, "--quiet", "--no-overlay")
        assert factory.asked[0][0] == "mediapipe"

    def test_nobody_is_a_result(self, runner, factory, video, out):
        factory.people = lambda _: []
        result = analyze(runner, video, out)
        assert result.exit_code == 0
        assert "Note: Nobody was found in any frame." in result.stdout
        assert names(out) == ALL_FILES

    def test_old_results_are_replaced(self, runner, factory, video, out):
        out.mkdir()
        (out / "analysis.json").write_text("old")
        assert analyze(runner, video, out, "--quiet", "--no-overlay").exit_code == 0
        json.loads((out / "analysis.json").read_text())


class TestUnusable:
    """Exit code 2, one line, nothing written."""

    def check(self, result, out, *words):
        assert result.exit_code == 2, result.output
        assert "Traceback" not in result.output
        assert all(word in result.stderr for word in words), result.stderr
        assert result.stdout == ""
        assert not out.exists()

    def test_a_text_file(self, runner, factory, tmp_path, out):
        path = tmp_path / "notes.mp4"
        path.write_text("not a video\n" * 100)
        result = analyze(runner, path, out)
        self.check(result, out, "Error: ", "notes.mp4")
        assert len(result.stderr.strip().splitlines()) == 1

    def test_a_missing_file(self, runner, factory, tmp_path, out):
        self.check(analyze(runner, tmp_path / "absent.mp4", out), out, "absent.mp4")

    def test_a_folder(self, runner, factory, tmp_path, out):
        self.check(analyze(runner, tmp_path, out), out)

    @pytest.mark.parametrize(
        "roi", ["", "1,2", "a,b,c,d", "0.5,0,0.2,1", "0,0,2,1", "0,nan,1,1", "0,0,1,1,1"]
    )
    def test_a_bad_region(self, runner, factory, video, out, roi):
        self.check(analyze(runner, video, out, f"--roi={roi}"), out)

    def test_an_unknown_exercise(self, runner, factory, video, out):
        result = analyze(runner, video, out, "--exercise", "flying")
        self.check(result, out, "'flying'", "Known: auto, squat")
        assert factory.asked == []

    def test_an_unknown_detector(self, runner, video, out):
        self.check(analyze(runner, video, out, "--detector", "eyes"), out, "'eyes'")

    def test_a_broken_exercise_file(self, runner, factory, video, out, exercises_dir):
        (exercises_dir / "squat.yml").write_text("name: squat\n")
        self.check(analyze(runner, video, out), out, "squat.yml", "title")

    def test_a_negative_rate(self, runner, factory, video, out):
        self.check(analyze(runner, video, out, "--sample-fps", "-1"), out)


class TestFailures:
    def test_no_model_is_code_1(self, runner, factory, video, out):
        factory.error = ModelUnavailableError("fake", "Fetch it.")
        result = analyze(runner, video, out)
        assert result.exit_code == 1
        assert result.stderr.strip() == "Error: Model fake is not available. Fetch it."
        assert not out.exists()

    def test_a_detector_that_breaks_leaves_no_half_results(self, runner, factory, video, out):
        def people(time_s):
            if time_s > 1.0:
                raise BackendFailedError("fake", "it broke")
            return one_squat(time_s)

        factory.people = people
        result = analyze(runner, video, out)
        assert result.exit_code == 1
        assert "it broke" in result.stderr
        assert names(out) == set()
        assert factory.made[0].closed


def test_progress_and_settings_folder(factory, video, out, exercises_dir):
    seen: list[tuple[float, SourceInfo]] = []
    done = run_analysis(
        AnalysisJob(video, out, overlay=False),
        Settings(exercises_dir=exercises_dir),
        lambda frame, info: seen.append((frame.time_s, info)),
    )
    analysis, files = done.analysis, done.files
    assert len(seen) == analysis.n_frames
    assert seen[0][1].width_px == WIDTH
    assert files == ResultFiles(
        out / "analysis.json", out / "angles.csv", out / "report.html", overlay=None
    )
    (person,) = analysis.people
    assert person.exercise == "squat"
    assert [form.repetition for form in done.forms] == [r.number for r in person.repetitions]


def test_roi_is_read():
    assert parse_roi("0.25, 0,0.5,1") == (0.25, 0.0, 0.5, 1.0)
    with pytest.raises(typer.BadParameter, match="four numbers"):
        parse_roi("0,0,1")
    with pytest.raises(typer.BadParameter, match="fractions of the image"):
        parse_roi("0.5,0,0.5,1")


def test_angle_ranges_are_of_trusted_angles():
    person = person_analysis(61)
    assert angle_range_deg(person, "knee") == pytest.approx((80.0, 180.0), abs=1.0)
    assert angle_range_deg(person, "elbow") is None
    table = people_table(video_analysis([person, person_analysis(31, track_id=2, exercise=None)]))
    cells = [list(column.cells) for column in table.columns]
    assert cells[3] == ["squat", "none"]
    assert cells[5][0] == "80°–180°"
    assert cells[7][0] == "not visible"


def test_the_bar_copes_with_an_unknown_length():
    with analysis_progress() as bar:
        advance = bar("clip")
        for duration_s in (10.0, float("nan")):
            info = SourceInfo("clip", 8, 8, float("nan"), duration_s, None)
            advance(next(FakeSource([0.5]).frames()), info)


class TestDemo:
    """The sample clips are stood for by made-up results."""

    @pytest.fixture
    def jobs(self, monkeypatch, tmp_path):
        jobs: dict[str, AnalysisJob] = {}

        def fetch(name, settings, downloads):
            return tmp_path / f"{name}.mp4"

        def run(job, settings, on_progress, downloads):
            jobs[job.video.stem] = job
            exercise, n = self.found.get(job.video.stem, (None, 0))
            people = [person_analysis(61, exercise=exercise)] if n is not None else []
            done = [replace(p, repetitions=(repetition(),) * n) for p in people]
            files = ResultFiles(*(job.out / name for name in sorted(ALL_FILES)))
            return AnalysisResult(video_analysis(done), files, ())

        monkeypatch.setattr(demo_module, "fetch_clip", fetch)
        monkeypatch.setattr(demo_module, "run_analysis", run)
        return jobs

    def run(self, found, *options):
        self.found = found
        return CliRunner(env={"COLUMNS": "160"}).invoke(app, ["demo", *options])

    def test_two_jumping_jacks_are_success(self, jobs, tmp_path):
        found = {"jumping-jacks": ("jumping_jack", 2), "balance-cam04": (None, None)}
        result = self.run(found, "--quiet", "--out", str(tmp_path / "demo"))
        assert result.exit_code == 0, result.output
        assert set(jobs) == {"jumping-jacks", *(f"balance-cam0{n}" for n in (1, 2, 3, 4))}
        assert jobs["jumping-jacks"].roi == ROOF
        assert jobs["balance-cam01"].roi is None
        rows = {
            line.split("│")[1].strip(): line for line in result.stdout.splitlines() if "│" in line
        }
        assert set(rows) == set(jobs)
        assert "jumping_jack" in rows["jumping-jacks"]
        assert all(str(job.out) in result.stdout for job in jobs.values())

    @pytest.mark.parametrize(
        "found",
        [("jumping_jack", 1), ("jumping_jack", 3), ("squat", 2), (None, 0), (None, None)],
    )
    def test_anything_else_is_failure(self, jobs, found):
        result = self.run({"jumping-jacks": found})
        assert result.exit_code == 1
        assert "Expected 2" in result.stdout

    def test_the_detector_may_be_chosen(self, jobs):
        self.run({}, "--detector", "yolo")
        assert {job.detector for job in jobs.values()} == {"yolo"}


@pytest.mark.shared_data
def test_a_real_push_up(shared_data, tmp_path):
    env = {**os.environ, "POSE_MODEL_PATH": str(shared_data / "models"), "POSE_EXERCISES_DIR": ""}
    clip = shared_data / "videos" / "pushup_side_CORRECT_1rep.mp4"
    options = ["--detector", "mediapipe", "--no-overlay", "--json"]
    result = analyze(CliRunner(env=env), clip, tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    first = json.loads(result.stdout)["people"][0]
    assert (first["exercise"], first["repetitions"]) == ("push_up", 1)


class TestOutput:
    def test_a_result_never_replaces_the_video_it_comes_from(
        self, runner, factory, video, tmp_path
    ):
        source = tmp_path / "overlay.mp4"
        source.write_bytes(video.read_bytes())
        result = analyze(runner, source, tmp_path)
        assert result.exit_code == 2
        assert "it is the video to be analysed" in result.stderr
        assert source.read_bytes() == video.read_bytes()

    def test_a_folder_that_cannot_be_made_is_named(self, runner, factory, video, tmp_path):
        (tmp_path / "file").touch()
        result = analyze(runner, video, tmp_path / "file" / "results")
        assert result.exit_code == 2
        assert "Name another folder" in result.stderr

    def test_the_other_filter_can_be_chosen(self, runner, factory, video, out):
        assert analyze(runner, video, out, "--smoothing", "one-euro").exit_code == 0
        one_euro = (out / "angles.csv").read_text()
        assert analyze(runner, video, out).exit_code == 0
        assert (out / "angles.csv").read_text() != one_euro
        result = analyze(runner, video, out, "--smoothing", "median")
        assert result.exit_code == 2
        assert "kalman, one-euro" in result.stderr
