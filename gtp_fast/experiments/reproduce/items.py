"""The rows of each table or figure of the paper: the run's settings, how its policy acts, and the paper's cell.

A row names only the settings that differ from the published ones of its algorithm and task, so that a row of several
tables is one run.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gtp_fast.errors import UsageError

Budget = Literal["small", "paper"]
GYM = tuple(f"{body}-{level}-v2" for level in ("medium", "medium-replay", "medium-expert") for body in
            ("halfcheetah", "hopper", "walker2d"))  # fmt: skip
ABLATED = "hopper-medium-expert-v2"  # the task of Tables 3, 8 and 10
SMALL_STEPS, PAPER_STEPS = 8_000, 2_000_000
SEEDS = {"small": 2, "paper": 5}
LAST_STAGE = 1280  # grid steps of the last stage of the paper's schedule
SWEPT_K, SWEPT_ETAS = (1, 2, 3, 4, 5, 7, 10), (1.0, 10.0)  # beside eta 0 and the task's own

GTP: dict[str, Any] = {"algo": "gtp", "sampling_steps": 5}
CHOSEN: dict[str, Any] = {"candidates": 50, "select": "argmax"}


@dataclass(frozen=True)
class Row:
    """One line of a table: the run's settings, how it acts if not as trained, the paper's (table, column).

    `x`: (panel, value) on the axis of a figure; the value None stands for the run's eta.
    """

    method: str
    settings: Mapping[str, Any]
    acting: Mapping[str, Any] = field(default_factory=dict)
    paper: tuple[str, str] | None = None
    x: tuple[str, float | None] | None = None


@dataclass(frozen=True)
class Item:
    """One table or figure: its title, the paper's tasks, its rows, and notes for the reader."""

    name: str
    title: str
    tasks: tuple[str, ...] = (ABLATED,)
    rows: tuple[Row, ...] = ()
    printed: str | None = None  # the paper's table whose other columns are shown too
    notes: tuple[str, ...] = ()
    kind: Literal["scores", "goals", "bench"] = "scores"


TIMES = "Times are of trials that share this machine with each other; on a GPU one runs at a time."


def _table1(_: Budget) -> Item:
    rows = (
        Row("GTP-BC, K = 5", GTP | {"bc": True}, paper=("bc", "GTP-BC (Ours)")),
        Row("GTP-BC, acting in K = 2", GTP | {"bc": True}, {"sampling_steps": 2}),
        Row("D-BC (dql --bc)", {"algo": "dql", "bc": True}, paper=("bc", "D-BC")),
        Row("C-BC (cac --bc)", {"algo": "cac", "bc": True}, paper=("bc", "C-BC")),
        Row("Gaussian BC (iql --bc)", {"algo": "iql", "bc": True}, paper=("bc", "BC")),
    )
    return Item("table1", "Table 1: behaviour cloning", GYM, rows, "bc")


def _table2(budget: Budget) -> Item:
    narrow = {"hidden": 256, "layers": 3} if budget == "small" else {}
    rows = (
        Row("GTP, K = 5", GTP, paper=("rl", "GTP (Ours)")),
        Row("GTP, K = 5, argmax of 50", GTP, CHOSEN),
        Row("DQL, softmax of 50", {"algo": "dql"}, paper=("rl", "D-QL")),
        Row("CAC, softmax of 50", {"algo": "cac"}, paper=("rl", "C-AC")),
        Row(f"FQL, {'3 x 256' if narrow else '4 x 512'}", {"algo": "fql"} | narrow, paper=("recent", "FQL")),
        Row("TD3+BC", {"algo": "td3bc"}, paper=("bc", "TD3+BC")),
        Row("IQL", {"algo": "iql"}, paper=("rl", "IQL")),
    )
    width = ("FQL is at GTP's width of 3 x 256, not its official 4 x 512, which takes four times as long.",)
    cells = ("TD3+BC's figure is from the paper's Table 1, FQL's from Table 5; those of other papers that it quotes.",)
    return Item("table2", "Table 2: offline reinforcement learning", GYM, rows, "rl", (width if narrow else ()) + cells)


def _table3(_: Budget) -> Item:
    linear = [
        Row(
            f"GTP-BC + linear Q, lambda {weight:g}",
            GTP | {"actor_loss": "linear-q", "lambda_q": weight},
            paper=("ablation", f"lin. Q, {weight}"),
        )
        for weight in (0.01, 0.1, 1.0)
    ]
    rows = (
        Row("GTP", GTP, paper=("ablation", "GTP (ours)")),
        Row("without score approximation", GTP | {"actor_loss": "solver"}, paper=("ablation", "w/o score approx.")),
        *linear,
    )
    note = "The lambda of the paper's surviving linear-Q row was not legible: 0.01 is what the others leave."
    return Item("table3", "Table 3: score approximation and value guidance", (ABLATED,), rows, notes=(note, TIMES))


def _table7(_: Budget) -> Item:
    rows = tuple(
        Row(f"GTP, trained and acting in K = {k}{text}", GTP | {"sampling_steps": k}, acting, paper)
        for k in (5, 2)
        for text, acting, paper in (
            ("", {}, ("sampling_steps", f"GTP (K={k})")),
            (", argmax of 50", CHOSEN, None),
        )
    )
    return Item("table7", "Table 7: sampling steps", GYM, rows, "sampling_steps", (TIMES,))


