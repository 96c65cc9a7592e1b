"""Consistency-AC: its equations by hand, its candidates, and a run of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from learn_cases import ACTION_DIM, OBS_DIM, case, fresh
from run_cases import tiny

from gtp_fast import algorithms
from gtp_fast.algorithms import cac, networks
from gtp_fast.algorithms.policy_config import of_run
from gtp_fast.data import catalog, dataset
from gtp_fast.data.catalog import run_settings
from gtp_fast.data.replay import ReplayBuffer
from gtp_fast.experiments import report
from gtp_fast.policy.policy import load_policy
from gtp_fast.runs import checkpoint
from gtp_fast.runs.directory import RunDir
from gtp_fast.training.train import train


def test_the_map_is_the_identity_at_the_lowest_level_and_its_scalings_are_those_written():
    cfg = case("cac")
    state = fresh(cfg)
    p = networks.views(state.actor.param, networks.noise_layout(OBS_DIM, ACTION_DIM, cfg.hidden))
    x, obs = torch.randn(2, 7, ACTION_DIM), torch.randn(2, 7, OBS_DIM)
    assert torch.equal(cac.consistency_map(p, x, torch.full((2, 7), cfg.sigma_min), obs, cfg), x)
    skip, out, scale = cac.scalings(torch.tensor([0.502, 12.002]), 0.5, 0.002)
    assert skip.tolist() == pytest.approx([0.25 / 0.5, 0.25 / 144.25])
    assert scale.tolist() == pytest.approx([1 / math.sqrt(0.502**2 + 0.25), 1 / math.sqrt(12.002**2 + 0.25)])
    assert out.tolist() == pytest.approx([0.5 * 0.5 * scale[0].item(), 0.5 * 12 * scale[1].item()])


def test_weights_and_the_q_term_by_hand():
    t, u = torch.tensor([[3.0, 0.5]]), torch.tensor([[1.0, 0.25]])
    assert cac.consistency_weights(t, u, "stable").tolist() == [[50.0, 400.0]]
    assert cac.consistency_weights(t, u, "paper").tolist() == [[1.0, 1.0]]
    raised = torch.tensor([[1.0, 3.0], [-2.0, 6.0]], requires_grad=True)  # means 2 and 2
    other = torch.tensor([[-2.0, 6.0], [1.0, -3.0]], requires_grad=True)  # mean sizes 4 and 2
    lost = cac.q_loss(raised, other)
    assert lost.tolist() == [-2.0 / 4.0, -2.0 / 2.0]
    slopes = torch.autograd.grad(lost.sum(), [raised, other], allow_unused=True)
    assert slopes[0].tolist() == [[-0.125, -0.125], [-0.25, -0.25]] and slopes[1] is None


@pytest.mark.parametrize(
    ("steps", "sigma_max", "levels"), [(1, 80.0, [80.0]), (2, 80.0, [80.0, 2.0]), (3, 10.0, [10.0, 6.0, 2.0])]
)
def test_sampling_levels_go_evenly_from_sigma_max_to_two(steps, sigma_max, levels):
    cfg = case("cac", sampling_steps=steps, sigma_max=sigma_max)
    assert cac.sampling_levels(cfg, "cpu").tolist() == levels


def test_the_path_applies_the_map_and_noises_again():
    cfg = case("cac")
    state = fresh(cfg)
    config = of_run(cfg, OBS_DIM, ACTION_DIM)
    p = networks.views(state.actor.param, cac.layouts(config, config.obs_dim, config.action_dim)["actor"])
    obs, z = torch.randn(2, 6, OBS_DIM), torch.randn(2, 6, cac.noise_columns(config))
    start, first, last = cac.path(p, obs, z, config)
    assert torch.equal(start, 80.0 * z[..., :ACTION_DIM])
    for x, t, end in [(start, 80.0, first), (first + math.sqrt(4.0 - 0.002**2) * z[..., ACTION_DIM:], 2.0, last)]:
        # The chain sums the first layer in another order.
        assert torch.allclose(cac.consistency_map(p, x, torch.full((2, 6), t), obs, cfg), end, atol=1e-5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run of 30 steps; nothing below changes it."""
    folder = tmp_path_factory.mktemp("trained")
    train(tiny(folder, algo="cac"))
    return folder


def test_a_run_has_its_settings_and_is_reported_with_its_candidates(trained: Path):
    cfg = tiny(trained, algo="cac")
    assert (cfg.candidates, cfg.select, cfg.s1, cfg.sigma_max) == (50, "softmax", 1280, 80.0)
    page = (report.draw_report([trained / "run"], trained / "report") / "README.md").read_text()
    assert "CAC" in page and "50 candidates" in page
    last = json.loads((trained / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert {*cac.metric_names(cfg)} <= {*last}


@pytest.mark.parametrize(("candidates", "select"), [(1, "none"), (50, "softmax"), (50, "argmax")])
def test_its_policy_acts_with_one_and_with_fifty_candidates(trained: Path, candidates, select):
    policy = load_policy(trained / "run", seed=0, candidates=candidates, select=select)
    config, obs = policy.config, np.random.default_rng(0).normal(size=(4, 17)).astype(np.float32)
    noise = np.random.default_rng(1).normal(size=(4 * candidates, 12)).astype(np.float32)
    actions = policy.act(obs, noise)
    assert actions.shape == (4, 6) and (np.abs(actions) <= 1).all()
    state, _ = checkpoint.load_policy(RunDir(trained / "run").checkpoint(30))
    p = networks.views(state["actor"][:1], cac.layouts(config, config.obs_dim, config.action_dim)["actor"])
    every = torch.from_numpy(obs)[None].repeat_interleave(candidates, 1)
    drawn = cac.path(p, every, torch.from_numpy(noise)[None], config)[-1].clamp(-1, 1)[0].view(4, candidates, 6)
    near = (drawn - torch.from_numpy(actions)[:, None]).abs().amax(-1).amin(1)
    assert (near < 1e-6).all()  # each action is one of its own candidates


@pytest.mark.long
def test_cloning_the_four_goals_lowers_the_loss():
    settings = {"env": "multigoal-v0", "algo": "cac", "bc": True, "device": "cpu", "hidden": 64, "ema_start": 0}
    cfg = run_settings(settings)
    state = algorithms.init_state(cfg, 2, 2, "cpu")
    data = dataset.load(catalog.resolve(cfg.env), None)
    step = cac.make_step(cfg, state, ReplayBuffer.from_transitions(data, cfg, "cpu"))
    before, means = 0.0, []
    for _ in range(6):
        for _ in range(100):
            step()
        total = float(state.metric_sums_SQ[0, 1])
        means.append((total - before) / 100)
        before = total
    assert means[-1] < 0.75 * means[0]  # 2.90 to 1.88 when this was written
