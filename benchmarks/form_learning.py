"""Fits the models of `form_anomaly_detector` on recorded people who did movements right and wrong.

Used by `form_evaluation.py`, which leaves the judged person out, and `train_form_models.py`, which
leaves out nobody.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg
from form_linear import fit_linear
from form_recordings import MEASURED, Draw, Repetitions, Whole
from sklearn.ensemble import ExtraTreesClassifier, IsolationForest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from pose_analyzer import form_anomaly_detector as detector
from pose_analyzer import form_anomaly_features as features
from pose_analyzer.form_trees import Trees

Array = np.ndarray

TURN_DEG = 7.0
TRAINING_DRAWS = tuple(Draw(f"m{seed}", MEASURED, seed, TURN_DEG) for seed in (1, 2, 3, 4))
"""Models are trained with the person turned a little, and errors drawn several times."""
N_REFERENCES = 3
N_AXES = 16
N_INNER_FOLDS = 3
# Of the correct repetitions of people not seen so many may be called faulty, and of the faulty so
# many normal; the band between the two is left undecided.
MAX_FALSE_ALARMS, MAX_MISSES = 0.01, 0.05
# Without references, whole repetitions alone decide. Other people's exceed a limit that few people
# set: three in a thousand there become about one in a hundred.
MAX_GENERAL_FALSE_ALARMS = 0.003


@dataclass(frozen=True)
class Effort:
    n_trees: int = 60
    n_isolating: int = 20
    min_leaf: int = 5
    min_general_leaf: int = 10
    """More, since every repetition is seen with each draw of errors, and mirrored."""
    n_draws: int = 2
    """Choices of references per person and draw of keypoint errors."""


def course_of(data: Repetitions, rows: Array) -> features.Course:
    tempo = np.column_stack([np.log(data.summary[rows, 0]), data.summary[rows, 1]])
    plain, mirrored = (
        np.asarray(values[rows], np.float64) / features.UNITS
        for values in (data.trajectory, data.mirrored)
    )
    return features.Course(plain, mirrored, tempo)


@dataclass(frozen=True)
class Person:
    """One person's repetitions of one movement in one view, with one draw of keypoint errors."""

    name: str
    course: features.Course
    faulty: Array
    whole: Array
    """Which repetitions were recorded from rest to rest."""

    def whole_only(self) -> "Person":
        rows = self.whole
        return Person(self.name, self.course[rows], self.faulty[rows], self.whole[rows])


def people_of(data: Repetitions, whole: Whole, movement: str, view: str) -> list[Person]:
    cell = (data.movement == movement) & (data.view == view)
    found = []
    for name in np.unique(data.subject[cell]):
        rows = np.flatnonzero(cell & (data.subject == name))
        course = course_of(data, rows)
        found.append(Person(str(name), course, data.faulty[rows], whole[movement, str(name)]))
    return found


def spread_of(people: Sequence[Person]) -> Array:
    """Sd of correct repetitions about their person's mean, half shrunk to its mean over phases."""
    residuals = []
    for person in people:
        course = person.course[~person.faulty]
        own = features.closer_image(course, course.trajectory[0])
        residuals.append(own - own.mean(axis=0))
    variance = np.concatenate(residuals).var(axis=0)
    spread: Array = np.sqrt((variance + variance.mean(axis=0)) / 2.0)
    return spread


@dataclass(frozen=True)
class Held:
    """Repetitions held against a person's references, and those against each other."""

    found: features.Differences
    own: features.Differences
    group: Array
    """Which `own` belong to each repetition: rows `3 * group` and the two after."""
    faulty: Array
    person: Array
    repetition: Array
    whole: Array


def references_of(
    person: Person,
    n: int,
    rng: np.random.Generator,
    *,
    first: bool = False,
    any_recorded: bool = False,
) -> list[tuple[Array, Array]]:
    """References and the remaining repetitions, drawn `n` times; or simply the first ones.

    Only whole repetitions become references, unless `any_recorded`.
    """
    eligible = np.flatnonzero(~person.faulty & (person.whole | any_recorded))
    orders = [eligible] if first else [rng.permutation(eligible) for _ in range(n)]
    everything = np.arange(len(person.faulty))
    chosen = [order[:N_REFERENCES] for order in orders]
    return [(references, np.setdiff1d(everything, references)) for references in chosen]


