import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pose_analyzer.form_types import Cue, FormUpdate
from pose_analyzer.rendering import OverlayWriter, draw_people, drawing, writer
from pose_analyzer.rendering.labels import DIMMED_TEXT, LabelLayout
from pose_analyzer.skeletons import Coco
from pose_analyzer.types import Frame, KeypointFlag

from .builders import person_frame

BACKGROUND = (60, 80, 40)


def picture(width_px=640, height_px=360):
    return np.full((height_px, width_px, 3), BACKGROUND, np.uint8)


def n_pixels(image_bgr, rgb):
    return int((np.abs(image_bgr.astype(int) - np.array(rgb[::-1])).max(axis=-1) < 12).sum())


def around(image_bgr, person, joint, radius_px=6):
    x, y = person.keypoints_px[joint].round().astype(int)
    return image_bgr[y - radius_px : y + radius_px + 1, x - radius_px : x + radius_px + 1]


def test_sides_have_their_colours_and_the_input_stays():
    image, person = picture(), person_frame(0.5)
    drawn = draw_people(image, [person])
    assert (image == BACKGROUND).all()
    assert n_pixels(around(drawn, person, Coco.LEFT_ANKLE), drawing.LEFT_COLOUR)
    assert n_pixels(around(drawn, person, Coco.RIGHT_ANKLE), drawing.RIGHT_COLOUR)


def test_scale_maps_original_pixels_to_the_picture():
    small = draw_people(picture(320, 180), [person_frame(0.5)], 0.5)
    point = (person_frame(0.5).keypoints_px[Coco.LEFT_ANKLE] / 2).astype(int)
    near = small[point[1] - 4 : point[1] + 5, point[0] - 4 : point[0] + 5]
    assert (near != BACKGROUND).any()


def test_bridged_and_unsure_keypoints_look_different():
    looks = []
    for confidence, flag in [(0.9, 0), (0.1, 0), (0.0, KeypointFlag.BRIDGED)]:
        person = person_frame(
            0.5,
            confidences=np.full(17, confidence),
            flags=np.full(17, flag, np.uint8),
            exercise=None,
        )
        looks.append(around(draw_people(picture(), [person]), person, Coco.LEFT_WRIST))
    assert not np.array_equal(looks[0], looks[1])
    assert not np.array_equal(looks[1], looks[2])
    assert not np.array_equal(looks[0], looks[2])


def test_angles_not_to_be_trusted_are_grey():
    grey = n_pixels(draw_people(picture(), [person_frame()]), DIMMED_TEXT)
    all_trusted = person_frame()
    all_trusted.angles.trusted[:] = True
    assert grey > 1.5 * n_pixels(draw_people(picture(), [all_trusted]), DIMMED_TEXT)


def test_count_is_drawn_for_who_exercises_only():
    corner = (slice(0, 60), slice(0, 60))
    assert (draw_people(picture(), [person_frame(exercise=None)])[corner] == BACKGROUND).all()
    counts = [draw_people(picture(), [person_frame(n_repetitions=n)])[corner] for n in (1, 2)]
    assert not np.array_equal(*counts)


@given(
    st.lists(st.tuples(*[st.floats(-1e6, 1e6) | st.just(np.nan)] * 2), min_size=17, max_size=17),
    st.booleans(),
)
def test_any_keypoints_can_be_drawn(points, box_known):
    person = person_frame()
    person.keypoints_px[:] = points
    person.box_px[:] = [-1e7, -5.0, 1e7, 400.0] if box_known else np.nan
    assert draw_people(picture(64, 48), [person, person]).shape == (48, 64, 3)


@given(
    st.lists(
        st.tuples(st.integers(-50, 250), st.integers(-50, 150), st.integers(1, 60)), max_size=12
    )
)
def test_labels_stay_inside_the_picture(wishes):
    layout = LabelLayout(200, 100)
    for x, y, width in wishes:
        left, top, *_ = layout.place((x, y), (width, 12))
        assert 0 <= left <= 200 - width
        assert 0 <= top <= 100 - 12


def test_a_cue_is_shown_for_a_while():
    cue = Cue("correct.x", "Drück die Knie nach außen.", "correction", "x", 1, 1.0)
    forms = {1: FormUpdate(1, 1, None, (), (), None, cue)}
    plain = draw_people(picture(), [person_frame(0.5, time_s=2.0)])
    assert (draw_people(picture(), [person_frame(0.5, time_s=2.0)], 1.0, forms) != plain).any()
    assert (draw_people(picture(), [person_frame(0.5, time_s=9.0)], 1.0, forms) == plain).all()


def test_labels_make_room_for_each_other():
    layout = LabelLayout(200, 200)
    rects = [layout.place((50, 100), (40, 12)) for _ in range(5)]
    assert len({rect[1] for rect in rects}) == 5


def write_overlay(path, times_s, size=(322, 181)):
    with OverlayWriter(path, *size, fps=30.0) as overlay:
        for index, time_s in enumerate(times_s):
            frame = Frame(index, time_s, picture(*size))
            overlay.write(frame, [person_frame(frame_index=index, time_s=time_s)])


def test_overlay_is_h264_with_true_times_and_the_index_first(tmp_path):
    path = tmp_path / "overlay.mp4"
    times_s = [0.0, 0.04, 0.05, 0.2, *np.arange(1, 30) * 0.31]
    write_overlay(path, times_s)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert stream.width % 2 == stream.height % 2 == 0
        decoded_s = [frame.time for frame in container.decode(video=0)]
    np.testing.assert_allclose(decoded_s, times_s, atol=1e-4)
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    assert list(tmp_path.iterdir()) == [path]


def test_a_large_portrait_picture_becomes_720_wide():
    assert writer.overlay_scale(1080, 1920, 720) == pytest.approx(720 / 1080)
    assert writer.overlay_scale(1280, 720, 720) == 1.0
    assert writer.overlay_scale(640, 360, 720) == 1.5


def test_failing_analysis_leaves_the_old_overlay(tmp_path):
    path = tmp_path / "overlay.mp4"
    path.write_bytes(b"old")

    def fails_after_a_frame():
        with OverlayWriter(path, 64, 48, 30.0) as overlay:
            overlay.write(Frame(0, 0.0, picture(64, 48)), [])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails_after_a_frame()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_error_of_the_thread_reaches_the_caller(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError("no space left")

    monkeypatch.setattr(writer._Encoder, "encode", broken)
    with pytest.raises(OSError, match="no space left"):
        write_overlay(tmp_path / "overlay.mp4", [0.0])
    with pytest.raises(OSError, match="no space left"):
        write_overlay(tmp_path / "overlay.mp4", np.arange(100) / 30)
    assert list(tmp_path.iterdir()) == []


def test_no_frames_no_file(tmp_path):
    write_overlay(tmp_path / "overlay.mp4", [])
    assert list(tmp_path.iterdir()) == []
