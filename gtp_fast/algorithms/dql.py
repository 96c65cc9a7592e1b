"""Diffusion-QL (Wang, Hunt, Zhou; ICLR 2023): a policy of T denoising steps, trained through the whole chain by Q.

The actor's loss is mean ||eps - eps_theta(a_t, t, o)||^2 - eta mean Q_i(o, pi(o)) / mean |Q_j(o, pi(o))|. A coin picks
the head i, and the gradient of the second term flows through all T steps of pi. Critic, EMA and target are the same as
GTP's. T is `sampling_steps`, 5 in the paper.

Differences from the published code: its cosine learning rate is --lr-schedule cosine here, updated every step; the coin
is drawn on the device; the time embeddings of the T steps are computed once, not once a row.

Legend: S members (seeds), B batch rows, R rows, D observation, A action, T denoising steps, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from gtp_kernels.primitives import integer_below
from torch import Tensor

from gtp_fast import rng
from gtp_fast.algorithms import updates
from gtp_fast.algorithms.encoder import encode_obs
from gtp_fast.algorithms.networks import (
    TIME_WIDTH,
    Layout,
    critic_layout,
    mlp_tail,
    noise_layout,
    q_values,
    step_embeddings,
    views,
)
from gtp_fast.algorithms.policy_config import PolicyConfig
from gtp_fast.algorithms.state import TrainState
from gtp_fast.config import TrainConfig
from gtp_fast.data.buffers import Buffer
from gtp_fast.data.replay import Batch
from gtp_fast.data.spec import ObsShape

STEPS_ARE_FREE = False  # the schedule of the noise is that of T
BETA_MIN, BETA_MAX = 0.1, 10.0  # of the variance-preserving schedule
ACTOR_METRICS = ("actor_loss", "denoising_loss", "actor_grad_norm")


def metric_names(cfg: TrainConfig) -> tuple[str, ...]:
    """Return the columns of `TrainState.metric_sums_SQ`."""
    return ACTOR_METRICS if cfg.bc else (*ACTOR_METRICS, "policy_q", *updates.CRITIC_METRICS)


def layouts(cfg: TrainConfig | PolicyConfig, obs: ObsShape, action_dim: int) -> dict[str, Layout]:
    """Return where the parameters of an actor and of one head of its critic lie."""
    sizes = obs, action_dim, cfg.hidden
    return {"actor": noise_layout(*sizes), "critic": critic_layout(*sizes)}


def noise_columns(config: PolicyConfig) -> int:
    """Return how many standard normals one action takes: the start, and what every step but the last adds."""
    return config.action_dim * config.sampling_steps


def path(p: dict[str, Tensor], obs_SRD: Tensor, z_SRN: Tensor, config: PolicyConfig) -> list[Tensor]:
    """Return the T + 1 points from noise to action, unclamped, each (S, R, A); z_SRN (S, R, T A) ~ N(0, I)."""
    return denoise(p, obs_SRD, z_SRN, diffusion(config.sampling_steps, z_SRN.device, z_SRN.dtype))


@dataclass(frozen=True)
class Diffusion:
    """The constants of T steps, each (T,), step 0 the cleanest.

    alpha_bar: share of the action's variance left; a_0 = recip a_t - recip_m1 eps; posterior mean = mean_0 a_0 + mean_t
    a_t, standard deviation `spread`, which step 0 does not use.
    """

    alpha_bar: Tensor
    recip: Tensor
    recip_m1: Tensor
    mean_0: Tensor
    mean_t: Tensor
    spread: Tensor


def diffusion(steps: int, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Diffusion:
    """Return the variance-preserving schedule: alpha_t = exp(-b_min/T - (b_max - b_min)(2 t - 1)/(2 T^2)), t = 1..T."""
    t = torch.arange(1, steps + 1, dtype=torch.float64)
    logarithm = -BETA_MIN / steps - 0.5 * (BETA_MAX - BETA_MIN) * (2 * t - 1) / steps**2
    alpha, bar = logarithm.exp(), logarithm.cumsum(0).exp()  # a sum, not a product: ONNX has no cumulative one
    beta = 1.0 - alpha
    before = torch.cat([torch.ones(1, dtype=torch.float64), bar[:-1]])
    constants = (
        bar,
        bar.rsqrt(),
        (1.0 / bar - 1.0).sqrt(),
        beta * before.sqrt() / (1.0 - bar),
        (1.0 - before) * alpha.sqrt() / (1.0 - bar),
        (beta * (1.0 - before) / (1.0 - bar)).sqrt(),
    )
    return Diffusion(*(constant.to(device, dtype) for constant in constants))


def _noise(p: dict[str, Tensor], fixed_SRH: Tensor, x_SRI: Tensor, weight_SIH: Tensor) -> Tensor:
    """Return eps_theta, (S, R, A), from the observation's share of the first layer and what is left of its input."""
    return mlp_tail(p, torch.baddbmm(fixed_SRH, x_SRI, weight_SIH))


