"""From results to tables, for Markdown and for a terminal. A reason stands once, below, with a number in the cells."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from bench.gpu.supervise import REASON, Row

STEPS_OF_PAPER = 2_000_000
SHAPE = ("backend", "graph", "precision", "sampling_steps", "seeds", "algo", "hidden", "layers")
LINES = 90  # what the terminal's table may take


@dataclass
class _Reasons:
    """Reasons in the order of their first use."""

    texts: list[str] = field(default_factory=list)

    def cell(self, row: Row | None) -> str:
        """Return a mark for a row without figures."""
        text = row[REASON] if row else "not measured yet"
        if text not in self.texts:
            self.texts.append(text)
        return f"n/a [{self.texts.index(text) + 1}]"


@dataclass(frozen=True)
class Table:
    """A title, a head and rows of cells."""

    title: str
    head: list[str]
    rows: list[list[str]]


def markdown(results: dict[str, Any]) -> str:
    """Return the page that stands beside the JSON file."""
    return f"# {results['machine']['device']}\n\n{section(results, '##')}"


def section(results: dict[str, Any], mark: str = "###") -> str:
    """Return the page without its title, as a section of another: every table under a heading that begins with mark."""
    found, reasons = _tables(results, full=True)
    lines = [*(f"{line}  " for line in _heading(results)), ""]
    for table in found:
        rule = ["---"] * len(table.head)
        cells = [table.head, rule, *table.rows]
        lines += [f"{mark} {table.title[0].upper()}{table.title[1:]}", ""]
        lines += [*("| " + " | ".join(row) + " |" for row in cells), ""]
    lines += [f"- [{i}] {text}" for i, text in enumerate(reasons, start=1)]
    return "\n".join(lines).rstrip() + "\n"


def text(results: dict[str, Any]) -> str:
    """Return the tables for a terminal, at most LINES lines; reasons are cut first."""
    found, reasons = _tables(results, full=False)
    lines = _heading(results)
    for table in found:
        cells = [table.head, *table.rows]
        widths = [max(len(row[i]) for row in cells) for i in range(len(table.head))]
        lines += [f"-- {table.title}"]
        lines += ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]
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


def _tables(results: dict[str, Any], full: bool) -> tuple[list[Table], list[str]]:
    reasons = _Reasons()
    parts = results["parts"]
    several = len({part["commit"] for part in parts.values()}) > 1

    def table(make: Callable[..., Table], *names: str, **more: Any) -> Table:
        """Return the table of some parts, with their commit where parts have different ones."""
        found = [parts[name] for name in names if name in parts]
        made = make([row for part in found for row in part["rows"]], reasons, **more)
        commits = dict.fromkeys(part["commit"] for part in found)
        return replace(made, title=f"{made.title} ({', '.join(commits)})") if several else made

    found = [
        table(_tests, "tests", "tests-graph", full=full),
        table(_steps, "steps", full=full),
        table(_kernels, "kernels"),
        table(_latency, "latency"),
        table(_learning, "learning"),
        table(_sanitizer, "sanitizer"),
        table(_counters, "counters"),
        table(_floor, "floor"),
        table(_compiled, "compile"),
    ]
    return [table for table in found if table.rows], reasons.texts


def _tests(rows: list[Row], reasons: _Reasons, full: bool) -> Table:
    cells = []
    for row in rows:
        counts = [f"{row[name]}" for name in ("passed", "failed", "skipped")] if REASON not in row else []
        cells.append([row.get("file", "none") + _older(row), *(counts or [reasons.cell(row), "", ""])])
        cells += [
            [f"  {failure[: 300 if full else 110]}", "", "", ""]
            for failure in row.get("failures", [])[: 12 if full else 5]
        ]
        reasons.texts += [why for why in row.get("skip_reasons", []) if why not in reasons.texts]
    return Table("tests that need the card", ["file", "passed", "failed", "skipped"], cells)


def _steps(rows: list[Row], reasons: _Reasons, full: bool) -> Table:
    """One line a kind of step: both rounds, what 2M steps of each seed take, and the ratio to its rivals."""
    first = [row for row in rows if row.get("round") == 1]
    more = ["p20 - p80", "MiB"] if full else []
    heads = ["step", "K", "us / step", *more, "2M steps, min", "of rival"]
    return Table("train steps", heads, [_step(row, rows, reasons, full) for row in first])


def _step(row: Row, rows: list[Row], reasons: _Reasons, full: bool) -> list[str]:
    # A round that an earlier call left is no drift of this one.
    again = [r for r in rows if _same(r, row) and r["round"] > 1 and REASON not in r]
    again = [r for r in again if r.get("commit") == row.get("commit")]
    empty = [""] * (2 if full else 0)
    if REASON in row:
        return [_mode(row), str(row["sampling_steps"]), reasons.cell(row), *empty, "", ""]
    spread = [f"{row['p20']:.1f} - {row['p80']:.1f}", f"{row['memory_mib']:.0f}"] if full else []
    us = " / ".join(f"{r['us']:.1f}" for r in (row, *again))
    minutes = f"{row['us'] / row['seeds'] * STEPS_OF_PAPER / 60e6:.3g}"
    return [_mode(row), str(row["sampling_steps"]), us, *spread, minutes, _of_rivals(row, rows)]


def _same(row: Row, other: Row) -> bool:
    return all(row.get(name) == other.get(name) for name in SHAPE)


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


def _kernels(rows: list[Row], reasons: _Reasons) -> Table:
    """One line a trial of shapes, one column a launch in the order of the step, beside the default's sum."""
    names = next(([name for name in row if name[0].isdigit()] for row in rows if REASON not in row), [])
    default = {(r["precision"], r["seeds"]): r["us"] for r in rows if REASON not in r and not r["shapes"]}
    cells = []
    for row in rows:
        shapes = ", ".join(f"{name} {value}" for name, value in row["shapes"].items()) or "default"
        head = [f"{row['precision']} x {row['seeds']}", shapes + _older(row)]
        if REASON in row:
            cells.append([*head, reasons.cell(row), *[""] * (1 + len(names))])
            continue
        own = default.get((row["precision"], row["seeds"]))
        of_default = _ratio(row["us"] / own, "default") if own and row["shapes"] else ""
        cells.append([*head, *(f"{row[name]:.1f}" for name in ("us", *names)), of_default])
    heads = [name.replace("gtp_", "") for name in names]
    return Table("us of each launch by itself, K = 5", ["operands x seeds", "shapes", "sum", *heads, "sum"], cells)


