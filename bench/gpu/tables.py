"""From results to tables, for Markdown and for a terminal. A reason stands once, below, with a number in the cells."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from bench.gpu.supervise import REASON, Row

PRECISIONS = ("fp32", "tf32", "bf16")
BACKENDS = ("eager", "compiled", "fused")
# DESIGN's model of a step on this kind of GPU, in microseconds, to be replaced by what is measured here.
STEP_MODEL = {
    ("eager", False): {5: "2900", 2: "2300"},
    ("compiled", True): {5: "250-410", 2: "200-330"},
    ("fused", True): {5: "tf32 120, bf16 69", 2: "tf32 94, bf16 59"},
}
LINES = 60  # what the terminal's table may take


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
    found, reasons = _tables(results, full=True)
    lines = [f"# {results['machine']['device']}", "", *(f"{line}  " for line in _heading(results)), ""]
    for table in found:
        rule = ["---"] * len(table.head)
        cells = [table.head, rule, *table.rows]
        lines += [f"## {table.title}", "", *("| " + " | ".join(row) + " |" for row in cells), ""]
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
    rows = {name: part["rows"] for name, part in results["parts"].items()}

    def joined(prefix: str) -> list[Row]:
        return [row for name, part in rows.items() if name.startswith(prefix) for row in part]

    steps = joined("steps")
    found = [
        _tests(joined("tests"), reasons, full),
        _steps([row for row in steps if not row.get("launches")], reasons, full),
        _seeds(joined("seeds"), reasons),
        _kernels(joined("kernels"), reasons),
        _launches([*joined("launches"), *(row for row in steps if row.get("launches"))], reasons),
        _floor(joined("floor"), reasons),
        _latency(joined("latency"), reasons),
        _learning(joined("learning"), reasons),
    ]
    return [table for table in found if table.rows], reasons.texts


def _tests(rows: list[Row], reasons: _Reasons, full: bool) -> Table:
    cells = []
    for row in rows:
        counts = [f"{row[name]}" for name in ("passed", "failed", "skipped")] if REASON not in row else []
        cells.append([row.get("file", "none"), *(counts or [reasons.cell(row), "", ""])])
        cells += [
            [f"  {failure[: 300 if full else 110]}", "", "", ""]
            for failure in row.get("failures", [])[: 12 if full else 5]
        ]
        reasons.texts += [why for why in row.get("skip_reasons", []) if why not in reasons.texts]
    return Table("tests that need the card", ["file", "passed", "failed", "skipped"], cells)


def _steps(rows: list[Row], reasons: _Reasons, full: bool) -> Table:
    def cell(backend: str, graph: bool, k: int, precision: str) -> str:
        same = {"backend": backend, "graph": graph, "sampling_steps": k, "precision": precision}
        rounds = [row for row in rows if all(row[name] == value for name, value in same.items())]
        good = [row for row in rounds if REASON not in row]
        if not good:
            return reasons.cell(rounds[0] if rounds else None)
        spread = f" ({good[0]['p20']:.1f}-{good[0]['p80']:.1f}; {good[0]['memory_mib']:.0f} MiB)" if full else ""
        lost = f" {reasons.cell(rounds[0])}" if REASON in rounds[0] else ""
        return " / ".join(f"{row['us']:.1f}" for row in good) + spread + lost

    cells = []
    for name in BACKENDS:
        own = [
            [name + "+graph" * graph, str(k), *(cell(name, graph, k, p) for p in PRECISIONS), _model(name, graph, k)]
            for graph in (False, True)
            for k in (5, 2)
        ]
        marks = {figure for row in own for figure in row[2:-1]}
        none = len(marks) == 1 and min(marks).startswith(REASON)  # the same reason everywhere takes one line
        cells += [[f"{name} (all)", "", *marks, "", "", ""]] if none else own
    title = "us/step, first / second round" + (" (p20-p80; device memory)" if full else "")
    return Table(title, ["mode", "K", *PRECISIONS, "model"], cells if rows else [])


def _model(backend: str, graph: bool, k: int) -> str:
    return STEP_MODEL.get((backend, graph), {}).get(k, "")


def _kernels(rows: list[Row], reasons: _Reasons) -> Table:
    """One line a trial of shapes, one column a launch in the order of the step."""
    names = next(([name for name in row if name[0].isdigit()] for row in rows if REASON not in row), [])
    cells = []
    for row in rows:
        shapes = ", ".join(f"{name} {value}" for name, value in row["shapes"].items()) or "default"
        figures = [f"{row[name]:.1f}" for name in ("us", *names)] if REASON not in row else []
        cells.append(
            [f"{row['precision']} x {row['seeds']}", shapes, *(figures or [reasons.cell(row), *[""] * len(names)])]
        )
    heads = [name.replace("gtp_", "") for name in names]
    return Table("us of each launch by itself, K = 5", ["operands x seeds", "shapes", "sum", *heads], cells)


def _seeds(rows: list[Row], reasons: _Reasons) -> Table:
    counts = sorted({row["seeds"] for row in rows})
    shapes = list(dict.fromkeys((row["backend"], row["precision"]) for row in rows))
    cells = []
    for backend, precision in shapes:
        own = {row["seeds"]: row for row in rows if (row["backend"], row["precision"]) == (backend, precision)}
        cells.append([f"{backend}+graph {precision}", *(_figure(own.get(s), "us", reasons) for s in counts)])
    return Table("us/step of seeds trained together, K = 5", ["mode", *map(str, counts)], cells)


def _launches(rows: list[Row], reasons: _Reasons) -> Table:
    cells = [
        [f"{row['backend']} {row['precision']}", str(row["sampling_steps"])]
        + [_figure(row, name, reasons, "d") for name in ("kernels", "moves")]
        + [_figure(row, "busy_us", reasons)]
        for row in rows
    ]
    return Table("launches of one uncaptured step", ["mode", "K", "kernels", "copies, fills", "busy us"], cells)


def _floor(rows: list[Row], reasons: _Reasons) -> Table:
    cells = []
    for row in rows:
        rate = next((f"{row[n]:.0f} {unit}" for n, unit in (("gb_s", "GB/s"), ("tflop_s", "TFLOP/s")) if n in row), "")
        cells.append([row["what"], _figure(row, "us", reasons, ".2f"), rate, f"{row.get('model_us', '')}"])
    return Table("floor", ["constant", "us", "rate", "model us"], cells)


def _latency(rows: list[Row], reasons: _Reasons) -> Table:
    steps = sorted({row["sampling_steps"] for row in rows})
    cells = []
    for candidates in sorted({row["candidates"] for row in rows}):
        own = {row["sampling_steps"]: row for row in rows if row["candidates"] == candidates}
        cells.append([str(candidates), *(_figure(own.get(k), "us", reasons, ".0f") for k in steps)])
    return Table("us from observation to action, by K", ["candidates", *map(str, steps)], cells)


def _learning(rows: list[Row], reasons: _Reasons) -> Table:
    names = ("actor_loss", "critic_loss", "returns", "smallest_share", "largest_share", "off_modes")
    head = ["data", "mode", "actor loss", "critic loss", "return", "least mode", "largest", "off modes"]
    cells = []
    for row in rows:
        label = [row["what"], f"{row['backend']} {row['precision']}"]
        cells.append(label + [_over_seeds(row, name, reasons) for name in names])
    return Table("learning, mean and deviation over seeds", head, cells)


def _over_seeds(row: Row, name: str, reasons: _Reasons) -> str:
    if REASON in row:
        return reasons.cell(row) if name == "actor_loss" else ""
    values = row.get(name, "")
    if isinstance(values, str):
        return reasons.cell({REASON: values.removeprefix(f"{REASON}: ")}) if values else ""
    return f"{statistics.mean(values):.3g} ± {statistics.pstdev(values):.2g}"


def _figure(row: Row | None, name: str, reasons: _Reasons, form: str = ".1f") -> str:
    if row is None or REASON in row:
        return reasons.cell(row)
    return format(row[name], form)
