"""Whether faulty repetitions of people the model has never seen are told from correct ones.

The recorded people of UI-PRMD are shown to a camera in front, at 45 degrees and at the side, with
errors as detectors make them (keypoint_noise.md), and smoothed as the product does. Every person is
judged by models of the other six, without calibration and against three own correct repetitions.

Run: ``python benchmarks/form_evaluation.py --data $SHARED_DATA`` (needs scikit-learn; `--cache DIR`
keeps what was projected and measured). Writes docs/reports/form_evaluation.md.
"""

import argparse
import os
import platform
import time
import timeit
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import form_learning as learning
import numpy as np
import sklearn
from form_learning import Array, Effort, Person
from form_recordings import (
    MEASURED,
    VIEWS,
    Draw,
    KeypointNoise,
    kept_draw,
    read_recorded,
    whole_repetitions,
)
from form_tables import Cells, Scored, write_report

from pose_analyzer import form_anomaly_detector as detector
from pose_analyzer import form_anomaly_features as features
from pose_analyzer.form_anomalies import newest
from pose_analyzer.form_model_file import load_models
from pose_analyzer.repetition_features import RepetitionFeatures

REPOSITORY = Path(__file__).resolve().parents[1]
REPORT = REPOSITORY / "docs" / "reports" / "form_evaluation.md"
EARLIER = KeypointNoise(
    constant=0.0, pose=0.0, pose_length=0.25, repetition=0.012, wander=0.0, wander_s=0.08,
    frame=0.008, joint_spread=0.0, tail_df=1e6,
)  # fmt: skip
NOTHING = KeypointNoise(
    constant=0.0, pose=0.0, pose_length=0.25, repetition=0.0, wander=0.0, wander_s=0.08,
    frame=0.0, joint_spread=0.0, tail_df=1e6,
)  # fmt: skip
JUDGED = (Draw("m1000", MEASURED, 1000), Draw("m1001", MEASURED, 1001))
EASIER = Draw("clean1000", NOTHING, 1000)
HARDER = Draw("old1000", EARLIER, 1000)
N_CHOICES = 5
PROTOCOLS = (
    "general", "general harder", "general easier",
    "personal", "whole", "first", "updated", "elsewhere", "harder", "easier",
)  # fmt: skip


@dataclass(frozen=True)
class Fold:
    """What a model of the other people learned that a model of other movements may use."""

    fitted: learning.Fitted
    spread: Array


@dataclass(frozen=True)
class Cell:
    """One movement in one view, everybody judged by models of the others."""

    scored: dict[str, Scored]
    """By protocol."""
    folds: dict[str, Fold]
    """By person left out."""


def general_scores(people: list[Person], model: detector.GeneralModel) -> Scored:
    parts = []
    for person in people:
        measures = learning.general_measures(person.course, model)
        odds = model.decision.log_odds(measures)
        images = detector.general_columns(person.course, model)
        trees = [detector.tree_measures(model.trees, columns)[:, 0] for columns in images]
        linear = [model.linear.log_odds(columns) for columns in images]
        depths = [model.forest.mean_value(c.astype(np.float32)) for c in images]
        scores = {
            "supervised": measures[:, 0],
            "trees": np.mean(trees, axis=0),
            "linear": np.mean(linear, axis=0),
            "forest": -np.max(depths, axis=0),
        }
        names = np.full(len(odds), person.name)
        verdicts = verdicts_of(model.decision, odds)
        numbers = np.arange(len(odds))
        parts.append(Scored(names, person.faulty, scores, verdicts, numbers, person.whole))
    return joined(parts)


def verdicts_of(decision: detector.Decision, odds: Array) -> Array:
    """0 normal, 1 unsure, 2 faulty."""
    verdicts: Array = (odds >= decision.normal_below).astype(int) + (odds > decision.faulty_above)
    return verdicts


def personal_scores(held: learning.Held, model: detector.PersonalModel) -> Scored:
    distances = detector.distance_measures(held.found, learning.own_of(held, None))
    scores = {
        "distance": distances[:, 0],
        "distance beside own": distances[:, 0] - distances[:, 3] / 2.0,
        "DTW": distances[:, 2],
        "tempo alone": np.abs(held.found.columns[:, -2]),
        "start alone": np.square(held.found.by_phase[:, 0]).mean(axis=1),
    }
    if model.axes and model.trees and model.forest:
        columns = learning.columns_of(held, model.axes).astype(np.float32)
        measures = detector.tree_measures(model.trees, columns)
        scores["forest"] = -model.forest.mean_value(columns)
        scores["DTW and forest"] = standard(scores["DTW"]) + standard(scores["forest"])
    else:
        measures = distances
    odds = model.decision.log_odds(measures)
    # People are compared by what their models' trees say, before each is turned into odds.
    scores["supervised"] = measures[:, 0] if model.trees else odds
    verdicts = verdicts_of(model.decision, odds)
    return Scored(held.person, held.faulty, scores, verdicts, held.repetition, held.whole)


