"""Flow Q-learning: its networks, its equations by hand, and what its flow learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from learn_cases import ACTION_DIM, OBS_DIM, case, trained
from run_cases import multigoal

import gtp_fast
from gtp_fast.algorithms import fql, networks, updates
from gtp_fast.algorithms.policy_config import PolicyConfig
from gtp_fast.data import embedded
from gtp_fast.runs import checkpoint
from gtp_fast.runs.directory import RunDir


def test_parameter_counts_are_those_of_the_official_width():
    cfg = case("fql", hidden=512, layers=4)
    hidden = 3 * (512 * 512 + 512)
    flow, one = (inputs * 512 + 512 + hidden + 512 * 6 + 6 for inputs in (24, 23))
    head = 23 * 512 + 512 + hidden + 512 + 1 + 4 * 2 * 512
    assert updates.parameter_count(cfg, fql.layouts(cfg, 17, 6)) == flow + one + 2 * head
    bc = replace(cfg, bc=True)
    assert updates.parameter_count(bc, fql.layouts(bc, 17, 6)) == flow


def test_layer_norms_start_as_none():
    layout = fql.critic_layout(case("fql"), OBS_DIM, ACTION_DIM)
    p = networks.views(networks.init_flat(layout, [0], heads=2), layout)
    assert (p["norm1.gain"] == 1).all() and (p["norm1.shift"] == 0).all() and p["mlp1.w"].std() > 0


def test_a_critic_is_blind_to_the_scale_of_what_its_norm_sees():
    layout = fql.critic_layout(case("fql", layers=1), OBS_DIM, ACTION_DIM)
    p = networks.views(networks.init_flat(layout, [0], heads=2), layout)
    p["mlp0.b"].fill_(3.0)  # GELU of what is far above 0 is the identity
    p["mlp0.w"].mul_(0.1)
    obs, action = torch.randn(1, 4, OBS_DIM), torch.zeros(1, 4, ACTION_DIM)
    before = fql.q_values(p, obs, action)
    p["mlp0.w"].mul_(4.0)
    p["mlp0.b"].mul_(4.0)
    assert torch.allclose(before, fql.q_values(p, obs, action), atol=1e-2)


def _acting(**changes):
    described = {"obs_dim": OBS_DIM, "action_dim": ACTION_DIM, "hidden": 8, "sigma_min": 0.1, "sigma_max": 1.0}
    described |= {"sigma_data": 0.5, "rho": 7.0, "sampling_steps": 4, "candidates": 1, "select": "none"}
    return PolicyConfig(**(described | {"seeds": (0,), "algo": "fql", "layers": 2} | changes))


def test_euler_adds_a_constant_velocity_once_over_all_steps():
    config = _acting(bc=True)
    layout = fql.layouts(config, config.obs_dim, config.action_dim)["actor"]
    p = networks.views(torch.zeros(1, layout.size), layout)
    p["flow.mlp2.b"].copy_(torch.tensor([1.0, -2.0, 8.0]))
    points = fql.path(p, torch.zeros(1, 1, OBS_DIM), torch.ones(1, 1, ACTION_DIM), config)
    assert [point[0, 0].tolist() for point in points[::2]] == [[1, 1, 1], [1.5, 0, 5], [2, -1, 9]]


def test_the_flow_is_told_the_time_at_the_start_of_each_euler_step():
    config = _acting(bc=True, layers=1, hidden=1, obs_dim=1, action_dim=1, sampling_steps=2)
    layout = fql.layouts(config, config.obs_dim, config.action_dim)["actor"]
    p = networks.views(torch.zeros(1, layout.size), layout)
    p["flow.mlp0.w"][0, 2], p["flow.mlp0.b"][:], p["flow.mlp1.w"][:], p["flow.mlp1.b"][:] = 1.0, 50.0, 1.0, -50.0
    # v = t: x = 0 + 0 / 2 + 0.5 / 2.
    assert float(fql.path(p, torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), config)[-1]) == pytest.approx(0.25)


def test_the_one_step_policy_has_two_points():
    config = _acting()
    layout = fql.layouts(config, config.obs_dim, config.action_dim)["actor"]
    p = networks.views(networks.init_flat(layout, [0]), layout)
    z, obs = torch.randn(1, 5, ACTION_DIM), torch.randn(1, 5, OBS_DIM)
    first, last = fql.path(p, obs, z, config)
    assert torch.equal(first, z) and torch.equal(last, fql.one_step(p, obs, z)) and fql.noise_columns(config) == 3


def test_behaviour_cloning_needs_no_critic_and_trains_the_flow_of_the_whole():
    whole, cloned = trained(case("fql"), 8), trained(case("fql", bc=True), 8)
    size = cloned.actor.param.shape[1]
    assert cloned.critic is None and whole.actor.param.shape[1] > size
    assert torch.allclose(whole.actor.param[:, :size], cloned.actor.param, atol=5e-6)


def test_the_actor_that_acts_is_the_one_that_is_trained():
    state = trained(case("fql", ema_start=10**6), 3)
    assert torch.equal(state.actor.ema, state.actor.param)


def test_candidates_are_judged_by_the_target_heads(tmp_path: Path):
    run = gtp_fast.train(**multigoal(tmp_path / "run", algo="fql", layers=2, bc=False))
    policy, several = (
        gtp_fast.load_policy(run.run_dir, candidates=n, select=s) for n, s in ((1, "none"), (4, "argmax"))
    )
    z, obs = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32), np.zeros(2, np.float32)
    actions = policy.act(np.tile(obs, (4, 1)), z)
    tensors, _ = checkpoint.load_policy(RunDir(Path(run.run_dir)).checkpoint(6))
    critic = networks.views(
        tensors["critic"], fql.layouts(several.config, several.config.obs_dim, several.config.action_dim)["critic"]
    )
    q = fql.q_values(critic, torch.zeros(1, 4, 2), torch.from_numpy(actions)[None]).amin(1)
    assert np.allclose(several.act(obs, z), actions[int(q.argmax())], atol=1e-6)


@pytest.mark.long
def test_the_behaviour_flow_learns_all_four_goals(tmp_path: Path):
    changes = {"algo": "fql", "bc": True, "steps": 1200, "batch_size": 256, "hidden": 64, "layers": 3, "lr": 3e-3}
    run = gtp_fast.train(**multigoal(tmp_path / "run", **changes, log_every=500, save_every=0))
    actions = gtp_fast.load_policy(run.run_dir).act(np.zeros((2000, 2), np.float32))
    masses, off = embedded.mode_masses(actions)
    assert masses.min() > 0.12 and off < 0.3  # of uniform actions 0.07 and 0.72; 0.16 off after longer training
