"""The parts of both calls, the most important first: what is cut off at the end matters least.

The first call says whether the compiled kernels are right and how long a step takes. The second looks closer at what
the first found right: memory errors, races, hardware counters, graphs of the other backends, and a training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench.gpu import checks
from bench.schedule import ORDERS, Order

Rows = list[dict[str, Any]]
STEP = ("backend", "graph", "precision", "sampling_steps", "seeds", "algo", "hidden", "layers")  # what names a step
CALL_S = 380.0  # of a call; two of them and the machine's start are a quarter of an hour
DRY_CALL_S = 240.0  # three times what it takes, for cores that others share
# Trials beside the default shapes: shallower and wider networks, other weight gradients.
SHAPES: tuple[dict[str, Any], ...] = (
    {},
    {"warps": 4},
    {"turn": 64, "chain_turn": 128},
    {"tile_warps": 4, "tile_rows": 128},
)
# What the training takes from the environment, set by the arguments of the call.
VARIABLES = {"data": "GTP_GPU_DATA", "env": "GTP_GPU_ENV", "results": "GTP_GPU_RESULTS", "until": checks.UNTIL}
ACTING = tuple((k, candidates) for k in (5, 2) for candidates in (1, 50))


@dataclass(frozen=True)
class Part:
    """One part: rows that a function measures, fewer in a dry run; seconds that one row and all may take."""

    name: str
    call: str
    measure: str
    rows: Callable[[bool], Rows]
    row_limit_s: float
    limit_s: float


def step_row(backend: str, precision: str, k: int = 5, seeds: int = 1, **more: Any) -> dict[str, Any]:
    """Return the row of one kind of train step, captured unless `graph` says otherwise."""
    row = {"backend": backend, "graph": True, "precision": precision, "sampling_steps": k, "seeds": seeds, "round": 1}
    return row | more


def _tests(graphs: bool, limit_s: float) -> Rows:
    """The second call has the files whose tests capture and compile the other backends."""
    names = [name for name in checks.files() if ("backends" in name or "stream" in name) == graphs]
    return [{"file": name, "limit_s": limit_s} for name in names]


def _steps(dry: bool) -> Rows:
    """The fused step first, then what it is measured against, then other sizes, then the first rows again: drift."""
    first = [step_row("fused", precision, k) for k in (5, 2) for precision in ("bf16", "tf32")]
    rivals = [step_row("eager", "tf32"), step_row("eager", "tf32", graph=False), step_row("compiled", "tf32")]
    published = {"algo": "fql", "hidden": 512, "layers": 4, "k": 10}  # Flow Q-learning at its width, 4 x 512
    if dry:
        return [*first, rivals[0], rivals[2], first[0] | {"round": 2}]
    more = [step_row("fused", precision, seeds=8) for precision in ("bf16", "tf32")]
    more += [step_row("fused", "fp32"), step_row("fused", "tf32", hidden=512)]
    again = [row | {"round": 2} for row in first]
    large = [step_row(backend, "tf32", **published) for backend in ("eager", "compiled")]
    return [*first, rivals[0], *more, rivals[1], *again, rivals[2], *large]


def _kernels(dry: bool) -> Rows:
    rows = [{"precision": p, "shapes": shapes, "seeds": 1} for shapes in SHAPES for p in ("bf16", "tf32")]
    return rows[:1] if dry else [*rows, *({"precision": p, "shapes": {}, "seeds": 8} for p in ("bf16", "tf32"))]


def _orders(dry: bool) -> Rows:
    """The orders of the step's launches that `bench.pipeline` predicts, with the EMA as it is by default."""
    titles = [title for title, order in ORDERS.items() if order.ema_every == Order().ema_every]
    rows = [{"order": title, "precision": p} for title in titles for p in ("bf16", "tf32")]
    return [row for row in rows if ORDERS[row["order"]].steps == 1][:1] if dry else rows


def _latency(dry: bool) -> Rows:
    """One action on the GPU, and on this machine's processor: the rival of small batches."""
    places = ("cpu",) if dry else ("cuda", "cpu")
    return [{"sampling_steps": k, "candidates": c, "where": where} for k, c in ACTING for where in places]


def _instruments(dry: bool) -> Rows:
    """A dry run has neither the tools nor a card for them: it makes the step that they would watch."""
    tools = ("none",) if dry else ("memcheck", "racecheck")
    return [{"tool": tool, "precision": p} for tool in tools for p in (("tf32",) if dry else ("tf32", "bf16"))]


def _counters(dry: bool) -> Rows:
    return [{"precision": precision} for precision in (("bf16",) if dry else ("tf32", "bf16"))]


def _learning(dry: bool) -> Rows:
    return [{"what": "gtp", "seeds": 2 if dry else 5, "eta": 5.0}]


PARTS = (
    Part("compile", "first", "compiling.compile_all", lambda _: [{"what": "every launch"}], 100, 110),
    Part("tests", "first", "checks.run_file", lambda _: _tests(False, 130), 150, 150),
    Part("steps", "first", "speed.step", _steps, 90, 200),
    Part("kernels", "first", "speed.kernels", _kernels, 45, 80),
    Part("orders", "first", "speed.orders", _orders, 20, 40),
    Part("latency", "first", "speed.latency", _latency, 20, 40),
    Part("floor", "first", "speed.floor", lambda _: [{"what": "node_gap"}, {"what": "graph_launch"}], 15, 20),
    Part("sanitizer", "second", "instruments.sanitizer", _instruments, 60, 110),
    Part("counters", "second", "instruments.counters", _counters, 60, 70),
    Part("tests-graph", "second", "checks.run_file", lambda _: _tests(True, 80), 100, 100),
    Part("learning", "second", "learning.learn", _learning, 260, 260),
)
