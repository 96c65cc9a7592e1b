"""Registers, shared memory and traffic of each kernel of the fused step, without a GPU: `python -m bench.static`.

Compiles the launches of a step (obs 17, action 6, batch 256, width 256, K = 5) and the choice among 50 candidates ahead
of time for every architecture, by the installed Triton and by the oldest one that is supported, and counts their bytes
in the interpreter. Prints tables; --json prints the figures of the installed Triton, --write puts the tables into
kernels/README.md, --loops prints what the kernels' loops do instead.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from gtp_kernels import aot
from gtp_kernels.launch import Launch, Tuning, operand_type, tuned_for
from triton.runtime import interpreter

from bench import sass
from bench.clock import apart
from bench.tables import ROOT, Row, fill, grid
from bench.training import ACTION_DIM, OBS_DIM, config, fused_step
from gtp_fast.algorithms import networks
from gtp_fast.algorithms.policy_config import of_run
from gtp_fast.device import cores
from gtp_fast.policy.cuda_sampler import CudaSampler, _Call

README = ROOT / "kernels" / "README.md"
MANY = 8  # observations: too many rows to spread
CHANGES: dict[str, dict[str, Any]] = {"seeds": {"seeds": 8}, "wide": {"hidden": 512}}
KINDS = ("step", *CHANGES, "acting")
ARCHITECTURES = (80, 86, 89, 90, 100)
# The oldest Triton of pyproject.toml, which `make` lays beside the installed packages: PYTHONPATH puts it before them.
OLDEST = Path(sys.prefix) / "triton-3.6.0"


def training_launches(precision: str, capability: int, **changes: Any) -> list[Launch]:
    """Return the launches of a step, with the shapes of a card."""
    cfg = config(precision=precision, backend="fused", **changes)
    return list(fused_step(cfg, tuned_for(cfg.hidden, cfg.batch_size, aot.SHARED_MEMORY[capability])).launches)


def acting_launches(precision: str, capability: int, count: int = 1, **changes: Any) -> list[Launch]:
    """Return the launches that act at `count` observations, with 50 candidates and the shapes of a card."""
    described = replace(of_run(config(), OBS_DIM, ACTION_DIM), **({"candidates": 50, "select": "argmax"} | changes))
    sizes = described.obs_dim, described.action_dim, described.hidden
    tensors = {
        "actor": networks.init_flat(networks.actor_layout(*sizes), [0]),
        "critic": networks.init_flat(networks.critic_layout(*sizes), [0], 2),
    }
    sampler = CudaSampler(described, tensors, torch.device("cpu"), precision)
    launches = sampler.launches(_Call(sampler, count))  # on a CPU nothing is captured, and shapes are a small card's
    shapes = tuned_for(described.hidden, 1, aot.SHARED_MEMORY[capability])

    def of_card(launch: Launch) -> Launch:
        columns = shapes.columns(described.hidden, operand_type(precision), launch.name == "gtp_chain")
        own = {"KEEP": shapes.keep, "STAGES": shapes.stages, "BK": columns}
        args = launch.args | {name: value for name, value in own.items() if name in launch.args}
        return replace(launch, args=args, warps=shapes.warps, stages=shapes.stages)

    return [of_card(launch) if "STAGES" in launch.args else launch for launch in launches]


def launches_of(kind: str, precision: str, capability: int) -> list[Launch]:
    """Return the launches of a kind.

    "step": of a step, and the choice. "seeds": of a step with 8 seeds, on a crowded card. "wide": of width 512, the
    largest. "acting": all that act, with one candidate and with many, of both processes.
    """
    if kind in CHANGES:
        return training_launches(precision, capability, **CHANGES[kind])
    if kind == "step":
        return [*training_launches(precision, capability), acting_launches(precision, capability)[-1]]
    kinds = [{}, {"select": "softmax"}, {"candidates": 1}, {"count": MANY}, {"count": MANY, "process": "flow"}]
    return [x for changes in kinds for x in acting_launches(precision, capability, **changes)]


def compiled(precision: str, capability: int, kind: str = "step") -> list[Row]:
    """Return the resources of each different kernel of `launches_of`, in their order."""
    rows = []
    for launch in _different(launches_of(kind, precision, capability)):
        kernel = aot.compile_for(launch, capability)
        rows.append(
            {"precision": precision, "capability": capability, "phase": launch.phase, "kernel": launch.name}
            | {"grid": launch.grid, "warps": launch.warps}
            | {"warps_of_products": sorted(set(aot.warps_of_products(kernel)))}
            | {"drops_nan": aot.drops_nan(kernel), "triton": aot.VERSION}
            | aot.resources(kernel, capability)
        )
    return rows


def _different(launches: list[Launch]) -> list[Launch]:
    """Return the first launch of each kernel and its constants, in the order of the last."""
    found = {(x.name, *sorted((n, v) for n, v in x.args.items() if n.isupper())): x for x in reversed(launches)}
    return list(reversed(found.values()))


def loops(precision: str, capability: int, kernels: Sequence[str] = ()) -> list[Row]:
    """Return what the loops with products of a step's kernels do, by `bench.sass`; kernels: the names of some."""
    rows = []
    for launch in _different([x for x in training_launches(precision, capability) if not kernels or x.name in kernels]):
        kernel = aot.compile_for(launch, capability)
        room = aot.room(aot.resources(kernel, capability), launch.warps, capability)
        known = {"precision": precision, "capability": capability, "triton": aot.VERSION}
        rows += [known | row for row in sass.rows_of(aot.disassembled(kernel), launch, capability, room)]
    return rows