def _first_layer(p: dict[str, Tensor], obs_SRD: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the first layer's parts: of the observations (S, R, H), the action's weight, and the steps' shares."""
    w_action, w_time, w_obs = p["mlp0.w"].split([p["mlp3.b"].shape[-1], TIME_WIDTH, obs_SRD.shape[-1]], dim=1)
    times_STH = torch.bmm(step_embeddings(p, steps), w_time)
    return torch.baddbmm(p["mlp0.b"], obs_SRD, w_obs), w_action, times_STH


def denoise(p: dict[str, Tensor], obs_SRD: Tensor, z_SRN: Tensor, constants: Diffusion) -> list[Tensor]:
    """Follow a_(t-1) ~ N(posterior mean(a_0 clamped to [-1, 1], a_t), spread_t^2) from a_T ~ N(0, I)."""
    steps = len(constants.alpha_bar)
    fixed_SRH, w_action, times_STH = _first_layer(p, obs_SRD, steps)
    noise = z_SRN.unflatten(-1, (steps, -1)).unbind(2)
    points = [noise[0]]
    ones = torch.ones_like(points[0][..., :1])
    for k, t in enumerate(reversed(range(steps))):
        a = points[-1]
        weight = torch.cat([w_action, times_STH[:, t : t + 1]], dim=1)
        eps = _noise(p, fixed_SRH, torch.cat([a, ones], dim=-1), weight)
        start = (constants.recip[t] * a - constants.recip_m1[t] * eps).clamp(-1.0, 1.0)
        mean = constants.mean_0[t] * start + constants.mean_t[t] * a
        points.append(mean if t == 0 else mean + constants.spread[t] * noise[k + 1])
    return points


def denoising_loss(p: dict[str, Tensor], batch: Batch, t_SB: Tensor, eps_SBA: Tensor, constants: Diffusion) -> Tensor:
    """Return mean ||eps - eps_theta(sqrt(bar) a + sqrt(1 - bar) eps, t, o)||^2, (S,); t_SB int64 in [0, T).

    A row's step enters as a one-hot column of its input, so that the gradient needs no scatter.
    """
    steps = len(constants.alpha_bar)
    fixed_SRH, w_action, times_STH = _first_layer(p, batch.obs_SBD, steps)
    chosen_SBT = (t_SB[..., None] == torch.arange(steps, device=t_SB.device)).to(eps_SBA.dtype)
    bar = (chosen_SBT @ constants.alpha_bar)[..., None]
    noisy = bar.sqrt() * batch.action_SBA + (1.0 - bar).sqrt() * eps_SBA
    found = _noise(p, fixed_SRH, torch.cat([noisy, chosen_SBT], dim=-1), torch.cat([w_action, times_STH], dim=1))
    return (found - eps_SBA).square().mean((1, 2))


@dataclass(frozen=True)
class _Constants(updates.Constants):
    diffusion: Diffusion


def make_step(cfg: TrainConfig, state: TrainState, buffer: Buffer) -> Callable[[], None]:
    """Return a function that makes one train step in place: sample, critic, actor, average."""
    nets, normals = layouts(cfg, buffer.obs_shape, buffer.action_dim), updates.chain_normals(cfg, buffer.action_dim)
    shared = updates.constants(cfg, nets, buffer, normals)
    const = _Constants(**vars(shared), diffusion=diffusion(cfg.sampling_steps, buffer.rows.device))
    return updates.actor_critic_step(const, state, buffer, _next_actions, _update_actor)


def _next_actions(const: _Constants, state: TrainState, batch: Batch, random_bits: rng.RandomBits) -> Tensor:
    """Sample the EMA actor at o', (S, samples B, A)."""
    return denoise(*updates.target_chain(const, state, batch, random_bits), const.diffusion)[-1].clamp(-1.0, 1.0)


def _update_actor(const: _Constants, state: TrainState, batch: Batch, random_bits: rng.RandomBits) -> list[Tensor]:
    rows, columns = const.cfg.batch_size, batch.action_SBA.shape[-1]
    bits = random_bits[rng.INDEX]
    t_SB = integer_below(bits[..., 1], const.cfg.sampling_steps)
    eps = rng.normals(random_bits[rng.ACTION_NOISE], rows, columns)
    params = updates.trainable(state.actor, const.actor)
    with torch.enable_grad():
        own = replace(batch, obs_SBD=encode_obs(params, batch.obs_SBD))
        denoising_S = denoising_loss(params, own, t_SB, eps, const.diffusion)
        loss_S, more = denoising_S, []
        if state.critic is not None:
            z = rng.normals(random_bits[rng.VALUE_NOISE], rows, columns * const.cfg.sampling_steps)
            action = denoise(params, own.obs_SBD, z, const.diffusion)[-1].clamp(-1.0, 1.0)
            critic = views(state.critic.param, const.critic)
            q_S2 = q_values(critic, encode_obs(critic, batch.obs_SBD), action)
            first_S = bits[:, 0, 3] >> 31 == 0  # a fair coin: the top bit of an integer that nothing else reads
            risen_S = torch.where(first_S, *q_S2.mean(-1).unbind(1))
            scale_S = torch.where(first_S, *q_S2.detach().abs().mean(-1).flip(1).unbind(1))
            loss_S, more = denoising_S - const.eta_S * risen_S / scale_S, [q_S2.detach().mean((1, 2))]
    norm_S = updates.adam_step(const, state.actor, const.actor, params, loss_S, state.step)
    return [loss_S.detach(), denoising_S.detach(), norm_S, *more]
