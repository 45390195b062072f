"""Counts repetitions in front of the first camera; Ctrl-C ends it."""

import cv2

from pose_analyzer_client import BlockingPoseAnalyzerClient


def camera():
    capture = cv2.VideoCapture(0)
    while (read := capture.read())[0]:
        yield read[1]


with BlockingPoseAnalyzerClient("ws://localhost:8001", exercise="auto") as client:
    for result in client.stream(camera()):
        for person in result.people:
            knee = person.angle("left_knee")
            shown = f"{knee.value_deg:.0f}° ± {knee.sd_deg:.0f}°" if knee.trusted else "not visible"
            counted = f"{person.exercise or 'no exercise yet'} {person.n_repetitions}"
            print(f"person {person.track_id}: {counted}, left knee {shown}")
