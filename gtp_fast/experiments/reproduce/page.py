"""From the summary of an item to its page in Markdown; the documents show the same text."""

from __future__ import annotations

from typing import Any

from gtp_fast.experiments.report import iqm, mean_std, table_head, table_line

Summary = dict[str, Any]


def page(summary: Summary) -> str:
    """Return README.md of an item's report."""
    pictures = [f"![{name.split('.')[0]}]({name})\n" for name in summary["pictures"]]
    return "\n".join([f"# {summary['title']}\n", *pictures, body(summary)])


def body(summary: Summary) -> str:
    """Return what the page holds below its title and pictures: how it was made, the table, what it means."""
    lines = [f"`{summary['command']}`", "", _made(summary), "", summary["reach"], ""]
    if summary["kind"] == "bench":
        lines += [summary["table"]]
    elif summary["kind"] == "goals":
        lines += _goals(summary)
    else:
        lines += _scores(summary)
    return "\n".join([*lines, "", *(f"- {note}" for note in summary["notes"])]).rstrip() + "\n"


def _made(summary: Summary) -> str:
    if summary["kind"] == "bench":
        return "Measured by the bench of this checkout."
    seeds, steps = summary["seeds"], summary["steps"]
    number = summary.get("episodes")
    episodes = f"{number} episode{'s' * (number > 1)} a seed" if number else "not evaluated"
    counts = f"{steps:,} steps" if steps else "no run has ended"
    return (
        f"Budget {summary['budget']}: {counts}, {seeds} seed{'s' if seeds != 1 else ''}, {episodes}, preset "
        f"{summary['preset']}. Data: {', '.join(summary['data'])}."
    )


def _scores(summary: Summary) -> list[str]:
    several = len(summary["data"]) > 1
    heads = ["data"] * several + ["method", "last: mean (std)", "best: mean (std)", "IQM of last, 95 %"]
    heads += ["ms a step", "hours", "paper", "paper, hours"]
    lines = table_head(heads)
    for row in summary["rows"]:
        hours = row["paper"].get("hours")
        theirs = [_cell(row["paper"]), "-" if hours is None else f"{hours:g}"]
        lines.append(table_line([row["data"]] * several + [row["method"], *_ours(row), *theirs]))
    if summary["averages"]:
        lines += ["", *table_head(["average over tasks", "mean (std)", "IQM, 95 % stratified over tasks", "paper"])]
        for row in summary["averages"]:
            what = f"{row['method']}, {row['tasks']} tasks"
            lines.append(table_line([what, mean_std(row), iqm(row), _cell(row["paper"])]))
    for name, cells in summary["printed"].items():
        texts = (f"{column} {mean:g}" for column, mean in cells.items())
        lines += ["", f"What else the paper prints for {name}: {', '.join(texts)}."]
    return [*lines, "", *_legend(summary)]


def _ours(row: dict[str, Any]) -> list[str]:
    if not row.get("last"):
        return [f"**{row['status']}**", "-", "-", "-", "-"]
    best = mean_std(row["best"]) if row["best"] else "-"
    speed = [f"{row['ms_per_step']:.1f}", f"{row['hours']:.2f}"] if row["ms_per_step"] else ["-", "-"]
    return [mean_std(row["last"]), best, iqm(row["last"]), *speed]


def _cell(paper: dict[str, Any]) -> str:
    if "mean" in paper:
        return f"{paper['mean']:g}" + (f" ({paper['std']:g})" if paper["std"] is not None else "")
    return paper.get("word") or "-"


def _legend(summary: Summary) -> list[str]:
    kinds = {row["kind"] for row in summary["rows"] if "kind" in row}
    figures = "normalised scores (0: random, 100: expert)" if kinds != {"return"} else "returns"
    lines = [
        f"Figures are {figures}, the standard deviation over seeds as the paper prints it; the interval is a bootstrap "
        "of the interquartile mean over seeds. `last` is the last checkpoint, `best` the best evaluation of each seed "
        "during training, on the same episodes: not the same claim. A step is of all seeds at once."
    ]
    absent = sorted({row["paper"]["absent"] for row in summary["rows"] if "absent" in row["paper"]})
    return lines + [f"The paper's figures are left out: {reason}." for reason in absent]


def _goals(summary: Summary) -> list[str]:
    heads = ["sampler", "mass of each mode", "off every mode: each seed", "network evaluations", "us in torch"]
    lines = table_head([*heads, "us, fastest way"])
    for row in summary["rows"]:
        if "masses" not in row:
            lines.append(table_line([row["method"], f"**{row['status']}**", "-", "-", "-", "-"]))
            continue
        modes, off = (", ".join(f"{x:.3f}" for x in row[name]) for name in ("masses", "off_each"))
        cost = ["-"] * 3
        if "us" in row:
            cost = [str(row["network_evaluations"])] + [f"{row[n]['median_us']:,.0f}" for n in ("us_torch", "us")]
        lines.append(table_line([row["method"], modes, f"{row['off']:.3f}: {off}", *cost]))
    return [*lines, "", "Microseconds are the median of one action for one observation on this CPU, one candidate."]