def _table8(budget: Budget) -> Item:
    fixed = Row(f"N = {LAST_STAGE} throughout", GTP | {"steps_schedule": f"fixed:{LAST_STAGE}"},
                paper=("schedule", "GTP w/ fixed N"))  # fmt: skip
    rows = [Row("N doubling", GTP, paper=("schedule", "GTP w/ time scheduler")), fixed]
    notes = [f"The paper's fixed N was not legible; {LAST_STAGE}, its schedule's last stage, stands for it.", TIMES]
    if budget == "small":
        rows.append(Row("N = 160 throughout", GTP | {"steps_schedule": "fixed:160"}))
        notes.append("The preset `stable` doubles from 10 to 160: N = 160 is its own last stage.")
    return Item("table8", "Table 8: the schedule of time steps", (ABLATED,), tuple(rows), notes=tuple(notes))


def _table10(_: Budget) -> Item:
    rows = tuple(
        Row(name, GTP | settings, paper=("teacher_free", column))
        for name, settings, column in (
            ("GTP", {}, "GTP (ours)"),
            ("shortcut models (no teacher)", {"actor_loss": "shortcut"}, "Shortcut Models (no teacher)"),
            ("mean flows (identity)", {"actor_loss": "meanflow"}, "Mean Flows (identity)"),
        )
    )
    note = "Two scores of the paper were not legible; its mean flows diverged."
    return Item("table10", "Table 10: teacher-free variants", (ABLATED,), rows, notes=(note, TIMES))


def _fig6(_: Budget) -> Item:
    steps = [Row(f"trained in K = 5, acting in {k}", GTP, {"sampling_steps": k}, x=("K", k)) for k in SWEPT_K]
    own = [Row(f"trained and acting in K = {k}", GTP | {"sampling_steps": k}, x=("own K", k)) for k in (2, 5)]
    etas = [Row(f"eta = {eta:g}", GTP | {"eta": eta}, x=("eta", eta)) for eta in SWEPT_ETAS]
    ends = [Row("eta = 0 (behaviour cloning)", GTP | {"bc": True}, x=("eta", 0.0)),
            Row("eta of the task", GTP, x=("eta", None))]  # fmt: skip
    note = "The paper prints no figures beside its curves, and our copy does not say whether each K was trained."
    return Item("fig6", "Fig. 6: sampling steps and guidance", rows=(*steps, *own, *ends, *etas), notes=(note,))


def _fig7(_: Budget) -> Item:
    clone = {"bc": True}
    rows = (
        Row("GTP-BC, K = 5", GTP | clone),
        Row("GTP-BC, K = 2", GTP | clone, {"sampling_steps": 2}),
        Row("GTP-BC, preset paper, K = 5", GTP | clone | {"preset": "paper"}),
        Row("GTP-BC, preset paper, K = 2", GTP | clone | {"preset": "paper"}, {"sampling_steps": 2}),
        Row("CAC (C-BC), K = 2", {"algo": "cac", "sampling_steps": 2} | clone),
        Row("CAC (C-BC), K = 5", {"algo": "cac", "sampling_steps": 2} | clone, {"sampling_steps": 5}),
        Row("DQL (D-BC), T = 5", {"algo": "dql", "sampling_steps": 5} | clone),
    )
    notes = (
        "GTP and CAC stand side by side at equal K; GTP at K = 5 and DQL at T = 5 at equal cost: five evaluations of "
        "the same network. CAC and DQL have the settings of their publications, GTP those of `stable` and, in rows of "
        "their own, of `paper`.",
        "The paper shows pictures and no figures. Both budgets train the task's own steps.",
    )
    return Item("fig7", "Fig. 7: four goals", ("multigoal-v0",), rows, notes=notes, kind="goals")


def _table9(_: Budget) -> Item:
    return Item("table9", "Table 9: time of training and of an action", kind="bench")


ITEMS = {
    item.__name__.lstrip("_"): item
    for item in (_table1, _table2, _table3, _table7, _table8, _table9, _table10, _fig6, _fig7)
}
NAMES = tuple(ITEMS)


def find(name: str, budget: Budget) -> Item:
    """Return an item at a budget. Raises: UsageError for an unknown name, with the nearest match."""
    if name in ITEMS:
        return ITEMS[name](budget)
    near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.3)
    hint = f"did you mean {near[0]}? There are" if near else "there are"
    raise UsageError(f"no item is called {name}; {hint} {', '.join(NAMES)}")


def common(item: Item, budget: Budget, steps: int | None) -> dict[str, Any]:
    """Return the settings that all runs of an item share at a budget; `steps` replaces the budget's own."""
    preset = {"preset": "paper" if budget == "paper" else "stable"}
    if item.kind == "goals" and steps is None:
        return preset  # the task's own steps and cadence
    steps = steps or (PAPER_STEPS if budget == "paper" else SMALL_STEPS)
    parts = 40 if budget == "paper" else 2
    every = {name: max(1, -(-steps // count)) for name, count in (("eval_every", parts), ("log_every", 20))}
    return preset | {"steps": steps, "save_every": max(1, steps // max(10, parts)), "keep": 2} | every


def reach(item: Item, budget: Budget, steps: int | None) -> str:
    """Return what a budget can and cannot show, in words."""
    if item.kind == "goals":
        return "It can show which samplers keep the four modes, and at what cost. It cannot show anything about reward."
    if budget == "paper" and steps is None:
        return (
            "The paper's steps, tasks and seeds: these figures may stand beside the paper's where the data are its own."
        )
    share = 100 * (steps or SMALL_STEPS) / PAPER_STEPS
    return (
        f"{steps or SMALL_STEPS:,} steps are {share:g} % of the paper's. They can show that everything runs, what "
        "diverges early, and large differences early in training. They cannot show the paper's scores, or the order of "
        "methods that are close to each other."
    )
