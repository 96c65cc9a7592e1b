"""Rolling a policy out: steps of the environment a second, ten episodes at once, K = 5; an untrained policy."""

from __future__ import annotations

import time

import numpy as np
import pytest

from bench.training import config, policy
from gtp_fast.data import catalog
from gtp_fast.evaluation.evaluate import evaluate_policy

EPISODES = 10


@pytest.mark.parametrize("env", ["hopper-demo-v0", "multigoal-v0", "HalfCheetah-v5"])
@pytest.mark.benchmark(warmup=False, timer=time.perf_counter)
def bench_roll_out(benchmark, machine, env):
    benchmark.group = f"eval/{env}"
    spec = catalog.resolve(env)
    sizes = {"hopper-demo-v0": (11, 3), "multigoal-v0": (2, 2), "HalfCheetah-v5": (17, 6)}[env]
    cfg = config()
    acting = policy(cfg, *sizes)
    first = evaluate_policy(acting, spec, EPISODES)
    again = benchmark.pedantic(evaluate_policy, (acting, spec, EPISODES), rounds=1)
    assert np.array_equal(first.returns_SE, again.returns_SE)
    steps, taken = int(again.lengths_SE.sum()), benchmark.stats.stats.median
    benchmark.extra_info |= machine | {"episodes": EPISODES, "env_steps": steps, "env_steps_per_second": steps / taken}
    benchmark.extra_info |= {"sampling_steps": cfg.sampling_steps, "precision": "fp32", "us": taken / steps * 1e6}
