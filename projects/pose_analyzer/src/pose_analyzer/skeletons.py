"""Joint tables: COCO-17, BlazePose-33, the bones drawn between them, the angles measured on them.

COCO order: Lin et al. 2014, "Microsoft COCO: Common Objects in Context" (keypoint task).
BlazePose order: Bazarevsky et al. 2020, "BlazePose: On-device Real-time Body Pose Tracking".
"""

from enum import IntEnum
from typing import Final

import numpy as np


class Coco(IntEnum):
    """Index of each COCO-17 keypoint; left and right are the person's own."""

    NOSE = 0
    LEFT_EYE = 1
    RIGHT_EYE = 2
    LEFT_EAR = 3
    RIGHT_EAR = 4
    LEFT_SHOULDER = 5
    RIGHT_SHOULDER = 6
    LEFT_ELBOW = 7
    RIGHT_ELBOW = 8
    LEFT_WRIST = 9
    RIGHT_WRIST = 10
    LEFT_HIP = 11
    RIGHT_HIP = 12
    LEFT_KNEE = 13
    RIGHT_KNEE = 14
    LEFT_ANKLE = 15
    RIGHT_ANKLE = 16


N_KEYPOINTS: Final = len(Coco)
KEYPOINT_NAMES: Final = tuple(joint.name.lower() for joint in Coco)

# Index of the same joint on the other side; nose maps to itself.
MIRRORED_KEYPOINTS: Final = np.array([0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15])

BONES: Final[tuple[tuple[Coco, Coco], ...]] = (
    (Coco.NOSE, Coco.LEFT_EYE),
    (Coco.NOSE, Coco.RIGHT_EYE),
    (Coco.LEFT_EYE, Coco.LEFT_EAR),
    (Coco.RIGHT_EYE, Coco.RIGHT_EAR),
    (Coco.LEFT_SHOULDER, Coco.RIGHT_SHOULDER),
    (Coco.LEFT_SHOULDER, Coco.LEFT_ELBOW),
    (Coco.LEFT_ELBOW, Coco.LEFT_WRIST),
    (Coco.RIGHT_SHOULDER, Coco.RIGHT_ELBOW),
    (Coco.RIGHT_ELBOW, Coco.RIGHT_WRIST),
    (Coco.LEFT_SHOULDER, Coco.LEFT_HIP),
    (Coco.RIGHT_SHOULDER, Coco.RIGHT_HIP),
    (Coco.LEFT_HIP, Coco.RIGHT_HIP),
    (Coco.LEFT_HIP, Coco.LEFT_KNEE),
    (Coco.LEFT_KNEE, Coco.LEFT_ANKLE),
    (Coco.RIGHT_HIP, Coco.RIGHT_KNEE),
    (Coco.RIGHT_KNEE, Coco.RIGHT_ANKLE),
)

N_LANDMARKS: Final = 33
# The BlazePose landmark that corresponds to each COCO keypoint, in COCO order.
BLAZEPOSE_OF_COCO: Final = np.array([0, 2, 5, 7, 8, 11, 12, 13, 14, 15, 16, 23, 24, 25, 26, 27, 28])
BLAZEPOSE_LEFT_FOOT_INDEX: Final = 31
BLAZEPOSE_RIGHT_FOOT_INDEX: Final = 32

ANGLE_NAMES: Final = (
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_ankle",
    "right_ankle",
    "trunk_inclination",
    "neck_inclination",
)
N_ANGLES: Final = len(ANGLE_NAMES)
ANGLE_INDEX: Final = {name: index for index, name in enumerate(ANGLE_NAMES)}