def _latency(rows: list[Row], reasons: _Reasons) -> Table:
    places = {(row["sampling_steps"], row["candidates"]) for row in rows}
    cells = []
    for k, candidates in sorted(places, reverse=True):
        own = {r["where"]: r for r in rows if (r["sampling_steps"], r["candidates"]) == (k, candidates)}
        gpu, cpu = own.get("cuda"), own.get("cpu")
        both = gpu and cpu and REASON not in gpu and REASON not in cpu
        ratio = _ratio(gpu["us"] / cpu["us"], "cpu") if gpu and cpu and both else ""
        cells.append([str(k), str(candidates), *(_figure(r, "us", reasons, ".0f") for r in (gpu, cpu)), ratio])
    heads = ["K", "candidates", "GPU", "one CPU thread", "of rival"]
    return Table("us from observation to action", heads, cells)


def _learning(rows: list[Row], reasons: _Reasons) -> Table:
    names = ("actor_loss", "critic_loss", "q")
    head = ["data", "mode", "steps", "seconds", "steps / s", "actor loss", "critic loss", "Q"]
    cells = []
    for row in rows:
        if REASON in row:
            cells.append([row["what"], reasons.cell(row), *[""] * 6])
            continue
        mode = f"{row['backend']} {row['precision']}, {row['seeds']} seeds"
        speed = [f"{row['steps']:,}", f"{row['train_s']:.0f}", f"{row['steps_per_second']:,.0f}"]
        cells.append([row["env"], mode, *speed, *(_over_seeds(row.get(name)) for name in names)])
    return Table("a training, mean and deviation over seeds", head, cells)


def _over_seeds(values: list[float] | float | None) -> str:
    if values is None:
        return ""
    values = values if isinstance(values, list) else [values]
    return f"{statistics.mean(values):.3g} ± {statistics.pstdev(values):.2g}"


def _sanitizer(rows: list[Row], reasons: _Reasons) -> Table:
    cells = [
        [row["tool"], row["precision"], _figure(row, "errors", reasons, "d"), _figure(row, "seconds", reasons, ".0f")]
        for row in rows
    ]
    return Table("compute-sanitizer, one small step", ["tool", "operands", "errors", "seconds"], cells)


def _counters(rows: list[Row], reasons: _Reasons) -> Table:
    names = ("us", "sm_percent", "l2_percent", "tensor_percent", "shared_percent", "warps_active", "registers")
    stalls = ("stall_long", "stall_barrier", "stall_mio", "stall_short", "stall_math", "stall_wait")
    cells = []
    for row in rows:
        if REASON in row:
            cells.append([row["precision"], reasons.cell(row), *[""] * (len(names) + 1)])
            continue
        for launch in row["launches"]:
            worst = sorted(((launch.get(s, 0.0), s) for s in stalls), reverse=True)[:2]
            waits = ", ".join(f"{name.removeprefix('stall_')} {value:.1f}" for value, name in worst if value)
            figures = [f"{launch[name]:.1f}" if name in launch else "" for name in names]
            cells.append([row["precision"], launch["kernel"].split("(")[0].replace("gtp_", ""), *figures, waits])
    heads = ["operands", "launch", "us", "SM %", "L2 %", "tensor %", "shared %", "warps", "registers", "stalls"]
    return Table("counters of one step, by ncu", heads, cells)


def _floor(rows: list[Row], reasons: _Reasons) -> Table:
    return Table("floor", ["constant", "us"], [[row["what"], _figure(row, "us", reasons, ".2f")] for row in rows])


def _compiled(rows: list[Row], reasons: _Reasons) -> Table:
    cells = []
    for row in rows:
        figures = [
            _figure(row, name, reasons, ".0f") for name in ("compiled", "late", "seconds", "core_seconds", "cores")
        ]
        cells.append([*figures, "; ".join(row.get("slowest", [])[:2])])
    return Table("compiling, all cores", ["compiled", "late", "seconds", "core seconds", "cores", "slowest"], cells)


def _figure(row: Row | None, name: str, reasons: _Reasons, form: str = ".1f") -> str:
    if row is None or REASON in row:
        return reasons.cell(row)
    value = row[name]
    return format(int(value) if form == "d" else value, form)
