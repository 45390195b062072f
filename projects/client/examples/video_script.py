"""Sends every frame of a video and prints each repetition when it is counted."""

import argparse
from pathlib import Path

from pose_analyzer_client import BlockingPoseAnalyzerClient
from pose_analyzer_client.video import video_frames

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("video", type=Path)
parser.add_argument("--url", default="ws://localhost:8001")
parser.add_argument("--exercise", default="auto")
options = parser.parse_args()

counted: dict[int, int] = {}
with BlockingPoseAnalyzerClient(options.url, options.exercise) as client:
    for result in client.stream(video_frames(options.video), drop=False):
        for person in result.people:
            repetition = person.last_repetition
            if repetition and person.n_repetitions > counted.get(person.track_id, 0):
                counted[person.track_id] = person.n_repetitions
                print(
                    f"{repetition.end_s:6.2f} s  person {person.track_id}: {person.exercise} "
                    f"{person.n_repetitions}, depth {repetition.depth:.2f}"
                )
    print(client.statistics)