def measure_loops(
    precisions: list[str],
    architectures: Sequence[int] = ARCHITECTURES,
    processes: int = cores(),
    kernels: Sequence[str] = (),
) -> list[Row]:
    """Read the loops of every combination, on several cores; kernels: the names of some."""
    pairs = [(precision, capability, kernels) for precision in precisions for capability in architectures]
    with ProcessPoolExecutor(processes) as pool:
        return [row for rows in pool.map(loops, *zip(*pairs, strict=True)) for row in rows]


def measure(
    precisions: list[str],
    architectures: Sequence[int] = ARCHITECTURES,
    processes: int = cores(),
    kind: str = "step",
) -> list[Row]:
    """Compile every combination, on several cores."""
    pairs = [(precision, capability, kind) for precision in precisions for capability in architectures]
    with ProcessPoolExecutor(processes) as pool:
        return [row for rows in pool.map(compiled, *zip(*pairs, strict=True)) for row in rows]


def measured_apart(*args: Any, triton: Path | None = None, by: str = "measure") -> list[Row]:
    """Return what `measure`, or another function here, gives in a process in which kernels are compiled.

    triton: a folder that holds another Triton than the installed one.
    """
    return apart("bench.static", by, *args, first=triton, TRITON_INTERPRET="0")


def traffic(precision: str, sampling_steps: int) -> list[Row]:
    """Return the bytes that each launch of one step asks for, counted load by load: obs 17, action 6, batch, width 256.

    Only in a process with TRITON_INTERPRET=1: the interpreter executes every load and store of every block, so that the
    count is of the kernel itself, with the shapes that a GPU would run. It is what the multiprocessors ask of the
    caches, not what reaches memory.
    """
    step = fused_step(config(precision=precision, sampling_steps=sampling_steps, backend="fused"), Tuning())
    builder, rows = interpreter.InterpreterBuilder, []
    load, store = builder.create_masked_load, builder.create_masked_store

    def counted_load(this: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        found = load(this, pointers, mask, *rest)
        rows[-1]["loaded"] += int(mask.data.sum()) * found.data.itemsize
        return found

    def counted_store(this: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        rows[-1]["stored"] += int(mask.data.sum()) * value.data.itemsize
        return store(this, pointers, value, mask, *rest)

    # Every access goes through these two primitives of the interpreter.
    with mock.patch.multiple(builder, create_masked_load=counted_load, create_masked_store=counted_store):
        for launch in step.launches:
            rows.append({"phase": launch.phase, "kernel": launch.name, "loaded": 0, "stored": 0})
            launch()
    return rows


def table(rows: list[Row]) -> str:
    """Return a table of registers, spilled bytes where there are any, and shared memory of each kernel."""
    architectures, lines = sorted({row["capability"] for row in rows}), []
    for key in dict.fromkeys((row["kernel"], row["phase"], row["precision"]) for row in rows):
        own = {r["capability"]: r for r in rows if (r["kernel"], r["phase"], r["precision"]) == key}
        first = own[min(own)]
        shape = " x ".join(map(str, (*first["grid"], first["warps"])))
        lines.append([f"`{key[0]}` ({key[1]})", key[2], shape, *(_cell(own[a]) for a in architectures)])
    heads = ("kernel", "operands", "grid x warps", *(f"sm_{a}" for a in architectures))
    return "\n".join(grid(heads, lines))


def _cell(row: Row) -> str:
    spilled = f", spills {row['spilled']} B" if row["spilled"] else ""
    return f"{row['registers']} / {row['shared'] / 1024:.0f} KB{spilled}{'' if row['fits'] else ' (too much)'}"


def traffic_table(counts: dict[str, list[Row]]) -> str:
    """Return a table of kilobytes loaded and stored by each launch, for each precision."""

    def kilobytes(launches: list[Row]) -> str:
        loaded, stored = (sum(x[name] for x in launches) / 1e3 for name in ("loaded", "stored"))
        return f"{loaded:,.0f}, {stored:,.0f}"

    rows = [
        [f"`{launches[0]['kernel']}` ({launches[0]['phase']})", *(kilobytes([x]) for x in launches)]
        for launches in zip(*counts.values(), strict=True)
    ]
    rows.append(["all", *map(kilobytes, counts.values())])
    return "\n".join(grid(("launch", *(f"{name}: loaded, stored KB" for name in counts)), rows))


def main() -> None:
    """Compile, count, and print or write the tables."""
    parser = argparse.ArgumentParser(prog="python -m bench.static", description=__doc__)
    parser.add_argument("--precision", nargs="+", default=["tf32", "bf16", "fp32"])
    parser.add_argument("--architecture", nargs="+", type=int, default=list(ARCHITECTURES))
    parser.add_argument("--processes", type=int, default=cores())
    parser.add_argument("--launches", choices=KINDS, default=KINDS[0], help="which are compiled")
    parser.add_argument("--loops", action="store_true", help="print what the loops with products do instead")
    parser.add_argument("--json", action="store_true", help="print what was compiled, one JSON list")
    parser.add_argument("--write", action="store_true", help="put the tables into kernels/README.md")
    asked = parser.parse_args()
    args = asked.precision, asked.architecture, asked.processes
    args, by = (args, "measure_loops") if asked.loops else ((*args, asked.launches), "measure")
    if asked.json:
        print(json.dumps(measured_apart(*args, by=by)))
        return
    compiled_by = [None, *([OLDEST] if OLDEST.is_dir() else [])]
    all_rows = [measured_apart(*args, triton=triton, by=by) for triton in compiled_by]
    shown = sass.table if asked.loops else table
    tables = [f"Triton {rows[0]['triton']}:\n\n{shown(rows)}" for rows in all_rows if rows]
    if asked.loops:
        print("\n\n".join(tables))
        return
    counts = {
        f"{precision}, K = {k}": apart("bench.static", "traffic", precision, k, TRITON_INTERPRET="1")
        for precision in asked.precision[:2]
        for k in (5, 2)
    }
    text = "\n\n".join([*tables, traffic_table(counts)])
    print(text)
    if asked.write:
        README.write_text(fill(README.read_text(), {"resources": f"{text}\n"}))


if __name__ == "__main__":
    main()
