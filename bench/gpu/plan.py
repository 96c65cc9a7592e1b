"""The parts in the order of their worth: what is cut off at the end of the call is what matters least."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench.gpu import checks

Rows = list[dict[str, Any]]
PRECISIONS = ("fp32", "tf32", "bf16")
BACKENDS = ("fused", "eager", "compiled")
CALL_S = 570.0  # of the ten minutes a call may take; the rest is for writing and for ending processes
DRY_CALL_S = 100.0


@dataclass(frozen=True)
class Part:
    """One part: rows that a module measures, seconds that one row and all rows may take."""

    name: str
    module: str
    rows: Callable[[], Rows]
    row_limit_s: float
    limit_s: float


def _tests(fused: bool, limit_s: float) -> Rows:
    return [{"file": name, "limit_s": limit_s} for name in checks.files() if ("fused" in name) == fused]


def _steps(backend: str) -> Rows:
    """K = 5 and 2, captured or not, each precision; then all of it again, so that drift shows."""
    once = [
        {"backend": backend, "graph": graph, "precision": precision, "sampling_steps": k, "seeds": 1}
        for graph in (True, False)
        for k in (5, 2)
        for precision in reversed(PRECISIONS)
    ]
    return [row | {"round": number} for number in (1, 2) for row in once]


def _seeds(backend: str, precisions: tuple[str, ...]) -> Rows:
    shape = {"backend": backend, "graph": True, "sampling_steps": 5}
    return [shape | {"precision": p, "seeds": s, "round": 1} for p in precisions for s in (1, 2, 4, 8, 16)]


def _launches(*shapes: tuple[str, str, int]) -> Rows:
    shared = {"launches": True, "graph": False, "seeds": 1}
    return [shared | {"backend": b, "precision": p, "sampling_steps": k} for b, p, k in shapes]


def _latency() -> Rows:
    return [{"candidates": candidates, "sampling_steps": k} for candidates in (1, 50) for k in range(1, 11)]


def _learning() -> Rows:
    trained = [("fused", p) for p in reversed(PRECISIONS)] + [("eager", "fp32")]
    return [
        {"what": what, "backend": b, "precision": p} for what in ("hopper-demo-v0", "four modes") for b, p in trained
    ]


def _floor() -> Rows:
    """Return the constants, those of DESIGN's model first."""
    names = [
        "node_gap",
        *(f"layer_{p}" for p in PRECISIONS),
        "graph_launch",
        "copy",
        *(f"product_{p}" for p in PRECISIONS),
    ]
    return [{"what": name} for name in names]


PARTS = (
    Part("tests-fused", "checks", lambda: _tests(True, 140), 160, 170),
    Part("steps-fused", "steps", lambda: _steps("fused"), 60, 170),
    Part("floor", "floor", _floor, 15, 40),
    Part(
        "launches", "steps", lambda: _launches(("fused", "bf16", 5), ("fused", "fp32", 2), ("eager", "fp32", 5)), 40, 60
    ),
    Part("seeds-fused", "steps", lambda: _seeds("fused", ("bf16", "tf32")), 40, 70),
    Part("steps-eager", "steps", lambda: _steps("eager"), 30, 90),
    Part("latency", "latency", _latency, 10, 40),
    Part("learning", "learning", _learning, 60, 120),
    Part("tests-other", "checks", lambda: _tests(False, 160), 180, 180),
    Part("steps-compiled", "steps", lambda: _steps("compiled") + _launches(("compiled", "fp32", 5)), 120, 240),
    Part("seeds-compiled", "steps", lambda: _seeds("compiled", ("tf32",)), 120, 240),
)