def hold_person(
    person: Person,
    chosen: list[tuple[Array, Array]],
    spread: Array,
    references_from: Person | None = None,
) -> list[Held]:
    """Differences of a person's repetitions, for each choice of references."""
    found = []
    for references, rest in chosen:
        course = (references_from or person).course[references]
        own = features.closer_image(course, course.trajectory[0])
        own_held, weights = features.leave_one_out(own, course.tempo, spread)
        prepared = detector.References(
            features.Course(own, own, course.tempo), weights, np.zeros((2, 0))
        )
        held = detector.hold(person.course[rest], prepared)
        found.append(
            Held(
                features.differences(held, spread),
                features.differences(own_held, spread),
                np.zeros(len(rest), int),
                person.faulty[rest],
                np.full(len(rest), person.name),
                rest,
                person.whole[rest],
            )
        )
    return found


def joined(parts: Sequence[features.Differences]) -> features.Differences:
    names = features.Differences.__dataclass_fields__
    columns = {name: np.concatenate([getattr(p, name) for p in parts]) for name in names}
    return features.Differences(**columns)


def gather(parts: Sequence[Held]) -> Held:
    return Held(
        joined([p.found for p in parts]),
        joined([p.own for p in parts]),
        np.concatenate([np.full(len(p.faulty), i) for i, p in enumerate(parts)]),
        np.concatenate([p.faulty for p in parts]),
        np.concatenate([p.person for p in parts]),
        np.concatenate([p.repetition for p in parts]),
        np.concatenate([p.whole for p in parts]),
    )


def chosen_rows(found: features.Differences, rows: Array) -> features.Differences:
    names = features.Differences.__dataclass_fields__
    return features.Differences(**{name: getattr(found, name)[rows] for name in names})


def fault_axes(fine: Array, faulty: Array) -> detector.FaultAxes:
    """Generalised eigenvectors of second moments, in the space of principal components.

    For Gaussians without mean the sum of gain times square is the log likelihood ratio. A mean
    difference would not do: people act the same fault in opposite directions.
    """
    basis = np.linalg.svd(fine, full_matrices=False)[2][:N_AXES].T
    placed = fine @ basis
    moments = []
    for rows in (placed[faulty], placed[~faulty]):
        moment = rows.T @ rows / len(rows)
        moments.append(0.9 * moment + 0.1 * np.trace(moment) / N_AXES * np.eye(N_AXES))
    ratio, vectors = scipy.linalg.eigh(*moments)
    return detector.FaultAxes(basis @ vectors, 1.0 - 1.0 / ratio)


def as_arrays(children: Sequence[tuple[Array, Array, Array, Array, Array]]) -> Trees:
    """Pad trees (feature, threshold, left, right, value) to one size; leaves lead to themselves."""
    n_nodes = max(len(tree[0]) for tree in children)
    kinds = (np.int16, np.float32, np.int16, np.int16, np.float32)
    padded = [np.zeros((len(children), n_nodes), kind) for kind in kinds]
    depth = 0
    for row, (feature, threshold, left, right, value) in enumerate(children):
        itself = np.arange(len(feature))
        leaf = left < 0
        levels = np.zeros(len(feature), int)
        for node in itself[~leaf]:
            levels[[left[node], right[node]]] = levels[node] + 1
        depth = max(depth, int(levels.max()))
        columns = (
            np.where(leaf, 0, feature), np.where(leaf, 0.0, threshold),
            np.where(leaf, itself, left), np.where(leaf, itself, right), value,
        )  # fmt: skip
        for array, column in zip(padded, columns, strict=True):
            array[row, : len(column)] = column
    return Trees(*padded, depth)


