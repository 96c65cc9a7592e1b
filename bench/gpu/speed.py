"""Time train steps of every kind, each launch by itself, actions, and graphs that do almost nothing.

A row of a step names backend, graph, precision, sampling_steps and seeds, and where it is not GTP of width 256
algorithm, layers and width. Nothing is timed that computes something else than eager fp32.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bench.clock import captured, per_unit, repeated, taken, wall_us
from bench.gpu.plan import STEP
from bench.schedule import ORDERS
from bench.tables import Row
from bench.training import acting, assert_finite, config, fused_step, opened
from gtp_fast import device, presets
from gtp_fast.config import TrainConfig
from gtp_fast.errors import UsageError
from gtp_fast.policy.policy import Policy

if TYPE_CHECKING:
    from gtp_fast.algorithms.fused import FusedStep

DRY = {"hidden": 32, "batch_size": 16, "unroll": 1, "threads": 1}
CHECKED = 20  # steps whose losses are compared before any is timed
REPEATS = 20  # launches in one graph: the gap between nodes is part of what a step pays
_open: dict[tuple[Any, ...], Any] = {}  # trainings of this process, so that a second round captures nothing anew


def settings(row: Row, dry: bool) -> TrainConfig:
    """Return the settings of a row, resolved for this machine as `gtp-fast train` does.

    A dry run takes the backend on the CPU, where a kernel's interpreter may run it although training may not.
    Raises: UsageError for a backend or a precision that this version or this machine does not have.
    """
    changes = {name: row[name] for name in STEP if name in row}
    presets.checked(changes, "make gpu")
    if row["backend"] == "compiled":
        _allow_many_compilations(dry)
    if dry:
        return config(**(changes | DRY))
    cfg, _ = device.resolve(config(**changes, device="cuda"))
    if cfg.backend != row["backend"] or cfg.precision != row["precision"]:
        raise UsageError(f"the device resolved {row} to {cfg.backend}, {cfg.precision}")
    return cfg


def _allow_many_compilations(dry: bool) -> None:
    """Let one process compile every row; a dry run traces nothing and calls the step itself."""
    import torch._dynamo

    torch._dynamo.config.recompile_limit = 64
    if dry:
        torch.compiler.set_stance("force_eager")


def step(row: Row, dry: bool) -> Row:
    """Return microseconds a step (median, p20, p80), device memory, seconds to be ready, and the losses' difference.

    Raises: ValueError when the state is not finite afterwards, beside what `opened` refuses.
    """
    cfg = settings(row, dry)
    key = tuple(row.get(name) for name in STEP)
    if key not in _open:
        (state, run, figures), ready_s, _ = taken(lambda: opened(cfg, min(CHECKED, cfg.unroll), exact=dry))
        _open[key] = (state, run, figures | {"ready_s": ready_s})
    state, run, figures = _open[key]
    device.prepare(cfg)
    times = per_unit(run, cfg.unroll, dry)
    assert_finite(state)
    return times | figures


def kernels(row: Row, dry: bool) -> Row:
    """Return microseconds a launch by its place and kernel, and `us`, their sum.

    The launches depend on each other's results, not on their timing: each is repeated on what the step left behind.
    """
    made, figures, repeats = fused_of(row, dry), {}, 1 if dry else REPEATS
    made()
    for place, launch in enumerate(made.launches, start=1):
        many = repeated(launch)
        replay = captured(lambda many=many: many(repeats)) if not dry else launch
        times = per_unit(repeated(replay), dry=dry, rounds=9, least_s=0.01)
        figures[f"{place} {launch.name}"] = times["us"] / repeats
    return figures | {"us": sum(figures.values())}


def orders(row: Row, dry: bool) -> Row:
    """Return microseconds a step whose launches run in an order of `bench.pipeline`, which predicts the same row."""
    from gtp_kernels.graph import launch_beside, reduced

    from bench.pipeline import waits_of

    order = ORDERS[row["order"]]
    launches = fused_of(row | {"shapes": {"slots": order.slots}}, dry).of(order.steps)
    waiting = reduced([set(own) for own in waits_of(launches, order)])
    replay = captured(lambda: [x() for x in launches] if dry else launch_beside(launches, waiting))
    times = per_unit(repeated(replay), dry=dry, rounds=9, least_s=0.02)
    return {name: us / order.steps for name, us in times.items()}


def fused_of(row: Row, dry: bool) -> FusedStep:
    """Return the fused step of a row: precision, and where they are not the defaults K, seeds, width and shapes."""
    cfg = settings({"sampling_steps": 5, "seeds": 1} | row | {"backend": "fused", "graph": False}, dry)
    if dry or not row.get("shapes"):
        return fused_step(cfg, None)
    from gtp_kernels.launch import tuned_for

    from gtp_fast.algorithms.fused import shared_memory

    default = tuned_for(cfg.hidden, cfg.batch_size, shared_memory(torch.empty(0, device=cfg.device)))
    return fused_step(cfg, replace(default, **row["shapes"]))


def latency(row: Row, dry: bool) -> Row:
    """Return microseconds from a NumPy observation to a NumPy action, copies to the device and back included.

    On the CPU one thread acts, as a robot's loop would.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        own, obs = acting_of(row, dry)
        return wall_us(lambda: own.act(obs), dry) | {"way": own.runtime}
    finally:
        torch.set_num_threads(threads)


def acting_of(row: Row, dry: bool) -> tuple[Policy, np.ndarray]:
    """Return the policy of a row, which has acted as its formulas do, and an observation."""
    several = {"candidates": row["candidates"], "select": "argmax" if row["candidates"] > 1 else "none"}
    hidden = 32 if dry else 256
    return acting(config(device=row["where"], hidden=hidden, sampling_steps=row["sampling_steps"], **several))


def floor(row: Row, dry: bool) -> Row:
    """Return a lower bound of every design, in microseconds.

    node_gap: a graph of many kernels that add one to one number, each waiting for the last. graph_launch: graphs of one
    such kernel, one after another, which is what a step of one graph pays at least.
    """
    number = torch.zeros(1, device="cuda" if torch.cuda.is_available() and not dry else "cpu")
    nodes = {"node_gap": 20 if dry else 2_000, "graph_launch": 1}[row["what"]]
    add = repeated(lambda: number.add_(1.0))
    times = per_unit(repeated(captured(lambda: add(nodes))), 1 if nodes > 1 else 10, dry)
    return {name: value / nodes for name, value in times.items()} | {"nodes": nodes}
