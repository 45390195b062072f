"""Statistics, tables and text of the report that `form_evaluation.py` writes."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from angle_accuracy import table
from scipy.stats import rankdata

Array = np.ndarray

GROUPS = ("shoulder", "elbow", "hip", "knee", "ankle", "wrist", "trunk", "nose", "pelvis", "tempo")


@dataclass(frozen=True)
class Scored:
    """Held-out scores of one movement and view, higher where more likely faulty."""

    subject: Array
    faulty: Array
    scores: dict[str, Array]


Cells = dict[tuple[str, str], Scored]
"""By movement and view."""


def auc(faulty: Array, score: Array) -> float:
    """Area under the ROC, by ranks (Hanley & McNeil 1982)."""
    n_faulty = faulty.sum()
    above = rankdata(score)[faulty].sum() - n_faulty * (n_faulty + 1) / 2
    return float(above / (n_faulty * (~faulty).sum()))


def tpr_at(faulty: Array, score: Array, fpr: float) -> float:
    """Largest share of faults found with at most that share of correct repetitions flagged."""
    correct = np.sort(score[~faulty])[::-1]
    return float(np.mean(score[faulty] > correct[int(fpr * len(correct))]))


def carried_over(cell: Scored, fpr: float) -> tuple[float, float]:
    """TPR and FPR with each person's threshold taken from the other people's held-out scores."""
    score, flagged = cell.scores["supervised"], np.zeros(len(cell.faulty), bool)
    for subject in np.unique(cell.subject):
        own = cell.subject == subject
        flagged[own] = score[own] > np.quantile(score[~own & ~cell.faulty], 1.0 - fpr)
    return float(flagged[cell.faulty].mean()), float(flagged[~cell.faulty].mean())


Measure = Callable[[Array, Array], float]


def interval(cells: list[Scored], name: str, measure: Measure, n: int) -> str:
    """Mean over cells, with the 95% interval of drawing the people again (bootstrap)."""
    rng = np.random.default_rng(3)
    people = np.unique(cells[0].subject)
    rows = [{p: np.flatnonzero(cell.subject == p) for p in people} for cell in cells]
    means = []
    for _ in range(n):
        drawn = rng.choice(people, len(people))
        chosen = [np.concatenate([by_person[p] for p in drawn]) for by_person in rows]
        pairs = zip(cells, chosen, strict=True)
        means.append(np.mean([measure(c.faulty[i], c.scores[name][i]) for c, i in pairs]))
    value = np.mean([measure(cell.faulty, cell.scores[name]) for cell in cells])
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def tpr_1(faulty: Array, score: Array) -> float:
    return tpr_at(faulty, score, 0.01)


def tpr_5(faulty: Array, score: Array) -> float:
    return tpr_at(faulty, score, 0.05)


def cell_table(cells: Cells, n_bootstraps: int) -> str:
    rows = []
    for (movement, view), cell in cells.items():
        figures = [interval([cell], "supervised", m, n_bootstraps) for m in (auc, tpr_1, tpr_5)]
        found, false = carried_over(cell, 0.01)
        rows.append([movement, view, *figures, f"{found:.2f} / {false:.3f}"])
    header = [
        "movement",
        "view",
        "AUC",
        "TPR at 1% FPR",
        "TPR at 5% FPR",
        "carried over: TPR / FPR",
    ]
    return table(header, rows)


def summary_table(cells: Cells, names: tuple[str, ...], n_bootstraps: int) -> str:
    parts, rows = list(cells.values()), []
    for name in names:
        figures = [interval(parts, name, m, n_bootstraps) for m in (auc, tpr_1, tpr_5)]
        faulty = np.concatenate([cell.faulty for cell in parts])
        score = np.concatenate([cell.scores[name] for cell in parts])
        pooled = f"{auc(faulty, score):.3f} / {tpr_1(faulty, score):.2f}"
        rows.append([name, *figures, pooled])
    header = ["method", "mean AUC", "mean TPR at 1% FPR", "mean TPR at 5% FPR"]
    return table([*header, "all pooled: AUC / TPR at 1% FPR"], rows)


def people_table(cells: Cells) -> str:
    people = np.unique(next(iter(cells.values())).subject)
    rows = []
    for (movement, view), cell in cells.items():
        own = [cell.subject == person for person in people]
        rows.append(
            [
                movement,
                view,
                *(f"{auc(cell.faulty[o], cell.scores['supervised'][o]):.2f}" for o in own),
            ]
        )
    return table(["movement", "view", *people], rows)


def importance_table(cells: Cells) -> str:
    rows = []
    for (movement, view), cell in cells.items():
        whole = auc(cell.faulty, cell.scores["supervised"])
        drops = [whole - auc(cell.faulty, cell.scores[f"without {group}"]) for group in GROUPS]
        rows.append([movement, view, *(f"{1000 * drop:.0f}" for drop in drops)])
    return table(["movement", "view", *GROUPS], rows)


def mean_of(cells: Cells, measure: Measure) -> float:
    return float(np.mean([measure(c.faulty, c.scores["supervised"]) for c in cells.values()]))


def goal_table(without: Cells, own: Cells, calm: Cells) -> str:
    goals = (
        ("no calibration: mean AUC", 0.93, mean_of(without, auc)),
        ("personal baseline: mean AUC", 0.99, mean_of(own, auc)),
        ("personal baseline: mean TPR at 1% FPR", 0.95, mean_of(own, tpr_1)),
        ("the same with steady keypoint offsets: mean AUC", 0.99, mean_of(calm, auc)),
        ("the same with steady keypoint offsets: mean TPR at 1% FPR", 0.95, mean_of(calm, tpr_1)),
    )
    rows = [[g, f"{w:.2f}", f"{v:.3f}", "yes" if v >= w else "no"] for g, w, v in goals]
    return table(["goal", "wanted at least", "measured", "reached"], rows)


TEMPLATE = """# Telling faulty repetitions from correct ones

