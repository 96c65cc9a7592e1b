"""The compiled step of every algorithm and variant against its eager one, which other tests hold to a slow one.

`make test` takes GTP's step and a run of TD3+BC's through what their own code can spoil: one graph without breaks,
gradients inside it, writes in place (aot_eager). The other algorithms, and Inductor's code for each, a minute of
compiling, are `make slow`.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from families import family
from gtp_kernels.primitives import Compiler
from learn_cases import case, trained
from run_cases import back_to, multigoal
from safetensors.torch import load_file

import gtp_fast
from gtp_fast.algorithms import backends, updates
from gtp_fast.runs import checkpoint
from gtp_fast.runs.directory import RunDir

OWN = {
    "gtp": ("gtp", {}),
    "gtp-bc": ("gtp-bc", {}),
    "solver": ("gtp-heun", {}),
    "shortcut": ("gtp-shortcut", {"value": "behaviour"}),
    "linear-q": ("gtp-linear-q", {"compare_at_zero": True}),
    "meanflow": ("gtp-meanflow", {"times": "lognormal", "value": "expectile", "weight_norm": True}),
    "flow": ("gtp-flow", {}),
    "cac": ("cac", {}),
    "dql": ("dql", {}),
    "dql-two-steps": ("dql", {"sampling_steps": 2}),  # tracing costs by the step
    "fql": ("fql", {}),
    "iql": ("iql", {}),
    "td3bc": ("td3bc", {}),
}
TRACED = ["gtp-bc", "meanflow", "cac", "dql-two-steps", "fql", "iql", "td3bc"]
STEPS = 6  # the EMA starts at the fourth and is due at the fifth


def _agree(name: str, instead: dict | None = None) -> None:
    torch._dynamo.reset()  # settings are guards: a process that compiled many of them refuses to go on
    base, changes = OWN[name]
    cfgs = (case(base, backend=backend, **(instead or changes)) for backend in ("eager", "compiled"))
    eager, compiled = (trained(cfg, STEPS).tensors() for cfg in cfgs)
    for name, tensor in eager.items():
        # The compiler fuses and reorders float32 sums; Adam turns that into up to 1e-3 of a step of 1e-3.
        assert torch.allclose(tensor.double(), compiled[name].double(), rtol=1e-3, atol=2e-5), name


@pytest.mark.long
@pytest.mark.parametrize("name", TRACED)
def test_the_graph_of_a_step_agrees_with_eager(name, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    _agree(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", family(["gtp", "iql"], quick=["gtp"]))
def test_a_step_agrees_with_eager_where_the_compiler_traces_no_leaves(name, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(backends, "_traces_gradients", lambda: False)  # as torch 2.11
    monkeypatch.setattr(updates, "ASKING", {})
    monkeypatch.setattr(Compiler, "loses_functions", False)
    _agree(name)
    assert updates.ASKING and Compiler.loses_functions


def _run(folder: Path, backend: str = "compiled") -> RunDir:
    own = {"algo": "td3bc", "bc": True, "steps": 4, "batch_size": 16, "hidden": 16, "save_every": 2}
    return RunDir(Path(gtp_fast.train(**multigoal(folder, backend=backend, **own)).run_dir))


@pytest.mark.slow
@pytest.mark.parametrize("compiler", family(["aot_eager", "inductor"], quick=["aot_eager"]))
def test_promise_2_a_compiled_run_agrees_with_eager_and_resumed_from_a_checkpoint_ends_bitwise_equal(
    tmp_path: Path, monkeypatch, compiler: str
):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=compiler))
    torch._dynamo.reset()
    whole = _run(tmp_path / "whole")
    shutil.copytree(whole.path, tmp_path / "cut")
    back_to(tmp_path / "cut", 2)
    torch._dynamo.reset()  # as a process of its own would, the second compiles, from the compiler's cache
    cut = _run(tmp_path / "cut")
    for name in (checkpoint.STATE, checkpoint.POLICY):
        assert (whole.checkpoint(4) / name).read_bytes() == (cut.checkpoint(4) / name).read_bytes()
    assert whole.metrics.read_bytes() == cut.metrics.read_bytes()
    eager = _run(tmp_path / "eager", "eager")
    params = [load_file(run.checkpoint(4) / checkpoint.STATE)["actor.param"].double() for run in (whole, eager)]
    assert torch.allclose(*params, rtol=1e-3, atol=2e-5) and not torch.equal(params[0], torch.zeros_like(params[0]))


WHOLE = [name for name in OWN if name != "dql-two-steps"]


@pytest.mark.long
@pytest.mark.parametrize("name", WHOLE)
def test_the_compiled_step_agrees_with_eager(name):
    _agree(name)


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in WHOLE if name not in ("gtp", "gtp-bc", "linear-q")])
def test_the_compiled_step_of_cloning_agrees_with_eager(name):
    _agree(name, {"bc": True})
