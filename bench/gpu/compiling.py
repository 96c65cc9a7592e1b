"""Compile every launch that later parts time, on all cores, into Triton's cache: no later row waits for its compiler.

Compiling takes longer than measuring: the launches of one precision some 30 s one after another.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from bench.gpu import kernels, latency, learning, plan, settings
from bench.gpu.supervise import told
from gtp_fast.errors import GtpError

if TYPE_CHECKING:
    from gtp_kernels.launch import Launch

LAUNCHES = 10  # of a step
CHAIN = 1  # its place among them: another K changes the chain alone
LONGEST_FIRST = (0, 1, 3, 2, 6)  # actor, chain, critic, heads; the others take a second or two


def measure(row: dict[str, Any], dry: bool) -> dict[str, Any]:
    """Compile; return seconds, how many launches, and the slowest of them.

    Raises: RuntimeError naming the launches that do not compile; their messages are in the log, whole.
    """
    started, cores, jobs = time.monotonic(), 2 if dry else len(os.sched_getaffinity(0)), _jobs(dry)
    # Forked before CUDA is touched; each process then has a context of its own.
    with ProcessPoolExecutor(min(cores, len(jobs)), mp_context=multiprocessing.get_context("fork")) as pool:
        done = list(pool.map(_compiled, [json.dumps(row) for row, _ in jobs], [i for _, i in jobs], [dry] * len(jobs)))
    if failed := [f"{name}: {error}" for _, name, error in done if error]:
        raise RuntimeError(f"{len(failed)} of {len(jobs)} do not compile: {'; '.join(failed)}")
    return {
        "compiled": len(jobs),
        "seconds": time.monotonic() - started,
        "core_seconds": sum(seconds for seconds, _, _ in done),
        "cores": cores,
        "slowest": [f"{name}, {seconds:.0f} s" for seconds, name, _ in sorted(done, reverse=True)[:4]],
    }


def _jobs(dry: bool) -> list[tuple[dict[str, Any], int]]:
    """Return rows of later parts and the place of a launch in their step, the longest first; -1: all of a row."""
    rows = {part.name: [row for row in part.rows(dry) if row.get("round", 1) == 1] for part in plan.PARTS}
    whole = [row for row in rows["steps"] if row["backend"] == "compiled"]
    whole += [row for row in rows["latency"] if row["where"] == "cuda"]
    fused = [row for row in rows["steps"] if row["backend"] == "fused"] + rows["kernels"] + rows["learning"]
    kinds = list({_kind(row): row for row in reversed(fused)}.values())[::-1]
    if dry:
        return [(kinds[0], i) for i in range(LAUNCHES)]
    launches = [(row, i) for row in kinds for i in range(LAUNCHES) if i == CHAIN or row.get("sampling_steps", 5) == 5]
    place = {i: n for n, i in enumerate(LONGEST_FIRST)}
    launches.sort(key=lambda job: place.get(job[1], len(place)))
    return [*((row, -1) for row in whole), *launches]


def _kind(row: dict[str, Any]) -> str:
    """Return what of a row a compiler sees: seeds change the grid alone."""
    seen = ("what", "precision", "sampling_steps", "hidden", "shapes")
    return json.dumps({"sampling_steps": 5} | {name: row[name] for name in seen if row.get(name)}, sort_keys=True)


def _compiled(key: str, place: int, dry: bool) -> tuple[float, str, str]:
    """Compile one job; return its seconds, its name, and why it failed, if it did."""
    started, row = time.monotonic(), json.loads(key)
    name = f"{place} of {_kind(row)}"
    try:
        if place >= 0:
            launch = _launches(key, dry)[place]
            name = f"{launch.name} of {_kind(row)}"
            _compile(launch)
        elif "where" in row:
            name = f"an action, {row}"
            latency.acting(row, dry)
        else:
            name = f"the compiled step of {row.get('algo', 'gtp')}"
            settings.training(settings.of_row(row, dry))[1](1)
    except GtpError as error:  # this version or machine lacks it, as the row that times it will say
        return time.monotonic() - started, f"{name}: {told(error)}", ""
    except Exception as error:  # told with the others, after all have been tried
        traceback.print_exc()
        return time.monotonic() - started, name, told(error)
    return time.monotonic() - started, name, ""


@lru_cache(maxsize=32)
def _launches(key: str, dry: bool) -> tuple[Launch, ...]:
    row = json.loads(key)
    return (learning.fused if row.get("what") else kernels.fused_of)(row, dry).launches


def _compile(launch: Launch) -> None:
    """Compile for this GPU what the launch would run; interpreted kernels, which have no compiler, are run."""
    if hasattr(launch.kernel, "warmup"):
        launch.kernel.warmup(**launch.args, grid=launch.grid, num_warps=launch.warps, num_stages=launch.stages)
    else:
        launch()
