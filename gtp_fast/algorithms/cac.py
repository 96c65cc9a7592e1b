"""Consistency-AC: the actor is a consistency model that learns to agree with its EMA and to raise Q.

After "Consistency Models as a Rich and Efficient Policy Class for Reinforcement Learning" (Ding and Jin) and the code
published with it. Deliberate differences from that code:

- N(k) doubles from s0 to s1 once over the whole run; theirs restarts a slower schedule every 50,000 steps.
- The network's inputs are c_in a_t and 0.25 ln t (EDM); theirs are a_t and t.
- The EMA actor acts at evaluation; theirs uses the trained actor. Both choose by the target critic.
- Both networks share one learning rate, constant or updated each step; theirs updates the actor's every 50,000 steps.
- Targets are never divided by their deviation (their q_norm of some tasks).
- The weight 100 / (t - u), which they always use, is `weighting: stable`; `paper` has none.
- With one sampling step the level is sigma_max; theirs embeds 2.

The step touches only `TrainState` and the buffer and returns nothing to the host.

Legend: S members (seeds), B batch rows, R rows, D observation, A action, T sampling steps, N = T A columns of noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gtp_fast import rng
from gtp_fast.algorithms import dql, equations, updates
from gtp_fast.algorithms.encoder import encode_obs
from gtp_fast.algorithms.networks import mlp_tail, time_embedding, views
from gtp_fast.algorithms.networks import q_values as q_values  # acting asks every algorithm for it
from gtp_fast.algorithms.policy_config import PolicyConfig
from gtp_fast.algorithms.state import TrainState
from gtp_fast.config import TrainConfig
from gtp_fast.data.buffers import Buffer
from gtp_fast.data.replay import Batch

layouts, noise_columns = dql.layouts, dql.noise_columns  # the same networks, and as much noise for T steps
STEPS_ARE_FREE, ACTOR_METRICS = True, ("actor_loss", "consistency_loss", "actor_grad_norm")
LAST_LEVEL, WEIGHT = 2.0, 100.0  # of the published code: lowest level of sampling, factor of 1 / (t - u)


def metric_names(cfg: TrainConfig) -> tuple[str, ...]:
    """Return the columns of `TrainState.metric_sums_SQ`."""
    return ACTOR_METRICS if cfg.bc else (*ACTOR_METRICS, "q_loss", *updates.CRITIC_METRICS)


def scalings(t: Tensor, sigma_data: float, sigma_min: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return c_skip, c_out and c_in at noise levels of any shape; at sigma_min the map is the identity.

    c_skip = sd^2/((t-smin)^2+sd^2), c_out = sd (t-smin)/sqrt(t^2+sd^2), c_in = 1/sqrt(t^2+sd^2).
    """
    beyond, c_in = t - sigma_min, (t * t + sigma_data**2).rsqrt()
    return sigma_data**2 / (beyond * beyond + sigma_data**2), sigma_data * beyond * c_in, c_in


def consistency_map(
    p: dict[str, Tensor], x_SBA: Tensor, t_SB: Tensor, obs_SBD: Tensor, config: TrainConfig | PolicyConfig
) -> Tensor:
    """Return f(x_t, t) = c_skip x_t + c_out F(c_in x_t, emb(t), o), the action that x_t came from, (S, B, A)."""
    c_skip, c_out, c_in = scalings(t_SB[..., None], config.sigma_data, config.sigma_min)
    inputs = torch.cat([c_in * x_SBA, time_embedding(p, "t", t_SB, config.sigma_min), obs_SBD], dim=-1)
    return c_skip * x_SBA + c_out * mlp_tail(p, torch.baddbmm(p["mlp0.b"], inputs, p["mlp0.w"]))


def sampling_levels(config: TrainConfig | PolicyConfig, device: torch.device | str) -> Tensor:
    """Return the T descending noise levels of sampling, float32: evenly spaced from sigma_max to 2."""
    last = max(config.sigma_min, min(LAST_LEVEL, config.sigma_max))
    return torch.linspace(config.sigma_max, last, config.sampling_steps).to(device)


def path(p: dict[str, Tensor], obs_SRD: Tensor, z_SRN: Tensor, config: PolicyConfig) -> list[Tensor]:
    """Return the noise and the T actions made of it, unclamped, each (S, R, A); z_SRN (S, R, noise_columns)."""
    return _follow(p, obs_SRD, z_SRN, sampling_levels(config, z_SRN.device).to(z_SRN), config)


