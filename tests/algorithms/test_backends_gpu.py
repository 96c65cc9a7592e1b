"""Captured steps on a real GPU, eager and compiled: capture changes nothing, and a replay is the step itself.

Bits are compared, not closeness: a captured launch runs the same kernels on the same addresses in the same order.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from capture_safety import fill_free_memory
from learn_cases import ACTION_DIM, OBS_DIM, buffer_of, small_config

from gtp_fast import algorithms
from gtp_fast.algorithms.backends import compile_step, stepper
from gtp_fast.algorithms.state import TrainState
from gtp_fast.config import TrainConfig
from gtp_fast.errors import UsageError

pytestmark = pytest.mark.gpu
STEPS, UNROLL = 11, 4  # two launches of four steps and three of one


@pytest.fixture(params=["eager", "compiled"], scope="module")
def captured(request) -> TrainConfig:
    """Return the settings of a captured run; the EMA opens at step 4 of 11, so that both sides of it are replayed."""
    if request.param == "compiled":
        try:
            compile_step(lambda: None)
        except UsageError as error:
            pytest.skip(str(error))
        torch._dynamo.reset()  # settings are guards: a process that compiled many of them refuses to go on
    return replace(small_config(), device="cuda", backend=request.param, graph=True, unroll=UNROLL)


def _fresh(cfg: TrainConfig, steps: int = 0) -> TrainState:
    """Return a state that has made some steps uncaptured."""
    state = algorithms.init_state(cfg, OBS_DIM, ACTION_DIM, "cuda")
    if steps:
        stepper(replace(cfg, graph=False), state, buffer_of(cfg, device="cuda"))(steps)
    return state


def _run(cfg: TrainConfig, state: TrainState, *chunks: int) -> TrainState:
    run = stepper(cfg, state, buffer_of(cfg, device="cuda"))
    for chunk in chunks:
        run(chunk)
    return state


@pytest.mark.parametrize("steps", [0, 5], ids=["fresh", "trained"])
def test_promise_9_capture_changes_no_state(captured, steps):
    state = _fresh(captured, steps)
    before, addresses = state.digest(), [tensor.data_ptr() for tensor in state.tensors().values()]
    stepper(captured, state, buffer_of(captured, device="cuda"))
    assert state.digest() == before
    assert [tensor.data_ptr() for tensor in state.tensors().values()] == addresses


@pytest.mark.parametrize("changes", [{}, {"bc": True}], ids=["gtp", "bc"])
def test_promise_9_replays_make_the_bits_of_uncaptured_steps(captured, changes):
    cfg = replace(captured, **changes)
    assert _run(cfg, _fresh(cfg), STEPS).digest() == _fresh(cfg, STEPS).digest()


def test_two_runs_make_the_same_bits(captured):
    assert _run(captured, _fresh(captured), STEPS).digest() == _run(captured, _fresh(captured), STEPS).digest()


def test_another_seed_makes_other_bits(captured):
    other = replace(captured, seed=captured.seed + captured.seeds)
    assert _run(captured, _fresh(captured), 1).digest() != _run(other, _fresh(other), 1).digest()


def test_chunks_of_replays_make_the_bits_of_one_run(captured):
    assert _run(captured, _fresh(captured), 1, 6, 0, 4).digest() == _run(captured, _fresh(captured), STEPS).digest()


@pytest.mark.parametrize("at", range(STEPS))
def test_promise_2_a_captured_run_resumed_at_any_step_makes_the_same_bits(captured, at):
    saved = {name: tensor.cpu() for name, tensor in _run(captured, _fresh(captured), at).tensors().items()}
    resumed = _fresh(replace(captured, seed=captured.seed + captured.seeds))
    resumed.load_({name: tensor.to("cuda") for name, tensor in saved.items()})
    assert _run(captured, resumed, STEPS - at).digest() == _run(captured, _fresh(captured), STEPS).digest()


def test_a_state_loaded_after_capture_is_what_the_replays_continue(captured):
    state = _fresh(captured)
    run = stepper(captured, state, buffer_of(captured, device="cuda"))
    run(3)
    state.load_(_fresh(captured, 6).tensors())
    run(STEPS - 6)
    assert state.digest() == _fresh(captured, STEPS).digest()


def test_what_a_captured_step_reads_is_not_given_to_others(captured):
    expected, state = _fresh(captured, STEPS).digest(), _fresh(captured)
    run = stepper(captured, state, buffer_of(captured, device="cuda"))
    others = fill_free_memory()
    run(STEPS)
    assert state.digest() == expected and others


def test_a_replay_waits_for_nothing(captured):
    state = _fresh(captured)
    run = stepper(captured, state, buffer_of(captured, device="cuda"))
    torch.cuda.set_sync_debug_mode("error")
    try:
        run.replay(0, STEPS)  # pyright: ignore[reportFunctionMemberAccess]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert int(state.step) == STEPS


def test_the_gpu_agrees_with_the_cpu(captured):
    on_gpu = _run(captured, _fresh(captured), 6).tensors()
    cpu = replace(captured, device="cpu", backend="eager", graph=False)
    state = algorithms.init_state(cpu, OBS_DIM, ACTION_DIM, "cpu")
    stepper(cpu, state, buffer_of(cpu))(6)
    start = algorithms.init_state(cpu, OBS_DIM, ACTION_DIM, "cpu").tensors()
    for name, tensor in state.tensors().items():
        # Sums in another order; Adam turns the sign of a vanishing gradient into a whole step, hence norms.
        moved = (tensor - start[name]).double().norm()
        assert (on_gpu[name].cpu().double() - tensor.double()).norm() <= 0.01 * moved, name
