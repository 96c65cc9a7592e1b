"""Acting by the fused kernels: the sampler of a GPU, interpreted where there is none, held to float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import triton.language as tl
from fused_cases import DEVICE
from gtp_kernels import acting
from gtp_kernels.launch import INTERPRETED, spread
from test_samplers import LAYOUTS, A, D, H, double, flat, inputs

from gtp_fast.algorithms import networks
from gtp_fast.algorithms.policy_config import PolicyConfig
from gtp_fast.policy.cuda_sampler import KEPT_GRAPHS, CudaSampler
from gtp_fast.policy.policy import Policy
from gtp_fast.policy.samplers import AlgorithmSampler

CONFIG = PolicyConfig(D, A, H, 0.002, 80.0, 0.5, 7.0, 5, 1, "none", (3,))


def pair(config: PolicyConfig, precision: str = "fp32"):
    """Return the sampler under test, and its twin in float64."""
    tensors = flat(list(config.seeds))
    actor, critic = (double(networks.views(tensors[name], layout)) for name, layout in LAYOUTS.items())
    twin = AlgorithmSampler(config, actor, critic if config.candidates > 1 else None)
    return CudaSampler(config, tensors, torch.device(DEVICE), precision), twin


@pytest.mark.parametrize("steps", range(1, 11))
def test_one_candidate_is_the_chain_in_one_launch(steps):
    sampler, twin = pair(replace(CONFIG, sampling_steps=steps))
    obs, z = inputs(1, 1, 1)
    # The chain starts at 80 z: what a float32 loses there is the scale of the error.
    assert np.abs(sampler.actions(obs, z, None) - twin.actions(obs, z, None)).max() < 2e-5
    assert [launch.name for launch in sampler.launches(sampler._calls[1])] == ["gtp_act"]


def test_the_chain_of_the_flow_process_has_no_scaling():
    sampler, twin = pair(replace(CONFIG, sigma_max=1.0, rho=1.0, process="flow"))
    obs, z = inputs(1, 3, 1)
    assert np.abs(sampler.actions(obs, z, None) - twin.actions(obs, z, None)).max() < 2e-6


@pytest.mark.parametrize(("members", "batch", "candidates"), [(1, 1, 50), (2, 3, 7)])
@pytest.mark.parametrize("select", ["argmax", "softmax"])
def test_the_best_candidate_is_chosen_on_the_device(members, batch, candidates, select):
    config = replace(CONFIG, seeds=tuple(range(members)), candidates=candidates, select=select)
    sampler, twin = pair(config)
    obs, z = inputs(members, batch, candidates)
    gumbel = None
    if select == "softmax":
        gumbel = np.random.default_rng(0).gumbel(size=(members, batch * candidates)).astype(np.float32)
    found, expected = sampler.actions(obs, z, gumbel), twin.actions(obs, z, gumbel)
    assert found.shape == (members, batch, A) and np.abs(found - expected).max() < 2e-5


@pytest.mark.parametrize("head", [0, 1])
@pytest.mark.parametrize("place", [0, 5, 49])
def test_a_value_that_is_no_number_is_chosen_as_by_the_twin(place, head):
    sampler, _ = pair(replace(CONFIG, candidates=50))
    sampler.actions(*inputs(1, 1, 50), None)
    call = sampler._calls[1]
    call.q.copy_(torch.randn(call.q.shape, generator=torch.Generator().manual_seed(0)))
    call.q[0, head, place] = float("nan")
    sampler.launches(call)[-1]()
    assert torch.equal(call.chosen[0, 0], call.actions[0, call.q.amin(1).argmax()])


@pytest.mark.parametrize(("precision", "bound"), [("tf32", 2e-2), ("bf16", 1e-1)])
@pytest.mark.parametrize("batch", [pytest.param(16, id="spread"), pytest.param(200, id="chain")])
def test_rounded_operands_act_alike(batch, precision, bound):
    sampler, twin = pair(CONFIG, precision)
    obs, z = inputs(1, batch, 1)
    apart = np.abs(sampler.actions(obs, z, None) - twin.actions(obs, z, None))
    assert 1e-6 < apart.mean() < bound / 4 and apart.max() < bound


@pytest.mark.parametrize(("batch", "candidates"), [(1, 1), (3, 1), (1, 50)])
def test_the_same_observation_gets_the_same_action_call_after_call(batch, candidates):
    select = "argmax" if candidates > 1 else "none"
    sampler, _ = pair(replace(CONFIG, candidates=candidates, select=select))
    obs, z = inputs(1, batch, candidates)
    first = sampler.actions(obs, z, None)
    for _ in range(2 if INTERPRETED else 2_000):
        assert np.array_equal(sampler.actions(obs, z, None), first)


@pytest.mark.skipif(not INTERPRETED, reason="a card's blocks meet by themselves, in every other test")
def test_blocks_that_meet_sum_the_parts_of_their_peers(monkeypatch):
    # Interpreted blocks run one after another, so all but the last miss mail. At K = 2 a second run of the launch, with
    # the same numbers, finds what the first one sent.
    monkeypatch.setattr(acting, "PATIENCE", tl.constexpr(1))
    config = replace(CONFIG, sampling_steps=2, candidates=6, select="argmax")
    sampler, _ = pair(config)
    obs, z = inputs(1, 1, 6)
    sampler.actions(obs, z, None)
    call = sampler._calls[1]
    expected, launch = call.actions.clone(), sampler.launches(call)[0]
    blocks, rows, tiles = 8, launch.args["R"], launch.grid[0]
    mail = torch.zeros(tiles * 2 * blocks * rows * H, dtype=torch.int64)
    args = launch.args | {"G": blocks, "mail_ptr": mail}
    apart = []
    for _ in range(2):
        launch.args["number_ptr"].fill_(1)
        replace(launch, args=args, grid=(tiles * blocks, 1))()
        apart.append(float((call.actions - expected).abs().max()))
    assert np.isnan(apart[0]), "a block did not wait"
    assert apart[1] < 2e-5 and launch.args["number_ptr"].tolist() == [3] * tiles


def test_a_launch_that_meets_is_resident_as_a_whole():
    shapes = [spread(rows, 256, 1, 132) for rows in (1, 16, 17, 50, 66, 67)]
    eight, four = (1, 1) if INTERPRETED else (8, 4)
    assert shapes == [(1, eight, 4), (1, eight, 4), (1, four, 8), (2, four, 8), (2, four, 8), None]
    assert spread(1, 512, 1, 132) and not spread(16, 512, 1, 132) and not spread(1, 1024, 1, 132)


def test_calls_of_any_size_share_a_sampler_and_own_their_results():
    sampler, twin = pair(CONFIG)
    first = sampler.actions(*inputs(1, 1, 1), None)
    kept = first.copy()
    for batch in [*range(1, KEPT_GRAPHS + 3), 1]:
        obs, z = inputs(1, batch, 1)
        assert np.abs(sampler.actions(obs, z, None) - twin.actions(obs, z, None)).max() < 2e-5
    assert len(sampler._calls) == KEPT_GRAPHS
    assert np.array_equal(first, kept), "a later call wrote into an earlier result"


def test_the_kernels_are_given_normalised_observations():
    sampler, twin = pair(CONFIG)
    mean, std = tuple(float(d) for d in range(D)), tuple(0.5 + d for d in range(D))
    config = replace(CONFIG, obs_mean=mean, obs_std=std)
    policy = Policy(config, flat(list(CONFIG.seeds)))
    policy._sampler = sampler  # what a policy on a GPU acts by
    obs, z = inputs(1, 4, 1)
    found = policy.act(obs[0], noise=z[0])
    expected = twin.actions((obs - np.array(mean)) / np.array(std), z, None)[0]
    assert np.abs(found - expected).max() < 2e-5
