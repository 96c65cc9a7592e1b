"""The parts in the order of their worth: what is cut off at the end of the call is what matters least."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench.gpu import checks

Rows = list[dict[str, Any]]
PRECISIONS = ("fp32", "tf32", "bf16")
SEEDS = (1, 2, 4, 8, 16)
COUNTED = (("fused", "bf16", 5), ("fused", "fp32", 2), ("eager", "fp32", 5))
CALL_S = 570.0  # of the ten minutes a call may take; the rest is for writing and for ending processes
DRY_CALL_S = 180.0  # three times what it takes, for cores that others share


@dataclass(frozen=True)
class Part:
    """One part: rows that a module measures, thinned in a dry run; seconds that one row and all rows may take."""

    name: str
    module: str
    rows: Callable[[bool], Rows]
    row_limit_s: float
    limit_s: float


def _tests(graphs: bool, limit_s: float) -> Rows:
    return [{"file": name, "limit_s": limit_s} for name in checks.files() if ("graph" in name) == graphs]


def _steps(backend: str, dry: bool) -> Rows:
    """K = 5 and 2, captured or not, each precision; then all of it again, so that drift shows.

    The CPU captures nothing: a dry run takes each precision, one of the other K, one not captured, one a second time.
    """
    once = [
        {"backend": backend, "graph": graph, "precision": precision, "sampling_steps": k, "seeds": 1}
        for graph in (True, False)
        for k in (5, 2)
        for precision in reversed(PRECISIONS)
    ]
    rounds = ((1, [*once[:4], once[6]]), (2, once[:1])) if dry else ((1, once), (2, once))
    return [row | {"round": number} for number, rows in rounds for row in rows]


def _seeds(backend: str, precisions: tuple[str, ...], dry: bool) -> Rows:
    shape = {"backend": backend, "graph": True, "sampling_steps": 5}
    return [
        shape | {"precision": p, "seeds": s, "round": 1} for p in precisions for s in (SEEDS[1:2] if dry else SEEDS)
    ]


def _launches(*shapes: tuple[str, str, int]) -> Rows:
    shared = {"launches": True, "graph": False, "seeds": 1}
    return [shared | {"backend": b, "precision": p, "sampling_steps": k} for b, p, k in shapes]


def _kernels(dry: bool) -> Rows:
    """Each precision at its default shapes, then one shape changed at a time; eight seeds as they are."""
    rows = [{"precision": precision, "shapes": {}, "seeds": 1} for precision in reversed(PRECISIONS)]
    rows += [{"precision": precision, "shapes": {}, "seeds": 8} for precision in ("bf16", "tf32")]
    others = ({"rows": 32}, {"units": 64}, {"units": 16}, {"warps": 4}, {"stages": 3}, {"stages": 1}, {"tile_rows": 64})
    rows += [{"precision": p, "shapes": shapes, "seeds": 1} for shapes in others for p in ("bf16", "tf32")]
    return rows[:1] if dry else rows


def _latency() -> Rows:
    return [{"candidates": candidates, "sampling_steps": k} for candidates in (1, 50) for k in range(1, 11)]


def _learning() -> Rows:
    trained = [("fused", p) for p in reversed(PRECISIONS)] + [("eager", "fp32")]
    tasks = ("hopper-demo-v0", "four modes")
    return [{"what": what, "backend": b, "precision": p} for what in tasks for b, p in trained]


def _floor() -> Rows:
    """Return the constants, those of DESIGN's model first."""
    layers, products = ([f"{what}_{precision}" for precision in PRECISIONS] for what in ("layer", "product"))
    return [{"what": name} for name in ("node_gap", *layers, "graph_launch", "copy", *products)]


PARTS = (
    Part("tests-kernels", "checks", lambda _: _tests(False, 140), 160, 170),
    Part("steps-fused", "steps", lambda dry: _steps("fused", dry), 60, 170),
    Part("kernels", "kernels", _kernels, 45, 110),
    Part("floor", "floor", lambda _: _floor(), 15, 40),
    Part("launches", "steps", lambda _: _launches(*COUNTED), 40, 60),
    Part("seeds-fused", "steps", lambda dry: _seeds("fused", ("bf16", "tf32"), dry), 40, 70),
    Part("steps-eager", "steps", lambda dry: _steps("eager", dry), 30, 90),
    Part("latency", "latency", lambda _: _latency(), 10, 40),
    Part("learning", "learning", lambda _: _learning(), 60, 120),
    Part("tests-graph", "checks", lambda _: _tests(True, 160), 180, 180),
    Part("steps-compiled", "steps", lambda dry: _steps("compiled", dry) + _launches(("compiled", "fp32", 5)), 120, 240),
    Part("seeds-compiled", "steps", lambda dry: _seeds("compiled", ("tf32",), dry), 120, 240),
)
