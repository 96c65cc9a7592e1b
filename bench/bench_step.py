"""CPU time of one train step on one thread, beside the matrix product that bounds it.

obs 17, action 6, batch 256, as HalfCheetah. A figure is worth something only beside `bench_product` of the same run.
"""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch

from bench.training import config, training
from gtp_fast.config import TrainConfig

pytestmark = pytest.mark.benchmark(timer=time.process_time, warmup=False)


@pytest.mark.benchmark(group="kernel/product")
def bench_product(benchmark, machine):
    a, b = torch.randn(256, 256), torch.randn(256, 256)
    benchmark.extra_info |= machine | {"shape": "256x256x256 fp32"}
    benchmark.pedantic(torch.mm, (a, b), rounds=20, iterations=100, warmup_rounds=2)


@pytest.mark.parametrize("backend", ["eager", "compiled"])
@pytest.mark.parametrize(
    "changes",
    [{"sampling_steps": 5}, {"sampling_steps": 2}, {"bc": True}, {"sampling_steps": 5, "seeds": 2}],
    ids=["k5", "k2", "bc", "k5-2seeds"],
)
@pytest.mark.benchmark(group="step/gtp")
def bench_step(benchmark, machine, changes, backend):
    if backend == "compiled" and changes not in ({"sampling_steps": 5}, {"sampling_steps": 2}):
        pytest.skip("compiling takes most of a minute: the two settings of the paper's table only")
    cfg = config(backend=backend, **changes)
    if backend == "compiled":
        _assert_agrees_with_eager(cfg)
    state, run = training(cfg)
    run(3)
    benchmark.extra_info |= machine | {"backend": backend, "batch": cfg.batch_size, **changes}
    benchmark.pedantic(run, (5,), rounds=12, iterations=1, warmup_rounds=1)
    assert (state.first_bad_SQ < 0).all()
    benchmark.extra_info["ms_a_step"] = benchmark.stats.stats.median / 5 * 1e3


def _assert_agrees_with_eager(cfg: TrainConfig) -> None:
    """Refuse to time a step that computes something else."""
    eager, run_eager = training(replace(cfg, backend="eager"))
    compiled, run_compiled = training(cfg)
    start = eager.actor.param.clone()
    run_eager(2)
    run_compiled(2)
    # The compiler reorders float32 sums; Adam's first steps turn the sign of a vanishing gradient into a whole step.
    assert (eager.actor.param - compiled.actor.param).norm() < 0.01 * (eager.actor.param - start).norm()
