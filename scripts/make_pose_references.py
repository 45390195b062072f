"""Make the references in data/pose_references from the correct repetitions of UI-PRMD.

The recorded people are projected to cameras at the front, at 45 degrees and at the side, a little
turned, with keypoint errors as detectors make them, and analysed as the product does. Only means
and scatter over people are written; the recordings themselves never enter the repository.

Run: ``python scripts/make_pose_references.py`` with ``SHARED_DATA`` naming the evaluation data.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np

REPOSITORY: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "benchmarks"))

from form_recordings import VIEWS  # noqa: E402
from form_tracks import Recorded, observe_tracks  # noqa: E402

from pose_analyzer.form_comparison import columns_of  # noqa: E402
from pose_analyzer.form_measures import FormMeasures, measure_form  # noqa: E402
from pose_analyzer.form_patterns import general_pattern  # noqa: E402
from pose_analyzer.form_references import FormReference, signals_for  # noqa: E402
from pose_analyzer.reference_files import save_reference  # noqa: E402
from pose_analyzer.types import View  # noqa: E402

SHARED_DATA: Final = Path(os.environ.get("SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
RECORDINGS: Final = Path("datasets") / "ui_prmd" / "coco17_3d_50hz.npz"
EXERCISES: Final = {
    "deep_squat": "squat",
    "inline_lunge": "lunge",
    "hurdle_step": "hurdle_step",
    "side_lunge": "side_lunge",
    "sit_to_stand": "sit_to_stand",
}
"""Movements of the recordings and what they are called here."""
# Only legs and trunk are judged: the recorded people all held their arms as they were told.
SIGNALS: Final = signals_for(("knee", "hip", "trunk_inclination"))
SEEDS: Final = (1, 2)
"""Draws of the keypoint errors and of how people stand."""
TURN_DEG: Final = 8.0
PROVENANCE: Final = {
    "source": "UI-PRMD (Vakanski et al. 2018, Data 3(1):2): correct repetitions recorded by Vicon",
    "people": "seven of its ten, s01 to s10 as far as given for development",
    "made_by": "scripts/make_pose_references.py",
    "cameras": "projected to 0, 45 and 90 degrees, turned by 8 degrees (sd)",
    "keypoint_errors": "drawn as measured of detectors, docs/reports/keypoint_noise.md",
    "licence": "data published for research; means and scatter over people only",
}

Found = list[tuple[int, Recorded, FormMeasures]]


def measured(recorded: dict[str, Any]) -> Found:
    """All correct repetitions with the numbers of all draws."""
    correct = {key: points for key, points in recorded.items() if key.endswith("/correct")}
    return [
        (seed, one, measure_form(one.track))
        for seed in SEEDS
        for one in observe_tracks(correct, seed, turn_deg=TURN_DEG)
    ]


def reference_of(movement: str, found: Found) -> FormReference:
    """One reference with a pattern for each view; each draw is a session of a person."""
    patterns = []
    for view in VIEWS:
        people: dict[str, dict[int, list[FormMeasures]]] = {}
        for seed, one, measures in found:
            if one.movement == movement and one.view == view:
                people.setdefault(one.subject, {}).setdefault(seed, []).append(measures)
        sessions = {subject: list(draws.values()) for subject, draws in people.items()}
        patterns.append(general_pattern(sessions, columns_of(SIGNALS), View(view)))
    name = EXERCISES[movement]
    return FormReference(name, name, "general", PROVENANCE, SIGNALS, tuple(patterns))


def main() -> None:
    """Write one file for each exercise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=SHARED_DATA)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "data" / "pose_references")
    arguments = parser.parse_args()
    with np.load(arguments.data / RECORDINGS) as archive:
        found = measured(dict(archive))
    for movement in EXERCISES:
        path = save_reference(arguments.out, reference_of(movement, found))
        print(f"{path} {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
