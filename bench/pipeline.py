"""Predict a fused train step on an H200 from its launches, on any machine with Triton: `python -m bench.pipeline`.

The launches are those that a run captures (obs 17, action 6, batch 256, width 256): their grids, and what waits for
what. They are compiled ahead of time. How long one with products runs when it is alone comes from its machine code, by
`bench.cycles`, and START_US; how long another comes from bench/results/nvidia-h200.json, where it was measured alone.
How many blocks share a multiprocessor follows from their registers and shared memory. `bench.schedule` lays them on the
card. Each row of the table takes something from the order that a run captures. Writes bench/results/pipeline.json, .md
and .png; compiles and simulates only what the JSON does not have.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import product, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench import cycles, sass
from bench.clock import apart
from bench.schedule import CAPTURED, ORDERS, Card, Order, Resources, Schedule, Task, longest_path, schedule
from bench.tables import RESULTS, Found, Row, grid, keep, result, rounded
from bench.training import config, fused_step

if TYPE_CHECKING:
    from gtp_kernels.launch import Launch

    from gtp_fast.algorithms.fused import FusedStep

MEASURED, OUT = RESULTS / "nvidia-h200.json", RESULTS / "pipeline.json"
CAPABILITY, KEPT_BY_DRIVER = 90, 1024  # bytes of shared memory that the driver keeps of each block
# In front of a launch that waited for another, and of a graph behind another: parts.floor of the measurements.
CARD, GRAPH_US = Card(gap_us=0.83), 2.38

COLUMNS: dict[str, Row] = {
    "tf32, K = 5": {"precision": "tf32", "sampling_steps": 5, "seeds": 1},
    "tf32, K = 2": {"precision": "tf32", "sampling_steps": 2, "seeds": 1},
    "bf16, K = 5": {"precision": "bf16", "sampling_steps": 5, "seeds": 1},
    "bf16, K = 2": {"precision": "bf16", "sampling_steps": 2, "seeds": 1},
    "tf32, 8 seeds": {"precision": "tf32", "sampling_steps": 5, "seeds": 8},
    "bf16, 8 seeds": {"precision": "bf16", "sampling_steps": 5, "seeds": 8},
}

# Commits of which the measurements have steps of other kernels than today's. Add a commit whose kernels are replaced.
FORMER = ("486d94e", "e5fd19a")

# Microseconds of a step in the captured order by this model, for the kernels of 486d94e, by column: how far it is off.
FORMER_PREDICTED = dict(zip(COLUMNS, (80, 69, 58, 52, 479, 262), strict=True))

# The measurements name kernels. Those that a step launches twice, by phase, in the order of the step:
TWICE = {
    "gtp_heads": ("critic", "advantage"),
    "gtp_gradients": ("critic", "actor"),
    "gtp_update": ("critic", "average"),
}
# Microseconds of launches without products that the measurements do not have.
GUESSED_US = {"gtp_record": 1.5}


@dataclass(frozen=True)
class Compared:
    """A launch alone: microseconds measured, with the gap in front of it, and simulated, without the launch's start."""

    launch: str
    measured: float
    simulated: float
    seeds: int = 1
    warps: int = 8

    @property
    def predicted(self) -> float:
        """What the model gives for the measured time."""
        return self.simulated + START_US

    @property
    def difference(self) -> str:
        """How much more than measured that is."""
        return f"{100 * (self.predicted / self.measured - 1):+.0f} %"


# By a script on an H200, 2026-11-27, TF32, K = 5, and the shapes of that day.
COMPARED = (
    Compared("gtp_teacher", 18.2, 16.3),
    Compared("gtp_actor", 35.2, 30.9),
    Compared("gtp_chain", 67.8, 65.1),
    Compared("gtp_heads (critic)", 13.8, 12.4),
    Compared("gtp_heads (advantage)", 13.9, 12.5),
    Compared("gtp_critic_forward", 14.9, 12.9),
    Compared("gtp_critic_backward", 12.5, 10.6),
    Compared("gtp_gradients (critic)", 5.9, 5.1, warps=4),
    Compared("gtp_gradients (actor)", 7.5, 6.7, warps=4),
    Compared("gtp_actor", 39.4, 34.0, warps=4),
    Compared("gtp_chain", 78.7, 76.4, warps=4),
    Compared("gtp_actor", 78.7, 65.7, seeds=8),
    Compared("gtp_chain", 133.5, 137.7, seeds=8),
    Compared("gtp_chain", 108.9, 118.0, seeds=8, warps=4),
)
# From the end of the launch before until the first instruction, and from the last one until the end is known: the
# median of what the first nine of these took longer than simulated. The card's gap is a part of it.
START_US = 1.9


