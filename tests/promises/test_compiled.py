"""The compiled step of every algorithm and variant against its eager one, which other tests hold to a slow one.

`make test` takes GTP through all of the compiler, and others through what an algorithm's own code can spoil: one graph
without breaks, gradients inside it, writes in place (aot_eager). Inductor's code for those and for the variants, a
minute of compiling each, is `make slow`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from gtp_kernels.primitives import Compiler
from learn_cases import ACTION_DIM, OBS_DIM, buffer_of, small_config

from gtp_fast import algorithms
from gtp_fast.algorithms import backends, updates
from gtp_fast.algorithms.backends import stepper

OWN = {
    "gtp": {},
    "gtp-bc": {"bc": True},
    "solver": {"actor_loss": "solver"},
    "shortcut": {"actor_loss": "shortcut", "value": "behaviour"},
    "linear-q": {"actor_loss": "linear-q", "compare_at_zero": True},
    "meanflow": {"actor_loss": "meanflow", "times": "lognormal", "value": "expectile", "weight_norm": True},
    "flow": {"process": "flow", "sigma_max": 1.0, "rho": 1.0},
    "cac": {"algo": "cac", "sampling_steps": 2, "eta": 1.0},
    "dql": {"algo": "dql", "sampling_steps": 4, "eta": 0.7},
    "fql": {"algo": "fql", "layers": 2, "grad_norm": 0.0, "alpha": 3.0},
    "iql": {"algo": "iql", "sampling_steps": 1},
    "td3bc": {"algo": "td3bc", "sampling_steps": 1, "alpha": 2.5},
}
STEPS = 6  # the EMA starts at the fourth and is due at the fifth


def _trained(backend: str, changes: dict):
    cfg = replace(small_config(), backend=backend, **changes)
    state = algorithms.of(cfg).init_state(cfg, OBS_DIM, ACTION_DIM, "cpu")
    stepper(cfg, state, buffer_of(cfg))(STEPS)
    return state.tensors()


def _agree(changes: dict) -> None:
    torch._dynamo.reset()  # settings are guards: a process that compiled many of them refuses to go on
    eager, compiled = (_trained(backend, changes) for backend in ("eager", "compiled"))
    for name, tensor in eager.items():
        # The compiler fuses and reorders float32 sums; Adam turns that into up to 1e-3 of a step of 1e-3.
        assert torch.allclose(tensor.double(), compiled[name].double(), rtol=1e-3, atol=2e-5), name


@pytest.mark.slow
def test_the_compiled_step_agrees_with_eager():
    _agree({})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gtp-bc", "meanflow", "cac", "dql", "fql", "iql", "td3bc"])
def test_the_graph_of_a_step_agrees_with_eager(name, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    _agree(OWN[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gtp", "iql"])
def test_a_step_agrees_with_eager_where_the_compiler_traces_no_leaves(name, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(backends, "_traces_gradients", lambda: False)  # as torch 2.11
    monkeypatch.setattr(updates, "ASKING", {})
    monkeypatch.setattr(Compiler, "loses_functions", False)
    _agree(OWN[name])
    assert updates.ASKING and Compiler.loses_functions


@pytest.mark.long
@pytest.mark.parametrize("bc", [False, True], ids=["whole", "bc"])
@pytest.mark.parametrize("name", [name for name in OWN if not name.startswith("gtp")])
def test_the_compiled_step_of_another_setting_agrees_with_eager(name, bc):
    _agree(OWN[name] | {"bc": bc})
