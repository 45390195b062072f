"""YOLO letterboxing, suppression and decoding, on arrays made by hand."""

from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pose_analyzer.errors import BackendFailedError
from pose_analyzer.pose_detector import (
    STRIDE_PX,
    YOLOPoseDetector,
    decode_people,
    fill_batch,
    plan_letterbox,
    suppress_overlaps,
)

sizes = st.tuples(st.integers(1, 2200), st.integers(1, 2200))


class CannedBackend:
    """Answers every image with the same raw output and remembers the batches it saw."""

    name = "canned"
    device = "cpu"

    def __init__(self, raw: np.ndarray) -> None:
        self.raw = raw.astype(np.float32)
        self.batches: list[np.ndarray] = []

    def infer(self, batch: np.ndarray) -> np.ndarray:
        self.batches.append(batch)
        return np.repeat(self.raw[None], len(batch), axis=0)

    def close(self) -> None:
        self.batches.clear()


def anchors(*people: tuple[float, float, float, float, float]) -> np.ndarray:
    """Raw YOLO11 output (56, 21): centre, size, score; keypoint j at the centre + j px."""
    raw = np.zeros((56, 21), dtype=np.float32)
    for column, (x, y, width, height, score) in enumerate(people):
        raw[:5, column] = x, y, width, height, score
        raw[5::3, column] = x + np.arange(17)
        raw[6::3, column] = y + np.arange(17)
        raw[7::3, column] = np.linspace(0, 1, 17)
    return raw


def end_to_end(raw: np.ndarray) -> np.ndarray:
    """The same people as YOLO26 gives them (rows, 57)."""
    boxes = raw.T.copy()
    boxes[:, :2], boxes[:, 2:4] = (
        raw.T[:, :2] - raw.T[:, 2:4] / 2,
        raw.T[:, :2] + raw.T[:, 2:4] / 2,
    )
    return np.insert(boxes, 5, 0.0, axis=1)


@given(size=sizes, image_size=st.sampled_from([320, 640, 960]))
def test_letterbox_round_trip(size: tuple[int, int], image_size: int) -> None:
    box = plan_letterbox(size, image_size)
    points = np.array([[0.0, 0.0], [size[1], size[0]], [size[1] / 3, size[0] / 2]])

    scale = np.array([box.resized_hw[1] / size[1], box.resized_hw[0] / size[0]])
    padded = points * scale + [box.left_px, box.top_px]

    np.testing.assert_allclose(box.to_image(padded), points, atol=1e-6)
    assert box.padded_hw[0] % STRIDE_PX == 0
    assert box.padded_hw[1] % STRIDE_PX == 0
    assert max(box.padded_hw) == image_size
    assert (padded >= 0).all()
    assert (padded <= np.array(box.padded_hw[::-1]) + 1e-6).all()


@pytest.mark.slow
@pytest.mark.parametrize("fixed", [False, True])
def test_letterbox_equals_ultralytics(ultralytics: ModuleType, fixed: bool) -> None:
    from ultralytics.data.augment import LetterBox

    rng = np.random.default_rng(0)
    reference = LetterBox((640, 640), auto=not fixed, stride=STRIDE_PX)
    for height, width in [(480, 640), (1080, 1920), (926, 1920), (33, 700), (641, 639), (3, 900)]:
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        box = plan_letterbox((height, width), 640, (640, 640) if fixed else None)

        planes = fill_batch([image], [box])[0]

        expected = reference(image=image)[..., ::-1].transpose(2, 0, 1).astype(np.float32) / 255
        np.testing.assert_array_equal(planes, expected)


@settings(deadline=None)  # the first example imports PyTorch
@given(
    boxes=hnp.arrays(np.float32, (12, 4), elements=st.integers(0, 40).map(float)),
    scores=hnp.arrays(np.float32, 12, elements=st.floats(0, 1, width=32)),
    iou=st.sampled_from([0.3, 0.45, 0.7]),
)
def test_suppression_equals_torchvision(boxes: np.ndarray, scores: np.ndarray, iou: float) -> None:
    torch = pytest.importorskip("torch", reason="needs the extra yolo")
    nms = pytest.importorskip("torchvision", reason="needs the extra yolo").ops.nms
    corners = np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:] + 1])

    expected = nms(torch.from_numpy(corners), torch.from_numpy(scores), iou).numpy()

    assert suppress_overlaps(corners, scores, iou).tolist() == expected.tolist()


