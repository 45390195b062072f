"""Whether faulty repetitions of people the model has never seen are told from correct ones.

The recorded people of UI-PRMD are projected to a front and a side camera, with errors as detectors
make them. Two protocols, every person judged by models of the other six: without calibration, and
with three of the person's own correct repetitions as reference.

Run: ``python benchmarks/form_evaluation.py --data $SHARED_DATA`` (needs scikit-learn). Add
``--quick`` for fewer trees, draws and noise seeds.
"""

import argparse
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import sklearn
from angle_accuracy import NOISE_SD, OFFSET_SD, STATURE_PX, project
from form_tables import (
    GROUPS,
    TEMPLATE,
    Cells,
    Scored,
    cell_table,
    goal_table,
    importance_table,
    people_table,
    summary_table,
)
from sklearn.ensemble import ExtraTreesClassifier, IsolationForest

from pose_analyzer.repetition_features import (
    SIGNAL_NAMES,
    SUMMARY_NAMES,
    RepetitionFeatures,
    measure_repetition,
    mirror,
)

Array = np.ndarray

REPOSITORY = Path(__file__).resolve().parents[1]
REPORT = REPOSITORY / "docs" / "reports" / "form_evaluation.md"
VIEWS = {"front": 0.0, "side": 90.0}
FRAME_STEP, FRAME_S = 2, 0.04
TURNS_DEG = (0.0, 10.0, -10.0)
N_REFERENCES = 3
N_BINS = 5


@dataclass(frozen=True)
class Effort:
    n_trees: int
    n_train_seeds: int
    n_train_draws: int
    n_test_draws: int
    n_bootstraps: int


FULL, QUICK = Effort(200, 3, 2, 5, 500), Effort(40, 1, 1, 2, 50)


@dataclass(frozen=True)
class Repetitions:
    """All repetitions with one draw of keypoint errors; first axis: repetition in a view."""

    movement: Array
    subject: Array
    view: Array
    faulty: Array
    trajectory: Array
    mirrored: Array
    tempo: Array


def observe(recorded: dict[str, Array], seed: int, *, offset_of_person: bool) -> Repetitions:
    """Project and measure; a keypoint's offset lasts a repetition, or a person's whole session.

    Seed 0, which is judged, stands straight in front and at the side; the others turn a little.
    """
    turn_deg = TURNS_DEG[seed % len(TURNS_DEG)]
    rng = np.random.default_rng(seed)
    subjects = sorted({key.split("/")[1] for key in recorded})
    sessions = {
        (s, v): rng.normal(0.0, OFFSET_SD * STATURE_PX, (1, 17, 2)) for s in subjects for v in VIEWS
    }
    labels, found = [], []
    for key, points in recorded.items():
        movement, subject, _, form = key.split("/")
        points_mm = points[::FRAME_STEP].astype(np.float64)
        for view, yaw in VIEWS.items():
            yaw_deg = yaw + turn_deg
            clean = project(points_mm, yaw_deg if subjects.index(subject) % 2 else -yaw_deg)
            offset = rng.normal(0.0, OFFSET_SD * STATURE_PX, (1, 17, 2))
            offset = sessions[subject, view] if offset_of_person else offset
            keypoints = clean + offset + rng.normal(0.0, NOISE_SD * STATURE_PX, clean.shape)
            times_s = np.arange(len(clean)) * FRAME_S
            found.append(measure_repetition(times_s, keypoints, np.full(clean.shape[:2], 0.9)))
            labels.append((movement, subject, view, form == "incorrect"))
    movement, subject, view, faulty = (np.array(column) for column in zip(*labels, strict=True))
    return Repetitions(movement, subject, view, faulty, *stack(found))


def stack(found: list[RepetitionFeatures]) -> tuple[Array, Array, Array]:
    """Trajectories and their mirror images in units of about one, and tempo."""
    unit = np.where([name.endswith("_deg") for name in SIGNAL_NAMES], 30.0, 0.1)
    plain = np.stack([f.trajectory for f in found]) / unit
    mirrored = np.stack([mirror(f).trajectory for f in found]) / unit
    summary = np.stack([f.summary[: SUMMARY_NAMES.index("travel")] for f in found])
    tempo = np.column_stack([np.log(summary[:, 0]), summary[:, 1]])
    return plain, mirrored, tempo


