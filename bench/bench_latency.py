"""Time of one action on one CPU thread, noise and checks included: obs 17, action 6, hidden 256, as HalfCheetah.

`plain` is what `Policy.act` did before it had a path for the CPU: the twin of the tests in torch, noise drawn call by
call. One run holds both, so that their ratio is a figure. NumPy's products take the cores that OMP_NUM_THREADS allows:
OMP_NUM_THREADS=1 pytest bench/bench_latency.py --benchmark-only
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gtp_fast import networks, rng
from gtp_fast.policy import Policy
from gtp_fast.policy_config import PolicyConfig
from gtp_fast.sampler import TorchSampler
from gtp_fast.trajectory import sampling_grid

CONFIG = PolicyConfig(17, 6, 256, 0.002, 80.0, 0.5, 7.0, 5, 1, "none", (0,))
LAYOUTS = {"actor": networks.actor_layout(17, 6, 256), "critic": networks.critic_layout(17, 6, 256)}


class _PlainNoise:
    def of_call(self, call: int, rows: int) -> np.ndarray:
        return rng.standard_normals([0], rng.ACT, call, rows, 6).numpy()


def _policies(changes: dict[str, Any]) -> tuple[Policy, Policy]:
    """Return the policy, and one of the same parameters that acts the plain way."""
    config = replace(CONFIG, **changes)
    flat = {
        name: networks.init_flat(LAYOUTS[name], [0], heads, heads - 1) for name, heads in (("actor", 1), ("critic", 2))
    }
    policy, plain = Policy(config, flat), Policy(config, flat)
    p = {name: networks.views(tensor, LAYOUTS[name]) for name, tensor in flat.items()}
    grid = sampling_grid(config.sampling_steps, config.sigma_min, config.sigma_max, config.rho)
    critic = p["critic"] if config.candidates > 1 else None
    plain._sampler = TorchSampler(p["actor"], critic, grid, config.sigma_data, config.sigma_min)
    plain._noise = _PlainNoise()  # pyright: ignore[reportAttributeAccessIssue]
    return policy, plain


CASES = {
    "k1": {"sampling_steps": 1},
    "k2": {"sampling_steps": 2},
    "k5": {},
    "k10": {"sampling_steps": 10},
    "k5-50candidates": {"candidates": 50, "select": "argmax"},
    "k5-batch256": {},
}


@pytest.mark.parametrize("way", ["plain", "cpu"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.benchmark(warmup=False)
def bench_act(benchmark, machine, case, way):
    benchmark.group = f"latency/gtp/{case}"
    changes, batch = CASES[case], 256 if "batch256" in case else 1
    obs = np.random.default_rng(0).normal(size=(batch, 17)).astype(np.float32)
    policy, plain = _policies(changes)
    for _ in range(3):
        # 80 z at the start, 24 bits: 5e-6. A slip in the formula or the noise would be a thousand times larger.
        assert np.abs(policy.act(obs) - plain.act(obs)).max() < 2e-5
    acting = policy if way == "cpu" else plain
    rounds = 200 if case in ("k5-50candidates", "k5-batch256") else 1_000
    benchmark.pedantic(acting.act, (obs,), rounds=rounds, iterations=1, warmup_rounds=20)
    times = np.percentile(benchmark.stats.stats.data, [20, 50, 80, 99]) * 1e3
    benchmark.extra_info |= machine | {
        "way": way,
        "batch": batch,
        "omp_threads": os.environ.get("OMP_NUM_THREADS"),
        **changes,
    }
    benchmark.extra_info |= dict(zip(("p20_ms", "median_ms", "p80_ms", "p99_ms"), times.round(4).tolist(), strict=True))
