"""The same frames give the same numbers, sent live or read from a file."""

import time
from dataclasses import asdict, replace
from pathlib import Path
from unittest import mock

import av
import msgspec
import numpy as np
import pytest

from pose_analyzer import video_processor, wire
from pose_analyzer.api.main import create_app
from pose_analyzer.backends import create_detector
from pose_analyzer.backends.cpu_pipeline import CpuFramePipeline
from pose_analyzer.exercises import load_exercises, select_exercises
from pose_analyzer.form_library import folders_of, load_form_library
from pose_analyzer.form_types import FormChoice, FormUpdate
from pose_analyzer.live_form import LiveForm
from pose_analyzer.settings import Settings
from pose_analyzer.sources import open_source
from pose_analyzer.stream_analyzer import AnalysisConfig, StreamAnalyzer
from pose_analyzer.stream_types import Encoding
from pose_analyzer.types import PersonFrame, VideoAnalysis
from pose_analyzer.ultralytics_library import ultralytics_installed
from pose_analyzer.video_processor import process_video

from .builders import FakeDetector, FakeSource
from .live_server import LiveServer, png, receive, send, serving
from .squat_service import pipeline, settings, squatter


def stream_of(live: LiveServer, protocol: str, frames, **start: object) -> list[dict]:
    """Answers of the service to each of these (time, picture), one by one."""
    answers = []
    with live.connect(live.start_stream(**start), protocol) as socket_:
        for time_s, image in frames:
            send(socket_, png(image), time_s)
            answers.append(receive(socket_))
    return answers


LIBRARY = load_form_library(folders_of(Settings()))


def config_of(exercise: str, **changes: object) -> AnalysisConfig:
    chosen = select_exercises(load_exercises(Settings().exercises_dir), exercise)
    return AnalysisConfig(chosen, judge=LIBRARY.judge_config(chosen, FormChoice()), **changes)


Now = dict[int, LiveForm | None]
Seen = list[tuple[list[PersonFrame], dict[int, FormUpdate], Now]]


class Watched(StreamAnalyzer):
    """Can be asked for what the recorded path does not hand out."""

    latest: "Watched"

    def __init__(self, detector, config: AnalysisConfig) -> None:
        super().__init__(detector, config)
        Watched.latest = self


def recorded(source, detector, config: AnalysisConfig) -> tuple[VideoAnalysis, Seen]:
    """The same frames on the recorded path: analysis, everybody in each frame, their form."""
    people: Seen = []
    forms: dict[int, FormUpdate] = {}

    def on_frame(_, seen) -> None:
        now = {one.track_id: Watched.latest.form_now(one.track_id) for one in seen}
        people.append((list(seen), dict(forms), now))

    with mock.patch.object(video_processor, "StreamAnalyzer", Watched):
        analysis = process_video(
            source, detector, config, on_frame, lambda form: forms.update({form.track_id: form})
        )
    return analysis, people


def form_of(form: FormUpdate | None) -> object:
    """What a client reads of it."""
    if form is None:
        return None
    return msgspec.msgpack.decode(wire.encode(wire.Form.of(form), Encoding.MSGPACK))


def assert_equal(answers: list[dict], people: Seen) -> None:
    """Live answers are the recorded ones to the last bit."""
    assert len(answers) == len(people)
    for answer, (seen, forms, now) in zip(answers, people, strict=True):
        assert [one["track_id"] for one in answer["people"]] == [one.track_id for one in seen]
        for live_one, one in zip(answer["people"], seen, strict=True):
            angles = live_one["angles"]
            np.testing.assert_array_equal(angles["values_deg"], one.angles.values_deg)
            np.testing.assert_array_equal(angles["sd_deg"], one.angles.sd_deg)
            np.testing.assert_array_equal(angles["trusted"], one.angles.trusted)
            np.testing.assert_array_equal(live_one["keypoints_px"], one.keypoints_px)
            assert live_one["n_repetitions"] == one.n_repetitions
            assert live_one["phase"] == one.phase
            form = form_of(forms.get(one.track_id))
            # What the service read itself came as JSON, whose null is also that of a number.
            np.testing.assert_equal(with_nan(live_one["form"]), with_nan(form))
            followed = now[one.track_id]
            followed = None if followed is None else asdict(followed)
            np.testing.assert_equal(with_nan(live_one["form_now"]), with_nan(followed))


def test_live_equals_recorded() -> None:
    times_s = np.arange(0, 240) / 29.97
    source = FakeSource(times_s, width_px=64, height_px=40)
    config = config_of("auto", sample_fps=None)
    analysis, people = recorded(source, FakeDetector(squatter), config)
    frames = [(frame.time_s, frame.image_bgr) for frame in source.frames()]
    with serving(create_app(settings(analysis_processes=1), pipeline_factory=pipeline)) as live:
        answers = stream_of(live, "pose.v1.msgpack", frames, exercise="auto")
    assert_equal(answers, people)
    assert len(analysis.people[0].repetitions) == answers[-1]["people"][0]["n_repetitions"] == 3
    followed = [answer["people"][0]["form_now"] for answer in answers]
    assert followed[-1] is None
    assert {round(now["phase"], 1) for now in followed if now} >= {0.2, 0.8}
    form = answers[-1]["people"][0]["form"]
    assert form["repetition"] > 1
    assert form["reference"] is not None


