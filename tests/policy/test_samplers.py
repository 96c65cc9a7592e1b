"""Acting on a CPU is the sampler's chain, held to float64; the noise is that of (seed, call), whatever is kept."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from gtp_fast import rng
from gtp_fast.algorithms import equations, networks
from gtp_fast.algorithms.policy_config import PolicyConfig
from gtp_fast.policy.policy import CallNoise, Policy
from gtp_fast.policy.samplers import AlgorithmSampler, CpuSampler

D, A, H = 7, 3, 32
LAYOUTS = {"actor": networks.actor_layout(D, A, H), "critic": networks.critic_layout(D, A, H)}


def flat(seeds: list[int]) -> dict[str, torch.Tensor]:
    critic = networks.init_flat(LAYOUTS["critic"], seeds, 2, 1)
    return {"actor": networks.init_flat(LAYOUTS["actor"], seeds), "critic": critic}


def parameters(members: int, scale: float = 1.0):
    """Return the actor's and the critic's tensors by name."""
    drawn = flat(list(range(members)))
    return [networks.views(drawn[name] * scale, layout) for name, layout in LAYOUTS.items()]


def double(p):
    return {name: tensor.double() for name, tensor in p.items()}


def config(members: int, steps: int, candidates: int = 1) -> PolicyConfig:
    select = "argmax" if candidates > 1 else "none"
    return PolicyConfig(D, A, H, 0.002, 80.0, 0.5, 7.0, steps, candidates, select, tuple(range(members)))


def pair(members: int, steps: int, candidates: int = 1, scale: float = 1.0):
    """Return the sampler under test, and its twin in float64."""
    actor, critic = parameters(members, scale)
    judged = critic if candidates > 1 else None
    cpu = CpuSampler(actor, judged, equations.sampling_grid(steps, 0.002, 80.0, 7.0), 0.5, 0.002)
    return cpu, AlgorithmSampler(config(members, steps, candidates), double(actor), judged and double(judged))


def inputs(members: int, batch: int, candidates: int):
    drawn = np.random.default_rng(batch)
    obs, z = drawn.normal(size=(members, batch, D)), drawn.normal(size=(members, batch * candidates, A))
    return obs.astype(np.float32), z.astype(np.float32)


@pytest.mark.parametrize("steps", [1, 2, 5, 10])
@pytest.mark.parametrize(("members", "batch"), [(1, 1), (1, 63), (3, 1), (2, 5)])
def test_actions_are_those_of_the_chain_in_float64(steps, members, batch):
    cpu, twin = pair(members, steps)
    obs, z = inputs(members, batch, 1)
    # The chain starts at 80 z and ends near 1: what a float32 loses at the start, 80 * 6e-8, is the scale of the error.
    assert np.abs(cpu.actions(obs, z, None) - twin.actions(obs, z, None)).max() < 5e-6


def test_the_float32_twin_is_no_nearer_to_float64():
    cpu, twin = pair(2, 5)
    single = AlgorithmSampler(config(2, 5), parameters(2)[0], None)
    obs, z = inputs(2, 500, 1)
    exact = twin.actions(obs, z, None)
    error, its_error = (np.abs(s.actions(obs, z, None) - exact).mean() for s in (cpu, single))
    assert error < 1.5 * its_error


@pytest.mark.parametrize("drawn", [False, True], ids=["argmax", "softmax"])
@pytest.mark.parametrize(("members", "batch"), [(1, 1), (2, 5)])
def test_the_candidate_chosen_is_the_one_that_float64_chooses(members, batch, drawn):
    cpu, twin = pair(members, 5, candidates=50)
    obs, z = inputs(members, batch, 50)
    gumbel = np.random.default_rng(1).gumbel(size=(members, batch * 50)).astype(np.float32) if drawn else None
    actions = cpu.actions(obs, z, gumbel)
    assert actions.shape == (members, batch, A) and actions.dtype == np.float32
    assert np.abs(actions - twin.actions(obs, z, gumbel)).max() < 5e-6


def test_activations_beyond_the_clamp_of_mish_stay_finite_and_right():
    cpu, twin = pair(1, 5, candidates=4, scale=20.0)
    obs, z = inputs(1, 8, 4)
    actions = cpu.actions(1e3 * obs, z, None)
    assert np.isfinite(actions).all() and np.allclose(actions, twin.actions(1e3 * obs, z, None), atol=1e-4)


def test_a_policy_keeps_what_it_was_made_of():
    actor, critic = parameters(1)
    cpu = CpuSampler(actor, critic, equations.sampling_grid(5, 0.002, 80.0, 7.0), 0.5, 0.002)
    obs, z = inputs(1, 3, 4)
    before = cpu.actions(obs, z, None)
    for tensor in (*actor.values(), *critic.values()):
        tensor.zero_()
    assert np.array_equal(cpu.actions(obs, z, None), before)


def test_threads_may_share_it_and_inputs_are_left_as_they_were():
    cpu, _ = pair(1, 5, candidates=8)
    cases = [inputs(1, batch, 8) for batch in range(1, 9)]
    kept = [(obs.copy(), z.copy()) for obs, z in cases]
    alone = [cpu.actions(obs, z, None) for obs, z in cases]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda case: cpu.actions(*case, None), cases * 20))
    assert all(np.array_equal(found, alone[i % 8]) for i, found in enumerate(together))
    assert all(
        np.array_equal(a, b) for case, was in zip(cases, kept, strict=True) for a, b in zip(case, was, strict=True)
    )


@pytest.mark.parametrize("rows", [1, 7, 300])
def test_noise_drawn_ahead_is_the_stream_of_seed_and_call(rows):
    noise = CallNoise((3, 9), rng.ACT, 3)
    drawn = {call: noise.of_call(call, rows) for call in range(1, 520)}  # past a first block of 512 calls
    for call in (1, 2, 255, 256, 257, 511, 512, 513, 519):
        assert np.array_equal(drawn[call], rng.standard_normals([3, 9], rng.ACT, call, rows, 3).numpy())


def test_a_calls_noise_does_not_depend_on_the_calls_before():
    noise = CallNoise((3,), rng.ACT, 6)
    asked = [(5, 1), (2, 1), (2, 4), (900, 4), (3, 1), (5, 1)]
    for call, rows in asked:
        assert np.array_equal(noise.of_call(call, rows), CallNoise((3,), rng.ACT, 6).of_call(call, rows))


def test_gumbels_numbers_are_minus_log_minus_log_of_the_uniforms():
    normals = rng.standard_normals([0], rng.SELECT, 4, 50_000, 1)
    drawn = CallNoise((0,), rng.SELECT, 1, gumbel=True).of_call(4, 50_000)
    expected = -torch.log(-torch.special.log_ndtr(normals.double()))
    assert np.allclose(drawn, expected.numpy(), atol=1e-5)
    # Euler's constant; five standard errors of 50,000 draws of deviation pi / sqrt(6).
    assert abs(drawn.mean() - 0.5772) < 5 * 1.2825 / np.sqrt(50_000)


@pytest.mark.gpu
def test_a_policy_on_a_gpu_acts_as_on_the_cpu():
    config = PolicyConfig(D, A, H, 0.002, 80.0, 0.5, 7.0, 5, 50, "softmax", (0, 1))
    here, there = Policy(config, flat([0, 1])), Policy(config, flat([0, 1]), "cuda", "fp32")
    obs, _ = inputs(2, 16, 1)
    assert np.abs(here.act_members(obs) - there.act_members(obs)).max() < 2e-5
