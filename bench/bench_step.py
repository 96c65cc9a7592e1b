"""Time of one train step of every algorithm in every backend that this machine has, batch 256, obs 17, action 6.

On a CPU it is the CPU time of one thread, beside the product that bounds it; on a GPU the device's time by events.
"""

from __future__ import annotations

import pytest

from bench.training import (
    ACTION_DIM,
    DEVICE,
    GPU,
    METHODS,
    OBS_DIM,
    assert_finite,
    config,
    counted,
    opened,
    registered,
)
from gtp_fast import device

pytestmark = pytest.mark.benchmark(warmup=False)
DESCRIBED = ("algo", "backend", "graph", "precision", "seeds", "sampling_steps", "hidden", "layers", "batch_size")


# What is timed: a backend, captured or not, and how many seeds train at once.
ON_GPU = {
    "eager": ("eager", False, 1),
    "eager+graph": ("eager", True, 1),
    "compiled+graph": ("compiled", True, 1),
    "fused": ("fused", False, 1),
    "fused+graph": ("fused", True, 1),
    "fused+graph+8seeds": ("fused", True, 8),
}
ON_CPU = {"eager": ("eager", False, 1), "compiled": ("compiled", False, 1), "eager+8seeds": ("eager", False, 8)}
SWITCHES = ON_GPU if GPU else ON_CPU
SEVERAL = ("gtp-k5",)  # of which several seeds are timed


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("switch", SWITCHES)
def bench_step(benchmark, timed, method, switch):
    changes, (backend, graph, seeds) = METHODS[method], SWITCHES[switch]
    algo = changes.get("algo", "gtp")
    if not registered(algo):
        pytest.skip(f"gtp_fast.algorithms has no {algo} in this version")
    if seeds > 1 and method not in SEVERAL:
        pytest.skip("several seeds are timed for GTP, K = 5")
    if method == "gtp-bc" and backend == "compiled":
        pytest.skip("compiling takes most of a minute: the methods of the paper's table only")
    on = {"device": DEVICE, "precision": "tf32" if GPU else "fp32", "threads": 1}
    cfg = config(**changes, backend=backend, graph=graph, seeds=seeds, **on)
    if backend == "fused" and (missing := device.missing_for_fused(cfg, cfg.device)):
        pytest.skip(f"fused needs {missing}")
    benchmark.group = f"step/{algo}/{switch}"
    state, run, _ = opened(cfg, cfg.unroll if GPU else 3)
    steps, rounds = (20 * cfg.unroll, 15) if GPU else (3 if seeds > 1 else 5, 12 if seeds == 1 else 5)
    described = {name: getattr(cfg, name) for name in DESCRIBED} | {"obs_dim": OBS_DIM, "action_dim": ACTION_DIM}
    timed(run, steps, rounds, method=method, switch=switch, flops=counted(cfg)["flops"], **described)
    assert_finite(state)
