"""The three stages of a batch on its way through the GPU: decode, infer, collect.

Each stage belongs to one thread and one CUDA stream, so that consecutive batches overlap.
"""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, Literal

import torch
from jaxtyping import Float32

from pose_analyzer.backends.gpu.images import Picture, PictureDecoder
from pose_analyzer.backends.gpu.letterbox import Letterboxer
from pose_analyzer.backends.gpu.people import rows_of
from pose_analyzer.backends.gpu.yolo_cuda_graph import (
    BUCKETS,
    HIGH_PRIORITY,
    NetworkRunner,
    bucket_of,
)
from pose_analyzer.pose_detector import Letterbox, plan_letterbox, poses_of_rows
from pose_analyzer.regions import shifted
from pose_analyzer.stream_types import FrameFailure, StreamFrame
from pose_analyzer.types import Pose

Stage = Literal["decode", "infer"]
Fault = Callable[[Stage, int], None]
"""Called with the number of frames before a stage begins; what it raises happens there."""


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Pictures of one batch that went through the network together."""

    indices: list[int]
    """Their places in the batch."""
    boxes: list[Letterbox]
    people: Float32[torch.Tensor, "pictures values"]
    """In host memory, filled once the batch is ready."""


@dataclass(frozen=True, slots=True, eq=False)
class Inferred:
    """A batch the device is working on."""

    pictures: Sequence[Picture | FrameFailure]
    """Kept: nvJPEG writes into memory that is free, whatever a stream still wants to read."""
    parts: list[_Part]
    ready: Any
    """CUDA event, or None on a CPU."""

    def wait(self) -> None:
        """Wait until the device is done."""
        if self.ready is not None:
            self.ready.synchronize()


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """People of one frame."""

    poses: list[Pose]
    """Best first, in pixels of the whole, upright picture."""
    width_px: int
    height_px: int


class DetectionStages:
    """What is done with a batch.

    Parameters
    ----------
    runner
        The network.
    decoder
        Makes pictures of frames.
    letterboxer
        Makes the network's input of pictures.
    fault
        For tests: makes a stage fail.
    """

    def __init__(
        self,
        runner: NetworkRunner,
        decoder: PictureDecoder,
        letterboxer: Letterboxer,
        fault: Fault | None = None,
    ) -> None:
        self._runner = runner
        self._decoder = decoder
        self._letterboxer = letterboxer
        self._fault = fault
        self.device = runner.network.options.device
        self._streams: dict[Stage, Any] = {}
        if self.device.type == "cuda":
            self._streams = {
                "decode": torch.cuda.Stream(self.device),  # type: ignore[no-untyped-call]
                # Decoding ahead must not delay the batch that is further on.
                "infer": torch.cuda.Stream(  # type: ignore[no-untyped-call]
                    self.device, priority=HIGH_PRIORITY
                ),
            }

    @contextlib.contextmanager
    def thread_of(self, stage: Stage) -> Iterator[None]:
        """Make the current thread that of a stage."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            if self._streams:
                stack.enter_context(torch.cuda.device(self.device))
                stack.enter_context(torch.cuda.stream(self._streams[stage]))
            yield

    def decode(self, frames: Sequence[StreamFrame]) -> list[Picture | FrameFailure]:
        """Decode a batch and wait until its pictures are there."""
        if self._fault is not None:
            self._fault("decode", len(frames))
        pictures = self._decoder.decode(frames)
        if self._streams:
            torch.cuda.current_stream().synchronize()
        return pictures

    def infer(self, pictures: Sequence[Picture | FrameFailure]) -> Inferred:
        """Have the network look at a batch; does not wait for it."""
        if self._fault is not None:
            self._fault("infer", len(pictures))
        parts = [self._infer_part(part) for part in _parts(pictures)]
        ready = None
        if self._streams:
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record()  # type: ignore[no-untyped-call]
        return Inferred(pictures, parts, ready)

    def collect(self, inferred: Inferred) -> list[Found | FrameFailure]:
        """Make poses of what the network saw, once `Inferred.wait` has returned."""
        poses: dict[int, list[Pose]] = {}
        for part in inferred.parts:
            # Pictures of one size together: numpy takes as long for one person as for fifty.
            for box, places in _same(part.boxes).items():
                rows, n_people = rows_of(part.people.numpy()[places])
                people = iter(poses_of_rows(rows, box))
                for place, n in zip(places, n_people, strict=True):
                    poses[part.indices[place]] = list(islice(people, n))
        return [
            picture
            if isinstance(picture, FrameFailure)
            else Found(_in_whole(poses[index], picture), picture.width_px, picture.height_px)
            for index, picture in enumerate(inferred.pictures)
        ]

    def warm_up(self, image_hw: tuple[int, int], buckets: Iterable[int]) -> None:
        """Prepare for batches of pictures of this size; in the thread that infers."""
        self._runner.warm_up(_plan(image_hw).padded_hw, buckets)
        # The resizing kernel is compiled at its first use.
        grey = torch.full((3, *image_hw), 114, dtype=torch.uint8, device=self.device)
        self.infer([Picture(grey, image_hw[1], image_hw[0])]).wait()

    def free(self, n_frames: int) -> None:
        """Give back memory held for batches of more frames; in the thread that infers."""
        self._runner.free(bucket_of(n_frames) if n_frames else 0)

    def close(self) -> None:
        """Free everything, once all threads have ended."""
        self._runner.free()
        del self._runner, self._decoder
        if self._streams:
            torch.cuda.empty_cache()

    def settle(self) -> None:
        """Wait for everything the device was told to do."""
        if self._streams:
            # Not while a graph is captured, which that would spoil.
            with self._decoder.lock:
                torch.cuda.synchronize(self.device)

    def _infer_part(self, part: list[tuple[int, Picture, Letterbox]]) -> _Part:
        boxes = [box for _, _, box in part]
        tensors = [picture.rgb for _, picture, _ in part]

        def fill(batch: torch.Tensor) -> None:
            self._letterboxer.fill(tensors, boxes, batch)

        people = self._runner.run(len(part), boxes[0].padded_hw, fill)
        on_host = torch.empty(
            people.shape, dtype=torch.float32, pin_memory=self.device.type == "cuda"
        )
        on_host.copy_(people, non_blocking=True)
        return _Part([index for index, _, _ in part], boxes, on_host)


def _same(boxes: Sequence[Letterbox]) -> dict[Letterbox, list[int]]:
    """Where each of these occurs."""
    places: defaultdict[Letterbox, list[int]] = defaultdict(list)
    for place, box in enumerate(boxes):
        places[box].append(place)
    return places


_plan = lru_cache(maxsize=256)(plan_letterbox)


def _parts(
    pictures: Sequence[Picture | FrameFailure],
) -> Iterator[list[tuple[int, Picture, Letterbox]]]:
    """Pictures that fit into one input of the network."""
    same_size: defaultdict[tuple[int, int], list[tuple[int, Picture, Letterbox]]]
    same_size = defaultdict(list)
    for index, picture in enumerate(pictures):
        if isinstance(picture, FrameFailure):
            continue
        height_px, width_px = picture.rgb.shape[1:]
        box = _plan((height_px, width_px))
        same_size[box.padded_hw].append((index, picture, box))
    for members in same_size.values():
        for start in range(0, len(members), BUCKETS[-1]):
            yield members[start : start + BUCKETS[-1]]


def _in_whole(poses: list[Pose], picture: Picture) -> list[Pose]:
    if (picture.x0_px, picture.y0_px) == (0, 0):
        return poses
    return [shifted(pose, picture.x0_px, picture.y0_px) for pose in poses]
