"""The train step of GTP against a second, slow implementation, and the promises that the seed axis makes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from gtp_oracle import Trainer, flatten
from learn_cases import ACTION_DIM, OBS_DIM, buffer_of, small_config, transitions, went_alike

from gtp_fast.algorithms import gtp, updates


def _train(cfg, steps, data=None):
    buffer = buffer_of(cfg, data)
    state = gtp.init_state(cfg, OBS_DIM, ACTION_DIM, "cpu")
    step = gtp.make_step(cfg, state, buffer)
    for _ in range(steps):
        step()
    return state


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="paper"),
        pytest.param({"weighting": "stable", "sigma_max": 10.0, "s1": 40, "ema_every": 1, "ema_start": 0}, id="stable"),
        pytest.param({"bc": True}, id="bc"),
        pytest.param({"max_q_backup": True, "sampling_steps": 2}, id="max-q-backup"),
    ],
)
def test_steps_follow_the_slow_implementation(changes):
    cfg, data = replace(small_config(), **changes), transitions()
    state = _train(cfg, 12, data)
    for member in range(cfg.seeds):
        slow = Trainer(cfg, data, OBS_DIM, ACTION_DIM, cfg.seed + member)
        fresh = gtp.init_state(cfg, OBS_DIM, ACTION_DIM, "cpu")
        initial = [fresh.actor.param[member].double()] * 2
        for _ in range(12):
            slow.train_step()
        pairs = [
            (state.actor.param[member], slow.actor, slow.ACTOR, slow.actor_layout),
            (state.actor.ema[member], slow.ema, slow.ACTOR, slow.actor_layout),
        ]
        if state.critic is not None and fresh.critic is not None:
            for head in range(2):
                row = 2 * member + head
                initial += [fresh.critic.param[row].double()] * 2
                pairs.append((state.critic.param[row], slow.q[head], slow.CRITIC, slow.critic_layout))
                pairs.append((state.critic.ema[row], slow.q_target[head], slow.CRITIC, slow.critic_layout))
        for ours, module, prefixes, layout in pairs:
            # Of the way that twelve steps went, float32 may lose 1e-3: Adam divides small gradients by their size.
            expected, start = flatten(module, prefixes, layout), initial.pop(0)
            assert (ours.double() - expected).norm() < 1e-3 * (expected - start).norm()


def test_a_seed_among_others_trains_like_the_seed_alone():
    together = _train(replace(small_config(), seed=3, seeds=3), 10)
    alone = _train(replace(small_config(), seed=4, seeds=1), 10)
    fresh = gtp.init_state(replace(small_config(), seed=4, seeds=1), OBS_DIM, ACTION_DIM, "cpu")
    assert went_alike(together.actor.param[1], alone.actor.param[0], fresh.actor.param[0])
    assert together.critic is not None and alone.critic is not None and fresh.critic is not None
    assert went_alike(together.critic.param[2:4], alone.critic.param, fresh.critic.param)


def test_the_same_flags_give_the_same_bits():
    assert _train(small_config(), 8).digest() == _train(small_config(), 8).digest()


def test_another_seed_gives_another_run():
    assert _train(small_config(), 2).digest() != _train(replace(small_config(), seed=17), 2).digest()


def test_eta_zero_trains_the_actor_of_behaviour_cloning_bit_for_bit():
    guided = _train(replace(small_config(), eta=0.0), 8)
    cloned = _train(replace(small_config(), bc=True), 8)
    assert torch.equal(guided.actor.param, cloned.actor.param)
    assert cloned.critic is None and guided.critic is not None


def test_the_first_step_with_a_bad_value_is_noted_and_kept():
    data = transitions()
    data.reward_N[:] = np.float32(np.inf)
    state = _train(small_config(), 3, data)
    names = gtp.metric_names(small_config())
    assert (state.first_bad_SQ[:, names.index("critic_loss")] == 0).all()
    healthy = _train(small_config(), 3)
    assert (healthy.first_bad_SQ == -1).all()


def test_metrics_add_up_over_steps():
    one, two = _train(small_config(), 1), _train(small_config(), 2)
    assert int(two.step) == 2 and one.metric_sums_SQ.shape == (2, len(gtp.metric_names(small_config())))
    assert (two.metric_sums_SQ[:, 0] > one.metric_sums_SQ[:, 0]).all()


def test_policy_tensors_are_copies_of_ema_and_target():
    state = _train(small_config(), 3)
    saved = updates.policy_tensors(state)
    assert state.critic is not None
    assert torch.equal(saved["actor"], state.actor.ema) and torch.equal(saved["critic"], state.critic.ema)
    state.actor.ema.zero_()
    assert saved["actor"].abs().sum() > 0


def test_the_weight_cap_holds():
    cfg = replace(small_config(), eta=50.0, weight_cap=7.0)
    state = _train(cfg, 1)
    largest = state.metric_sums_SQ[:, gtp.metric_names(cfg).index("weight_max")]
    assert (largest == 7.0).all()


def test_members_of_a_sweep_train_as_alone_with_their_own_eta_and_learning_rate():
    together = _train(replace(small_config(), seeds=2, etas="0.5,8", lrs="1e-3,2e-4"), 6)
    for i, (eta, lr) in enumerate([(0.5, 1e-3), (8.0, 2e-4)]):
        alone = _train(replace(small_config(), seed=i, seeds=1, eta=eta, lr=lr), 6)
        assert torch.allclose(together.actor.param[i], alone.actor.param[0], atol=1e-6)
