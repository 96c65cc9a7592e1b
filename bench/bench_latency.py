"""Time of one action, noise and checks included, from NumPy to NumPy: obs 17, action 6, as HalfCheetah.

`torch` is the algorithm's formulas as they stand, the twin of the tests; the other is the policy's own way. On a CPU
both have one thread.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bench.training import ACTION_DIM, OBS_DIM, config, policy
from gtp_fast import algorithms
from gtp_fast.config import DETERMINISTIC

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
METHODS: dict[str, dict[str, Any]] = {f"gtp-k{k}": {"sampling_steps": k} for k in (1, 2, 5, 10)} | {
    "dql": {"algo": "dql"},
    "cac": {"algo": "cac"},
    "fql-4x512": {"algo": "fql"},
    "fql-3x256": {"algo": "fql", "hidden": 256, "layers": 3},
    "iql": {"algo": "iql"},
    "td3bc": {"algo": "td3bc"},
}
PLACES = ((1, 1), (1, 50), (256, 1))  # batch, candidates


@pytest.mark.parametrize("way", ["torch", "own"])
@pytest.mark.parametrize(("batch", "candidates"), PLACES, ids=lambda n: str(n))
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.benchmark(warmup=False)
def bench_act(benchmark, machine, method, batch, candidates, way):
    changes = METHODS[method]
    algo = changes.get("algo", "gtp")
    if candidates > 1 and algo in DETERMINISTIC:
        pytest.skip(f"{algo} has one action for an observation")
    select = "none" if candidates == 1 else "argmax"
    cfg = config(**{**changes, "candidates": candidates, "select": select, "device": DEVICE})
    own = policy(cfg, algorithms.of(cfg).init_state(cfg, OBS_DIM, ACTION_DIM, DEVICE), OBS_DIM, ACTION_DIM)
    if way == "own" and own.runtime == "torch":
        pytest.skip(f"{algo} acts by its formulas in torch here: timed as that")
    benchmark.group = f"latency/{algo}/{cfg.sampling_steps}"
    obs = np.random.default_rng(0).normal(size=(batch, OBS_DIM)).astype(np.float32)
    _assert_acts_as_its_formulas(own, obs)
    acting = own if way == "own" else own.plain()
    rounds = 1_000 if batch * candidates == 1 else 100
    benchmark.pedantic(acting.act, (obs,), rounds=rounds, iterations=1, warmup_rounds=20)
    low, middle, high, slow = (np.percentile(benchmark.stats.stats.data, [20, 50, 80, 99]) * 1e6).tolist()
    benchmark.extra_info |= machine | {
        "method": method,
        "algo": algo,
        "way": acting.runtime,
        "sampling_steps": cfg.sampling_steps,
        "batch_size": batch,
        "candidates": candidates,
        "hidden": cfg.hidden,
        "layers": cfg.layers,
        "precision": "fp32" if DEVICE == "cpu" else "tf32",
        "us": middle,
        "p20_us": low,
        "p80_us": high,
        "p99_us": slow,
    }


def _assert_acts_as_its_formulas(own, obs):
    """Refuse to time what acts otherwise. Candidates whose values nearly tie may be chosen otherwise: almost all."""
    same = [np.abs(own.anew().act(obs) - own.plain().act(obs)).max(axis=-1) for _ in range(3)]
    # 80 z at the start, 24 bits: 5e-6 in fp32. A slip in the formula or the noise would be a thousand times larger.
    assert np.mean(np.concatenate(same) < (2e-5 if DEVICE == "cpu" else 0.05)) > 0.9
