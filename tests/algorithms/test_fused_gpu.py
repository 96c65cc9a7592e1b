"""The compiled kernels on a GPU: what the interpreter tests, and what only a card can show."""

from __future__ import annotations

from dataclasses import replace

import pytest
import test_actor
import test_advantage
import test_chain
import test_critic
import test_cuda_sampler
import test_draws
import test_fused
import test_mlp
import test_update
import torch
from capture_safety import fill_free_memory
from fused_cases import STABLE, fused_config
from learn_cases import ACTION_DIM, OBS_DIM, buffer_of

from gtp_fast import algorithms
from gtp_fast.algorithms.backends import stepper

pytestmark = pytest.mark.gpu

# Collected here again, under this module's mark: on a GPU they run the compiled kernels.
KERNELS = (test_actor, test_advantage, test_chain, test_critic, test_draws, test_mlp, test_update)
for _module in (*KERNELS, test_fused, test_cuda_sampler):
    globals().update({name: test for name, test in vars(_module).items() if name.startswith("test_")})


def _run(cfg, chunks, start=None):
    state = algorithms.init_state(cfg, OBS_DIM, ACTION_DIM, "cuda")
    if start is not None:
        state.load_(start.tensors())
    run = stepper(cfg, state, buffer_of(cfg, device="cuda"))
    for chunk in chunks:
        run(chunk)
    return state


VARIANTS = {"paper": {}, "bc": {"bc": True}, "stable": STABLE, "max-q-backup": {"max_q_backup": True}}


# Graphs of 10, 5 and 1 steps, of which it is known where the EMA of every 5 steps moves; of 4 and 1 it is not.
@pytest.mark.parametrize("unroll", [10, 4])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_captured_steps_beside_each_other_are_the_steps_in_a_row(changes, precision, unroll):
    cfg = fused_config(precision=precision, graph=True, unroll=unroll, hidden=64, batch_size=48, **changes)
    fresh = algorithms.init_state(cfg, OBS_DIM, ACTION_DIM, "cuda")
    assert _run(cfg, []).digest() == fresh.digest(), "capture changed the state"
    captured = _run(cfg, [27])
    assert captured.digest() == _run(replace(cfg, graph=False), [27]).digest()
    assert captured.digest() == _run(cfg, [19], start=_run(cfg, [8])).digest(), "resumed at step 8"
    assert captured.digest() == _run(cfg, [27]).digest(), "repeated"


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_eight_seeds_are_bitwise_eight_runs_at_full_size(precision):
    def run(seed, seeds):
        cfg = fused_config(precision=precision, seed=seed, seeds=seeds, hidden=256, batch_size=256, unroll=5)
        return _run(replace(cfg, graph=True), [25])

    together = run(0, 8)
    for i in (0, 3, 7):
        alone = run(i, 1)
        assert torch.equal(together.actor.param[i : i + 1], alone.actor.param)
        assert together.critic is not None and alone.critic is not None
        assert torch.equal(together.critic.param[2 * i : 2 * i + 2], alone.critic.param)


def test_what_a_captured_step_reads_is_not_given_to_others():
    cfg = fused_config(precision="tf32", graph=True, unroll=4, hidden=64, batch_size=48)
    expected = _run(replace(cfg, graph=False), [11]).digest()
    state = algorithms.init_state(cfg, OBS_DIM, ACTION_DIM, "cuda")
    run = stepper(cfg, state, buffer_of(cfg, device="cuda"))
    others = fill_free_memory()
    run(11)
    assert state.digest() == expected and others