def label(name: str, phase: str) -> str:
    """Return how a launch is called here: its kernel, and its phase where the step has two of them."""
    return f"{name} ({phase})" if name in TWICE else name


def label_of(launch: Launch) -> str:
    """Return the label of a launch."""
    return label(launch.name, launch.phase)


def alone_us(parts: dict[str, Any], column: Row) -> dict[str, float]:
    """Return the measured microseconds of each launch alone, without the gap, by its label."""
    asked = column["precision"], column["seeds"]
    rows = [row for row in parts["kernels"]["rows"] if not row["shapes"] and "us" in row]
    row = next(row for row in rows if (row["precision"], row["seeds"]) == asked)
    seen, us = Counter(), {}
    for name in (key.partition(" ")[2] for key in row if key[0].isdigit()):
        phase = TWICE[name][seen[name]] if name in TWICE else ""
        seen[name] += 1
        us[label(name, phase)] = row[f"{seen.total()} {name}"] - CARD.gap_us
    return us


def launch_us(taken: Row, alone: dict[str, float]) -> float:
    """Return the microseconds of a launch alone, without the gap: simulated if it has products, else measured."""
    if taken["simulated_us"] is not None:
        return taken["simulated_us"] + START_US - CARD.gap_us
    return alone[taken["launch"]] if taken["launch"] in alone else GUESSED_US[taken["launch"]]


def block_us(launches: Sequence[Launch], taken: dict[str, Row], alone: dict[str, float]) -> dict[str, float]:
    """Return how long a block of each launch of a step runs; taken: rows of `resources` by label.

    A launch alone runs its blocks in waves. So these blocks, as many of them on a multiprocessor as then share it, take
    the time of the launch; where they have other neighbours, they keep it.
    """
    own = {label_of(launch): math.prod(launch.grid) for launch in launches}
    return {name: launch_us(taken[name], alone) / CARD.waves(needs_of(taken[name]), own[name]) for name in own}


def launches_of(column: Row, order: Order) -> list[Launch]:
    """Return the launches of a graph in this order, one step after another, as an H100 or H200 runs them."""
    return list(_step(tuple(column.items()), order.slots, order.ema_every).of(order.steps))


@lru_cache(maxsize=3)  # drawing its parameters takes seconds; with 8 seeds it has 230 MiB
def _step(column: tuple[tuple[str, Any], ...], slots: int, ema_every: int) -> FusedStep:
    from gtp_kernels import aot
    from gtp_kernels.launch import tuned_for

    cfg = config(backend="fused", ema_every=ema_every, **dict(column))
    shapes = tuned_for(cfg.hidden, cfg.batch_size, aot.SHARED_MEMORY[CAPABILITY])
    return fused_step(cfg, replace(shapes, slots=slots))


def waits_of(launches: Sequence[Launch], order: Order) -> list[Sequence[int]]:
    """Return what each launch waits for in this order."""
    from gtp_kernels.graph import waits

    if order.behind == "launch":
        return [range(max(i - 1, 0), i) for i in range(len(launches))]
    size, found = len(launches) // order.steps, waits(launches)
    if order.behind == "data":
        return list(found)
    return [sorted({*own, *range(max(i - i % size - size, 0), i - i % size)}) for i, own in enumerate(found)]


def resources(names: Sequence[str], known: list[Row]) -> list[Row]:
    """Return `compiled` of each launch of a step in some columns; `known` are rows of this function."""
    found, rows = {row["source"]: row for row in known}, []
    for name in names:
        for launch in launches_of(COLUMNS[name], Order(steps=1)):
            source = _source(launch)
            if source not in found:
                found[source] = compiled(launch)
            rows.append(found[source] | {"column": name, "launch": label_of(launch), "source": source})
    return rows


