"""Predict a fused train step on an H200 from its launches, on any machine with Triton: `python -m bench.pipeline`.

The launches are those that a run captures (obs 17, action 6, batch 256, width 256): their grids, and what waits for
what. How long a block runs comes from bench/results/nvidia-h200.json, where each launch was measured alone; how many
blocks share a multiprocessor from their registers and shared memory, compiled ahead of time. `bench.schedule` lays them
on the card. Each row of the table takes something from the order that a run captures. Writes
bench/results/pipeline.json, .md and .png; compiles only what the JSON does not have.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.clock import apart
from bench.schedule import CAPTURED, ORDERS, Card, Order, Resources, Schedule, Task, longest_path, schedule
from bench.tables import RESULTS, Found, Row, grid, keep, result, rounded
from bench.training import config, fused_step

if TYPE_CHECKING:
    from gtp_kernels.launch import Launch

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


# Steps of this commit were not captured as tasks: they are no measurement of any of these orders.
IN_A_ROW = "e5fd19a"

# The measurements name kernels. Those that a step launches twice, by phase, in the order of the step:
TWICE = {
    "gtp_heads": ("critic", "advantage"),
    "gtp_gradients": ("critic", "actor"),
    "gtp_update": ("critic", "average"),
}
# Launches that the measurements do not have: microseconds, or the launch that they were a part of, and their share of
# its time. Alone, in TF32, the parts took 18.5 and 44.1 of 71.8 us, and 18.0 and 12.9 of 34.1 (H200, 2026-11-27).
GUESSED_US = {"gtp_record": 1.5}
PARTS = {
    "gtp_teacher": ("gtp_actor", 0.26),
    "gtp_actor": ("gtp_actor", 0.61),
    "gtp_critic_forward": ("gtp_critic", 0.53),
    "gtp_critic_backward": ("gtp_critic", 0.38),
}
# Of the chain's time at K = 5: 31.0 of 67.3 us in TF32, less the gap (H200, 2026-11-27), and taken to be alike in bf16.
CHAIN_OF_2 = {"tf32": 0.454, "bf16": 0.454}
# What a launch of one seed takes in the latest measurement, as a share of what it took at the commit of an older row.
SINCE = {
    ("e5fd19a", "tf32"): {
        "gtp_chain": 0.729,
        "gtp_heads (critic)": 0.778,
        "gtp_critic": 0.924,
        "gtp_heads (advantage)": 0.783,
        "gtp_gradients (actor)": 0.241,
    },
    ("e5fd19a", "bf16"): {
        "gtp_chain": 0.694,
        "gtp_heads (critic)": 0.816,
        "gtp_critic": 0.916,
        "gtp_gradients (critic)": 1.246,
        "gtp_heads (advantage)": 0.855,
        "gtp_gradients (actor)": 0.817,
    },
}


def label(name: str, phase: str) -> str:
    """Return how a launch is called here: its kernel, and its phase where the step has two of them."""
    return f"{name} ({phase})" if name in TWICE else name


def label_of(launch: Launch) -> str:
    """Return the label of a launch."""
    return label(launch.name, launch.phase)


@dataclass(frozen=True)
class Alone:
    """Microseconds of each launch alone, without the gap, by its label; `rough` were not measured in this form."""

    us: dict[str, float]
    rough: set[str]

    @classmethod
    def of(cls, parts: dict[str, Any], column: Row) -> Alone:
        """Read them from the measurements; at K = 2, and of older rows, they are scaled."""
        asked = column["precision"], column["seeds"]
        rows = [row for row in parts["kernels"]["rows"] if not row["shapes"] and "us" in row]
        row = next(row for row in rows if (row["precision"], row["seeds"]) == asked)
        seen, us = Counter(), {}
        for name in (key.partition(" ")[2] for key in row if key[0].isdigit()):
            phase = TWICE[name][seen[name]] if name in TWICE else ""
            seen[name] += 1
            us[label(name, phase)] = row[f"{seen.total()} {name}"] - CARD.gap_us
        scales = dict(SINCE.get((row.get("commit", ""), column["precision"]), {}))
        if column["sampling_steps"] == 2:
            scales["gtp_chain"] = CHAIN_OF_2[column["precision"]]
        return cls({name: value * scales.get(name, 1.0) for name, value in us.items()}, set(scales))


def block_us(launches: Sequence[Launch], alone: Alone, needs: dict[str, Resources]) -> tuple[dict[str, float], int]:
    """Return how long a block of each launch of a step runs, and of how many launches that is an estimate.

    A launch alone runs its blocks in waves. A part runs as many as the whole, if the step still has that.
    """
    own = {label_of(launch): launch for launch in launches}
    shares = {} if "gtp_teacher" in alone.us else PARTS
    us = {}
    for name, launch in own.items():
        if name in GUESSED_US and name not in alone.us:
            us[name] = GUESSED_US[name]
            continue
        whole, share = shares.get(name, (name, 1.0))
        first = own.get(whole, launch)
        us[name] = alone.us[whole] * share / CARD.waves(needs[label_of(first)], math.prod(first.grid))
    return us, sum(name not in alone.us or name in alone.rough | shares.keys() for name in own)


def launches_of(column: Row, order: Order) -> list[Launch]:
    """Return the launches of a graph in this order, one step after another, as an H100 or H200 runs them."""
    from gtp_kernels import aot
    from gtp_kernels.launch import tuned_for

    cfg = config(backend="fused", ema_every=order.ema_every, **column)
    shapes = tuned_for(cfg.hidden, cfg.batch_size, aot.SHARED_MEMORY[CAPABILITY])
    return list(fused_step(cfg, replace(shapes, slots=order.slots)).of(order.steps))


def waits_of(launches: Sequence[Launch], order: Order) -> list[Sequence[int]]:
    """Return what each launch waits for in this order."""
    from gtp_kernels.graph import waits

    if order.behind == "launch":
        return [range(max(i - 1, 0), i) for i in range(len(launches))]
    size, found = len(launches) // order.steps, waits(launches)
    if order.behind == "data":
        return list(found)
    return [sorted({*own, *range(max(i - i % size - size, 0), i - i % size)}) for i, own in enumerate(found)]


def resources(known: list[Row]) -> list[Row]:
    """Return what a block of each launch takes of a multiprocessor; those that are not known are compiled."""
    from gtp_kernels import aot

    by_key = {(row["launch"], row["precision"], row["source"]): row for row in known}
    rows = []
    for precision in ("tf32", "bf16"):
        for launch in launches_of(COLUMNS["tf32, K = 5"] | {"precision": precision}, Order(steps=1)):
            key = label_of(launch), precision, _source(launch)
            if key not in by_key:
                found = aot.resources(aot.compile_for(launch, CAPABILITY), CAPABILITY)
                taken = {"threads": 32 * launch.warps} | {name: found[name] for name in ("registers", "shared")}
                by_key[key] = dict(zip(("launch", "precision", "source"), key, strict=True)) | taken
                by_key[key]["triton"] = aot.VERSION
            rows.append(by_key[key])
    return rows


def _source(launch: Launch) -> str:
    """Return a short hash of what a launch is compiled from."""
    constants = sorted((name, value) for name, value in launch.args.items() if name.isupper())
    return hashlib.sha256(repr((launch.kernel.cache_key, constants, launch.stages, launch.warps)).encode()).hexdigest()[
        :12
    ]


def needs_of(rows: list[Row], precision: str) -> dict[str, Resources]:
    """Return what a block of each launch takes; a warp gets registers for its threads by eights."""
    return {
        row["launch"]: (-(-row["registers"] // 8) * 8 * row["threads"], row["shared"] + KEPT_BY_DRIVER, row["threads"])
        for row in rows
        if row["precision"] == precision
    }


class Graph(NamedTuple):
    """The launches of a graph as tasks, and how many of a step have an estimated time."""

    launches: list[Launch]
    tasks: list[Task]
    estimated: int


def graph_of(column: Row, order: Order, parts: dict[str, Any], taken: list[Row]) -> Graph:
    """Return the graph of a column in this order."""
    launches, needs = launches_of(column, order), needs_of(taken, column["precision"])
    us, estimated = block_us(launches[: len(launches) // order.steps], Alone.of(parts, column), needs)
    tasks = [
        Task(us[name], math.prod(launch.grid), needs[name], own)
        for launch, own in zip(launches, waits_of(launches, order), strict=True)
        for name in [label_of(launch)]
    ]
    return Graph(launches, tasks, estimated)


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


def measured_us(parts: dict[str, Any], title: str, column: Row) -> float | None:
    """Return the measured microseconds of a step in this order, None where there are none."""
    asked = {"backend": "fused", "graph": True, "round": 1} | column
    for row in parts["steps"]["rows"]:
        commit = row.get("commit", parts["steps"]["commit"])
        usual = not row.keys() & {"hidden", "algo", "n/a"} and all(row[name] == value for name, value in asked.items())
        if usual and title == CAPTURED and commit != IN_A_ROW:
            return row["us"]
    return None


def predicted(known: list[Row]) -> Found:
    """Return the rows, the resources, and the timeline of the order that is captured; for kernels that are compiled.

    A graph waits for the whole one before, so that a step takes its share of one graph and of what comes between two.
    """
    parts, taken, rows, timeline = json.loads(MEASURED.read_text())["parts"], resources(known), [], []
    for title, order in ORDERS.items():
        for name, column in COLUMNS.items():
            graph = graph_of(column, order, parts, taken)
            found = schedule(graph.tasks, CARD)
            us = (found.us + GRAPH_US) / order.steps
            row = {"order": title, "column": name, "us": us, "measured": measured_us(parts, title, column)}
            row |= {"estimated": graph.estimated, "launches": len(graph.tasks) // order.steps, "busy": found.busy}
            if title == CAPTURED:
                row |= path_between_moves(graph, order)
                timeline = timeline or _timeline(graph, order, found)
            rows.append(row)
    return {"rows": rows, "resources": taken, "timeline": timeline, "waits": waits_rows()}


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
    """Return the table: an order a row, and below them what limits the order that is captured."""
    m, cells = found["machine"], {(row["order"], row["column"]): row for row in found["rows"]}
    lines = [[title, *(_us(cells[title, name]) for name in COLUMNS)] for title in ORDERS]
    last = [cells[CAPTURED, name] for name in COLUMNS]
    lines += [
        [f"{CAPTURED}: multiprocessors with a block", *(f"{100 * row['busy']:.0f} %" for row in last)],
        ["longest path between two moves of the EMA, launches", *(str(sum(row["path"].values())) for row in last)],
        ["the same, us a step", *(f"{row['path_us'] / Order().ema_every:.0f}" for row in last)],
        ["launches of a step with an estimated time", *(f"{row['estimated']} of {row['launches']}" for row in last)],
    ]
    heading = f"us / step predicted for the {m['card']} from launches measured at {m['measured']}, measured in brackets"
    path = ", ".join(f"{count} `{name}`" for name, count in last[0]["path"].items())
    note = f"The longest path of {next(iter(COLUMNS))}: {path}."
    return "\n".join([heading, "", *grid(("order", *COLUMNS), lines), "", note]) + "\n"


def _us(row: Row) -> str:
    return f"{row['us']:.0f}" + (f" ({row['measured']:.0f})" if row["measured"] else "")


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