def updated_scores(person: Person, model: detector.PersonalModel) -> Scored:
    """As `form_anomalies` goes on: what is found normal joins the baseline, up to a number.

    The first three whole correct repetitions begin it; then come the other correct ones, then the
    faulty ones, in the order recorded.
    """
    assert model.axes
    assert model.trees
    correct = np.flatnonzero(~person.faulty & person.whole)
    kept, later = list(correct[:3]), correct[3:]
    rows = np.concatenate([later, np.flatnonzero(person.faulty & person.whole)])
    odds, scores = np.zeros(len(rows)), np.zeros(len(rows))
    references = None
    for index, row in enumerate(rows):
        if references is None:
            course = person.course[np.array(kept)]
            own = features.closer_image(course, course.trajectory[0])
            references = detector.references_of(own, course.tempo, model)
        held = detector.hold(person.course[row : row + 1], references)
        found = features.differences(held, model.spread)
        columns = detector.tree_columns(found, references.own[None], model.axes)
        measures = detector.tree_measures(model.trees, columns)
        odds[index], scores[index] = model.decision.log_odds(measures)[0], measures[0, 0]
        if odds[index] < model.decision.normal_below:
            kept, references = newest([*kept, row]), None
    names = np.full(len(rows), person.name)
    verdicts = verdicts_of(model.decision, odds)
    is_whole = np.ones(len(rows), bool)
    return Scored(names, person.faulty[rows], {"supervised": scores}, verdicts, rows, is_whole)


def standard(values: Array) -> Array:
    scaled: Array = (values - values.mean()) / values.std()
    return scaled


def joined(parts: list[Scored]) -> Scored:
    names = parts[0].scores
    return Scored(
        np.concatenate([p.subject for p in parts]),
        np.concatenate([p.faulty for p in parts]),
        {name: np.concatenate([p.scores[name] for p in parts]) for name in names},
        np.concatenate([p.verdict for p in parts]),
        np.concatenate([p.repetition for p in parts]),
        np.concatenate([p.whole for p in parts]),
    )


def held_choices(
    person: Person, spread: Array, rng: np.random.Generator, *, first: bool = False,
    any_recorded: bool = False, references_from: Person | None = None,
) -> list[learning.Held]:  # fmt: skip
    chosen = learning.references_of(person, N_CHOICES, rng, first=first, any_recorded=any_recorded)
    return learning.hold_person(person, chosen, spread, references_from)


def judge_cell(draws: dict[str, list[Person]], effort: Effort) -> Cell:
    """Everybody in turn is left out of training and judged."""
    training = [draws[draw.name] for draw in learning.TRAINING_DRAWS]
    judged = [draws[draw.name] for draw in JUDGED]
    parts: dict[str, list[Scored]] = {name: [] for name in PROTOCOLS}
    folds = {}
    for index, name in enumerate(person.name for person in judged[0]):
        rng = np.random.default_rng(11)
        others = [[p for p in people if p.name != name] for people in training]
        own = [people[index] for people in judged]
        general = learning.fit_general(others, effort)
        parts["general"].append(general_scores(own, general))
        for label, draw in (("general harder", HARDER), ("general easier", EASIER)):
            parts[label].append(general_scores([draws[draw.name][index]], general))
        fitted = learning.fit_personal(others, effort, rng)
        model = fitted.model
        spread = model.spread
        folds[name] = Fold(fitted, spread)
        held = {
            "personal": [h for p in own for h in held_choices(p, spread, rng, any_recorded=True)],
            "whole": [h for p in own for h in held_choices(p, spread, rng)],
            "first": [h for p in own for h in held_choices(p, spread, rng, first=True)],
            "elsewhere": [
                h
                for p, other in zip(own, own[::-1], strict=True)
                for h in held_choices(p, spread, rng, references_from=other)
            ],
            "harder": held_choices(draws[HARDER.name][index], spread, rng),
            "easier": held_choices(draws[EASIER.name][index], spread, rng),
        }
        for protocol, found in held.items():
            parts[protocol].append(personal_scores(learning.gather(found), model))
        parts["updated"] += [updated_scores(person, model) for person in own]
    return Cell({name: joined(found) for name, found in parts.items()}, folds)


