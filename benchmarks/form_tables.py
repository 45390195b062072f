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
QUARTER = ("three_quarter",)


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
    whole: Array
    """Whether it was recorded from rest to rest."""

    def whole_only(self) -> "Scored":
        rows = self.whole
        return Scored(
            self.subject[rows], self.faulty[rows], {n: s[rows] for n, s in self.scores.items()},
            self.verdict[rows], self.repetition[rows], self.whole[rows],
        )  # fmt: skip


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
        if not cells:
            continue
        figures = [interval(cells.values(), name, m) for m in (auc, tpr_1, tpr_5)]
        rows.append([label, *figures])
    return table(["", "mean AUC", "mean TPR at 1% FPR", "mean TPR at 5% FPR"], rows)


def methods_table(cells: Cells, names: Mapping[str, str]) -> str:
    main = of_views(cells, MAIN_VIEWS)
    rows_of = {label: (main, name) for label, name in names.items()}
    return summary_table({**rows_of, "45 degrees": (of_views(cells, QUARTER), "supervised")})


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


def only_whole(cells: Cells) -> Cells:
    return {name: cell.whole_only() for name, cell in cells.items()}


def goal_table(results: Mapping[str, Cells], hours: Mapping[str, float], cost_ms: float) -> str:
    general, own, whole = results["general"], results["personal"], only_whole(results["whole"])
    at_least = (
        ("no calibration: mean AUC", 0.93, auc, general, only_whole(general)),
        ("personal baseline: mean AUC", 0.99, auc, own, whole),
        ("personal baseline: mean TPR at 1% FPR", 0.95, tpr_1, own, whole),
    )
    rows = []
    for goal, wanted, measure, *of in at_least:
        values = [mean_of(cells, measure) for cells in of]
        rows.append([goal, f"{wanted} or more", *(f"{v:.3f}" for v in values)])
        rows[-1] += ["yes" if v >= wanted else "no" for v in values]
    everything, of_whole = (
        false_cues(of_views(cells, MAIN_VIEWS), hours)
        for cells in (results["first"], only_whole(results["first"]))
    )
    at_most = (
        ("one repetition, ms", (cost_ms, cost_ms)),
        ("false alarms per hour, personal, every repetition", (everything[0], of_whole[0])),
        ("false alarms per hour, personal, two repetitions in a row", (everything[1], of_whole[1])),
    )
    for goal, rates in at_most:
        rows.append([goal, "2.0 or less", *(f"{r:.2f}" for r in rates)])
        rows[-1] += ["yes" if r <= 2.0 else "no" for r in rates]
    header = ["goal", "wanted", "all recorded", "whole repetitions"]
    return table([*header, "reached, all", "reached, whole"], rows)


def ways_of(results: Mapping[str, Cells]) -> dict[str, Cells]:
    whole = {name: only_whole(cells) for name, cells in results.items()}
    return {
        "three of all correct repetitions, drawn at random; all judged": results["personal"],
        "three of the whole ones, drawn at random; all judged": results["whole"],
        "the first three whole ones in order; all judged": results["first"],
        "three of all correct repetitions; whole ones judged": whole["personal"],
        "three of the whole ones; whole ones judged, here and below": whole["whole"],
        "the first three whole ones in order": whole["first"],
        "the first three, and what is found normal joins them": results["updated"],
        "three from another session (errors drawn anew)": whole["elsewhere"],
        "judged with the errors of the earlier report": whole["harder"],
        "judged without keypoint errors": whole["easier"],
        "as an exercise without training (distances only)": whole["untrained"],
    }


def cue_table(results: Mapping[str, Cells], hours: Mapping[str, float]) -> str:
    rows = []
    for label, cells in (
        ("no calibration", results["general"]),
        ("first three as baseline", results["first"]),
        ("the same, whole repetitions", only_whole(results["first"])),
        ("baseline that what is normal joins, whole repetitions", results["updated"]),
    ):
        for views in (MAIN_VIEWS, QUARTER):
            chosen = of_views(cells, views)
            if not chosen:
                continue
            rates = false_cues(chosen, hours)
            rows.append([label, ", ".join(views), *(f"{rate:.1f}" for rate in rates)])
    return table(["", "views", "every repetition", "two in a row"], rows)


def general_table(results: Mapping[str, Cells]) -> str:
    general = of_views(results["general"], MAIN_VIEWS)
    return summary_table(
        {
            "forest": (general, "forest"),
            "linear": (general, "linear"),
            "trees": (general, "trees"),
            "trees and linear, as shipped": (general, "supervised"),
            "the same, whole repetitions judged": (only_whole(general), "supervised"),
            "45 degrees": (of_views(results["general"], QUARTER), "supervised"),
            "with the errors of the earlier report": (
                of_views(results["general harder"], MAIN_VIEWS), "supervised",
            ),
            "without keypoint errors": (
                of_views(results["general easier"], MAIN_VIEWS), "supervised",
            ),
        }
    )  # fmt: skip


METHODS = {
    "distance": "distance", "distance beside own": "distance beside own",
    "DTW distance": "DTW", "forest": "forest", "DTW and forest": "DTW and forest",
    "trees, as shipped": "supervised",
}  # fmt: skip


TRIVIAL = {"tempo alone": "tempo alone", "start alone": "start alone"}


def write_report(
    path: Path, results: dict[str, Cells], hours: Mapping[str, float],
    cost_ms: tuple[float, float], machine: str,
) -> None:  # fmt: skip
    """Fill the template beside this file."""
    own, whole = results["personal"], only_whole(results["whole"])
    ways = {label: of_views(cells, MAIN_VIEWS) for label, cells in ways_of(results).items()}
    judged = {"no calibration": of_views(results["general"], MAIN_VIEWS), **ways}
    verdicts = [[label, *verdict_shares(cells.values())] for label, cells in judged.items()]
    text = TEMPLATE.read_text().format(
        goals=goal_table(results, hours, max(cost_ms)),
        general=general_table(results),
        general_cells=cell_table(results["general"]),
        general_whole=cell_table(only_whole(results["general"])),
        own=methods_table(own, METHODS),
        own_whole=methods_table(whole, METHODS),
        own_cells=cell_table(own),
        own_whole_cells=cell_table(whole),
        ways=summary_table({label: (cells, "supervised") for label, cells in ways.items()}),
        verdicts=table(["", *VERDICT_HEADER], verdicts),
        cues=cue_table(results, hours),
        trivial=methods_table(of_views(own, MAIN_VIEWS), TRIVIAL),
        personal_ms=cost_ms[0],
        general_ms=cost_ms[1],
        machine=machine,
        bootstraps=N_BOOTSTRAPS,
    )
    path.write_text(text)
    print(text)


TEMPLATE = Path(__file__).with_suffix(".md")