def bins(values: Array) -> Array:
    parts = np.array_split(values, N_BINS, axis=1)
    return np.stack([part.mean(axis=1) for part in parts], axis=1)


def extremes(trajectory: Array) -> Array:
    ends = (trajectory[:, 0], trajectory[:, -1])
    return np.stack([trajectory.max(1), trajectory.min(1), np.ptp(trajectory, axis=1), *ends], 1)


def flat(*parts: Array) -> Array:
    """Features side by side; signals stay the fastest axis, which `group_columns` relies on."""
    return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)


def absolute_features(data: Repetitions, rows: Array) -> Array:
    """Trajectory as it is and from its own start, which takes out where keypoints always lie."""
    trajectory = data.trajectory[rows]
    moved = trajectory - trajectory[:, :3].mean(axis=1, keepdims=True)
    sampled = (trajectory[:, ::3], moved[:, 3::3], bins(moved), extremes(trajectory))
    return flat(*sampled, data.tempo[rows])


def swapped(data: Repetitions) -> Repetitions:
    return replace(data, trajectory=data.mirrored, mirrored=data.trajectory)


def oriented(data: Repetitions, rows: Array, target: Array) -> Array:
    """Each trajectory, or its mirror image where that is closer to the target."""
    plain, mirrored = data.trajectory[rows], data.mirrored[rows]
    closer = ((mirrored - target) ** 2).mean((1, 2)) < ((plain - target) ** 2).mean((1, 2))
    return np.where(closer[:, None, None], mirrored, plain)


def relative_features(
    data: Repetitions, references: Array, rows: Array, spread: Array
) -> tuple[Array, Array]:
    """How repetitions differ from a person's references; and the plain distance.

    Differences are scaled by `spread`, the sd between correct repetitions of one (other) person.
    """
    own = oriented(data, references, data.trajectory[references[0]])
    trajectory = oriented(data, rows, own.mean(axis=0))
    difference = (trajectory - own.mean(axis=0)) / spread
    # From their own means over time, where keypoints that always lie beside the joint cancel.
    own_change = own - own.mean(axis=1, keepdims=True)
    change = trajectory - trajectory.mean(axis=1, keepdims=True)
    shifted = (change - own_change.mean(axis=0)) / spread
    start = difference[:, :5].mean(axis=1, keepdims=True)
    placed, placed_totals = distances(trajectory, own, spread)
    moved, moved_totals = distances(change, own_change, spread)
    range_change = extremes(trajectory) - extremes(own).mean(axis=0)
    tempo = data.tempo[rows] - data.tempo[references].mean(axis=0)
    by_phase = (difference, np.abs(difference), difference - start, shifted, np.abs(shifted))
    body = (difference[:, ::3], *(bins(d) for d in by_phase), range_change, placed, moved)
    totals = np.column_stack([placed_totals, moved_totals])
    return flat(*body, totals, tempo), placed_totals[:, 0]


def distances(trajectory: Array, own: Array, spread: Array) -> tuple[Array, Array]:
    """Per signal, and over all: from the references' mean, from the nearest, against scatter."""
    mean = own.mean(axis=0)
    from_mean = np.sqrt((((trajectory - mean) / spread) ** 2).mean(axis=1))
    nearest = np.min([np.sqrt((((trajectory - o) / spread) ** 2).mean(1)) for o in own], axis=0)
    scatter = np.sqrt((((own - mean) / spread) ** 2).mean(axis=(0, 1)))
    relative = np.log(from_mean / (0.5 + 0.5 * scatter))
    totals = np.column_stack([from_mean.mean(axis=1), nearest.mean(axis=1)])
    return np.stack([from_mean, nearest, relative], axis=1), totals


