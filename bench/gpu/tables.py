"""Make tables of the results, for Markdown and for a terminal. Reasons are listed below; cells hold their numbers."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from bench.gpu.plan import STEP
from bench.gpu.supervise import REASON, Row
from bench.tables import STEPS_OF_PAPER, Columns, grid, shown

LINES = 90  # what the terminal's table may take
Cells = list[list[str]]


@dataclass
class _Page:
    """What the tables of a page share: whether there is room for everything, and reasons in the order of first use."""

    full: bool
    reasons: list[str] = field(default_factory=list)

    def reason(self, row: Row | None) -> str:
        """Return a mark for a row without figures."""
        text = row[REASON] if row else "not measured yet"
        if text not in self.reasons:
            self.reasons.append(text)
        return f"n/a [{self.reasons.index(text) + 1}]"

    def line(self, row: Row, head: list[str], figures: Callable[[Row], list[str]], width: int) -> list[str]:
        """Return the head and what figures gives, `width` cells; or the reason in the first of them."""
        return [*head, *([self.reason(row), *[""] * (width - 1)] if REASON in row else figures(row))]


Make = Callable[[list[Row], _Page], tuple[list[str], Cells]]


def markdown(results: dict[str, Any]) -> str:
    """Return the page that stands beside the JSON file."""
    return f"# {results['machine']['device']}\n\n{section(results, '##')}"


def section(results: dict[str, Any], mark: str = "###") -> str:
    """Return the page without its title, as a section of another: every table under a heading that begins with mark."""
    found, reasons = _tables(results, full=True)
    lines = [*(f"{line}  " for line in _heading(results)), ""]
    for title, heads, rows in found:
        lines += [f"{mark} {title[0].upper()}{title[1:]}", "", *grid(heads, rows, "| --- "), ""]
    lines += [f"- [{i}] {text}" for i, text in enumerate(reasons, start=1)]
    return "\n".join(lines).rstrip() + "\n"


def text(results: dict[str, Any]) -> str:
    """Return the tables for a terminal, at most LINES lines; reasons are cut first."""
    found, reasons = _tables(results, full=False)
    lines = _heading(results)
    for title, heads, rows in found:
        widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
        lines += [f"-- {title}"]
        lines += ["  ".join(map(str.ljust, row, widths)).rstrip() for row in (heads, *rows)]
    lines += [f"[{i}] {text}"[:160] for i, text in enumerate(reasons, start=1)]
    return "\n".join(lines if len(lines) <= LINES else [*lines[: LINES - 1], "... the rest is in the file"])


def _heading(results: dict[str, Any]) -> list[str]:
    machine, parts = results["machine"], results["parts"].values()
    names = ("driver_version", "power.limit", "torch", "triton", "cuda", "python", "processor", "cores")
    runs = sorted({f"{part['commit']} (sources {part['source']}) {part['date'][:10]}" for part in parts})
    return [
        f"{machine['device']}: " + ", ".join(f"{name} {machine[name]}" for name in names if machine.get(name)),
        f"commit {'; '.join(runs)}" + (f"; absent: {machine['missing']}" if machine.get("missing") else ""),
    ]


def _tables(results: dict[str, Any], full: bool) -> tuple[list[tuple[str, list[str], Cells]], list[str]]:
    """Return title, head and rows of each table, with the commits of its parts where parts have different ones."""
    page, parts, found = _Page(full), results["parts"], []
    several = len({part["commit"] for part in parts.values()}) > 1
    for title, make, names in TABLES:
        own = [parts[name] for name in names if name in parts]
        heads, cells = make([row for part in own for row in part["rows"]], page)
        commits = ", ".join(dict.fromkeys(part["commit"] for part in own))
        if cells:
            found.append((f"{title} ({commits})" if several else title, heads, cells))
    return found, page.reasons


def _tests(rows: list[Row], page: _Page) -> tuple[list[str], Cells]:
    counted, cells = ["passed", "failed", "skipped"], []
    most, letters = (12, 300) if page.full else (5, 110)
    for row in rows:
        name = row.get("file", "none") + _older(row)
        cells.append(page.line(row, [name], lambda row: [f"{row[name]}" for name in counted], 3))
        cells += [[f"  {failure[:letters]}", "", "", ""] for failure in row.get("failures", [])[:most]]
        page.reasons += [why for why in row.get("skip_reasons", []) if why not in page.reasons]
    return ["file", *counted], cells


def _steps(rows: list[Row], page: _Page) -> tuple[list[str], Cells]:
    """One line a kind of step: both rounds, what 2M steps of each seed take, and the ratio to its rivals."""
    more = ["p20 - p80", "MiB"] if page.full else []
    figures = partial(_step, rows=rows, full=page.full)
    first = [row for row in rows if row.get("round") == 1]
    cells = [page.line(row, [_mode(row), str(row["sampling_steps"])], figures, 3 + len(more)) for row in first]
    return ["step", "K", "us / step", *more, "2M steps, min", "of rival"], cells


def _step(row: Row, rows: list[Row], full: bool) -> list[str]:
    # A round that an earlier call left is no drift of this one.
    again = [r for r in rows if _same(r, row) and r["round"] > 1 and REASON not in r]
    again = [r for r in again if r.get("commit") == row.get("commit")]
    spread = [f"{row['p20']:.1f} - {row['p80']:.1f}", f"{row['memory_mib']:.0f}"] if full else []
    us = " / ".join(f"{r['us']:.1f}" for r in (row, *again))
    minutes = f"{row['us'] / row['seeds'] * STEPS_OF_PAPER / 60e6:.3g}"
    return [us, *spread, minutes, _of_rivals(row, rows)]


def _same(row: Row, other: Row) -> bool:
    return all(row.get(name) == other.get(name) for name in STEP)


def _mode(row: Row) -> str:
    """Return what a step is: backend, precision, and what is not as usual."""
    told = [f"{row['backend']} {row['precision']}"]
    told += [f"{row['algo'].upper()} {row['layers']} x {row['hidden']}"] if row.get("algo") else []
    told += [f"width {row['hidden']}"] if row.get("hidden") and not row.get("algo") else []
    told += [f"{row['seeds']} seeds"] if row["seeds"] > 1 else []
    return ", ".join(told if row["graph"] else [*told, "not captured"]) + _older(row)


def _older(row: Row) -> str:
    """Return the commit of a row that an earlier call measured and a later one did not reach."""
    return f" ({row['commit']})" if row.get("commit") else ""


def _of_rivals(row: Row, rows: list[Row]) -> str:
    """Return the step's time, a seed's where it trains several, as a share of each captured rival's; above 1 slower."""
    names = ("algo", "hidden", "layers")
    rivals = [
        r for r in rows
        if r["backend"] != "fused" and r["graph"] and r["round"] == 1 and REASON not in r and not _same(r, row)
        and [r.get(n) for n in names] == [row.get(n) for n in names] and r["sampling_steps"] == row["sampling_steps"]
    ]  # fmt: skip
    return ", ".join(_ratio(row["us"] / row["seeds"] / r["us"], r["backend"]) for r in rivals)