@pytest.mark.parametrize(
    "chosen", [{"roi": (0.1, 0.2, 0.9, 0.95)}, {"sample_fps": 10.0}], ids=["roi", "sample_fps"]
)
def test_live_equals_recorded_in_a_region_and_sampled(clip: Path, chosen: dict) -> None:
    source = open_source(clip)
    config = config_of("squat", **({"sample_fps": None} | chosen))
    analysis, people = recorded(source, SizedDetector(squatter), config)
    start = {"exercise": "squat", "fps": source.info.fps, **chosen}

    def sized(model: str, settings: Settings) -> CpuFramePipeline:
        return CpuFramePipeline(
            lambda: SizedDetector(squatter), per_stream=False, n_workers=2, max_pixels=1_000_000
        )

    app = create_app(settings(allowed_sources=(str(clip.parent),)), pipeline_factory=sized)
    with serving(app) as live:
        sent = sent_whole(live, source, **start)
        read = read_by_service(live, clip.name, exercise="squat", **chosen)
    assert_equal(sent, people)
    assert_equal(read, people)
    assert len(analysis.people[0].repetitions) == sent[-1]["people"][0]["n_repetitions"] > 0


class SizedDetector(FakeDetector):
    """Sees people where the picture it is given says, so that a region matters."""

    def detect(self, images_bgr, times_s=None):
        height_px, width_px = images_bgr[0].shape[:2]
        moved = np.array([width_px / 7.0, height_px / 9.0])
        return [
            [replace(pose, keypoints_px=pose.keypoints_px + moved) for pose in people]
            for people in super().detect(images_bgr, times_s)
        ]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight seconds at 25 pictures a second."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for index in range(200):
            image = np.full((64, 96, 3), index, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        container.mux(stream.encode(None))
    return path


def sent_whole(live: LiveServer, source, **start: object) -> list[dict]:
    """Answers to all frames of a source, each sent when the one before has been dealt with."""
    stream = live.start_stream(**start)
    path = f"/stream/{stream['stream_id']}"
    answers: list[dict] = []
    with live.connect(stream, "pose.v1.msgpack") as socket_:
        for n_sent, frame in enumerate(source.frames(), start=1):
            send(socket_, png(frame.image_bgr), frame.time_s)
            info = live.call("GET", path)[1]
            while info["n_answered"] + sum(info["dropped"].values()) < n_sent:
                info = live.call("GET", path)[1]
            while len(answers) < info["n_answered"]:
                answers.append(receive(socket_))
        assert info["dropped"].keys() <= {"unsampled"}
    return answers


def read_by_service(live: LiveServer, name: str, **start: object) -> list[dict]:
    """Answers to a file the service reads itself."""
    path = f"/stream/{live.start_stream(source=name, **start)['stream_id']}"
    deadline_s = time.monotonic() + 20.0
    while live.call("GET", path)[1]["state"] != "ended":
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    return [
        with_nan(result) for result in live.call("GET", f"{path}/results?limit=1000")[1]["results"]
    ]


def with_nan(value: object) -> object:
    """The same with NaN for None, as MessagePack has it."""
    if isinstance(value, dict):
        return {key: with_nan(part) for key, part in value.items()}
    if isinstance(value, list):
        return [with_nan(part) for part in value]
    return float("nan") if value is None else value


@pytest.mark.shared_data
@pytest.mark.slow
@pytest.mark.parametrize("detector", ["mediapipe-lite", "yolo11n-pose"])
def test_live_equals_recorded_on_a_real_clip(
    shared_data: Path, tmp_path: Path, detector: str
) -> None:
    if detector.startswith("yolo") and not ultralytics_installed():
        pytest.skip("needs the extra yolo")
    chosen = Settings(
        model_path=(shared_data / "models",),
        cache_dir=tmp_path,
        detector=detector,
        analysis_processes=0,
        min_stream_fps=0.001,
    )
    clip = open_source(shared_data / "videos" / "ohp_dumbbell_side_720x408p30.mp4")
    config = config_of("overhead_press", sample_fps=10.0)
    with_detector = create_detector(detector, chosen)
    analysis, people = recorded(clip, with_detector, config)
    with_detector.close()
    frames = ((frame.time_s, frame.image_bgr) for frame in clip.frames(10.0))
    with serving(create_app(chosen)) as live:
        answers = stream_of(
            live, "pose.v1.msgpack", frames, exercise="overhead_press", detector=detector
        )
    assert_equal(answers, people)
    counted = max(len(person.repetitions) for person in analysis.people)
    told = max(one["n_repetitions"] for answer in answers for one in answer["people"])
    assert counted == told > 0
