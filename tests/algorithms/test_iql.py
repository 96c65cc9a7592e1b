"""Implicit Q-learning against a second, slow implementation in float64, its equations by hand, and its promises."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from gtp_oracle import flatten
from iql_oracle import Trainer
from learn_cases import ACTION_DIM, OBS_DIM, buffer_of, small_config, transitions

from gtp_fast.algorithms import iql, networks, updates
from gtp_fast.algorithms.backends import stepper
from gtp_fast.data.catalog import run_settings


def config(**changes):
    return replace(small_config(), **({"algo": "iql", "sampling_steps": 1, "tau": 0.05} | changes))


def trained(cfg, steps, data=None):
    state = iql.init_state(cfg, OBS_DIM, ACTION_DIM, "cpu")
    stepper(cfg, state, buffer_of(cfg, data))(steps)
    return state


VARIANTS = [
    pytest.param({}, id="clipped"),
    pytest.param({"expectile": 0.9, "eta": 10.0, "weight_cap": 2.0, "grad_norm": 0.0}, id="antmaze"),
    pytest.param({"lr_schedule": "cosine", "steps": 14}, id="cosine"),
    pytest.param({"bc": True, "lr_schedule": "cosine", "steps": 14}, id="bc"),
]


@pytest.mark.parametrize("changes", VARIANTS)
def test_steps_follow_the_slow_implementation(changes):
    cfg, data = config(**changes), transitions()
    state, fresh = trained(cfg, 12, data), iql.init_state(cfg, OBS_DIM, ACTION_DIM, "cpu")
    for member in range(cfg.seeds):
        slow = Trainer(cfg, data, OBS_DIM, ACTION_DIM, cfg.seed + member)
        for _ in range(12):
            slow.train_step()
        pairs = [(state.actor.param[member], slow.flat_actor(), fresh.actor.param[member])]
        if not cfg.bc:
            assert state.critic and fresh.critic and state.value and fresh.value
            expected = flatten(slow.value, slow.MLP, slow.value_layout)
            pairs.append((state.value.param[member], expected, fresh.value.param[member]))
            for head in range(2):
                row, layout = 2 * member + head, slow.critic_layout
                start = fresh.critic.param[row]
                pairs.append((state.critic.param[row], flatten(slow.q[head], slow.MLP, layout), start))
                pairs.append((state.critic.ema[row], flatten(slow.q_target[head], slow.MLP, layout), start))
        for ours, expected, start in pairs:
            # Of the way that twelve steps went, float32 may lose 1e-3: Adam divides small gradients by their size.
            assert (ours.double() - expected).norm() < 1e-3 * (expected - start.double()).norm()


def test_weights_by_hand():
    advantage, eta = torch.tensor([[1.0, -1.0, 50.0], [2.0, 0.0, 1.0]]), torch.tensor([3.0, 0.0])
    expected = torch.tensor([[math.exp(3), math.exp(-3), 100.0], [1.0, 1.0, 1.0]])
    assert torch.allclose(iql.weights(advantage, eta, 100.0), expected)
    assert float(iql.weights(advantage[:1], torch.tensor([0.2]), 0.0)[0, 2]) == pytest.approx(math.exp(10), rel=1e-5)


@pytest.mark.parametrize(("log_std", "std"), [(0.0, 1.0), (-9.0, math.exp(-5)), (4.0, math.exp(2))])
def test_the_likelihood_is_the_gaussians_with_its_deviation_in_the_published_range(log_std, std):
    layout = networks.policy_layout(1, 2, 4, gaussian=True)
    p = networks.views(torch.zeros(1, layout.size), layout)
    p["mlp3.b"].fill_(0.5)
    p["policy.log_std"].fill_(log_std)
    action = torch.tensor([[[0.4, 0.6]]])
    expected = torch.distributions.Normal(torch.tensor(0.5).tanh(), std).log_prob(action).sum()
    assert float(iql.log_likelihood(p, torch.zeros(1, 1, 1), action)) == pytest.approx(float(expected), rel=1e-4)


def test_behaviour_cloning_has_neither_critic_nor_value_and_is_eta_zero_bit_for_bit():
    guided, cloned = trained(config(eta=0.0), 8), trained(config(bc=True), 8)
    assert torch.equal(guided.actor.param, cloned.actor.param)
    assert cloned.critic is None and cloned.value is None and guided.critic and guided.value


def test_members_of_a_sweep_train_as_alone_with_their_own_eta_and_learning_rate():
    together = trained(config(etas="0.5,8", lrs="1e-3,2e-4"), 6)
    for i, (eta, lr) in enumerate([(0.5, 1e-3), (8.0, 2e-4)]):
        alone = trained(config(seed=i, seeds=1, lr=lr, eta=eta), 6)
        assert torch.allclose(together.actor.param[i], alone.actor.param[0], atol=1e-6)


def test_parameter_counts_are_the_sum_of_four_networks():
    cfg = replace(config(), hidden=256)
    hidden = 2 * (256 * 256 + 256)
    actor, head, value = (inputs * 256 + 256 + hidden + 257 * out for inputs, out in ((17, 6), (23, 1), (17, 1)))
    assert updates.parameter_count(cfg, iql.layouts(cfg, 17, 6)) == actor + 6 + 2 * head + value
    assert updates.parameter_count(replace(cfg, bc=True), iql.layouts(cfg, 17, 6)) == actor + 6


def test_the_policy_prefers_the_actions_of_value():
    data = transitions(size=2000)
    data.reward_N[:], data.terminal_N[:] = data.action_NA[:, 0], True
    reached = {}
    for eta in (0.0, 10.0):
        cfg = config(eta=eta, seeds=1, batch_size=64, lr=3e-3)
        layout = iql.layouts(cfg, OBS_DIM, ACTION_DIM)["actor"]
        p = networks.views(trained(cfg, 150, data).actor.param, layout)
        reached[eta] = float(networks.mean_actions(p, torch.randn(1, 500, OBS_DIM))[..., 0].mean())
    assert reached[10.0] > 0.4 and abs(reached[0.0]) < 0.2


def test_the_published_settings_stand_above_those_of_a_task():
    cfg = run_settings({"env": "antmaze-medium-play-v0", "algo": "iql"})
    assert (cfg.eta, cfg.expectile, cfg.weight_cap, cfg.lr, cfg.grad_norm) == (3.0, 0.7, 100.0, 3e-4, 0.0)
    assert cfg.lr_schedule == "cosine" and not cfg.max_q_backup and cfg.sampling_steps == 1
