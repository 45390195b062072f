"""Which person is which from frame to frame.

ByteTrack (Zhang et al. 2022, "ByteTrack: Multi-Object Tracking by Associating Every Detection
Box") from the `trackers` library, on the detectors' boxes and true timestamps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import supervision as sv
from trackers import ByteTrackTracker

from pose_analyzer.types import Pose

# The library counts a lost track's patience in frames of a 30 Hz video.
_LIBRARY_FPS: Final = 30.0
_FIRST_STEP_S: Final = 1e-3


@dataclass(frozen=True, slots=True)
class TrackingConfig:
    """When a person counts as the same."""

    lost_s: float = 1.5
    """A person unseen for longer gets a new id."""
    min_iou: float = 0.1
    new_track_score: float = 0.5
    """A detection below it continues a track but starts none."""


class PersonTracker:
    """Gives each pose a stable, 1-based id. Frames must come in order.

    Who is there in the first frame has an id at once; who comes later gets one at the second
    sighting, so that a single wrong detection is nobody.
    """

    def __init__(self, config: TrackingConfig | None = None) -> None:
        config = config or TrackingConfig()
        self._tracker = ByteTrackTracker(
            lost_track_buffer=round(config.lost_s * _LIBRARY_FPS),
            frame_rate=_LIBRARY_FPS,
            track_activation_threshold=config.new_track_score,
            high_conf_det_threshold=config.new_track_score,
            minimum_iou_threshold=config.min_iou,
            minimum_consecutive_frames=1,
        )
        self._started = False

    def update(self, poses: Sequence[Pose], time_s: float) -> dict[int, Pose]:
        """Poses of this frame by track id; poses too uncertain to start a track are left out."""
        if poses:
            detections = sv.Detections(
                xyxy=np.stack([pose.box_px for pose in poses]).astype(np.float32),
                confidence=np.array([pose.score for pose in poses], dtype=np.float32),
                data={"pose": np.arange(len(poses))},
            )
        else:
            detections = sv.Detections.empty()
        if not self._started:
            # The library names a track when it is met again: let it meet the first frame twice.
            self._tracker.update(detections, timestamp=time_s - _FIRST_STEP_S)
            self._started = True
        tracked = self._tracker.update(detections, timestamp=time_s)
        if tracked.tracker_id is None or len(tracked) == 0:
            return {}
        return {
            int(track_id) + 1: poses[int(index)]
            for track_id, index in zip(tracked.tracker_id, tracked.data["pose"], strict=True)
            if track_id >= 0
        }
