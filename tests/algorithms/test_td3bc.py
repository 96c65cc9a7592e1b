"""TD3+BC: the delayed actor and the noise of its target actions."""

from __future__ import annotations

import pytest
import torch
from learn_cases import buffer_of, case, fresh

from gtp_fast.algorithms import networks, td3bc


def test_a_step_that_is_not_due_moves_the_critic_and_nothing_else():
    cfg = case("td3bc")
    state = fresh(cfg)
    step = td3bc.make_step(cfg, state, buffer_of(cfg))
    moved = []
    for _ in range(4):
        before = {name: tensor.clone() for name, tensor in state.tensors().items()}
        step()
        moved.append({name for name, tensor in state.tensors().items() if not torch.equal(tensor, before[name])})
    critic = {"critic.param", "critic.first", "critic.second", "step", "metric_sums"}
    every = critic | {"critic.slow", "actor.param", "actor.first", "actor.second", "actor.slow"}
    assert moved == [critic, every, critic, every]


def test_the_cosine_of_the_actor_ends_with_its_last_update():
    cfg = case(
        "td3bc", steps=5, lr_schedule="cosine"
    )  # the actor's updates are two: at the full rate and at half of it
    state = fresh(cfg)
    step, ways, before = td3bc.make_step(cfg, state, buffer_of(cfg)), [], state.actor.param.clone()
    for _ in range(4):
        step()
        ways.append(float((state.actor.param - before).abs().max()))
        before = state.actor.param.clone()
    # Adam's first step is the rate itself; its second, of another gradient, at most about that.
    assert ways[1] == pytest.approx(cfg.lr, rel=1e-3) and ways[3] <= 0.51 * cfg.lr


def test_target_actions_are_near_the_target_actor_and_in_range():
    cfg = case("td3bc", seeds=1, batch_size=4096)
    state, buffer = fresh(cfg), buffer_of(cfg)
    const = td3bc._constants(cfg, buffer)
    batch = buffer.gather(torch.zeros(1, 4096, dtype=torch.int64))
    words = td3bc.rng.random_bits(const.plan, const.keys_S2, state.step)[td3bc.rng.TARGET_NOISE]
    noise = td3bc._next_actions(const, state, batch, words) - networks.mean_actions(
        networks.views(state.actor.ema, const.actor), batch.next_obs_SBD
    )
    # 4 096 x 3 normals of 0.2: their deviation is known to 0.7 %; one in 80 lies beyond 2.5 deviations.
    assert float(noise.std()) == pytest.approx(0.2, rel=0.03) and float(noise.abs().max()) == pytest.approx(0.5)
