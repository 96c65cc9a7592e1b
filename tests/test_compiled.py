"""The compiled step of every algorithm against its eager one, which the tests of the algorithm hold to a slow one.

`make test` takes GTP through all of the compiler, and the others through what an algorithm's own code can spoil: one
graph without breaks, gradients inside it, writes in place (aot_eager). Inductor's code for those, a minute of compiling
each, is `make slow`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from learn_cases import ACTION_DIM, OBS_DIM, buffer_of, small_config

from gtp_fast import algorithms
from gtp_fast.graph import stepper

OWN = {
    "gtp": {},
    "cac": {"sampling_steps": 2, "eta": 1.0},
    "dql": {"sampling_steps": 4, "eta": 0.7},
    "fql": {"layers": 2, "grad_norm": 0.0, "alpha": 3.0},
}
STEPS = 6  # the EMA starts at the fourth and is due at the fifth


def _trained(backend: str, algo: str, bc: bool):
    cfg = replace(small_config(), algo=algo, bc=bc, backend=backend, **OWN[algo])
    state = algorithms.of(algo).init_state(cfg, OBS_DIM, ACTION_DIM, "cpu")
    stepper(cfg, state, buffer_of(cfg))(STEPS)
    return state.tensors()


def _agree(algo: str, bc: bool) -> None:
    torch._dynamo.reset()  # settings are guards: a process that compiled many of them refuses to go on
    eager, compiled = (_trained(backend, algo, bc) for backend in ("eager", "compiled"))
    for name, tensor in eager.items():
        # The compiler fuses and reorders float32 sums; Adam turns that into up to 1e-3 of a step of 1e-3.
        assert torch.allclose(tensor.double(), compiled[name].double(), rtol=1e-3, atol=2e-5), name


@pytest.mark.slow
def test_the_compiled_step_agrees_with_eager():
    _agree("gtp", bc=False)


@pytest.mark.slow
@pytest.mark.parametrize(("algo", "bc"), [("gtp", True), ("cac", False), ("dql", False), ("fql", False)])
def test_the_graph_of_a_step_agrees_with_eager(algo, bc, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    _agree(algo, bc)


@pytest.mark.long
@pytest.mark.parametrize("bc", [False, True], ids=["whole", "bc"])
@pytest.mark.parametrize("algo", ["cac", "dql", "fql"])
def test_the_compiled_step_of_a_baseline_agrees_with_eager(algo, bc):
    _agree(algo, bc)
