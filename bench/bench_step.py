"""Time of one train step of every algorithm in every backend that this machine has, batch 256, obs 17, action 6.

On a CPU it is the CPU time of one thread, beside the product that bounds it; on a GPU the device's time by events.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.gpu.settings import AGREES
from bench.training import config, training
from gtp_fast import algorithms, device
from gtp_fast.config import TrainConfig

pytestmark = pytest.mark.benchmark(warmup=False)
GPU = torch.cuda.is_available()
GATE_STEPS = 3
COMPARED = ("actor_loss", "critic_loss")


@dataclass(frozen=True)
class Switch:
    """One row of the table: a backend, captured or not, and how many seeds train at once."""

    backend: str
    graph: bool = False
    seeds: int = 1

    @property
    def name(self) -> str:
        """Return "fused+graph+8seeds" and the like."""
        return self.backend + "+graph" * self.graph + (f"+{self.seeds}seeds" if self.seeds > 1 else "")


ON_GPU = (
    *(Switch("eager"), Switch("eager", True), Switch("compiled", True)),
    *(Switch("fused"), Switch("fused", True), Switch("fused", True, 8)),
)
SWITCHES = ON_GPU if GPU else (Switch("eager"), Switch("compiled"), Switch("eager", seeds=8))
METHODS: dict[str, dict[str, Any]] = {
    "gtp-k5": {"sampling_steps": 5},
    "gtp-k2": {"sampling_steps": 2},
    "gtp-bc": {"bc": True, "eta": 0.0},
    "dql": {"algo": "dql"},
    "cac": {"algo": "cac"},
    "fql-4x512": {"algo": "fql"},
    "fql-3x256": {"algo": "fql", "hidden": 256, "layers": 3},
    "iql": {"algo": "iql"},
    "td3bc": {"algo": "td3bc"},
}
SEVERAL = ("gtp-k5",)  # of which several seeds are timed


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("switch", SWITCHES, ids=lambda switch: switch.name)
def bench_step(benchmark, timed, ceiling, method, switch):
    changes = METHODS[method]
    algo = changes.get("algo", "gtp")
    if switch.seeds > 1 and method not in SEVERAL:
        pytest.skip("several seeds are timed for GTP, K = 5")
    if method == "gtp-bc" and switch.backend == "compiled":
        pytest.skip("compiling takes most of a minute: the methods of the paper's table only")
    cfg = config(**changes, backend=switch.backend, graph=switch.graph, seeds=switch.seeds, **_machine())
    if switch.backend == "fused" and (missing := device.missing_for_fused(cfg, cfg.device)):
        pytest.skip(f"fused needs {missing}")
    benchmark.group = f"step/{algo}/{switch.name}"
    _assert_agrees_with_eager(cfg)
    state, run = training(cfg)
    run(cfg.unroll if GPU else 2)
    steps, rounds = (20 * cfg.unroll, 15) if GPU else (3 if switch.seeds > 1 else 5, 12 if switch.seeds == 1 else 5)
    taken = timed(run, steps, rounds, method=method, switch=switch.name, **_described(cfg))
    assert (state.first_bad_SQ < 0).all()
    flops = _flops(cfg)
    share = flops / taken / 1e9 / ceiling["product_gflop_s"]
    benchmark.extra_info |= ceiling | {"flops": flops, "percent_of_product_ceiling": 100 * share}


def _machine() -> dict[str, Any]:
    return {"device": "cuda", "precision": "tf32"} if GPU else {"device": "cpu", "precision": "fp32"}


def _described(cfg: TrainConfig) -> dict[str, Any]:
    names = ("algo", "backend", "graph", "precision", "seeds", "sampling_steps", "hidden", "layers", "batch_size")
    return {name: getattr(cfg, name) for name in names} | {"obs_dim": 17, "action_dim": 6}


def _assert_agrees_with_eager(cfg: TrainConfig) -> None:
    """Refuse to time a step that computes something else: mean losses of the first steps, by seed."""
    plain = replace(cfg, backend="eager", precision="fp32", graph=False)
    if cfg == plain:
        return
    expected, found = _losses(plain), _losses(cfg)
    difference = ((found - expected).abs() / expected.abs()).max()
    assert difference <= AGREES[cfg.precision], f"losses differ from eager fp32 by {difference:.2g}: not timed"
    device.prepare(replace(cfg, threads=1))


def _losses(cfg: TrainConfig) -> torch.Tensor:
    device.prepare(replace(cfg, threads=1))
    state, run = training(cfg)
    run(GATE_STEPS)
    names = algorithms.of(cfg).metric_names(cfg)
    columns = [names.index(name) for name in COMPARED if name in names]
    return (state.metric_sums_SQ[:, columns].double() / GATE_STEPS).cpu()


def _flops(cfg: TrainConfig) -> int:
    """Count the products of one step, which every backend has to compute."""
    _, run = training(replace(cfg, backend="eager", graph=False, device="cpu", precision="fp32"))
    with FlopCounterMode(display=False) as counter:
        run(1)
    return counter.get_total_flops()