def person_spread(data: Repetitions, rows: Array) -> Array:
    """Sd of correct repetitions about their person's mean, half shrunk to its mean over phases."""
    correct = rows[~data.faulty[rows]]
    residuals = []
    for subject in np.unique(data.subject[correct]):
        own = data.trajectory[correct[data.subject[correct] == subject]]
        residuals.append(own - own.mean(axis=0))
    variance = np.concatenate(residuals).var(axis=0)
    spread: Array = np.sqrt((variance + variance.mean(axis=0)) / 2.0)
    return spread


def draws(
    data: Repetitions, rows: Array, n: int, rng: np.random.Generator
) -> list[tuple[Array, Array]]:
    """References and the remaining repetitions of one person, drawn `n` times."""
    found = []
    for _ in range(n):
        correct = rng.permutation(rows[~data.faulty[rows]])
        rest = np.concatenate([correct[N_REFERENCES:], rows[data.faulty[rows]]])
        found.append((correct[:N_REFERENCES], rest))
    return found


def trees(effort: Effort, seed: int) -> ExtraTreesClassifier:
    return ExtraTreesClassifier(
        n_estimators=effort.n_trees, min_samples_leaf=2, max_features=0.05,
        class_weight="balanced", random_state=seed,
    )  # fmt: skip


