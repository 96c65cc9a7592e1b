"""Compile every launch that later parts time, on all cores, into Triton's cache: no later row waits for its compiler.

Compiling takes longer than measuring: the launches of one precision some 30 s one after another.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
import traceback
from concurrent.futures import ProcessPoolExecutor, wait
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from bench.gpu import learning, plan, speed
from bench.gpu.supervise import ROW_MARK, told
from bench.training import training
from gtp_fast.errors import GtpError

if TYPE_CHECKING:
    from gtp_kernels.launch import Launch

LAUNCHES = 15  # of a step, and two that differ in the middle of a graph
CHAIN = 2  # its place among them: another K changes the chain alone
LONGEST_FIRST = (1, 2, 5, 4, 0, 3, 8)  # actor, chain, critic, teacher, heads; the others take a second or two
LIMIT_S = 60.0  # what is not compiled by then is compiled by the row that needs it


def compile_all(row: dict[str, Any], dry: bool) -> dict[str, Any]:
    """Compile; return seconds, how many launches, those not ready in time, and the slowest.

    Raises: RuntimeError naming the launches that do not compile; their messages are in the log, whole.
    """
    started, cores, jobs = time.monotonic(), 2 if dry else len(os.sched_getaffinity(0)), _jobs(dry)
    # Forked before CUDA is touched; each process then has a context of its own, and ends with this one.
    pool = ProcessPoolExecutor(min(cores, len(jobs)), multiprocessing.get_context("fork"), initializer=_one_thread)
    running = [pool.submit(_compiled, json.dumps(kind), place, dry) for kind, place in jobs]
    ready, late = wait(running, LIMIT_S)
    pool.shutdown(wait=False, cancel_futures=True)
    done = [job.result() for job in ready]
    if failed := [f"{name}: {error}" for _, name, error in done if error]:
        raise RuntimeError(f"{len(failed)} of {len(jobs)} do not compile: {'; '.join(failed)}")
    return {
        "compiled": len(done),
        "late": len(late),
        "seconds": time.monotonic() - started,
        "core_seconds": sum(seconds for seconds, _, _ in done),
        "cores": cores,
        "slowest": [f"{name}, {seconds:.0f} s" for seconds, name, _ in sorted(done, reverse=True)[:4]],
    }


def _one_thread() -> None:
    """Sixteen processes with sixteen threads each would wait for one another."""
    import torch

    torch.set_num_threads(1)


def _jobs(dry: bool) -> list[tuple[dict[str, Any], int]]:
    """Return rows of later parts and the place of a launch in their step; -1: all of a row.

    What trains comes first, then what is measured beside it, in each the longest first.
    """
    rows = {part.name: [row for row in part.rows(dry) if row.get("round", 1) == 1] for part in plan.PARTS}
    whole = [row for row in rows["latency"] if row["where"] == "cuda"]
    whole += [row for row in rows["steps"] if row["backend"] == "compiled"]
    steps = [row for row in rows["steps"] if row["backend"] == "fused"]
    trials = [row for row in rows["kernels"] if row["shapes"]]
    usual = [row for row in steps if row["precision"] != "fp32" and not row.get("hidden")] + rows["learning"]
    if dry:
        return [(usual[0], place) for place in range(LAUNCHES)]
    rest = [row for row in steps if row not in usual]
    return [*_launches_of(usual), *((row, -1) for row in whole), *_launches_of(trials), *_launches_of(rest)]


def _launches_of(rows: list[dict[str, Any]]) -> list[tuple[dict[str, Any], int]]:
    """Return the launches of different steps, each once, the longest first."""
    kinds = list({_kind(row): row for row in reversed(rows)}.values())[::-1]
    jobs = [(row, i) for row in kinds for i in range(LAUNCHES) if i == CHAIN or row.get("sampling_steps", 5) == 5]
    place = {i: n for n, i in enumerate(LONGEST_FIRST)}
    return sorted(jobs, key=lambda job: place.get(job[1], len(place)))


def _kind(row: dict[str, Any]) -> str:
    """Return what of a row a compiler sees: seeds change the grid alone."""
    seen = ("what", "precision", "sampling_steps", "hidden", "shapes")
    return json.dumps({"sampling_steps": 5} | {name: row[name] for name in seen if row.get(name)}, sort_keys=True)


def _compiled(key: str, place: int, dry: bool) -> tuple[float, str, str]:
    """Compile one job; return its seconds, its name, and why it failed, if it did."""
    started, row, error = time.monotonic(), json.loads(key), ""
    name = f"{place} of {_kind(row)}"
    try:
        if place >= 0:
            launch = _launches(key, dry)[place]
            name = f"{launch.name} of {_kind(row)}"
            _compile(launch)
        elif "where" in row:
            name = f"an action, {row}"
            speed.acting_of(row, dry)
        else:
            name = f"the compiled step of {row.get('algo', 'gtp')}"
            training(speed.settings(row, dry))[1](1)
    except GtpError as missing:  # this version or machine lacks it, as the row that times it will say
        name = f"{name}: {told(missing)}"
    except Exception as fault:  # told with the others, after all have been tried
        traceback.print_exc()
        error = told(fault)
    seconds = time.monotonic() - started
    print(f"{ROW_MARK}{seconds:5.1f} s {name}", flush=True)
    return seconds, name, error


@lru_cache(maxsize=32)
def _launches(key: str, dry: bool) -> tuple[Launch, ...]:
    row = json.loads(key)
    made = (learning.fused if row.get("what") else speed.fused_of)(row, dry)
    return (*made.launches, made.bind.update("actor", due=False), made.bind.record(last=False))


def _compile(launch: Launch) -> None:
    """Compile for this GPU what the launch would run; interpreted kernels, which have no compiler, are run."""
    from gtp_kernels.launch import INTERPRETED

    if INTERPRETED:
        launch()
    else:
        launch.kernel.warmup(**launch.args, grid=launch.grid, num_warps=launch.warps, num_stages=launch.stages)
