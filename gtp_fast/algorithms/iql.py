"""Implicit Q-learning (Kostrikov, Nair, Levine, 2021): V is an expectile of Q, and the actor regresses on good actions.

V(o) learns the expectile of min_j Q_j^-(o, a) over the data's actions. Q learns r + gamma (1 - terminal) V(o'). A
Gaussian (its mean is tanh of a network, one standard deviation for each action axis) is fitted with weights min(cap,
exp(eta (Q - V))): eta is the published inverse temperature, weight_cap the published 100. The order is the published
one: V, actor, critic, target. The policy acts by its mean. `--bc` fits the Gaussian with weights of 1 and no critic.

Differences from the published code: our networks have three Mish layers that start as torch's Linear, theirs two ReLU
layers with orthogonal weights; rewards follow GTP's task presets, theirs are scaled by the spread of returns on Gym; no
dropout; gradients may be clipped (grad_norm, off by default). --lr-schedule acts on the actor alone, as published.

Legend: S members (seeds), B batch rows, R rows, D observation, A action.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from gtp_fast.algorithms import equations, optimizer, updates
from gtp_fast.algorithms.encoder import encode_obs
from gtp_fast.algorithms.networks import (
    Layout,
    critic_layout,
    mean_actions,
    policy_layout,
    q_values,
    state_values,
    value_layout,
    views,
)
from gtp_fast.algorithms.policy_config import PolicyConfig
from gtp_fast.algorithms.state import TrainState
from gtp_fast.config import TrainConfig
from gtp_fast.data.buffers import Buffer
from gtp_fast.data.replay import Batch
from gtp_fast.data.spec import ObsShape
from gtp_fast.profiling import phase

STEPS_ARE_FREE = False  # there is one step
LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0  # of the published code
ACTOR_METRICS = ("actor_loss", "log_std", "actor_grad_norm")
WEIGHT_METRICS = ("advantage", "weight", "weight_max")


def metric_names(cfg: TrainConfig) -> tuple[str, ...]:
    """Return the columns of `TrainState.metric_sums_SQ`."""
    more = (*WEIGHT_METRICS, *updates.VALUE_METRICS, *updates.CRITIC_METRICS)
    return ACTOR_METRICS if cfg.bc else ACTOR_METRICS + more


def layouts(cfg: TrainConfig | PolicyConfig, obs: ObsShape, action_dim: int) -> dict[str, Layout]:
    """Return where the parameters of an actor, of one head of its critic and of V lie."""
    sizes = obs, action_dim, cfg.hidden
    actor = policy_layout(*sizes, gaussian=True)
    return {"actor": actor, "critic": critic_layout(*sizes), "value": value_layout(obs, cfg.hidden)}


def noise_columns(config: PolicyConfig) -> int:
    """Return how many standard normals one action takes: none, it is the mean."""
    return 0


def path(p: dict[str, Tensor], obs_SRD: Tensor, z_SRN: Tensor, config: PolicyConfig) -> list[Tensor]:
    """Return the mean action, (S, R, A), the only point there is; z_SRN has no columns."""
    return [mean_actions(p, obs_SRD)]


def log_likelihood(p: dict[str, Tensor], obs_SBD: Tensor, action_SBA: Tensor) -> Tensor:
    """Return log N(a; tanh mean(o), exp(log_std)^2), summed over the action's axes, (S, B)."""
    log_std_S1A = p["policy.log_std"].clamp(LOG_STD_MIN, LOG_STD_MAX)
    error_SBA = (action_SBA - mean_actions(p, obs_SBD)) * (-log_std_S1A).exp()
    return -(0.5 * error_SBA.square() + log_std_S1A + 0.5 * math.log(2.0 * math.pi)).sum(-1)


def weights(advantage_SB: Tensor, eta_S: Tensor, cap: float) -> Tensor:
    """Return exp(eta A), at most `cap` where cap > 0, (S, B)."""
    weight_SB = (eta_S[:, None] * advantage_SB).exp()
    return weight_SB.clamp(max=cap) if cap > 0 else weight_SB


def make_step(cfg: TrainConfig, state: TrainState, buffer: Buffer) -> Callable[[], None]:
    """Return a function that makes one train step in place: sample, value, actor, critic, average."""
    const = updates.constants(cfg, layouts(cfg, buffer.obs_shape, buffer.action_dim), buffer, {})
    steady = replace(const, cfg=replace(cfg, lr_schedule="constant"))  # of V and Q

    @torch.no_grad()
    def step() -> None:
        with phase("sample"):
            _, batch = updates.sample(const, state, buffer)
        weight_SB, y_SB, metrics = torch.ones_like(batch.reward_SB), None, []
        if state.critic is not None:
            with phase("advantage"):
                weight_SB, y_SB, metrics = _update_value(steady, state, batch)
        with phase("actor"):
            metrics = _update_actor(const, state, batch, weight_SB) + metrics
        if y_SB is not None:
            with phase("critic"):
                metrics += updates.regress_critic(steady, state, batch, y_SB)
        with phase("average"):
            state.actor.ema.copy_(state.actor.param)  # IQL acts with the trained parameters
            if state.critic is not None:
                optimizer.average_(state.critic.ema, state.critic.param, cfg.tau)
            updates.record(state, torch.stack(metrics, dim=-1))

    return step


def _update_value(const: updates.Constants, state: TrainState, batch: Batch) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Update V. Return the actor's weights and Q's target under the new V, each (S, B), and metrics."""
    assert state.critic is not None and state.value is not None and const.value is not None
    target_heads = views(state.critic.ema, const.critic)
    q_SB = q_values(target_heads, encode_obs(target_heads, batch.obs_SBD), batch.action_SBA).amin(1)
    learned = updates.update_value(const, state, batch, q_SB)
    value = views(state.value.param, const.value)
    both = torch.cat([encode_obs(value, batch.obs_SBD), encode_obs(value, batch.next_obs_SBD)], dim=1)
    value_SB, next_SB = state_values(value, both).chunk(2, dim=1)
    weight_SB = weights(q_SB - value_SB, const.eta_S, const.cfg.weight_cap)
    seen = [(q_SB - value_SB).mean(-1), weight_SB.mean(-1), weight_SB.amax(-1)]
    y_SB = equations.td_target(batch.reward_SB, batch.bootstrap_SB, next_SB, const.cfg.gamma)
    return weight_SB, y_SB, seen + learned


def _update_actor(const: updates.Constants, state: TrainState, batch: Batch, weight_SB: Tensor) -> list[Tensor]:
    """Take a step on -mean w log pi(a | o); return ACTOR_METRICS."""
    params = updates.trainable(state.actor, const.actor)
    with torch.enable_grad():
        loss_S = -(weight_SB * log_likelihood(params, encode_obs(params, batch.obs_SBD), batch.action_SBA)).mean(-1)
    log_std_S = params["policy.log_std"].detach().mean((1, 2))
    norm_S = updates.adam_step(const, state.actor, const.actor, params, loss_S, state.step)
    return [loss_S.detach(), log_std_S, norm_S]
