"""The train step of GTP: its bits, its metrics, and what it saves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from learn_cases import small_config, trained, transitions

from gtp_fast.algorithms import gtp, updates


def test_the_same_flags_give_the_same_bits():
    assert trained(small_config(), 8).digest() == trained(small_config(), 8).digest()


def test_another_seed_gives_another_run():
    assert trained(small_config(), 2).digest() != trained(replace(small_config(), seed=17), 2).digest()


def test_the_first_step_with_a_bad_value_is_noted_and_kept():
    data = transitions()
    data.reward_N[:] = np.float32(np.inf)
    state = trained(small_config(), 3, data)
    names = gtp.metric_names(small_config())
    assert (state.first_bad_SQ[:, names.index("critic_loss")] == 0).all()
    healthy = trained(small_config(), 3)
    assert (healthy.first_bad_SQ == -1).all()


def test_metrics_add_up_over_steps():
    one, two = trained(small_config(), 1), trained(small_config(), 2)
    assert int(two.step) == 2 and one.metric_sums_SQ.shape == (2, len(gtp.metric_names(small_config())))
    assert (two.metric_sums_SQ[:, 0] > one.metric_sums_SQ[:, 0]).all()


def test_policy_tensors_are_copies_of_ema_and_target():
    state = trained(small_config(), 3)
    saved = updates.policy_tensors(state)
    assert state.critic is not None
    assert torch.equal(saved["actor"], state.actor.ema) and torch.equal(saved["critic"], state.critic.ema)
    state.actor.ema.zero_()
    assert saved["actor"].abs().sum() > 0


def test_the_weight_cap_holds():
    cfg = replace(small_config(), eta=50.0, weight_cap=7.0)
    state = trained(cfg, 1)
    largest = state.metric_sums_SQ[:, gtp.metric_names(cfg).index("weight_max")]
    assert (largest == 7.0).all()


def test_metrics_have_the_names_under_which_runs_and_trackers_know_them():
    actor = ("actor_loss", "traj_loss", "inst_loss", "actor_grad_norm")
    critic = ("critic_loss", "q", "td_target", "critic_grad_norm")
    weights = ("advantage", "advantage_std", "weight", "weight_max", "effective_share")
    assert gtp.metric_names(small_config()) == actor + critic + weights
    assert gtp.metric_names(replace(small_config(), bc=True)) == actor