def compiled(launch: Launch) -> Row:
    """Compile a launch; return what a block takes of a multiprocessor, and how long the launch runs alone.

    simulated_us: without its start and, where a multiprocessor has several of its blocks, with them side by side; None
    if it has no products.
    """
    from gtp_kernels import aot

    kernel = aot.compile_for(launch, CAPABILITY)
    found = aot.resources(kernel, CAPABILITY)
    row: Row = {"threads": 32 * launch.warps} | {name: found[name] for name in ("registers", "shared")}
    us = sass.launch_us(aot.disassembled(kernel), launch, CAPABILITY, CARD.fit(needs_of(row)))
    return rounded(row | {"simulated_us": us, "triton": aot.VERSION})  # as it is kept, for the same schedule again


def _source(launch: Launch) -> str:
    """Return a short hash of all that decides the result of `compiled`."""
    from gtp_kernels import aot

    constants = sorted((name, value) for name, value in launch.args.items() if name.isupper())
    shape = launch.grid, launch.stages, launch.warps
    return _hash(repr((launch.kernel.cache_key, constants, shape, aot.VERSION, _model())))


@cache
def _model() -> str:
    """Return a hash of the code that simulates."""
    return _hash(inspect.getsource(cycles) + inspect.getsource(sass))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def needs_of(taken: Row) -> Resources:
    """Return what a block takes; a warp gets registers for its threads by eights."""
    registers = -(-taken["registers"] // 8) * 8
    return registers * taken["threads"], taken["shared"] + KEPT_BY_DRIVER, taken["threads"]


class Graph(NamedTuple):
    """The launches of a graph, and the same as tasks."""

    launches: list[Launch]
    tasks: list[Task]


def graph_of(name: str, order: Order, parts: dict[str, Any], rows: list[Row]) -> Graph:
    """Return the graph of a column, by its name, in this order; rows: those of `resources`."""
    launches = launches_of(COLUMNS[name], order)
    taken = {row["launch"]: row for row in rows if row["column"] == name}
    us = block_us(launches[: len(launches) // order.steps], taken, alone_us(parts, COLUMNS[name]))
    tasks = [
        Task(us[own], math.prod(launch.grid), needs_of(taken[own]), waiting)
        for launch, waiting in zip(launches, waits_of(launches, order), strict=True)
        for own in [label_of(launch)]
    ]
    return Graph(launches, tasks)


def between_moves(count: int, order: Order) -> slice:
    """Return which of the `count` launches of a graph belong to the steps between two moves of the EMA actor."""
    size = count // order.steps
    return slice((order.ema_every + 1) * size, (2 * order.ema_every + 1) * size)


def path_between_moves(graph: Graph, order: Order) -> Row:
    """Return the longest path through the steps between two moves of the EMA actor: launches by label, and us."""
    own = between_moves(len(graph.tasks), order)
    inside = [replace(x, waits=[j - own.start for j in x.waits if j >= own.start]) for x in graph.tasks[own]]
    path, us = longest_path(inside, CARD)
    return {"path": Counter(label_of(graph.launches[own.start + i]) for i in path), "path_us": us + CARD.gap_us}


def measured_step(parts: dict[str, Any], column: Row, former: bool = False) -> Row | None:
    """Return {"us", "commit"} of the measured step of a column, or None; former: of former kernels instead of today's.

    The order is the one that a run captures.
    """
    asked = {"backend": "fused", "graph": True, "round": 1} | column
    for row in parts["steps"]["rows"]:
        commit = row.get("commit", parts["steps"]["commit"])
        usual = not row.keys() & {"hidden", "algo", "n/a"} and all(row[name] == value for name, value in asked.items())
        if usual and (commit in FORMER) == former:
            return {"us": row["us"], "commit": commit}
    return None


def predicted(known: list[Row]) -> Found:
    """Return the rows and resources of all columns, and the first one's timeline, on two cores."""
    with ProcessPoolExecutor(2) as pool:
        first, second = pool.map(in_precision, ("tf32", "bf16"), repeat(known))
    both = {name: first[name] + second[name] for name in ("rows", "resources")}
    return both | {"timeline": first["timeline"], "waits": waits_rows()}


def in_precision(precision: str, known: list[Row]) -> Found:
    """Return the rows, the resources, and the timeline of the order that is captured; for kernels that are compiled.

    A graph waits for the whole one before, so that a step takes its share of one graph and of what comes between two.
    """
    parts, rows, timeline = json.loads(MEASURED.read_text())["parts"], [], []
    columns = {name: column for name, column in COLUMNS.items() if column["precision"] == precision}
    taken = resources(list(columns), known)
    for name, (title, order) in product(columns, ORDERS.items()):
        graph = graph_of(name, order, parts, taken)
        found = schedule(graph.tasks, CARD)
        row = {"order": title, "column": name, "us": (found.us + GRAPH_US) / order.steps, "busy": found.busy}
        if title == CAPTURED:
            column = columns[name]
            row |= {"measured": measured_step(parts, column), "former": measured_step(parts, column, former=True)}
            row |= path_between_moves(graph, order)
            timeline = timeline or _timeline(graph, order, found)
        rows.append(row)
    return {"rows": rows, "resources": taken, "timeline": timeline}


def waits_rows() -> list[Row]:
    """Return who waits for whom between two moves of the EMA: labels, and whether of an earlier step."""
    order = Order(steps=20)
    launches = launches_of(COLUMNS["tf32, K = 5"], order)
    waiting, size = waits_of(launches, order), len(launches) // order.steps
    own = range(*between_moves(len(launches), order).indices(len(launches)))
    pairs = [(label_of(launches[i]), label_of(launches[j]), i // size < j // size) for j in own for i in waiting[j]]
    return [{"first": a, "then": b, "earlier": earlier} for a, b, earlier in dict.fromkeys(pairs)]


def waits_picture(found: Found) -> str:
    """Return a diagram of who waits for whom: within a step, and by dotted arrows for a launch of an earlier step."""
    names = dict.fromkeys(name for row in found["waits"] for name in (row["first"], row["then"]))
    nodes = {name: f"n{i}" for i, name in enumerate(names)}
    lines = [f'    {node}["{name.removeprefix("gtp_")}"]' for name, node in nodes.items()]
    lines += [
        f"    {nodes[row['first']]} {'-.->' if row['earlier'] else '-->'} {nodes[row['then']]}"
        for row in found["waits"]
    ]
    return "\n".join(["```mermaid", "flowchart LR", *lines, "```"]) + "\n"


def _timeline(graph: Graph, order: Order, found: Schedule) -> list[Row]:
    """Return when the launches between two moves of the EMA actor run."""
    size, own = len(graph.tasks) // order.steps, between_moves(len(graph.tasks), order)
    return [
        {"launch": label_of(x), "river": _river(x), "step": i // size, "begin": found.begin[i], "end": found.end[i]}
        for i, x in list(enumerate(graph.launches))[own]
    ]


def _river(launch: Launch) -> str:
    if launch.name in ("gtp_teacher", "gtp_chain"):
        return "ahead"
    return "critic" if launch.phase == "critic" or launch.name == "gtp_heads" else "actor"


def markdown(found: Found) -> str:
    """Return the table: an order a row, below them what limits the captured order, and how good the model is."""
    m, cells = found["machine"], {(row["order"], row["column"]): row for row in found["rows"]}
    lines = [[title, *(_us(cells[title, name]) for name in COLUMNS)] for title in ORDERS]
    last = [cells[CAPTURED, name] for name in COLUMNS]
    lines += [
        [f"{CAPTURED}: multiprocessors with a block", *(f"{100 * row['busy']:.0f} %" for row in last)],
        ["longest path between two moves of the EMA, launches", *(str(sum(row["path"].values())) for row in last)],
        ["the same, us a step", *(f"{row['path_us'] / Order().ema_every:.0f}" for row in last)],
        *_former(last),
    ]
    brackets = ", measured in brackets" if any(row["measured"] for row in last) else ""
    heading = f"us / step predicted for the {m['card']} from machine code, `gtp_update` and `gtp_advantage` as measured"
    path = ", ".join(f"{count} `{name}`" for name, count in last[0]["path"].items())
    note = f"The longest path of {next(iter(COLUMNS))}: {path}."
    table = grid(("order", *COLUMNS), lines)
    return "\n".join([f"{heading} at {m['measured']}{brackets}", "", *table, "", note, "", *_compared()]) + "\n"


def _us(row: Row) -> str:
    return f"{row['us']:.0f}" + (f" ({row['measured']['us']:.0f})" if row.get("measured") else "")


def _former(rows: list[Row]) -> list[list[str]]:
    """Return the lines of former kernels' steps, if any were measured: by this model, and measured."""
    commits = sorted({row["former"]["commit"] for row in rows if row["former"]})
    if not commits:
        return []
    title = f"{CAPTURED}, former kernels ({', '.join(commits)})"
    measured = [f"{row['former']['us']:.1f}" if row["former"] else "-" for row in rows]
    return [
        [f"{title}: predicted", *(str(FORMER_PREDICTED[row["column"]]) for row in rows)],
        [f"{title}: measured", *measured],
    ]


def _compared() -> list[str]:
    """Return the lines that compare the model of a launch with measurements."""
    heads = ("launch", "seeds", "warps", "measured", "predicted", "difference")
    rows = [(f"`{x.launch}`", x.seeds, x.warps, x.measured, f"{x.predicted:.1f}", x.difference) for x in COMPARED]
    about = (
        f"us of a launch alone, predicted from machine code and {START_US} us for its start (TF32, K = 5). A script"
        " measured them on an H200 on 2026-11-27, with that day's shapes; they are not of `make gpu`."
    )
    return [about, "", *grid(heads, rows)]


def lanes(rows: Sequence[Row]) -> list[int]:
    """Return for each row, in the order in which they begin, the first lane that is free by then."""
    free: list[float] = []
    dealt = []
    for row in rows:
        lane = next((i for i, us in enumerate(free) if us <= row["begin"]), len(free))
        free[lane : lane + 1] = [row["end"]]
        dealt.append(lane)
    return dealt


def picture(found: Found, path: Path) -> None:
    """Draw when each launch runs between two moves of the EMA actor; those of a river that overlap lie in lanes."""
    from gtp_fast.experiments.figures import COLOURS, plt, png, tidy
    from gtp_fast.files import publish

    figure, axes = plt.subplots(figsize=(14, 4), layout="constrained")
    first, ticks, height = min(row["begin"] for row in found["timeline"]), {}, 0
    for river in ("ahead", "critic", "actor"):
        own = sorted((row for row in found["timeline"] if row["river"] == river), key=lambda row: row["begin"])
        dealt = lanes(own)
        for row, lane in zip(own, dealt, strict=True):
            begin, us, y = row["begin"] - first, row["end"] - row["begin"], height + lane
            colour = COLOURS[row["step"] % len(COLOURS)]
            axes.barh(y, us, left=begin, color=colour, edgecolor="white", linewidth=0.5)
            name = row["launch"].removeprefix("gtp_").partition(" ")[0]
            if us > 2 * len(name):  # else it would not fit
                axes.text(begin + us / 2, y, name, ha="center", va="center", fontsize=7, color="white")
        ticks[height + max(dealt) / 2] = river
        height += max(dealt) + 1
    axes.set_yticks(list(ticks), list(ticks.values()))
    axes.invert_yaxis()
    axes.set_xlabel("us", fontsize=9)
    tidy(axes, "Predicted: the five steps between two moves of the EMA actor, a colour a step; TF32, K = 5, one seed")
    publish(path, png(figure))


def main() -> None:
    """Predict, draw, write and print."""
    from bench.static import OLDEST  # the Triton that compiled what was measured

    known = json.loads(OUT.read_text())["resources"] if OUT.is_file() else []
    triton = OLDEST if OLDEST.is_dir() else None
    found = apart("bench.pipeline", "predicted", known, first=triton, TRITON_INTERPRET="0")
    measured = json.loads(MEASURED.read_text())
    about = {"card": measured["machine"]["device"], "measured": measured["parts"]["kernels"]["commit"]}
    found = result(found["rows"], **about) | rounded({name: found[name] for name in ("resources", "timeline", "waits")})
    print(keep(found, OUT, markdown(found)).read_text())
    picture(found, OUT.with_suffix(".png"))


if __name__ == "__main__":
    main()