def supervised_trees(columns: Array, faulty: Array, n_trees: int, min_leaf: int) -> Trees:
    model = ExtraTreesClassifier(
        n_estimators=n_trees, min_samples_leaf=min_leaf, max_features=0.04,
        max_depth=14, class_weight="balanced", random_state=0,
    ).fit(columns.astype(np.float32), faulty)  # fmt: skip
    return as_arrays(
        [
            (t.feature, t.threshold, t.children_left, t.children_right,
             t.value[:, 0, 1] / t.value[:, 0].sum(axis=1))
            for t in (estimator.tree_ for estimator in model.estimators_)
        ]
    )  # fmt: skip


def isolating_trees(columns: Array, effort: Effort) -> Trees:
    """Isolation forest (Liu, Ting & Zhou 2008): depth, and what a bushy leaf would still need."""
    model = IsolationForest(
        n_estimators=effort.n_isolating,
        max_samples=min(detector.ISOLATION_SAMPLES, len(columns)),
        random_state=0,
    ).fit(columns.astype(np.float32))
    found = []
    for estimator in model.estimators_:
        t = estimator.tree_
        levels = np.zeros(t.node_count)
        for node in range(t.node_count):
            if t.children_left[node] >= 0:
                levels[[t.children_left[node], t.children_right[node]]] = levels[node] + 1.0
        n = t.n_node_samples.astype(float)
        further = np.where(n > 2, 2.0 * (np.log(np.maximum(n - 1.0, 1.0)) + 0.5772), n - 1.0)
        further -= np.where(n > 2, 2.0 * (n - 1.0) / n, 0.0)
        shape = (t.feature, t.threshold, t.children_left, t.children_right)
        found.append((*shape, levels + further))
    return as_arrays(found)


def decide(
    measures: Array, faulty: Array, person: Array, max_false_alarms: float = MAX_FALSE_ALARMS
) -> detector.Decision:
    """Logistic regression in which people and both classes weigh alike; and where to decide."""
    weight = np.zeros(len(faulty))
    for name in np.unique(person):
        for kind in (False, True):
            rows = (person == name) & (faulty == kind)
            weight[rows] = 1.0 / max(rows.sum(), 1)
    scaler = StandardScaler().fit(measures)
    model = LogisticRegression(C=1.0, max_iter=1000)
    model.fit(scaler.transform(measures), faulty, sample_weight=weight * len(faulty) / weight.sum())
    weights = model.coef_[0] / scaler.scale_
    bias = float(model.intercept_[0] - weights @ scaler.mean_)
    odds = measures @ weights + bias
    correct_end = float(np.quantile(odds[~faulty], 1.0 - max_false_alarms))
    faulty_end = float(np.quantile(odds[faulty], MAX_MISSES))
    # Where there is a gap between the two, the upper half of it is called faulty.
    normal_below = min(correct_end, faulty_end)
    faulty_above = max(correct_end, (correct_end + faulty_end) / 2.0)
    return detector.Decision(weights, bias, normal_below, faulty_above)


def inner_folds(person: Array) -> list[Array]:
    """Rows to judge, people apart, by models of all others."""
    names = np.unique(person)
    return [np.isin(person, names[i::N_INNER_FOLDS]) for i in range(N_INNER_FOLDS)]


def own_of(held: Held, axes: detector.FaultAxes | None) -> Array:
    """For each repetition what its references get when held against each other."""
    base = detector.base_measures(held.own, axes)
    each = base.reshape(-1, N_REFERENCES, base.shape[1])
    own: Array = np.stack([each.mean(axis=1), each.max(axis=1)], axis=1)[held.group]
    return own


def columns_of(held: Held, axes: detector.FaultAxes) -> Array:
    return detector.tree_columns(held.found, own_of(held, axes), axes)


def tree_measures(held: Held, model: detector.PersonalModel) -> Array:
    assert model.axes
    assert model.trees
    return detector.tree_measures(model.trees, columns_of(held, model.axes))


_UNDECIDED = detector.Decision(np.zeros(1), 0.0, 0.0, 0.0)