def test_both_output_formats_give_the_same_people() -> None:
    raw = anchors((100, 80, 40, 60, 0.6), (300, 90, 50, 70, 0.9), (200, 90, 50, 70, 0.4))

    from_anchors = decode_people(raw, 0.5, 0.45)
    from_rows = decode_people(end_to_end(raw), 0.5, 0.45)

    np.testing.assert_allclose(from_anchors, from_rows)
    np.testing.assert_allclose(from_anchors[:, 4], [0.9, 0.6])
    np.testing.assert_allclose(from_anchors[1, :4], [80, 50, 120, 110])


def test_duplicates_of_a_person_are_dropped() -> None:
    raw = anchors((100, 80, 40, 60, 0.6), (102, 80, 40, 60, 0.9), (300, 80, 40, 60, 0.7))
    np.testing.assert_allclose(decode_people(raw, 0.5, 0.45)[:, 4], [0.9, 0.7])
    assert len(decode_people(raw, 0.5, 0.99)) == 3


def test_nobody() -> None:
    assert decode_people(np.zeros((56, 21), np.float32), 0.5, 0.45).shape == (0, 56)
    assert decode_people(np.zeros((300, 57), np.float32), 0.5, 0.45).shape == (0, 56)


def test_coordinates_are_pixels_of_each_image() -> None:
    # 1280x720 is halved and padded by 12 rows; 640x360 is only padded.
    detector = YOLOPoseDetector(CannedBackend(anchors((320, 192, 100, 200, 0.9))))
    large, small = np.zeros((720, 1280, 3), np.uint8), np.zeros((360, 640, 3), np.uint8)

    [[in_large], [in_small]] = detector.detect([large, small])

    np.testing.assert_allclose(in_small.box_px, [270, 80, 370, 280], atol=1e-4)
    np.testing.assert_allclose(in_large.box_px, 2 * in_small.box_px, atol=1e-4)
    np.testing.assert_allclose(in_small.keypoints_px[3], [323, 183], atol=1e-4)
    np.testing.assert_allclose(in_large.confidences, np.linspace(0, 1, 17), atol=1e-6)
    assert in_large.score == pytest.approx(0.9)


def test_images_of_one_shape_share_a_batch_and_keep_their_order() -> None:
    backend = CannedBackend(anchors((320, 192, 100, 200, 0.9)))
    wide, tall = np.zeros((360, 640, 3), np.uint8), np.zeros((640, 360, 3), np.uint8)

    people = YOLOPoseDetector(backend).detect([wide, tall, 255 - wide, tall, wide])

    assert sorted(len(batch) for batch in backend.batches) == [2, 3]
    assert [len(found) for found in people] == [1, 1, 1, 1, 1]
    assert people[1][0].box_px[2] <= 360
    wide_batch = next(batch for batch in backend.batches if len(batch) == 3)
    assert wide_batch[:, 0, 100, 100].tolist() == [0.0, 1.0, 0.0]


def test_points_outside_the_image_are_clipped() -> None:
    detector = YOLOPoseDetector(CannedBackend(anchors((635, 380, 100, 200, 0.9))))
    [[pose]] = detector.detect([np.zeros((360, 640, 3), np.uint8)])
    assert pose.box_px.tolist() == [585, 268, 640, 360]
    assert pose.keypoints_px.max(axis=0).tolist() == [640, 360]


def test_at_most_n_people() -> None:
    raw = anchors((100, 80, 40, 60, 0.6), (300, 90, 50, 70, 0.9))
    detector = YOLOPoseDetector(CannedBackend(raw), n_people=1)
    [[pose]] = detector.detect([np.zeros((360, 640, 3), np.uint8)])
    assert pose.score == pytest.approx(0.9)


def test_a_network_that_is_no_pose_network() -> None:
    detector = YOLOPoseDetector(CannedBackend(np.zeros((84, 21))))
    with pytest.raises(BackendFailedError, match="17 keypoints"):
        detector.detect([np.zeros((360, 640, 3), np.uint8)])
