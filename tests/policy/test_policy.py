"""Policies act as the sampler says, refuse what they cannot take, and choose candidates by Q."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from run_cases import tiny

import gtp_fast
from gtp_fast.algorithms import equations, networks
from gtp_fast.errors import CheckpointError, UsageError
from gtp_fast.policy.policy import Policy, PolicyConfig
from gtp_fast.training.train import train

CONFIG = PolicyConfig(4, 3, 16, 0.002, 10.0, 0.5, 7.0, 5, 1, "none", (0,))
ACTOR, CRITIC = networks.actor_layout(4, 3, 16), networks.critic_layout(4, 3, 16)


def tensors():
    return {"actor": networks.init_flat(ACTOR, [0]), "critic": networks.init_flat(CRITIC, [0], 2, 1)}


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("steps", [1, 2, 5, 10])
def test_act_is_the_samplers_chain_on_the_noise_given(steps):
    policy, obs, z = Policy(replace(CONFIG, sampling_steps=steps), tensors()), normal(7, 4), normal(7, 3)
    p = networks.views(tensors()["actor"], ACTOR)
    grid = equations.sampling_grid(steps, 0.002, 10.0, 7.0)
    expected = equations.sample_actions(p, torch.tensor(obs)[None], torch.tensor(z)[None], grid, 0.5, 0.002)[0]
    # Both are float32 sums in an order of their own (test_act_cpu holds them to float64); the chain starts at 10 z.
    assert np.abs(policy.act(obs, z) - expected.numpy()).max() < 2e-6


def q_values(obs, actions):
    """Return the smaller of the two heads, (B,)."""
    critic = networks.views(tensors()["critic"], CRITIC)
    return networks.q_values(critic, torch.tensor(obs)[None], torch.tensor(actions)[None]).amin(1)[0]


def test_one_observation_gives_one_action_in_bounds():
    action = Policy(CONFIG, tensors()).act(normal(4))
    assert action.shape == (3,) and action.dtype == np.float32 and np.abs(action).max() <= 1


def test_a_policy_loaded_anew_draws_the_same_actions_and_each_call_others():
    a, b = Policy(CONFIG, tensors()), Policy(CONFIG, tensors())
    first, second = a.act(normal(5, 4)), a.act(normal(5, 4))
    assert np.array_equal(first, b.act(normal(5, 4))) and not np.array_equal(first, second)


def test_argmax_takes_the_candidate_with_the_largest_minimum_of_the_heads():
    config = replace(CONFIG, candidates=20, select="argmax")
    policy, obs, z = Policy(config, tensors()), normal(6, 4), normal(120, 3)
    repeated = np.repeat(obs, 20, axis=0)
    candidates = Policy(CONFIG, tensors()).act(repeated, z)
    best = q_values(repeated, candidates).view(6, 20).argmax(1).numpy()
    assert np.allclose(policy.act(obs, z), candidates.reshape(6, 20, 3)[np.arange(6), best], atol=1e-6)


def test_softmax_draws_candidates_in_proportion_to_exp_q():
    policy = Policy(replace(CONFIG, candidates=4, select="softmax"), tensors())
    rows = 20_000
    obs, z = np.zeros((rows, 4), np.float32), np.tile(normal(4, 3), (rows, 1))
    chosen = policy.act(obs, z)
    candidates = Policy(CONFIG, tensors()).act(obs[:4], z[:4])
    q = q_values(obs[:4], candidates)
    share = (np.abs(chosen[:, None] - candidates[None]).max(-1) < 1e-5).mean(0)
    # Five standard errors of 20,000 draws.
    assert np.abs(share - torch.softmax(q, 0).numpy()).max() < 0.018


UNFIT = {
    "one-too-many": (normal(5), r"shape \(5,\), expected \(4,\) or \(B, 4\)"),
    "batch-of-five": (normal(2, 5), r"shape \(2, 5\), expected"),
    "three-axes": (normal(2, 3, 4), r"shape \(2, 3, 4\), expected"),
    "no-row": (normal(0, 4), r"shape \(0, 4\), expected .* at least 1"),
    "no-axis": (np.float32(1.0), r"shape \(\), expected"),
    "nan": (np.full(4, np.nan, np.float32), "holds NaN or Inf"),
    "too-large": (np.full(4, 1e300), "holds NaN or Inf"),
    "ragged": ([[1.0, 2.0], [3.0]], "cannot be read as numbers"),
    "text": ("abcd", "cannot be read as numbers"),
    "digits": (["1", "2", "3", "4"], "cannot be read as numbers .* pass a float32 NumPy array"),
    "none": ([None] * 4, "cannot be read as numbers"),
    "on-the-tape": (torch.zeros(4, requires_grad=True), "cannot be read as numbers"),
}


@pytest.mark.parametrize(("obs", "words"), UNFIT.values(), ids=UNFIT.keys())
def test_observations_that_do_not_fit_are_refused(obs, words):
    with pytest.raises(UsageError, match=words):
        Policy(CONFIG, tensors()).act(obs)


def test_candidates_need_a_critic():
    with pytest.raises(UsageError, match="no critic to choose"):
        Policy(replace(CONFIG, candidates=5, select="argmax"), {"actor": tensors()["actor"]})


def test_noise_that_does_not_fit_is_refused():
    with pytest.raises(UsageError, match=r"noise of shape \(2, 3\), expected \(1, 3\)"):
        Policy(CONFIG, tensors()).act(normal(4), normal(2, 3))
    with pytest.raises(UsageError, match="noise cannot be read as numbers"):
        Policy(CONFIG, tensors()).act(normal(4), ["a"])


def test_members_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match=r"shape \(2, 1, 4\), expected \(1, B, 4\)"):
        Policy(CONFIG, tensors()).act_members(normal(2, 1, 4))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sampling_steps": 0}, "--sampling-steps 0 is below 1"),
        ({"candidates": 0}, "--candidates 0 is below 1"),
        ({"candidates": 5}, "need softmax or argmax"),
        ({"candidates": 5, "select": "best"}, "--select best is none of none, softmax, argmax"),
    ],
    ids=["no-step", "no-candidate", "no-rule", "unknown-rule"],
)
def test_settings_that_no_sampler_has_are_refused(changes, words):
    with pytest.raises(UsageError, match=words):
        Policy(replace(CONFIG, **changes), tensors())


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden": "16"},
        {"sampling_steps": True},
        {"obs_dim": 4.0},
        {"action_dim": 0},
        {"rho": 0},
        {"sigma_data": float("nan")},
        {"sigma_max": 0.001},
        {"seeds": []},
        {"seeds": [-1]},
        {"seeds": ["0"]},
        {"seeds": 3},
        {"select": None},
        {"select": ["none"]},
        {"obs_std": None},
        {"obs_mean": [0.0]},
        {"obs_std": [1.0, 1.0, 0.0, 1.0]},
        {"obs_mean": [0.0, float("nan"), 0.0, 0.0]},
        {"obs_mean": ["0", 0.0, 0.0, 0.0]},
        {"obs_mean": 3},
    ],
    ids=str,
)
def test_a_foreign_description_of_a_policy_is_refused(changes):
    normalised = replace(CONFIG, obs_mean=(0.0,) * 4, obs_std=(1.0,) * 4).to_json()
    with pytest.raises(CheckpointError, match="policy description"):
        PolicyConfig.from_json(normalised | changes)


@pytest.mark.parametrize("name", ["actor", "critic"])
@pytest.mark.parametrize("change", [lambda t: t[:, 1:], lambda t: t.double(), lambda t: t[:0]], ids=["cut", "f64", "0"])
def test_tensors_unlike_their_description_are_refused(name, change):
    config, found = replace(CONFIG, candidates=5, select="argmax"), tensors()
    with pytest.raises(CheckpointError, match=f"{name} is .* expected torch.float32"):
        Policy(config, found | {name: change(found[name])})


def test_a_policy_taken_anew_starts_its_noise_again_and_leaves_the_first_alone():
    policy, untouched, obs = Policy(CONFIG, tensors()), Policy(CONFIG, tensors()), normal(5, 4)
    first, second = policy.act(obs), policy.act(obs)
    again = policy.reset_noise()
    assert np.array_equal(again.act(obs), first) and np.array_equal(again.act(obs), second)
    third = [untouched.act(obs) for _ in range(3)][-1]
    assert np.array_equal(policy.act(obs), third)


@pytest.mark.skipif(torch.cuda.is_available(), reason="states what a machine without a GPU does")
def test_a_device_that_is_not_here_is_refused(tmp_path: Path):
    run = train(tiny(tmp_path, steps=10)).run_dir
    with pytest.raises(UsageError, match=r"device='cuda'.* sees no NVIDIA GPU"):
        gtp_fast.load_policy(run, device="cuda")
    with pytest.raises(UsageError, match=r"device='gpu' is not a device"):
        gtp_fast.load_policy(run, device="gpu")


def test_a_run_of_two_seeds_loads_whole_or_one_of_them(tmp_path: Path):
    run = train(tiny(tmp_path)).run_dir
    both, second = gtp_fast.load_policy(run, device="cpu"), gtp_fast.load_policy(run, seed=1, device="cpu")
    obs, z = normal(2, 3, 17), normal(2, 3, 6)
    assert np.allclose(both.act_members(obs, z)[1], second.act(obs[1], z[1]), atol=1e-6)
    with pytest.raises(UsageError, match=r"has seeds \[0, 1\], not 7"):
        gtp_fast.load_policy(run, seed=7)
    with pytest.raises(UsageError, match="has 2 members"):
        both.act(obs[0])


def test_what_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match="neither a run directory nor a checkpoint"):
        gtp_fast.load_policy(tmp_path)
