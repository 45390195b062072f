"""Output of a pose network -> people, on the device, in tensors of fixed size.

Coordinates near 640 have steps of 0.5 in FP16, 1.5 pixels of a 1080p picture. The network's last
layers are therefore decoded here, in FP32, and only where somebody may be.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64

from pose_analyzer.skeletons import N_KEYPOINTS

N_CANDIDATES: Final = 512
"""Boxes that are compared, the best of each image; a person in view has some 20."""
MAX_PEOPLE: Final = 64
"""The best of each image."""
N_COLUMNS: Final = 5 + 3 * N_KEYPOINTS
"""Of one person: x0, y0, x1, y1, score, then x, y, confidence of each keypoint."""

# The head's output differs in structure between kinds of networks.
Output = Any


@runtime_checkable
class Head(Protocol):
    """Reads the output of one kind of network. All results are FP32, in letterboxed pixels."""

    def scores(self, output: Output) -> Float[torch.Tensor, "images anchors"]:
        """Anything that grows with the score."""
        ...

    def candidates(
        self, output: Output, index: Int64[torch.Tensor, "images picked"]
    ) -> tuple[Float[torch.Tensor, "images picked 4"], Float[torch.Tensor, "images picked"]]:
        """Corners and scores 0..1 of some anchors."""
        ...

    def keypoints(
        self, output: Output, index: Int64[torch.Tensor, "images picked"]
    ) -> Float[torch.Tensor, "images picked 51"]:
        """x, y, confidence of each keypoint of some anchors."""
        ...


@dataclass(frozen=True, slots=True)
class RawHead:
    """Ultralytics' pose head before decoding: ``boxes``, ``scores``, ``kpts`` and ``feats``.

    The formulas are those of `ultralytics.nn.modules.head.Pose` and ``Pose26``.
    """

    n_bins: int
    """Of each side's distribution (Generalized Focal Loss, arXiv 2006.04388); 1: a plain number."""
    strides_px: tuple[float, ...]
    """Of each feature map."""
    keypoint_scale: float
    """Keypoint = (anchor + offset + scale * output) * stride, anchors at the centres of cells."""
    keypoint_offset: float

    def scores(self, output: Output) -> Float[torch.Tensor, "images anchors"]:
        """Logits."""
        scores: torch.Tensor = output["scores"]
        return scores[:, 0].float()

    def candidates(
        self, output: Output, index: Int64[torch.Tensor, "images picked"]
    ) -> tuple[Float[torch.Tensor, "images picked 4"], Float[torch.Tensor, "images picked"]]:
        """Corners and scores 0..1 of some anchors."""
        sides = _picked(output["boxes"], index)
        if self.n_bins > 1:
            bins = torch.arange(self.n_bins, dtype=torch.float32, device=sides.device)
            sides = (sides.view(*index.shape, 4, self.n_bins).softmax(3) * bins).sum(3)
        anchor, stride = self._anchors(output, index)
        corners = torch.cat([anchor - sides[..., :2], anchor + sides[..., 2:]], dim=2) * stride
        return corners, self.scores(output).gather(1, index).sigmoid()

    def keypoints(
        self, output: Output, index: Int64[torch.Tensor, "images picked"]
    ) -> Float[torch.Tensor, "images picked 51"]:
        """x, y, confidence of each keypoint of some anchors."""
        points = _picked(output["kpts"], index).view(*index.shape, N_KEYPOINTS, 3)
        anchor, stride = self._anchors(output, index)
        centre = anchor[:, :, None] + self.keypoint_offset
        position = (points[..., :2] * self.keypoint_scale + centre) * stride[:, :, None]
        return torch.cat([position, points[..., 2:].sigmoid()], dim=3).flatten(2)

    def _anchors(
        self, output: Output, index: Int64[torch.Tensor, "images picked"]
    ) -> tuple[Float[torch.Tensor, "images picked 2"], Float[torch.Tensor, "images picked 1"]]:
        """Centres in cells, and the size of a cell, by arithmetic on the anchors' numbers."""
        x, y = torch.zeros_like(index), torch.zeros_like(index)
        stride = torch.zeros(index.shape, dtype=torch.float32, device=index.device)
        first = 0
        for features, stride_px in zip(output["feats"], self.strides_px, strict=True):
            height, width = features.shape[2:]
            here = index >= first
            local = index - first
            x = torch.where(here, local % width, x)
            y = torch.where(here, local // width, y)
            stride = stride.masked_fill(here, stride_px)
            first += height * width
        return torch.stack([x, y], dim=2).float() + 0.5, stride[..., None]


@dataclass(frozen=True, slots=True)
class DecodedHead:
    """Networks that decode their own output, (images, 56, anchors): TensorRT's, unknown heads."""

    def scores(self, output: Output) -> Float[torch.Tensor, "images anchors"]:
        """Scores 0..1."""
        decoded: torch.Tensor = output
        return decoded[:, 4].float()

    def candidates(
        self, output: Output, index: Int64[torch.Tensor, "images picked"]
    ) -> tuple[Float[torch.Tensor, "images picked 4"], Float[torch.Tensor, "images picked"]]:
        """Corners and scores 0..1 of some anchors."""
        picked = _picked(output[:, :5], index)
        half_size = picked[..., 2:4] / 2
        corners = torch.cat([picked[..., :2] - half_size, picked[..., :2] + half_size], dim=2)
        return corners, picked[..., 4]

    def keypoints(
        self, output: Output, index: Int64[torch.Tensor, "images picked"]
    ) -> Float[torch.Tensor, "images picked 51"]:
        """x, y, confidence of each keypoint of some anchors."""
        return _picked(output[:, 5:], index)


def _picked(
    channels: Float[torch.Tensor, "images channels anchors"],
    index: Int64[torch.Tensor, "images picked"],
) -> Float[torch.Tensor, "images picked channels"]:
    """Channels of some anchors, in FP32."""
    wide = index[:, None].expand(-1, channels.shape[1], -1)
    return channels.gather(2, wide).transpose(1, 2).float().contiguous()


Kept = tuple[Int64[torch.Tensor, "images people"], Int[torch.Tensor, "images"]]
Suppress = Callable[[torch.Tensor, torch.Tensor, float, float], Kept]


def suppress(
    corners: Float[torch.Tensor, "images candidates 4"],
    scores: Float[torch.Tensor, "images candidates"],
    confidence: float,
    iou: float,
) -> Kept:
    """Greedy suppression in every image, as `pose_detector.suppress_overlaps` does for one.

    Parameters
    ----------
    corners
        Boxes, best first.
    scores
        Descending.
    confidence
        Boxes not above this score are left out.
    iou
        A box that overlaps a better one by more than this is dropped.

    Returns
    -------
    tuple
        Numbers of the kept boxes, best first and of no meaning after the last, and how many.
    """
    n_images, n_candidates = scores.shape
    lanes = torch.arange(n_candidates, device=scores.device)
    areas = (corners[..., 2:] - corners[..., :2]).prod(dim=2)
    alive = scores > confidence
    kept = torch.zeros((n_images, MAX_PEOPLE), dtype=torch.int64, device=scores.device)
    n_kept = torch.zeros(n_images, dtype=torch.int32, device=scores.device)
    for place in range(MAX_PEOPLE):
        # Asking costs a wait on a GPU, and cannot be captured.
        if scores.device.type == "cpu" and not alive.any():
            break
        best = alive.int().argmax(dim=1, keepdim=True)
        kept[:, place] = best[:, 0]
        n_kept += alive.gather(1, best)[:, 0]
        alive &= (lanes > best) & ~_overlap(corners, areas, best, iou)
    return kept, n_kept


def _overlap(
    corners: Float[torch.Tensor, "images candidates 4"],
    areas: Float[torch.Tensor, "images candidates"],
    best: Int64[torch.Tensor, "images 1"],
    iou: float,
) -> Bool[torch.Tensor, "images candidates"]:
    box = corners.gather(1, best[..., None].expand(-1, -1, 4))
    sides = torch.minimum(corners[..., 2:], box[..., 2:]) - torch.maximum(
        corners[..., :2], box[..., :2]
    )
    shared = sides.clamp(min=0).prod(dim=2)
    tiny = torch.finfo(torch.float32).tiny
    return shared / (areas + areas.gather(1, best) - shared).clamp(min=tiny) > iou


class KernelSuppress:
    """`suppress` in one Triton kernel.

    Parameters
    ----------
    kernel
        `kernels.suppress_kernel`.
    """

    def __init__(self, kernel: Any) -> None:  # noqa: ANN401 - triton has no types
        self._kernel = kernel

    def __call__(
        self, corners: torch.Tensor, scores: torch.Tensor, confidence: float, iou: float
    ) -> Kept:
        """See `suppress`."""
        n_images, n_candidates = scores.shape
        kept = torch.zeros((n_images, MAX_PEOPLE), dtype=torch.int64, device=scores.device)
        n_kept = torch.empty(n_images, dtype=torch.int32, device=scores.device)
        block = 1 << (n_candidates - 1).bit_length()
        self._kernel[(n_images,)](
            corners.contiguous(),
            scores.contiguous(),
            kept,
            n_kept,
            confidence,
            iou,
            n_candidates,
            block,
            MAX_PEOPLE,
        )
        return kept, n_kept


def find_people(
    head: Head, output: Output, confidence: float, iou: float, suppress: Suppress = suppress
) -> Float[torch.Tensor, "images values"]:
    """People of each image, as `pose_detector.decode_people` finds them.

    Returns
    -------
    Float[torch.Tensor, "images values"]
        How many people, then `MAX_PEOPLE` rows of `N_COLUMNS`; see `rows_of`.
    """
    scores = head.scores(output)
    index = scores.topk(min(N_CANDIDATES, scores.shape[1]), dim=1).indices
    corners, scores = head.candidates(output, index)
    kept, n_kept = suppress(corners, scores, confidence, _next_below(iou))
    people = torch.cat(
        [
            corners.gather(1, kept[..., None].expand(-1, -1, 4)),
            scores.gather(1, kept)[..., None],
            head.keypoints(output, index.gather(1, kept)),
        ],
        dim=2,
    )
    return torch.cat([n_kept[:, None].float(), people.flatten(1)], dim=1)


def rows_of(
    values: Float[np.ndarray, "images values"],
) -> tuple[Float[np.ndarray, "people 56"], list[int]]:
    """What `find_people` found: everybody, image by image, best first, and how many in each."""
    n_people = values[:, 0].astype(np.int64)
    rows = values[:, 1:].reshape(-1, MAX_PEOPLE, N_COLUMNS)
    return rows[np.arange(MAX_PEOPLE) < n_people[:, None]], n_people.tolist()


def _next_below(threshold: float) -> float:
    """The largest float32 not above: float32 ratios exceed it where they exceed `threshold`."""
    nearest = np.float32(threshold)
    if float(nearest) > threshold:
        nearest = np.nextafter(nearest, np.float32(-np.inf))
    return float(nearest)


def check_against_decoded(
    head: Head, output: Output, decoded: Float[torch.Tensor, "images 56 anchors"]
) -> float:
    """Largest difference, in pixels or as a fraction, to what the network decodes itself."""
    n_images, _, n_anchors = decoded.shape
    every = torch.arange(n_anchors, device=decoded.device).expand(n_images, -1)
    reference = DecodedHead()
    found: Sequence[torch.Tensor] = (
        *head.candidates(output, every),
        head.keypoints(output, every),
    )
    expected = (*reference.candidates(decoded, every), reference.keypoints(decoded, every))
    return max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
