"""TD3+BC against a second, slow implementation in float64, and its own promises: the delay, the noise, the balance."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gtp_oracle import flatten
from learn_cases import ACTION_DIM, OBS_DIM, buffer_of, small_config, transitions
from td3bc_oracle import Trainer

from gtp_fast.algorithms import networks, td3bc
from gtp_fast.algorithms.backends import stepper
from gtp_fast.data.catalog import run_settings


def config(**changes):
    return replace(small_config(), **({"algo": "td3bc", "sampling_steps": 1, "alpha": 2.5, "tau": 0.05} | changes))


def trained(cfg, steps, data=None):
    state = td3bc.init_state(cfg, OBS_DIM, ACTION_DIM, "cpu")
    stepper(cfg, state, buffer_of(cfg, data))(steps)
    return state


@pytest.mark.parametrize(
    "changes", [{}, {"grad_norm": 0.0, "alpha": 0.3}, {"bc": True}], ids=["clipped", "plain", "bc"]
)
def test_steps_follow_the_slow_implementation(changes):
    cfg, data = config(**changes), transitions()
    state, fresh = trained(cfg, 12, data), td3bc.init_state(cfg, OBS_DIM, ACTION_DIM, "cpu")
    for member in range(cfg.seeds):
        slow = Trainer(cfg, data, OBS_DIM, ACTION_DIM, cfg.seed + member)
        for _ in range(12):
            slow.train_step()
        start, layout = fresh.actor.param[member], slow.actor_layout
        pairs = [(state.actor.param[member], flatten(slow.actor, slow.MLP, layout), start)]
        pairs.append((state.actor.ema[member], flatten(slow.actor_target, slow.MLP, layout), start))
        if state.critic is not None and fresh.critic is not None:
            for head in range(2):
                row, layout = 2 * member + head, slow.critic_layout
                start = fresh.critic.param[row]
                pairs.append((state.critic.param[row], flatten(slow.q[head], slow.MLP, layout), start))
                pairs.append((state.critic.ema[row], flatten(slow.q_target[head], slow.MLP, layout), start))
        for ours, expected, start in pairs:
            # Of the way that twelve steps went, float32 may lose 1e-3: Adam divides small gradients by their size.
            assert (ours.double() - expected).norm() < 1e-3 * (expected - start.double()).norm()


def test_a_step_that_is_not_due_moves_the_critic_and_nothing_else():
    cfg = config()
    state = td3bc.init_state(cfg, OBS_DIM, ACTION_DIM, "cpu")
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
    cfg = config(steps=5, lr_schedule="cosine")  # the actor's updates are two: at the full rate and at half of it
    state = td3bc.init_state(cfg, OBS_DIM, ACTION_DIM, "cpu")
    step, ways, before = td3bc.make_step(cfg, state, buffer_of(cfg)), [], state.actor.param.clone()
    for _ in range(4):
        step()
        ways.append(float((state.actor.param - before).abs().max()))
        before = state.actor.param.clone()
    # Adam's first step is the rate itself; its second, of another gradient, at most about that.
    assert ways[1] == pytest.approx(cfg.lr, rel=1e-3) and ways[3] <= 0.51 * cfg.lr


def test_target_actions_are_near_the_target_actor_and_in_range():
    cfg = config(seeds=1, batch_size=4096)
    state, buffer = td3bc.init_state(cfg, OBS_DIM, ACTION_DIM, "cpu"), buffer_of(cfg)
    const = td3bc._constants(cfg, buffer)
    batch = buffer.gather(torch.zeros(1, 4096, dtype=torch.int64))
    words = td3bc.rng.random_bits(const.plan, const.keys_S2, state.step)[td3bc.rng.TARGET_NOISE]
    noise = td3bc._next_actions(const, state, batch, words) - networks.mean_actions(
        networks.views(state.actor.ema, const.actor), batch.next_obs_SBD
    )
    # 4 096 x 3 normals of 0.2: their deviation is known to 0.7 %; one in 80 lies beyond 2.5 deviations.
    assert float(noise.std()) == pytest.approx(0.2, rel=0.03) and float(noise.abs().max()) == pytest.approx(0.5)


def test_the_policy_climbs_the_value_that_behaviour_does_not_know():
    data = transitions(size=2000)
    data.reward_N[:], data.terminal_N[:] = data.action_NA[:, 0], True
    reached = {}
    for alpha in (0.0, 10.0):
        cfg = config(alpha=alpha, seeds=1, batch_size=64, lr=3e-3)
        p = networks.views(trained(cfg, 150, data).actor.param, networks.policy_layout(OBS_DIM, ACTION_DIM, cfg.hidden))
        reached[alpha] = float(networks.mean_actions(p, torch.randn(1, 500, OBS_DIM))[..., 0].mean())
    assert reached[10.0] > 0.7 and abs(reached[0.0]) < 0.2


def test_the_published_settings_stand_above_those_of_a_task():
    cfg = run_settings({"env": "antmaze-medium-play-v0", "algo": "td3bc"})
    assert (cfg.alpha, cfg.lr, cfg.grad_norm, cfg.tau, cfg.sampling_steps) == (2.5, 3e-4, 0.0, 0.005, 1)
    assert not cfg.max_q_backup and cfg.reward_scale == 4.0