def _follow(
    p: dict[str, Tensor], obs_SRD: Tensor, z_SRN: Tensor, levels_T: Tensor, config: TrainConfig | PolicyConfig
) -> list[Tensor]:
    """Map noise of the first level to an action; noise it to the next level, a + sqrt(t^2 - smin^2) z; map it again.

    The observation's share of the first layer is computed once for all steps. A level's time embedding is the same for
    every row: it enters as one more row of bias.
    """
    noises = z_SRN.split(z_SRN.shape[-1] // len(levels_T), dim=-1)
    w_action, w_time, w_obs = p["mlp0.w"].split([noises[0].shape[-1], p["t1.w"].shape[-1], obs_SRD.shape[-1]], dim=1)
    fixed_SRH = torch.baddbmm(p["mlp0.b"], obs_SRD, w_obs)
    e_STE = time_embedding(p, "t", levels_T.expand(z_SRN.shape[0], -1), config.sigma_min)
    times_STH = torch.bmm(e_STE, w_time)
    c_skip, c_out, c_in = scalings(levels_T, config.sigma_data, config.sigma_min)
    again = (levels_T * levels_T - config.sigma_min**2).clamp(min=0.0).sqrt()
    ones_SR1 = torch.ones_like(z_SRN[..., :1])
    points = [levels_T[0] * noises[0]]
    for k, z_SRA in enumerate(noises):
        x_SRA = points[0] if k == 0 else torch.addcmul(points[-1], again[k], z_SRA)
        weight = torch.cat([w_action, times_STH[:, k : k + 1]], dim=1)
        hidden = torch.baddbmm(fixed_SRH, torch.cat([c_in[k] * x_SRA, ones_SR1], dim=-1), weight)
        points.append(c_skip[k] * x_SRA + c_out[k] * mlp_tail(p, hidden))
    return points


def consistency_weights(t_SB: Tensor, u_SB: Tensor, weighting: str) -> Tensor:
    """Return the loss's factors over t, (S, B): 100 / (t - u) for `stable`, 1 for `paper`."""
    return WEIGHT / (t_SB - u_SB) if weighting == "stable" else torch.ones_like(t_SB)


def q_loss(raised_SB: Tensor, other_SB: Tensor) -> Tensor:
    """Return -mean Q_i / mean |Q_j|, (S,): the head i is raised, the other gives the scale, without gradient."""
    return -raised_SB.mean(-1) / other_SB.detach().abs().mean(-1)


@dataclass(frozen=True)
class _Constants(updates.Constants):
    schedule: equations.Schedule
    levels_T: Tensor


def make_step(cfg: TrainConfig, state: TrainState, buffer: Buffer) -> Callable[[], None]:
    """Return a function that makes one train step in place: sample, critic, actor, average."""
    nets, normals = layouts(cfg, buffer.obs_shape, buffer.action_dim), updates.chain_normals(cfg, buffer.action_dim)
    shared, device = updates.constants(cfg, nets, buffer, normals), buffer.rows.device
    schedule = equations.schedule(cfg.steps, cfg.s0, cfg.s1, cfg.sigma_min, cfg.sigma_max, cfg.rho, device)
    const = _Constants(**vars(shared), schedule=schedule, levels_T=sampling_levels(cfg, device))
    return updates.actor_critic_step(const, state, buffer, _next_actions, _update_actor)


def _next_actions(const: _Constants, state: TrainState, batch: Batch, random_bits: rng.RandomBits) -> Tensor:
    """Sample the EMA actor at o', (S, samples B, A)."""
    points = _follow(*updates.target_chain(const, state, batch, random_bits), const.levels_T, const.cfg)
    return points[-1].clamp(-1.0, 1.0)


def _update_actor(const: _Constants, state: TrainState, batch: Batch, random_bits: rng.RandomBits) -> list[Tensor]:
    """Descend L = mean w || f(a_t, t) - sg f^-(a_u, u) ||^2 + eta q_loss; return their metrics."""
    action, bits = batch.action_SBA, random_bits[rng.INDEX]
    t, u, _ = equations.draw_times(const.schedule, state.step, bits[..., 1], bits[..., 2])
    z = rng.normals(random_bits[rng.ACTION_NOISE], const.cfg.batch_size, action.shape[-1])
    a_t, a_u = equations.perturb(action, t, z), equations.perturb(action, u, z)
    ema = views(state.actor.ema, const.actor)
    target = consistency_map(ema, a_u, u, encode_obs(ema, batch.obs_SBD), const.cfg)
    params, more = updates.trainable(state.actor, const.actor), []
    with torch.enable_grad():
        own_obs = encode_obs(params, batch.obs_SBD)
        student = consistency_map(params, a_t, t, own_obs, const.cfg)
        consistency_S = equations.weighted_square(student - target, consistency_weights(t, u, const.cfg.weighting))
        loss_S = consistency_S
        if state.critic is not None:
            z = rng.normals(
                random_bits[rng.VALUE_NOISE], const.cfg.batch_size, action.shape[-1] * const.cfg.sampling_steps
            )
            actions = _follow(params, own_obs, z, const.levels_T, const.cfg)[-1].clamp(-1.0, 1.0)
            guide_S = _guidance(const, state, batch, random_bits, actions)
            loss_S = consistency_S + const.eta_S * guide_S
            more = [guide_S.detach()]
    norm_S = updates.adam_step(const, state.actor, const.actor, params, loss_S, state.step)
    return [loss_S.detach(), consistency_S.detach(), norm_S, *more]


def _guidance(
    const: _Constants, state: TrainState, batch: Batch, random_bits: rng.RandomBits, actions_SBA: Tensor
) -> Tensor:
    """Return q_loss of the actor's own samples at o under the heads just updated; gradients flow through all T steps.

    A coin of each member decides which head is raised. The other head only runs forward: both are picked as rows of the
    parameter buffer.
    """
    assert state.critic is not None
    coin_S1 = random_bits[rng.INDEX][:, :1, 3] >> 31 == 0  # the top bit of an integer that nothing else reads
    first, second = state.critic.param.view(const.cfg.seeds, 2, -1).unbind(1)
    inputs = torch.cat([encode_obs(views(first, const.critic), batch.obs_SBD), actions_SBA], dim=-1)
    raised = views(torch.where(coin_S1, first, second), const.critic)
    other = views(torch.where(coin_S1, second, first), const.critic)
    return q_loss(_head(raised, inputs), _head(other, inputs.detach()))


def _head(p: dict[str, Tensor], inputs_SBI: Tensor) -> Tensor:
    """Return one head's values, (S, B), of [o, a]."""
    return mlp_tail(p, torch.baddbmm(p["mlp0.b"], inputs_SBI, p["mlp0.w"]))[..., 0]