def learned(held: Held, spread: Array, effort: Effort) -> detector.PersonalModel:
    """Axes, trees and forest, without a decision yet."""
    axes = fault_axes(held.found.fine, held.faulty)
    columns = columns_of(held, axes)
    trees = supervised_trees(columns, held.faulty, effort.n_trees, effort.min_leaf)
    forest = isolating_trees(columns[~held.faulty], effort)
    return detector.PersonalModel(spread, _UNDECIDED, axes, trees, forest)


def only(held: Held, rows: Array) -> Held:
    return replace(
        held, found=chosen_rows(held.found, rows), group=held.group[rows],
        faulty=held.faulty[rows], person=held.person[rows], repetition=held.repetition[rows],
        whole=held.whole[rows],
    )  # fmt: skip


@dataclass(frozen=True)
class Fitted:
    """A model and, for exercises without training, distances of those it was fitted on."""

    model: detector.PersonalModel
    distances: Array
    faulty: Array
    person: Array


def fit_personal(
    draws: Sequence[Sequence[Person]], effort: Effort, rng: np.random.Generator
) -> Fitted:
    """From people seen with several draws of keypoint errors.

    From all repetitions, so that it learns how odd a correct one may be; the limits too, as a live
    repetition may begin in mid-movement just as well.
    """
    spread = np.mean([spread_of(people) for people in draws], axis=0)
    parts = []
    for person in (person for people in draws for person in people):
        chosen = references_of(person, effort.n_draws, rng, any_recorded=True)
        parts += hold_person(person, chosen, spread)
    held = gather(parts)
    measures = np.zeros((len(held.faulty), 1))
    for rows in inner_folds(held.person):
        model = learned(only(held, ~rows), spread, effort)
        measures[rows] = tree_measures(only(held, rows), model)
    decision = decide(measures, held.faulty, held.person)
    model = replace(learned(held, spread, effort), decision=decision)
    distances = detector.distance_measures(held.found, own_of(held, None))
    return Fitted(model, distances, held.faulty, held.person)


def fit_general(draws: Sequence[Sequence[Person]], effort: Effort) -> detector.GeneralModel:
    """From whole repetitions by themselves; mirror images count as repetitions too."""
    draws = [[person.whole_only() for person in people] for people in draws]
    everybody = [person for people in draws for person in people]
    names = np.concatenate([np.full(len(p.faulty), p.name) for p in everybody])
    faulty = np.concatenate([p.faulty for p in everybody])

    def learn(wanted: Array) -> detector.GeneralModel:
        people = [[p for p in people if p.name in wanted] for people in draws]
        seen = [p for one in people for p in one]
        trajectory = np.concatenate([p.course.trajectory for p in seen])
        tempo = np.concatenate([p.course.tempo for p in seen])
        mirrored = np.concatenate([p.course.mirrored for p in seen])
        columns = np.concatenate(
            [features.general_features(image, tempo) for image in (trajectory, mirrored)]
        )
        once = np.concatenate([p.faulty for p in seen])
        twice = np.tile(once, 2)
        return detector.GeneralModel(
            trajectory[~once].mean(axis=0),
            supervised_trees(columns, twice, effort.n_trees, effort.min_general_leaf),
            isolating_trees(columns[~twice], effort),
            fit_linear(columns, twice, [[(p.course, p.faulty) for p in one] for one in people]),
            _UNDECIDED,
        )

    measures = np.zeros((len(faulty), 1))
    for rows in inner_folds(names):
        model = learn(np.unique(names[~rows]))
        measures[rows] = np.concatenate(
            [general_measures(p.course, model) for p in everybody if p.name in names[rows]]
        )
    decision = decide(measures, faulty, names, MAX_GENERAL_FALSE_ALARMS)
    return replace(learn(np.unique(names)), decision=decision)


def general_measures(course: features.Course, model: detector.GeneralModel) -> Array:
    return detector.general_measures(detector.general_columns(course, model), model)


def decide_by_distance(fitted: Sequence[Fitted]) -> detector.Decision:
    """For exercises without training: distances alone, pooled over what there is."""
    return decide(
        np.concatenate([f.distances for f in fitted]),
        np.concatenate([f.faulty for f in fitted]),
        np.concatenate([f.person for f in fitted]),
    )
