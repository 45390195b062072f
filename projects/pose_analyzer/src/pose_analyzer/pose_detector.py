"""Images -> poses with a YOLO pose network, whatever executes it.

Letterboxing, decoding, suppression and scaling back follow Ultralytics 8.4's `predict` so that
the same weights give the same people; `docs/reports/detector_parity.md` holds the differences.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from jaxtyping import Float, Float32, Int64, UInt8

from pose_analyzer.errors import BackendFailedError
from pose_analyzer.ports import InferenceBackend
from pose_analyzer.skeletons import N_KEYPOINTS
from pose_analyzer.types import Pose

STRIDE_PX: Final = 32  # coarsest feature map of every YOLO11 and YOLO26 model
PAD_VALUE: Final = 114  # grey that the networks were trained with
MAX_PEOPLE: Final = 300  # Ultralytics' max_det

_N_KEYPOINT_VALUES: Final = N_KEYPOINTS * 3
# Anchor-wise output: x, y, w, h, score, keypoints. End-to-end output: x0, y0, x1, y1, score,
# class, keypoints. The number of anchors is a multiple of 21 at stride 32, hence never 57.
_N_RAW_COLUMNS: Final = 5 + _N_KEYPOINT_VALUES
_N_END_TO_END_COLUMNS: Final = 6 + _N_KEYPOINT_VALUES


@dataclass(frozen=True, slots=True)
class Letterbox:
    """How an image was resized and padded to fit the network."""

    image_hw: tuple[int, int]
    resized_hw: tuple[int, int]
    padded_hw: tuple[int, int]
    top_px: int
    left_px: int

    def to_image(self, points_px: Float[np.ndarray, "*n 2"]) -> Float[np.ndarray, "*n 2"]:
        """Map x, y from the padded image to the original one, clipped to its borders."""
        height, width = self.image_hw
        offset = np.array([self.left_px, self.top_px], dtype=points_px.dtype)
        scale = np.array(
            [self.resized_hw[1] / width, self.resized_hw[0] / height], dtype=points_px.dtype
        )
        limits = np.array([width, height], dtype=points_px.dtype)
        points_px = (points_px - offset) / scale
        return points_px.clip(0, limits)


def plan_letterbox(
    image_hw: tuple[int, int],
    image_size_px: int = 640,
    fixed_hw: tuple[int, int] | None = None,
) -> Letterbox:
    """Plan how an image fits into the network's input, as `ultralytics.data.augment.LetterBox`.

    Parameters
    ----------
    image_hw
        Height and width of the image.
    image_size_px
        Longer side after resizing; the shorter one is padded to a multiple of 32 only.
    fixed_hw
        Input size of a network that accepts no other; the image is then padded to all of it.
    """
    height, width = image_hw
    target_h, target_w = fixed_hw or (image_size_px, image_size_px)
    ratio = min(target_h / height, target_w / width)
    resized_h, resized_w = max(round(height * ratio), 1), max(round(width * ratio), 1)
    pad_h, pad_w = target_h - resized_h, target_w - resized_w
    if fixed_hw is None:
        pad_h, pad_w = pad_h % STRIDE_PX, pad_w % STRIDE_PX
    return Letterbox(
        image_hw=(height, width),
        resized_hw=(resized_h, resized_w),
        padded_hw=(resized_h + pad_h, resized_w + pad_w),
        top_px=round(pad_h / 2 - 0.1),
        left_px=round(pad_w / 2 - 0.1),
    )


def fill_batch(
    images_bgr: Sequence[UInt8[np.ndarray, "_ _ 3"]], boxes: Sequence[Letterbox]
) -> Float32[np.ndarray, "batch 3 height width"]:
    """Letterboxed RGB images scaled to 0..1; all `boxes` have the same padded size."""
    height, width = boxes[0].padded_hw
    batch = np.full((len(boxes), 3, height, width), PAD_VALUE / 255, dtype=np.float32)
    for image, box, planes in zip(images_bgr, boxes, batch, strict=True):
        resized_h, resized_w = box.resized_hw
        if image.shape[:2] != box.resized_hw:
            image = cv2.resize(image, (resized_w, resized_h), interpolation=cv2.INTER_LINEAR)  # noqa: PLW2901
        rows = slice(box.top_px, box.top_px + resized_h)
        columns = slice(box.left_px, box.left_px + resized_w)
        for channel, plane in enumerate(cv2.split(image)):
            np.divide(plane, np.float32(255), out=planes[2 - channel, rows, columns])
    return batch


def suppress_overlaps(
    boxes: Float32[np.ndarray, "n 4"], scores: Float32[np.ndarray, "n"], iou: float
) -> Int64[np.ndarray, "kept"]:
    """Greedy non-maximum suppression with `torchvision.ops.nms` semantics.

    Parameters
    ----------
    boxes
        x0, y0, x1, y1.
    scores
        Higher is better.
    iou
        A box that overlaps a better one by more than this is dropped.

    Returns
    -------
    Int64[np.ndarray, "kept"]
        Indices of the kept boxes, best first.
    """
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order = np.argsort(-scores, kind="stable")
    kept = []
    while order.size:
        best, rest = order[0], order[1:]
        kept.append(best)
        sides = np.minimum(boxes[best, 2:], boxes[rest, 2:]) - np.maximum(
            boxes[best, :2], boxes[rest, :2]
        )
        shared = np.prod(np.maximum(sides, 0), axis=1)
        union = np.maximum(areas[best] + areas[rest] - shared, np.finfo(np.float32).tiny)
        # torchvision compares the float32 ratio with a float64 threshold.
        order = rest[shared / union <= np.float64(iou)]
    return np.array(kept, dtype=np.int64)


def decode_people(
    raw: Float32[np.ndarray, "rows columns"], confidence: float, iou: float
) -> Float32[np.ndarray, "people 56"]:
    """People in one image from the network's raw output, best first.

    Parameters
    ----------
    raw
        (56, anchors): boxes as centre and size, score, keypoints (YOLO11); or (people, 57): boxes
        as corners, score, class, keypoints, already free of duplicates (YOLO26).
    confidence
        People below this score are left out.
    iou
        Overlap above which the weaker of two boxes is a duplicate; not used for end-to-end output.

    Returns
    -------
    Float32[np.ndarray, "people 56"]
        x0, y0, x1, y1, score, then x, y, confidence of 17 keypoints, in letterboxed pixels.

    Raises
    ------
    ValueError
        The output is not that of a one-class COCO-17 pose model.
    """
    if raw.shape[1] == _N_END_TO_END_COLUMNS:
        found = np.delete(raw[raw[:, 4] > confidence], 5, axis=1)
        return found[np.argsort(-found[:, 4], kind="stable")][:MAX_PEOPLE]
    if raw.shape[0] != _N_RAW_COLUMNS:
        raise ValueError(
            f"output of shape {raw.shape} is not that of a pose model with {N_KEYPOINTS} keypoints"
        )
    found = raw[:, raw[4] > confidence].T
    half_size = found[:, 2:4] / 2
    corners = np.hstack([found[:, :2] - half_size, found[:, :2] + half_size])
    kept = suppress_overlaps(corners, found[:, 4], iou)[:MAX_PEOPLE]
    return np.hstack([corners[kept], found[kept, 4:]])


class YOLOPoseDetector:
    """Finds several people per image with a YOLO11 or YOLO26 pose network.

    Parameters
    ----------
    backend
        What runs the network.
    confidence
        People below this score, 0..1, are left out.
    iou
        Overlap above which the weaker of two boxes is a duplicate.
    image_size_px
        Longer side of the image the network sees.
    n_people
        Keep at most so many, the best; None keeps all.
    fixed_hw
        The network's only input size, if it has one.
    """

    def __init__(
        self,
        backend: InferenceBackend,
        *,
        confidence: float = 0.5,
        iou: float = 0.45,
        image_size_px: int = 640,
        n_people: int | None = None,
        fixed_hw: tuple[int, int] | None = None,
    ) -> None:
        self._backend = backend
        self._confidence = confidence
        self._iou = iou
        # The network accepts multiples of its stride only.
        self._image_size_px = -(-image_size_px // STRIDE_PX) * STRIDE_PX
        self._n_people = n_people
        self._fixed_hw = fixed_hw

    @property
    def name(self) -> str:
        """Model as the user names it."""
        return self._backend.name

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda:0``."""
        return self._backend.device

    def detect(
        self,
        images_bgr: Sequence[UInt8[np.ndarray, "_ _ 3"]],
        times_s: Sequence[float] | None = None,  # noqa: ARG002 - each image stands alone here
    ) -> list[list[Pose]]:
        """Find the people in each image, best first; see `ports.PoseDetector.detect`."""
        boxes = [
            plan_letterbox(image.shape[:2], self._image_size_px, self._fixed_hw)
            for image in images_bgr
        ]
        same_size: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        for index, box in enumerate(boxes):
            same_size[box.padded_hw].append(index)
        poses: list[list[Pose]] = [[] for _ in images_bgr]
        for indices in same_size.values():
            raw = self._backend.infer(
                fill_batch([images_bgr[i] for i in indices], [boxes[i] for i in indices])
            )
            for index, output in zip(indices, raw, strict=True):
                poses[index] = self._decode(output, boxes[index])
        return poses

    def restart(self) -> None:
        """Nothing to do: nobody is followed here."""

    def close(self) -> None:
        """Free the model."""
        self._backend.close()

    def _decode(self, raw: Float32[np.ndarray, "rows columns"], box: Letterbox) -> list[Pose]:
        try:
            people = decode_people(raw, self._confidence, self._iou)[: self._n_people]
        except ValueError as error:
            raise BackendFailedError(self.name, str(error)) from error
        return poses_of_rows(people, box)


def poses_of_rows(rows: Float32[np.ndarray, "people 56"], box: Letterbox) -> list[Pose]:
    """People of `decode_people`, of one image or of several of one size, in its pixels."""
    values = rows.astype(np.float64)
    keypoints = values[:, 5:].reshape(-1, N_KEYPOINTS, 3)
    points_px = box.to_image(keypoints[:, :, :2])
    boxes_px = box.to_image(values[:, :4].reshape(-1, 2, 2)).reshape(-1, 4)
    confidences = keypoints[:, :, 2].copy()
    scores = values[:, 4].tolist()
    return [
        Pose(keypoints_px=points, confidences=confidence, box_px=box_px, score=score)
        for points, confidence, box_px, score in zip(
            points_px, confidences, boxes_px, scores, strict=True
        )
    ]