def _ratio(ratio: float, rival: str) -> str:
    return f"{ratio:.2f} of {rival}" + (" (slower)" if ratio > 1 else "")


def _kernels(rows: list[Row], page: _Page) -> tuple[list[str], Cells]:
    """One line a trial of shapes, one column a launch in the order of the step, beside the default's sum."""
    names = next(([name for name in row if name[0].isdigit()] for row in rows if REASON not in row), [])
    default = {(r["precision"], r["seeds"]): r["us"] for r in rows if REASON not in r and not r["shapes"]}

    def figures(row: Row) -> list[str]:
        own = default.get((row["precision"], row["seeds"]))
        of_default = _ratio(row["us"] / own, "default") if own and row["shapes"] else ""
        return [*(f"{row[name]:.1f}" if name in row else "" for name in ("us", *names)), of_default]

    cells = []
    for row in rows:
        shapes = ", ".join(f"{name} {value}" for name, value in row["shapes"].items()) or "default"
        head = [f"{row['precision']} x {row['seeds']}", shapes + _older(row)]
        cells.append(page.line(row, head, figures, 2 + len(names)))
    heads = [name.replace("gtp_", "") for name in names]
    return ["operands x seeds", "shapes", "sum", *heads, "sum"], cells


def _latency(rows: list[Row], page: _Page) -> tuple[list[str], Cells]:
    places = {(row["sampling_steps"], row["candidates"]) for row in rows}
    cells = []
    for k, candidates in sorted(places, reverse=True):
        own = {r["where"]: r for r in rows if (r["sampling_steps"], r["candidates"]) == (k, candidates)}
        us = [row["us"] if row and REASON not in row else None for row in map(own.get, ("cuda", "cpu"))]
        shown = [page.reason(own.get(w)) if t is None else f"{t:.0f}" for w, t in zip(("cuda", "cpu"), us, strict=True)]
        cells.append([str(k), str(candidates), *shown, _ratio(us[0] / us[1], "cpu") if us[0] and us[1] else ""])
    return ["K", "candidates", "GPU", "one CPU thread", "of rival"], cells


