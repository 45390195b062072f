"""Statistics, tables and text of the report that `form_evaluation.py` writes."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from angle_accuracy import table
from scipy.stats import rankdata

Array = np.ndarray

N_BOOTSTRAPS = 500
MAIN_VIEWS = ("front", "side")


@dataclass(frozen=True)
class Scored:
    """Held-out scores of one movement and view, higher where more likely faulty."""

    subject: Array
    faulty: Array
    scores: dict[str, Array]
    verdict: Array
    """0 normal, 1 unsure, 2 faulty, by thresholds learned from other people."""
    repetition: Array
    """Number among the person's, as recorded."""


Cells = dict[tuple[str, str], Scored]
"""By movement and view."""
Measure = Callable[[Array, Array], float]


def auc(faulty: Array, score: Array) -> float:
    """Area under the ROC, by ranks (Hanley & McNeil 1982)."""
    n_faulty = faulty.sum()
    above = rankdata(score)[faulty].sum() - n_faulty * (n_faulty + 1) / 2
    return float(above / (n_faulty * (~faulty).sum()))


def tpr_at(faulty: Array, score: Array, fpr: float) -> float:
    """Largest share of faults found with at most that share of correct repetitions flagged."""
    correct = np.sort(score[~faulty])[::-1]
    return float(np.mean(score[faulty] > correct[int(fpr * len(correct))]))


def tpr_1(faulty: Array, score: Array) -> float:
    return tpr_at(faulty, score, 0.01)


def tpr_5(faulty: Array, score: Array) -> float:
    return tpr_at(faulty, score, 0.05)


def within_auc(cell: Scored, name: str = "supervised") -> float:
    """Mean over people of the AUC with a threshold of their own."""
    people = [cell.subject == person for person in np.unique(cell.subject)]
    return float(np.mean([auc(cell.faulty[p], cell.scores[name][p]) for p in people]))


def interval(cells: Iterable[Scored], name: str, measure: Measure) -> str:
    """Mean over cells, with the 95% interval of drawing the people again (bootstrap)."""
    cells = list(cells)
    rng = np.random.default_rng(3)
    people = np.unique(cells[0].subject)
    rows = [{p: np.flatnonzero(cell.subject == p) for p in people} for cell in cells]
    means = []
    for _ in range(N_BOOTSTRAPS):
        drawn = rng.choice(people, len(people))
        chosen = [np.concatenate([by_person[p] for p in drawn]) for by_person in rows]
        pairs = zip(cells, chosen, strict=True)
        means.append(np.mean([measure(c.faulty[i], c.scores[name][i]) for c, i in pairs]))
    value = np.mean([measure(cell.faulty, cell.scores[name]) for cell in cells])
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def of_views(cells: Cells, views: tuple[str, ...]) -> Cells:
    return {name: cell for name, cell in cells.items() if name[1] in views}


def verdict_shares(cells: Iterable[Scored]) -> list[str]:
    """Of the correct: called faulty, left unsure; of the faulty: called faulty, left unsure."""
    cells = list(cells)
    verdict = np.concatenate([c.verdict for c in cells])
    faulty = np.concatenate([c.faulty for c in cells])
    shares = [np.mean(verdict[~faulty] == 2), np.mean(verdict[~faulty] == 1)]
    shares += [np.mean(verdict[faulty] == 2), np.mean(verdict[faulty] == 1)]
    return [f"{100 * share:.1f}%" for share in shares]


VERDICT_HEADER = ["correct called faulty", "unsure", "faulty called faulty", "unsure"]


def cell_table(cells: Cells) -> str:
    rows = []
    for (movement, view), cell in cells.items():
        figures = [interval([cell], "supervised", m) for m in (auc, tpr_1, tpr_5)]
        within = f"{within_auc(cell):.3f}"
        rows.append([movement, view, *figures, within, *verdict_shares([cell])])
    header = ["movement", "view", "AUC", "TPR at 1% FPR", "TPR at 5% FPR", "AUC within a person"]
    return table([*header, *VERDICT_HEADER], rows)


def summary_table(rows_of: Mapping[str, tuple[Cells, str]]) -> str:
    rows = []
    for label, (cells, name) in rows_of.items():
        figures = [interval(cells.values(), name, m) for m in (auc, tpr_1, tpr_5)]
        rows.append([label, *figures])
    return table(["", "mean AUC", "mean TPR at 1% FPR", "mean TPR at 5% FPR"], rows)


def methods_table(cells: Cells, names: Mapping[str, str]) -> str:
    main = of_views(cells, MAIN_VIEWS)
    return summary_table({label: (main, name) for label, name in names.items()})