def forest(effort: Effort, seed: int) -> IsolationForest:
    return IsolationForest(n_estimators=effort.n_trees // 2, random_state=seed)


Fold = tuple[Array, Array, dict[str, Array]]


def uncalibrated(
    test: Repetitions, train: list[Repetitions], effort: Effort
) -> Callable[..., Fold]:
    def judge(cell: Array, subject: str) -> Fold:
        others, own = cell[test.subject[cell] != subject], cell[test.subject[cell] == subject]
        # Noise may turn the choice of the leading leg, so that both mirror images are learned.
        seen = [image for data in train for image in (data, swapped(data))]
        known = np.concatenate([absolute_features(data, others) for data in seen])
        faulty = np.tile(test.faulty[others], len(seen))
        unknown = absolute_features(test, own)
        model = trees(effort, 0).fit(known, faulty)
        scores = {
            "forest": -forest(effort, 0).fit(known[~faulty]).score_samples(unknown),
            "supervised": model.predict_proba(unknown)[:, 1],
        }
        return np.full(len(own), subject), test.faulty[own], scores

    return judge


def personal(test: Repetitions, train: list[Repetitions], effort: Effort) -> Callable[..., Fold]:
    def judge(cell: Array, subject: str) -> Fold:
        rng = np.random.default_rng(11)
        others, own = cell[test.subject[cell] != subject], cell[test.subject[cell] == subject]
        spread = np.mean([person_spread(data, others) for data in train], axis=0)
        known, faulty = [], []
        for data in train:
            for other in np.unique(data.subject[others]):
                rows = others[data.subject[others] == other]
                for references, rest in draws(data, rows, effort.n_train_draws, rng):
                    known.append(relative_features(data, references, rest, spread)[0])
                    faulty.append(data.faulty[rest])
        known_features, labels = np.concatenate(known), np.concatenate(faulty)
        model = trees(effort, 0).fit(known_features, labels)
        isolation = forest(effort, 0).fit(known_features[~labels])
        columns: dict[str, list[Array]] = {}
        truth = []
        for references, rest in draws(test, own, effort.n_test_draws, rng):
            features, distance = relative_features(test, references, rest, spread)
            truth.append(test.faulty[rest])
            found = {
                "distance": distance,
                "forest": -isolation.score_samples(features),
                "supervised": model.predict_proba(features)[:, 1],
                "tempo alone": np.abs(test.tempo[rest, 0] - test.tempo[references, 0].mean()),
                "start alone": start_distance(test, references, rest, spread),
            }
            for group in GROUPS:
                shuffled = shuffle(features, group_columns(group, features.shape[1]), rng)
                found[f"without {group}"] = model.predict_proba(shuffled)[:, 1]
            for name, values in found.items():
                columns.setdefault(name, []).append(values)
        truth_all = np.concatenate(truth)
        scores = {name: np.concatenate(parts) for name, parts in columns.items()}
        return np.full(len(truth_all), subject), truth_all, scores

    return judge


def start_distance(data: Repetitions, references: Array, rows: Array, spread: Array) -> Array:
    difference = data.trajectory[rows, 0] - data.trajectory[references, 0].mean(axis=0)
    distance: Array = np.sqrt(((difference / spread[0]) ** 2).mean(axis=1))
    return distance


def group_columns(group: str, n_columns: int) -> Array:
    """Columns of `relative_features` that speak of one part of the body, or of tempo."""
    n_body = n_columns - 6
    if group == "tempo":
        return np.array([n_columns - 2, n_columns - 1])
    signal = np.arange(n_body) % len(SIGNAL_NAMES)
    return np.flatnonzero(np.array([group in name for name in SIGNAL_NAMES])[signal])


def shuffle(features: Array, columns: Array, rng: np.random.Generator) -> Array:
    """Give the chosen columns of each row to another row, all of them together."""
    shuffled = features.copy()
    shuffled[:, columns] = features[rng.permutation(len(features))][:, columns]
    return shuffled


def evaluate(test: Repetitions, judge: Callable[..., Fold]) -> Cells:
    cells = {}
    for movement in np.unique(test.movement):
        for view in VIEWS:
            cell = np.flatnonzero((test.movement == movement) & (test.view == view))
            folds = [judge(cell, subject) for subject in np.unique(test.subject)]
            names = folds[0][2]
            scores = {name: np.concatenate([fold[2][name] for fold in folds]) for name in names}
            subject, faulty = (np.concatenate([fold[i] for fold in folds]) for i in (0, 1))
            cells[str(movement), view] = Scored(subject, faulty, scores)
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared" / "data")
    parser.add_argument("--report", type=Path, default=REPORT)
    parser.add_argument("--quick", action="store_true", help="a smoke run, not for the report")
    arguments = parser.parse_args()
    effort = QUICK if arguments.quick else FULL
    started = time.perf_counter()
    with np.load(arguments.data / "datasets" / "ui_prmd" / "coco17_3d_50hz.npz") as archive:
        recorded = dict(archive)
    seeds = range(1 + effort.n_train_seeds)
    test, *train = [observe(recorded, seed, offset_of_person=False) for seed in seeds]
    without = evaluate(test, uncalibrated(test, train, effort))
    print(f"no calibration: {time.perf_counter() - started:.0f} s", flush=True)
    own = evaluate(test, personal(test, train, effort))
    print(f"personal baseline: {time.perf_counter() - started:.0f} s", flush=True)
    steady, *steady_train = [observe(recorded, seed, offset_of_person=True) for seed in seeds]
    calm = evaluate(steady, personal(steady, steady_train, effort))
    report = TEMPLATE.format(
        effort=effort,
        without=summary_table(without, ("forest", "supervised"), effort.n_bootstraps),
        without_cells=cell_table(without, effort.n_bootstraps),
        own=summary_table(own, ("distance", "forest", "supervised"), effort.n_bootstraps),
        own_cells=cell_table(own, effort.n_bootstraps),
        people=people_table(own),
        calm=summary_table(calm, ("distance", "supervised"), effort.n_bootstraps),
        trivial=summary_table(own, ("tempo alone", "start alone"), effort.n_bootstraps),
        importance=importance_table(own),
        offset=100 * OFFSET_SD,
        noise=100 * NOISE_SD,
        machine=f"{platform.machine()}, {os.cpu_count()} CPU cores",
        versions=f"Python {platform.python_version()}, NumPy {np.__version__}, "
        f"scikit-learn {sklearn.__version__}",
        load=f"{os.getloadavg()[2]:.1f}",
        goals=goal_table(without, own, calm),
        seconds=time.perf_counter() - started,
    )
    arguments.report.write_text(report)
    print(report)


if __name__ == "__main__":
    main()
