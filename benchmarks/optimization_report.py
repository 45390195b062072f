"""Write docs/reports/optimization.md from what the other `optimization_*` benchmarks measured.

    python benchmarks/optimization_report.py --checkpoint A.json --swapper B.json \
        --quantize C.json --batch D.json --planner E.json --report docs/reports/optimization.md

A benchmark may be given several files, of parts run one after the other; of a case that occurs in
two, the later counts. What is left out is left out of the report.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

PARTS = ("checkpoint", "swapper", "planner", "batch", "quantize")
TEXT = Path(__file__).with_name("optimization_report.md")
GIB, MIB = 1 << 30, 1 << 20
Row = Sequence[object]


def table(head: Sequence[str], rows: Iterable[Row]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    lines += [f"| {' | '.join(str(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines)


def cases_of(paths: Sequence[Path], key: str = "name") -> list[dict[str, Any]]:
    """All cases by name, in the order of their first occurrence."""
    found: dict[str, dict[str, Any]] = {}
    for path in paths:
        for case in json.loads(path.read_text())["cases"]:
            found[" ".join(str(case[part]) for part in key.split("+"))] = case
    return list(found.values())


def checkpoint(paths: Sequence[Path]) -> str:
    rows: list[Row] = []
    for case in cases_of(paths):
        allowed = case["max_slowdown_ratio"]
        for row in case["rows"]:
            reached = row["peak_ratio"] <= -0.4 and row["slowdown_ratio"] <= allowed
            rows.append(
                (
                    case["name"],
                    row["name"],
                    f"{row['peak_mib']:,.0f}",
                    f"{row['peak_ratio']:+.1%}",
                    f"{row['step_ms']:.1f}",
                    f"{row['slowdown_ratio']:+.1%}",
                    "reached" if reached else "",
                )
            )
        rows += [(case["name"], "error", error, "", "", "", "") for error in case["errors"]]
    head = ("step", "recomputed", "peak, MiB", "", "ms", "", "40% less in time")
    return table(head, rows)


def swapper(paths: Sequence[Path]) -> str:
    rows: list[Row] = []
    for case in cases_of(paths):
        steps = case.get("whole_steps")
        if steps is None:
            rows.append((case["name"], *[""] * 5, case["error"]))
            continue
        # Cases of optimizer states tell the peaks in another way, and have no gradients to compare.
        plain, changed = (
            steps.get(f"{name}_allocated") or steps[f"{name}_peak_bytes"]["allocated"]
            for name in ("plain", "changed")
        )
        parity = case.get("parity")
        said = "bit-equal" if parity and parity["bit_equal"] else "within the noise of plain steps"
        rows.append(
            (
                case["name"],
                f"{plain / MIB:,.0f}",
                f"{changed / MIB:,.0f}",
                f"{changed / plain - 1:+.1%}",
                f"{steps['plain_s'] * 1e3:.1f}",
                f"{steps['changed_s'] / steps['plain_s'] - 1:+.1%}",
                "–" if parity is None else said if parity["agrees"] else "differ",
            )
        )
    head = ("step", "plain, MiB", "offloaded, MiB", "", "ms", "", "gradients")
    return table(head, rows)


def batch(paths: Sequence[Path]) -> str:
    rows: list[Row] = []
    for case in cases_of(paths, "name+cap_gib"):
        found, check = case.get("found"), case.get("check") or {}
        if not found:
            rows.append((case["name"], case["cap_gib"], *[""] * 4, case.get("problem", "not run")))
            continue
        verdict = case.get("verdict") or {}
        steps = check.get("steps") or {}
        held = "yes" if steps.get("held") else f"{steps['n_steps']} run" if steps else "–"
        rows.append(
            (
                case["name"],
                case["cap_gib"],
                found["predicted"],
                found["batch_size"],
                check.get("largest") or "–",
                f"{found['took_s']:.1f}",
                f"{held}{'' if verdict.get('within', True) else '; too far off'}",
            )
        )
    head = ("model", "cap, GiB", "predicted", "found", "exhaustive", "s", "50 steps held")
    return table(head, rows)


def plan_row(base: dict[str, Any], plan: dict[str, Any]) -> Row:
    asked = (plan["mode"], f"{plan['budget_ratio']:.0%}")
    if "cannot" in plan:
        return (*asked, *["–"] * 6, f"cannot: {plan['cannot'].partition(';')[0]}")
    predicted, measured = plan["predicted"]["allocated"], plan["allocated_bytes"]
    return (
        *asked,
        f"{predicted / MIB:,.0f}",
        f"{measured / MIB:,.0f}",
        f"{predicted / measured - 1:+.1%}",
        f"{measured / base['allocated_bytes'] - 1:+.1%}",
        f"{plan['predicted_slowdown_ratio']:+.1%}",
        f"{plan['step_s'] / base['step_s'] - 1:+.1%}",
        plan["exactness"],
    )


def planner(paths: Sequence[Path]) -> str:
    rows: list[Row] = []
    for path in paths:
        for name, case in json.loads(path.read_text())["cases"].items():
            rows += [(name, *plan_row(case["base"], plan)) for plan in case["plans"]]
    head = ("step", "plan", "budget", "predicted, MiB", "measured, MiB", "error", "peak")
    return table((*head, "slower, predicted", "slower, measured", ""), rows)


def quantize(paths: Sequence[Path]) -> str:
    measured: dict[str, Any] = {}
    for path in paths:
        measured |= json.loads(path.read_text())
    rows: list[Row] = []
    for name, case in measured.items():
        if not isinstance(case, dict) or not ({"error", "allocated_peak_bytes"} & case.keys()):
            continue
        if "error" in case:
            rows.append((name, "–", "–", "–", case["error"].partition(".")[0]))
            continue
        token_s, prompt_s = case.get("token_s"), case.get("prompt_s")
        rows.append(
            (
                name,
                f"{case['allocated_peak_bytes'] / 1e9:.2f}",
                f"{case['reserved_peak_bytes'] / 1e9:.2f}",
                f"{prompt_s:.2f}" if prompt_s is not None else "–",
                f"{token_s * 1e3:.0f} ms a token" if token_s is not None else "",
            )
        )
    memory = table(("case", "allocated, GB", "reserved, GB", "prompt, s", ""), rows)
    quality = [
        (
            name.removeprefix("quality: "),
            f"{case['perplexity']:.4f}",
            f"{case['increase_ratio']:+.2%}" if "increase_ratio" in case else "",
        )
        for name, case in measured.items()
        if name.startswith("quality: ") and "perplexity" in case
    ]
    return f"{memory}\n\n{table(('stories15M', 'perplexity', 'change'), quality)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for part in PARTS:
        parser.add_argument(f"--{part}", type=Path, nargs="+", default=[])
    parser.add_argument("--report", type=Path, required=True)
    arguments = vars(parser.parse_args())
    text = TEXT.read_text()
    for part in PARTS:
        paths = arguments[part]
        text = text.replace(f"{{{part}}}", globals()[part](paths) if paths else "Not measured yet.")
    arguments["report"].write_text(text)


if __name__ == "__main__":
    main()