def false_cues(cells: Cells, hours: Mapping[str, float]) -> tuple[float, float]:
    """Per hour of correct exercise: repetitions called faulty; second ones in a row."""
    single = in_a_row = total_h = 0.0
    for (movement, _), cell in cells.items():
        for person in np.unique(cell.subject):
            rows = np.flatnonzero((cell.subject == person) & ~cell.faulty)
            flagged = cell.verdict[rows] == 2
            follows = np.diff(cell.repetition[rows]) > 0
            single += flagged.sum()
            in_a_row += (flagged[1:] & flagged[:-1] & follows).sum()
        n_correct = (~cell.faulty).sum()
        n_recorded = 10 * len(np.unique(cell.subject))
        total_h += hours[movement] * n_correct / n_recorded
    return single / total_h, in_a_row / total_h


def mean_of(cells: Cells, measure: Measure) -> float:
    main = of_views(cells, MAIN_VIEWS).values()
    return float(np.mean([measure(c.faulty, c.scores["supervised"]) for c in main]))


def goal_table(results: Mapping[str, Cells], hours: Mapping[str, float], cost_ms: float) -> str:
    general, own = results["general"], results["personal"]
    at_least = (
        ("no calibration: mean AUC", 0.93, mean_of(general, auc)),
        ("personal baseline: mean AUC", 0.99, mean_of(own, auc)),
        ("personal baseline: mean TPR at 1% FPR", 0.95, mean_of(own, tpr_1)),
    )
    rows = [[g, f"{w} or more", f"{v:.3f}", "yes" if v >= w else "no"] for g, w, v in at_least]
    single, in_a_row = false_cues(of_views(results["first"], MAIN_VIEWS), hours)
    at_most = (
        ("one repetition, ms", 2.0, cost_ms),
        ("false alarms per hour, personal, every repetition", 2.0, single),
        ("false alarms per hour, personal, two repetitions in a row", 2.0, in_a_row),
    )
    rows += [[g, f"{w} or less", f"{v:.2f}", "yes" if v <= w else "no"] for g, w, v in at_most]
    return table(["goal", "wanted", "measured", "reached"], rows)


def write_report(
    path: Path, results: dict[str, Cells], hours: Mapping[str, float],
    cost_ms: tuple[float, float], machine: str,
) -> None:  # fmt: skip
    """Fill the template beside this file."""
    general, own = results["general"], results["personal"]
    quarter = ("three_quarter",)
    ways = {
        "three of a person's correct repetitions, drawn at random": own,
        "the first three in order": results["first"],
        "three from another session (errors drawn anew)": results["elsewhere"],
        "judged with the errors of the earlier report": results["harder"],
        "judged without keypoint errors": results["easier"],
        "as an exercise without training (distances only)": results["untrained"],
    }
    cue_rows = []
    for label, name in (("no calibration", "general"), ("first three as baseline", "first")):
        for views in (MAIN_VIEWS, quarter):
            rates = false_cues(of_views(results[name], views), hours)
            cue_rows.append([label, ", ".join(views), *(f"{rate:.1f}" for rate in rates)])
    text = TEMPLATE.read_text().format(
        goals=goal_table(results, hours, max(cost_ms)),
        general=methods_table(
            general,
            {"forest": "forest", "trees, as shipped": "supervised"},
        ),
        general_ways=summary_table(
            {
                label: (of_views(results[name], MAIN_VIEWS), "supervised")
                for label, name in (
                    ("judged with the errors of the earlier report", "general harder"),
                    ("judged without keypoint errors", "general easier"),
                )
            }
        ),
        general_quarter=summary_table({"45 degrees": (of_views(general, quarter), "supervised")}),
        general_cells=cell_table(general),
        own=methods_table(
            own,
            {
                "distance": "distance", "distance beside own": "distance beside own",
                "DTW distance": "DTW", "forest": "forest", "DTW and forest": "DTW and forest",
                "trees, as shipped": "supervised",
            },
        ),
        own_quarter=summary_table({"45 degrees": (of_views(own, quarter), "supervised")}),
        own_cells=cell_table(own),
        ways=summary_table(
            {label: (of_views(cells, MAIN_VIEWS), "supervised") for label, cells in ways.items()}
        ),
        verdicts=table(
            ["", *VERDICT_HEADER],
            [
                [label, *verdict_shares(of_views(cells, MAIN_VIEWS).values())]
                for label, cells in {"no calibration": general, **ways}.items()
            ],
        ),
        cues=table(["", "views", "every repetition", "two in a row"], cue_rows),
        trivial=methods_table(own, {"tempo alone": "tempo alone", "start alone": "start alone"}),
        personal_ms=cost_ms[0],
        general_ms=cost_ms[1],
        machine=machine,
        bootstraps=N_BOOTSTRAPS,
    )  # fmt: skip
    path.write_text(text)
    print(text)


TEMPLATE = Path(__file__).with_suffix(".md")
