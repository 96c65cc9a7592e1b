"""Flow Q-learning against a second, slow implementation, its equations by hand, and a run of it from end to end."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from capture_safety import problems_of
from fql_oracle import Trainer, flatten
from learn_cases import ACTION_DIM, OBS_DIM, buffer_of, small_config, transitions, went_alike

import gtp_fast
from gtp_fast.algorithms import fql, networks, updates
from gtp_fast.algorithms.backends import stepper
from gtp_fast.algorithms.policy_config import PolicyConfig
from gtp_fast.data import embedded
from gtp_fast.data.catalog import run_settings
from gtp_fast.errors import UsageError
from gtp_fast.experiments import report
from gtp_fast.runs import checkpoint
from gtp_fast.runs.directory import RunDir


def _config(**changes):
    return replace(small_config(), **({"algo": "fql", "layers": 2, "grad_norm": 0.0, "alpha": 3.0} | changes))


def _train(cfg, steps, data=None):
    state = fql.init_state(cfg, OBS_DIM, ACTION_DIM, "cpu")
    stepper(cfg, state, buffer_of(cfg, data))(steps)
    return state


@pytest.mark.parametrize(
    "changes", [{}, {"layers": 4, "alpha": 0.3}, {"bc": True}], ids=["fql", "official-depth", "bc"]
)
def test_steps_follow_the_slow_implementation(changes):
    cfg, data = _config(**changes), transitions()
    state, fresh = _train(cfg, 12, data), fql.init_state(cfg, OBS_DIM, ACTION_DIM, "cpu")
    for member in range(cfg.seeds):
        slow = Trainer(cfg, data, OBS_DIM, ACTION_DIM, cfg.seed + member)
        for _ in range(12):
            slow.train_step()
        pairs = [(state.actor.param[member], fresh.actor.param[member], slow.actors, slow.actor_layout)]
        if state.critic is not None and fresh.critic is not None:
            for head in range(2):
                row, layout = 2 * member + head, slow.critic_layout
                start = fresh.critic.param[row]
                pairs.append((state.critic.param[row], start, {"": slow.q[head]}, layout))
                pairs.append((state.critic.ema[row], start, {"": slow.q_target[head]}, layout))
        for ours, start, nets, layout in pairs:
            # Of the way that twelve steps went, float32 may lose 1e-3: Adam divides small gradients by their size.
            expected = flatten(nets, layout)
            assert (ours.double() - expected).norm() < 1e-3 * (expected - start.double()).norm()


def test_parameter_counts_are_those_of_the_official_width():
    cfg = _config(hidden=512, layers=4)
    hidden = 3 * (512 * 512 + 512)
    flow, one = (inputs * 512 + 512 + hidden + 512 * 6 + 6 for inputs in (24, 23))
    head = 23 * 512 + 512 + hidden + 512 + 1 + 4 * 2 * 512
    assert updates.parameter_count(cfg, fql.layouts(cfg, 17, 6)) == flow + one + 2 * head
    bc = replace(cfg, bc=True)
    assert updates.parameter_count(bc, fql.layouts(bc, 17, 6)) == flow


def test_layer_norms_start_as_none():
    layout = fql.critic_layout(_config(), OBS_DIM, ACTION_DIM)
    p = networks.views(networks.init_flat(layout, [0], heads=2), layout)
    assert (p["norm1.gain"] == 1).all() and (p["norm1.shift"] == 0).all() and p["mlp1.w"].std() > 0


def test_a_critic_is_blind_to_the_scale_of_what_its_norm_sees():
    layout = fql.critic_layout(_config(layers=1), OBS_DIM, ACTION_DIM)
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


def test_a_seed_among_others_trains_like_the_seed_alone():
    together, alone = _train(_config(seed=3, seeds=3), 10), _train(_config(seed=4, seeds=1), 10)
    fresh = fql.init_state(_config(seed=4, seeds=1), OBS_DIM, ACTION_DIM, "cpu")
    assert went_alike(together.actor.param[1], alone.actor.param[0], fresh.actor.param[0])
    assert together.critic is not None and alone.critic is not None and fresh.critic is not None
    assert went_alike(together.critic.param[2:4], alone.critic.param, fresh.critic.param)


def test_behaviour_cloning_needs_no_critic_and_trains_the_flow_of_the_whole():
    whole, cloned = _train(_config(), 8), _train(_config(bc=True), 8)
    size = cloned.actor.param.shape[1]
    assert cloned.critic is None and whole.actor.param.shape[1] > size
    assert torch.allclose(whole.actor.param[:, :size], cloned.actor.param, atol=5e-6)


def test_the_actor_that_acts_is_the_one_that_is_trained():
    state = _train(_config(ema_start=10**6), 3)
    assert torch.equal(state.actor.ema, state.actor.param)


@pytest.mark.parametrize("changes", [{}, {"bc": True}, {"lr_schedule": "cosine", "grad_norm": 1.0}], ids=str)
def test_promise_9_the_step_stays_on_the_device(changes):
    cfg = _config(**changes)
    state = fql.init_state(cfg, OBS_DIM, ACTION_DIM, "cpu")
    assert problems_of(fql.make_step(cfg, state, buffer_of(cfg)), state.tensors) == []
    state = fql.init_state(cfg, OBS_DIM, ACTION_DIM, "meta")
    assert problems_of(fql.make_step(cfg, state, buffer_of(cfg, device="meta")), dict, steps=1) == []


@pytest.mark.parametrize("changes", [{"etas": "1,2"}, {"max_q_backup": True}], ids=str)
def test_what_fql_has_not_is_refused(changes):
    with pytest.raises(UsageError, match="does not apply to fql"):
        run_settings({"env": "multigoal-v0", "algo": "fql", "bc": False, "seeds": 2} | changes)


def test_a_task_of_gtp_brings_its_rewards_but_not_its_guidance():
    cfg = run_settings({"env": "antmaze-medium-play-v0", "algo": "fql"})
    assert (cfg.hidden, cfg.layers, cfg.sampling_steps, cfg.grad_norm, cfg.lr) == (512, 4, 10, 0.0, 3e-4)
    assert not cfg.max_q_backup and cfg.reward_scale == 4.0


def _run(folder: Path, **changes):
    settings = {"env": "multigoal-v0", "algo": "fql", "steps": 6, "batch_size": 32, "hidden": 32, "layers": 2}
    settings |= {
        "log_every": 2,
        "save_every": 3,
        "eval_every": 3,
        "eval_episodes": 2,
        "seeds": 2,
        "threads": 1,
        "bc": False,
    }
    return gtp_fast.train(run_dir=str(folder), **(settings | {"device": "cpu", "backend": "eager"} | changes))


@pytest.mark.parametrize("bc", [False, True], ids=["fql", "bc"])
def test_a_run_is_evaluated_saved_resumed_bitwise_reported_and_acts(tmp_path: Path, bc):
    whole = _run(tmp_path / "whole", bc=bc)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(RunDir(tmp_path / "cut").checkpoint(6))
    _run(tmp_path / "cut", bc=bc)
    first, second = (RunDir(tmp_path / name) for name in ("whole", "cut"))
    states = [(run.checkpoint(6) / checkpoint.STATE).read_bytes() for run in (first, second)]
    assert states[0] == states[1] and first.metrics.read_bytes() == second.metrics.read_bytes()
    assert first.evaluation(6).exists() and whole.algo == "fql"
    policy = gtp_fast.load_policy(whole.run_dir, seed=1)
    assert abs(policy.act(np.zeros(2))).max() <= 1.0 and len(policy.paths(np.zeros((1, 2, 2)))) == (11 if bc else 2)
    assert (report.draw_report([first.path], tmp_path / "report") / "summary.json").exists()


def test_candidates_are_judged_by_the_target_heads(tmp_path: Path):
    run = _run(tmp_path / "run", seeds=1, eval_every=0)
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


def test_the_behaviour_flow_learns_all_four_goals(tmp_path: Path):
    changes = {"bc": True, "steps": 3000, "batch_size": 256, "hidden": 64, "lr": 1e-3, "eval_every": 0, "seeds": 1}
    run = _run(tmp_path / "run", **changes, layers=3, log_every=500, save_every=0)
    actions = gtp_fast.load_policy(run.run_dir).act(np.zeros((2000, 2), np.float32))
    masses, off = embedded.mode_masses(actions)
    assert masses.min() > 0.12 and off < 0.3  # of uniform actions 0.07 and 0.72; 0.16 off after longer training


def test_the_policy_climbs_the_value_that_behaviour_does_not_know():
    data = transitions(size=2000)
    data.reward_N[:], data.terminal_N[:] = data.action_NA[:, 0], True
    reached = {}
    for alpha in (0.1, 1000.0):
        cfg = _config(alpha=alpha, seeds=1, batch_size=64)
        p = networks.views(_train(cfg, 300, data).actor.param, fql.actor_layout(cfg, OBS_DIM, ACTION_DIM))
        z = torch.randn(1, 500, ACTION_DIM, generator=torch.Generator().manual_seed(0))
        reached[alpha] = float(fql.one_step(p, torch.randn(1, 500, OBS_DIM), z).clamp(-1, 1)[..., 0].mean())
    assert reached[0.1] > 0.7 and abs(reached[1000.0]) < 0.2