Reproduce: `python benchmarks/form_evaluation.py --data $SHARED_DATA` (needs scikit-learn).

{goals}

These are figures of models trained inside this benchmark on `repetition_features`. The product
does not score form yet: scorer, saved models and their use of the personal baseline are to come,
and so are the labelled clips, the 45 degree view, rules and false cues per hour.

Data: UI-PRMD, 700 repetitions of seven people, five movements, half of them deliberately faulty,
Vicon at 50 Hz, here every second frame. An upright perspective camera (angle_accuracy.md) stands in
front or at the side, left of half of the people and right of the others. Keypoint errors: an offset
per keypoint that lasts a whole repetition (sd {offset:.1f}% of stature) and noise in every frame
({noise:.1f}%), drawn anew for training and judging; the size comes from multiview_angles.md. No
smoothing but that of the features. Repetitions are cut as the data set cuts them; the features
find onset and end of the movement within.

Every person is judged by models that saw only the other six (leave one subject out), one per
movement and view. Extra trees ({effort.n_trees}), trained on {effort.n_train_seeds} draws of
keypoint errors with the camera turned by up to 10 degrees; judged is the camera straight in front
or at the side. The form of the features, the models and their settings were chosen with these
seven people in view, not nested: expect somewhat less on others. In brackets: 95% intervals of
drawing the seven people again (bootstrap, {effort.n_bootstraps} times), models kept; seven people
are few, so that intervals are rough, and those of a TPR lie too high: a sample that leaves out the
person with the most unusual correct repetition finds more faults. With 70
correct repetitions per movement and view, at 1% FPR (without calibration) none of them is flagged:
the TPR there hangs on one or two repetitions, and moves by 0.1 and more with the number of draws
and trees (compare `--quick`).

*Carried over*: the threshold for each person is the 99th percentile of the other people's correct
repetitions, each by the model that did not see that other person (that model did see the judged
one). Every other TPR is read off the ROC of the judged people themselves.

## No calibration

*Forest*: an isolation forest on correct repetitions of the six others. *Pooled*: one threshold
for all movements and views.

{without}

Supervised, per movement and view:

{without_cells}

## Personal baseline

Three of the person's own correct repetitions are the reference and are not judged;
{effort.n_test_draws} draws, pooled. *Distance*: RMS difference from the mean of the references in
units of the spread between a person's correct repetitions. *Forest* and *supervised* see
differences from the references, learned from the six other people and their references.

{own}

Supervised, per movement and view:

{own_cells}

AUC within each person, that is with a threshold for each person:

{people}

### Keypoint offsets that stay for a whole session

A detector misplaces the same joint of the same person alike in every repetition. With the offset
drawn once per person and view instead of once per repetition:

{calm}

## Are the faults trivial?

The same people judged by tempo alone (difference of duration from the references) and by the
starting pose alone (its distance from theirs):

{trivial}

## What the models use

Loss of AUC, in thousandths, when what concerns one part of the body is swapped between the judged
repetitions of a person (permutation importance). A part can be replaced by others that move with
it, so that small numbers do not mean that it tells nothing.

{importance}

The nose ranks high in lunges, wrists and nose in sitting down. Perhaps people who act a fault also
hold head and arms differently; whether faults of real trainees show like that is not known.

## Machine

{machine}, {versions}; other work on the machine (load average {load} over 15 minutes); the whole
run took {seconds:.0f} s, one thread.
"""