def _over_seeds(name: str, row: Row) -> str:
    """Return mean and deviation of a row's values, of one or of several seeds; nothing where it has none."""
    values = row.get(name, [])
    values = values if isinstance(values, list) else [values]
    return f"{statistics.mean(values):.3g} ± {statistics.pstdev(values):.2g}" if values else ""


def _counters(rows: list[Row], page: _Page) -> tuple[list[str], Cells]:
    names = ("us", "sm_percent", "l2_percent", "tensor_percent", "shared_percent", "warps_active", "registers")
    stalls = ("stall_long", "stall_barrier", "stall_mio", "stall_short", "stall_math", "stall_wait")

    def figures(launch: Row) -> list[str]:
        worst = sorted(((launch.get(s, 0.0), s) for s in stalls), reverse=True)[:2]
        waits = ", ".join(f"{name.removeprefix('stall_')} {value:.1f}" for value, name in worst if value)
        name = launch["kernel"].split("(")[0].replace("gtp_", "")
        return [name, *(f"{launch[name]:.1f}" if name in launch else "" for name in names), waits]

    launches = [(row["precision"], launch) for row in rows for launch in row.get("launches", [row])]
    cells = [page.line(launch, [precision], figures, len(names) + 2) for precision, launch in launches]
    heads = ["operands", "launch", "us", "SM %", "L2 %", "tensor %", "shared %", "warps", "registers", "stalls"]
    return heads, cells


def _plain(head: Columns, figures: Columns) -> Make:
    """Return what makes a table of columns by title, each a format or a function of a row."""

    def make(rows: list[Row], page: _Page) -> tuple[list[str], Cells]:
        lines = [page.line(row, shown(head, row), partial(shown, figures), len(figures)) for row in rows]
        return [*head, *figures], lines

    return make


LEARNING = _plain(
    {"data": lambda row: row.get("env", row["what"])},
    {"mode": "{backend} {precision}, {seeds} seeds", "steps": "{steps:,}", "seconds": "{train_s:.0f}"}
    | {"steps / s": "{steps_per_second:,.0f}"}
    | {name.replace("_", " "): partial(_over_seeds, name) for name in ("actor_loss", "critic_loss")}
    | {"Q": partial(_over_seeds, "q")},
)
ORDERED = _plain({"order": "{order}", "operands": "{precision}"}, {"us / step": "{us:.1f}"})
COMPILED = _plain(
    {},
    {name.replace("_", " "): f"{{{name}:.0f}}" for name in ("compiled", "late", "seconds", "core_seconds", "cores")}
    | {"slowest": lambda row: "; ".join(row["slowest"][:2])},
)
SANITIZER = _plain({"tool": "{tool}", "operands": "{precision}"}, {"errors": "{errors}", "seconds": "{seconds:.0f}"})
TABLES: tuple[tuple[str, Make, tuple[str, ...]], ...] = (
    ("tests that need the card", _tests, ("tests", "tests-graph")),
    ("train steps", _steps, ("steps",)),
    ("us of each launch by itself, K = 5", _kernels, ("kernels",)),
    ("launches of a step in other orders, K = 5", ORDERED, ("orders",)),
    ("us from observation to action", _latency, ("latency",)),
    ("a training, mean and deviation over seeds", LEARNING, ("learning",)),
    ("compute-sanitizer, one small step", SANITIZER, ("sanitizer",)),
    ("counters of one step, by ncu", _counters, ("counters",)),
    ("floor", _plain({"constant": "{what}"}, {"us": "{us:.2f}"}), ("floor",)),
    ("compiling, all cores", COMPILED, ("compile",)),
)
