"""Time of one action, and of rolling a policy out; no policy is trained.

An action is timed with noise and checks, from NumPy to NumPy: obs 17, action 6, as HalfCheetah. `torch` is the
algorithm's formulas as they stand, the twin of the tests; the other is the policy's own way. On a CPU both have one
thread.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from bench.training import DEVICE, METHODS, acting, config, policy
from gtp_fast.config import DETERMINISTIC
from gtp_fast.data import catalog
from gtp_fast.evaluation.evaluate import evaluate_policy

TIMED: dict[str, dict[str, Any]] = {f"gtp-k{k}": {"sampling_steps": k} for k in (1, 2, 5, 10)}
TIMED |= {name: changes for name, changes in METHODS.items() if not name.startswith("gtp")}
DESCRIBED = ("algo", "sampling_steps", "candidates", "hidden", "layers")
EPISODES = 10
PLACES = ((1, 1), (1, 50), (256, 1))  # batch, candidates


@pytest.mark.parametrize("way", ["torch", "own"])
@pytest.mark.parametrize(("batch", "candidates"), PLACES, ids=lambda n: str(n))
@pytest.mark.parametrize("method", TIMED)
@pytest.mark.benchmark(warmup=False)
def bench_act(benchmark, machine, method, batch, candidates, way):
    changes = TIMED[method]
    algo = changes.get("algo", "gtp")
    if candidates > 1 and algo in DETERMINISTIC:
        pytest.skip(f"{algo} has one action for an observation")
    select = "none" if candidates == 1 else "argmax"
    cfg = config(**{**changes, "candidates": candidates, "select": select, "device": DEVICE})
    own, obs = acting(cfg, batch)
    if way == "own" and own.runtime == "torch":
        pytest.skip(f"{algo} acts by its formulas in torch here: timed as that")
    benchmark.group = f"latency/{algo}/{cfg.sampling_steps}"
    timed = own if way == "own" else own.reference()
    rounds = 1_000 if batch * candidates == 1 else 100
    benchmark.pedantic(timed.act, (obs,), rounds=rounds, iterations=1, warmup_rounds=20)
    times = np.percentile(benchmark.stats.stats.data, [50, 20, 80, 99]) * 1e6
    benchmark.extra_info |= machine | {"method": method, "way": timed.runtime, "batch_size": batch}
    benchmark.extra_info |= {name: getattr(cfg, name) for name in DESCRIBED}
    benchmark.extra_info |= {"precision": "fp32" if DEVICE == "cpu" else "tf32"}
    benchmark.extra_info |= dict(zip(("us", "p20_us", "p80_us", "p99_us"), times.tolist(), strict=True))


@pytest.mark.parametrize("env", ["hopper-demo-v0", "multigoal-v0", "HalfCheetah-v5"])
@pytest.mark.benchmark(warmup=False, timer=time.perf_counter)
def bench_roll_out(benchmark, machine, env):
    """Count steps of the environment a second, ten episodes at once, K = 5."""
    benchmark.group = f"eval/{env}"
    spec = catalog.resolve(env)
    sizes = {"hopper-demo-v0": (11, 3), "multigoal-v0": (2, 2), "HalfCheetah-v5": (17, 6)}[env]
    cfg = config()
    whole = policy(cfg, *sizes)
    first = evaluate_policy(whole, spec, EPISODES)
    again = benchmark.pedantic(evaluate_policy, (whole, spec, EPISODES), rounds=1)
    assert np.array_equal(first.returns_SE, again.returns_SE)
    steps, taken = int(again.lengths_SE.sum()), benchmark.stats.stats.median
    benchmark.extra_info |= machine | {"episodes": EPISODES, "env_steps": steps, "env_steps_per_second": steps / taken}
    benchmark.extra_info |= {"sampling_steps": cfg.sampling_steps, "precision": "fp32", "us": taken / steps * 1e6}