def by_distance(
    cells: dict[tuple[str, str], Cell], people: dict[tuple[str, str], list[list[Person]]]
) -> Cells:
    """Judged as an exercise without training: distances only, learned from other movements."""
    found = {}
    for (movement, view), cell in cells.items():
        parts = []
        for index, name in enumerate(cell.folds):
            rng = np.random.default_rng(11)
            others = [c.folds[name] for (m, v), c in cells.items() if m != movement and v == view]
            spread = np.mean([fold.spread for fold in others], axis=0)
            decision = learning.decide_by_distance([fold.fitted for fold in others])
            model = detector.PersonalModel(spread, decision)
            held = [
                h
                for people in people[movement, view]
                for h in held_choices(people[index], spread, rng)
            ]
            parts.append(personal_scores(learning.gather(held), model))
        found[movement, view] = joined(parts)
    return found


def milliseconds(person: Person) -> tuple[float, float]:
    """Cost of judging one repetition with shipped models, personal and general; best of several."""
    model = load_models().select("squat", "front")
    repetitions = [
        RepetitionFeatures(
            trajectory * features.UNITS,
            np.array([np.exp(tempo[0]), tempo[1], 0.5, 0.5]),
            np.linspace(0.0, np.exp(tempo[0]), 50),
            swapped=False,
        )
        for trajectory, tempo in zip(person.course.trajectory, person.course.tempo, strict=True)
    ]
    references = detector.learn_references(repetitions[:3], model)

    def cost_ms(given: detector.References | None) -> float:
        judge = partial(detector.judge, repetitions[4], given, model)
        return min(timeit.repeat(judge, number=20, repeat=10)) / 20 * 1e3

    return cost_ms(references), cost_ms(None)


def hours_of(recorded: dict[str, Array]) -> dict[str, float]:
    """Recorded time of all correct repetitions of a movement."""
    hours: dict[str, float] = {}
    for key, points in recorded.items():
        movement, _, _, form = key.split("/")
        if form == "correct":
            hours[movement] = hours.get(movement, 0.0) + len(points) / 50.0 / 3600.0
    return hours


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared" / "data")
    parser.add_argument("--report", type=Path, default=REPORT)
    parser.add_argument("--cache", type=Path, help="keeps what was projected and measured")
    parser.add_argument("--views", nargs="+", choices=VIEWS, default=list(VIEWS))
    parser.add_argument("--quick", action="store_true", help="a smoke run, not for the report")
    arguments = parser.parse_args()
    effort = Effort(n_trees=15, n_isolating=10, n_draws=1) if arguments.quick else Effort()
    started = time.perf_counter()
    recorded = read_recorded(arguments.data)
    whole = whole_repetitions(recorded)
    wanted = (*learning.TRAINING_DRAWS, *JUDGED, HARDER, EASIER)
    draws = {d.name: kept_draw(recorded, d, arguments.cache) for d in wanted}
    cells, judged = {}, {}
    for view in arguments.views:
        for movement in sorted({key.split("/")[0] for key in recorded}):
            people = {
                n: learning.people_of(data, whole, movement, view) for n, data in draws.items()
            }
            judged[movement, view] = [people[draw.name] for draw in JUDGED]
            cells[movement, view] = judge_cell(people, effort)
            print(f"{movement} {view}: {time.perf_counter() - started:.0f} s", flush=True)
    results: dict[str, Cells] = {
        protocol: {name: cell.scored[protocol] for name, cell in cells.items()}
        for protocol in PROTOCOLS
    }
    results["untrained"] = by_distance(cells, judged)
    machine = (
        f"{platform.machine()}, {os.cpu_count()} CPU cores, Python {platform.python_version()}, "
        f"NumPy {np.__version__}, scikit-learn {sklearn.__version__}; other work on the machine "
        f"(load average {os.getloadavg()[2]:.1f} over 15 minutes)"
    )
    person = judged["deep_squat", arguments.views[0]][0][0]
    write_report(arguments.report, results, hours_of(recorded), milliseconds(person), machine)


if __name__ == "__main__":
    main()
