"""TD3+BC (Fujimoto and Gu, 2021): TD3 with a deterministic actor that also clones the data's actions.

The actor's loss is -lambda mean Q_1(o, pi(o)) + mean (pi(o) - a)^2 with lambda = alpha / mean |Q_1|. Target actions are
pi^-(o') plus clipped noise. The actor and all targets move on every second step: each step computes their update and
keeps the old values where none is due. `--bc` is the cloning term alone, on every step.

Differences from the published code: observations are not normalised; our networks have three Mish layers, theirs two
ReLU layers; rewards follow GTP's task presets; the target actor acts at evaluation, theirs uses the trained actor;
gradients may be clipped (grad_norm, off by default).

Legend: S members (seeds), B batch rows, R rows, D observation, A action.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from gtp_fast import rng
from gtp_fast.algorithms import optimizer, updates
from gtp_fast.algorithms.encoder import encode_obs
from gtp_fast.algorithms.networks import (
    Layout,
    critic_layout,
    mean_actions,
    policy_layout,
    state_values,
    views,
)
from gtp_fast.algorithms.networks import q_values as q_values  # acting asks every algorithm for it
from gtp_fast.algorithms.policy_config import PolicyConfig
from gtp_fast.algorithms.state import Net, TrainState
from gtp_fast.config import TrainConfig
from gtp_fast.data.buffers import Buffer
from gtp_fast.data.replay import Batch
from gtp_fast.data.spec import ObsShape
from gtp_fast.profiling import phase

STEPS_ARE_FREE = False  # there is one step
NOISE, NOISE_CLIP = 0.2, 0.5  # of the target actions, in units of the actions
DELAY = 2  # steps from one update of actor and targets to the next
ACTOR_METRICS = ("actor_loss", "cloning_loss", "actor_grad_norm")


def metric_names(cfg: TrainConfig) -> tuple[str, ...]:
    """Return the columns of `TrainState.metric_sums_SQ`; the actor's count every step, due or not."""
    return ("actor_loss", "actor_grad_norm") if cfg.bc else (*ACTOR_METRICS, "policy_q", *updates.CRITIC_METRICS)


def layouts(cfg: TrainConfig | PolicyConfig, obs: ObsShape, action_dim: int) -> dict[str, Layout]:
    """Return where the parameters of an actor and of one head of its critic lie."""
    sizes = obs, action_dim, cfg.hidden
    return {"actor": policy_layout(*sizes), "critic": critic_layout(*sizes)}


def noise_columns(config: PolicyConfig) -> int:
    """Return how many standard normals one action takes: none."""
    return 0


def path(p: dict[str, Tensor], obs_SRD: Tensor, z_SRN: Tensor, config: PolicyConfig) -> list[Tensor]:
    """Return the action, (S, R, A), the only point there is; z_SRN has no columns."""
    return [mean_actions(p, obs_SRD)]


def _constants(cfg: TrainConfig, buffer: Buffer) -> updates.Constants:
    normals = {} if cfg.bc else {rng.TARGET_NOISE: (cfg.batch_size, buffer.action_dim)}
    return updates.constants(cfg, layouts(cfg, buffer.obs_shape, buffer.action_dim), buffer, normals)


def make_step(cfg: TrainConfig, state: TrainState, buffer: Buffer) -> Callable[[], None]:
    """Return a function that makes one train step in place: sample, critic, and where due actor and targets."""
    const = _constants(cfg, buffer)
    delayed = replace(const, cfg=replace(cfg, steps=max(1, cfg.steps // DELAY)))  # a cosine ends with the last update

    @torch.no_grad()
    def step() -> None:
        with phase("sample"):
            random_bits, batch = updates.sample(const, state, buffer)
        if state.critic is None:
            with phase("actor"):
                metrics = _clone(const, state, batch)
        else:
            with phase("chain"):
                next_SBA = _next_actions(const, state, batch, random_bits[rng.TARGET_NOISE])
            with phase("critic"):
                metrics = updates.update_critic(const, state, batch, next_SBA)
            due = (state.step + 1) % DELAY == 0
            with phase("actor"):
                metrics = _update_actor(delayed, state, batch, due) + metrics
        with phase("average"):
            if state.critic is None:
                state.actor.ema.copy_(state.actor.param)
            else:
                rate = due.to(torch.float32) * cfg.tau
                optimizer.average_(state.actor.ema, state.actor.param, rate)
                optimizer.average_(state.critic.ema, state.critic.param, rate)
            updates.record(state, torch.stack(metrics, dim=-1))

    return step


def _next_actions(const: updates.Constants, state: TrainState, batch: Batch, random_bits: Tensor) -> Tensor:
    """Return clip(pi^-(o') + clip(0.2 z, -0.5, 0.5), -1, 1), (S, B, A): target policy smoothing."""
    noise_SBA = NOISE * rng.normals(random_bits, *batch.action_SBA.shape[1:])
    ema = views(state.actor.ema, const.actor)
    mean_SBA = mean_actions(ema, encode_obs(ema, batch.next_obs_SBD))
    return (mean_SBA + noise_SBA.clamp(-NOISE_CLIP, NOISE_CLIP)).clamp(-1.0, 1.0)


def _clone(const: updates.Constants, state: TrainState, batch: Batch) -> list[Tensor]:
    params = updates.trainable(state.actor, const.actor)
    with torch.enable_grad():
        loss_S = (mean_actions(params, encode_obs(params, batch.obs_SBD)) - batch.action_SBA).square().mean((1, 2))
    norm_S = updates.adam_step(const, state.actor, const.actor, params, loss_S, state.step)
    return [loss_S.detach(), norm_S]


def _update_actor(const: updates.Constants, state: TrainState, batch: Batch, due: Tensor) -> list[Tensor]:
    """Take a step on -alpha mean Q_1 / mean |Q_1| + mean (pi(o) - a)^2 where `due`, bool (), under the new heads."""
    assert state.critic is not None
    first = views(state.critic.param.view(const.cfg.seeds, 2, -1)[:, 0], const.critic)
    params = updates.trainable(state.actor, const.actor)
    with torch.enable_grad():
        action_SBA = mean_actions(params, encode_obs(params, batch.obs_SBD))
        seen_and_done = torch.cat([encode_obs(first, batch.obs_SBD), action_SBA], dim=-1)
        q_SB = state_values(first, seen_and_done)  # one head, as V of (o, a)
        cloning_S = (action_SBA - batch.action_SBA).square().mean((1, 2))
        loss_S = cloning_S - const.cfg.alpha * q_SB.mean(-1) / q_SB.detach().abs().mean(-1)
    norm_S = _descend_where(due, const, state.actor, params, loss_S, state.step)
    return [loss_S.detach(), cloning_S.detach(), norm_S, q_SB.detach().mean(-1)]


def _descend_where(
    due: Tensor, const: updates.Constants, actor: Net, params: dict[str, Tensor], loss_S: Tensor, step: Tensor
) -> Tensor:
    """Take an Adam step that counts the actor's updates alone; where none is due, leave every bit unchanged."""
    parts = actor.param, actor.exp_avg, actor.exp_avg_sq
    before = [part.clone() for part in parts]
    norm_S = updates.adam_step(const, actor, const.actor, params, loss_S, step // DELAY)
    for part, kept in zip(parts, before, strict=True):
        part.copy_(torch.where(due, part, kept))
    return norm_S
