"""Train the shipped form models on all recorded people of UI-PRMD.

How well such models judge people they have not seen is what benchmarks/form_evaluation.py measures.

Run: ``python scripts/train_form_models.py --data $SHARED_DATA`` (needs scikit-learn).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "benchmarks"))

import form_learning as learning  # noqa: E402
from form_recordings import (  # noqa: E402
    VIEWS,
    Repetitions,
    Whole,
    kept_draw,
    read_recorded,
    whole_repetitions,
)

from pose_analyzer.form_anomaly_detector import FormModel, PersonalModel  # noqa: E402
from pose_analyzer.form_model_file import ANY, SHIPPED, save_models  # noqa: E402

EXERCISES: Final = {"deep_squat": "squat", "inline_lunge": "lunge"}
"""Movements of the data set under the product's names; the others keep theirs."""


def trained(
    draws: Sequence[Repetitions], whole: Whole, effort: learning.Effort
) -> tuple[list[FormModel], FormModel]:
    """Models of every movement and view, and the one for everything else."""
    rng = np.random.default_rng(0)
    models, distances = [], []
    for movement in np.unique(draws[0].movement):
        for view in VIEWS:
            people = [learning.people_of(draw, whole, movement, view) for draw in draws]
            personal = learning.fit_personal(people, effort, rng)
            general = learning.fit_general(people, effort)
            exercise = EXERCISES.get(movement, str(movement))
            models.append(FormModel(exercise, view, personal.model, general))
            distances.append(personal)
            print(exercise, view, flush=True)
    spread = np.mean([model.personal.spread for model in models], axis=0)
    decision = learning.decide_by_distance(distances)
    return models, FormModel(ANY, ANY, PersonalModel(spread, decision), None)


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared" / "data")
    parser.add_argument("--cache", type=Path, help="keeps what was projected and measured")
    parser.add_argument("--out", type=Path, default=SHIPPED)
    arguments = parser.parse_args()
    recorded = read_recorded(arguments.data)
    draws = [kept_draw(recorded, draw, arguments.cache) for draw in learning.TRAINING_DRAWS]
    models, other = trained(draws, whole_repetitions(recorded), learning.Effort())
    save_models([*models, other], arguments.out)
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
