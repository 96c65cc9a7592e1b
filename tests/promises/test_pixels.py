"""Every algorithm trains on pictures: on the device alone, members apart, and so that something is learned."""

from __future__ import annotations

import sys
from functools import partial

import peak_memory
import pytest
import torch
from capture_safety import problems_of
from families import family
from frame_cases import ACTION_DIM, frame_buffer, frame_config

from gtp_fast import algorithms
from gtp_fast.algorithms import gtp
from gtp_fast.algorithms.backends import stepper
from gtp_fast.algorithms.state import TrainState

OWN = {
    "gtp": {},
    "gtp-bc": {"bc": True},
    "gtp-max-q-backup": {"max_q_backup": True, "value_samples": 2},
    "gtp-expectile": {"value": "expectile"},
    "gtp-linear-q": {"actor_loss": "linear-q"},
    "gtp-meanflow": {"actor_loss": "meanflow"},
    "gtp-solver": {"actor_loss": "solver", "value": "behaviour"},
    "cac": {"algo": "cac", "eta": 1.0},
    "dql": {"algo": "dql"},
    "fql": {"algo": "fql", "layers": 2},
    "fql-bc": {"algo": "fql", "layers": 2, "bc": True},
    "iql": {"algo": "iql", "sampling_steps": 1},
    "td3bc": {"algo": "td3bc", "sampling_steps": 1},
}
cases = pytest.mark.parametrize("name", list(OWN))


def _parts(changes: dict, device: str = "cpu"):
    cfg = frame_config(**changes)
    buffer = frame_buffer(cfg, device)
    algorithm = algorithms.of(cfg)
    state = algorithms.init_state(cfg, buffer.obs_shape, ACTION_DIM, device)
    return state, algorithm.make_step(cfg, state, buffer)


def _trained(changes: dict, steps: int = 4) -> TrainState:
    state, step = _parts(changes)
    for _ in range(steps):
        step()
    return state


@pytest.mark.parametrize("name", family(OWN, quick=["gtp", "dql", "iql"]))
def test_the_step_stays_on_the_device(name):
    state, step = _parts(OWN[name])
    assert problems_of(step, state.tensors) == []
    _, step = _parts(OWN[name], device="meta")
    assert problems_of(step, dict, steps=1) == [], "a tensor of the step lives on the host"


@cases
def test_every_encoder_that_is_read_learns(name):
    state, start = _trained(OWN[name]), _parts(OWN[name])[0]
    cfg = frame_config(**OWN[name])
    layouts = algorithms.of(cfg).layouts(cfg, (8, 9, 4), ACTION_DIM)
    nets = {"actor": (state.actor, start.actor, 1), "critic": (state.critic, start.critic, 2)}
    nets["value"] = (state.value, start.value, 1)
    for net, (after, before, heads) in nets.items():
        if after is None or before is None:
            continue
        for entry, (offset, shape) in layouts[net].places.items():
            part = slice(offset, offset + shape[0] * shape[1])
            moved = (after.param[:, part] != before.param[:, part]).any(dim=1)
            assert bool(moved[::heads].all()), (net, entry)
            if "eye" in entry and heads == 2:  # both heads see by the first
                assert not moved[1::2].any(), entry


@pytest.mark.parametrize("name", ["gtp", "fql", "iql"])
def test_a_member_among_others_trains_like_the_member_alone(name):
    together, alone = _trained(OWN[name] | {"seeds": 3}), _trained(OWN[name] | {"seed": 2})
    for key in ("actor.param", "critic.param"):
        ours, own = (state.tensors()[key] for state in (together, alone))
        # Products of three members and of one may sum in another order.
        assert torch.allclose(ours[-len(own) :], own, rtol=1e-3, atol=2e-5), key


def test_a_stack_of_one_frame_and_no_shift_trains():
    state = _trained({"frame_stack": 1, "augment": 0.0})
    assert int(state.step) == 4 and bool((state.first_bad_SQ < 0).all())


def test_shifts_change_what_is_learned():
    assert _trained({"augment": 1.0}).digest() != _trained({"augment": 0.0}).digest()
    assert _trained({"augment": 1.0}).digest() == _trained({"augment": 1.0}).digest()


def _agree(changes: dict) -> None:
    torch._dynamo.reset()
    found = []
    for backend in ("eager", "compiled"):
        cfg = frame_config(**changes, backend=backend)
        buffer = frame_buffer(cfg)
        state = algorithms.init_state(cfg, buffer.obs_shape, ACTION_DIM, "cpu")
        stepper(cfg, state, buffer)(4)
        found.append(state.tensors())
    for key, tensor in found[0].items():
        # Fused sums differ in their order, and Adam divides a gradient of almost nothing by its size: among 101,024
        # parameters one differed by a twelfth of a step (8e-5), all together by 5e-6 of their norm, moments by 2e-5.
        ours, theirs = tensor.double(), found[1][key].double()
        assert (ours - theirs).norm() <= 1e-4 * ours.norm(), key


@pytest.mark.long
@pytest.mark.parametrize("name", ["gtp", "gtp-meanflow", "fql", "cac", "dql"])
def test_the_graph_of_a_step_agrees_with_eager(name, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    _agree(OWN[name])


@pytest.mark.long
@cases
def test_the_compiled_step_of_another_setting_agrees_with_eager(name):
    _agree(OWN[name])


def test_the_step_of_bc_learns_what_a_picture_says():
    cfg = frame_config(bc=True, augment=0.0)
    state, step = _parts({"bc": True, "augment": 0.0})
    columns = gtp.metric_names(cfg)
    losses = []
    for _ in range(2):
        state.metric_sums_SQ.zero_()
        for _ in range(30):
            step()
        losses.append(float(state.metric_sums_SQ[0, columns.index("inst_loss")]))
    assert losses[1] < losses[0]


@pytest.mark.skipif(sys.platform != "linux", reason="reads memory as Linux tells it")
@pytest.mark.long
@pytest.mark.parametrize("name", ["gtp", "fql"])
def test_the_memory_of_an_encoder_is_estimated_to_a_half(name):
    (share,) = peak_memory.shares([("images", OWN[name])])
    assert 0.5 < share < 1.5
