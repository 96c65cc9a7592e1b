"""Generative Trajectory Policies, as published: the state, a train step in the paper's order, and how the policy acts.

What the paper compares with (other actor losses, other values V(o), the flow process) is in `gtp_variants`. The step
touches only `TrainState` and the buffer, reads step count, schedules and random numbers from the device, and returns
nothing to the host.

Legend: S members (seeds), B batch rows, R rows, D observation, A action, K sampling steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gtp_fast import rng
from gtp_fast.algorithms import equations, updates
from gtp_fast.algorithms.encoder import encode_obs
from gtp_fast.algorithms.networks import Layout, actor_layout, critic_layout, q_values, views
from gtp_fast.algorithms.policy_config import PolicyConfig
from gtp_fast.algorithms.state import TrainState
from gtp_fast.config import TrainConfig, grid_steps
from gtp_fast.data.buffers import Buffer
from gtp_fast.data.replay import Batch
from gtp_fast.data.spec import ObsShape
from gtp_fast.profiling import phase

STEPS_ARE_FREE = True  # the map takes any grid of times: a policy acts in any number of steps
ACTOR_METRICS = ("actor_loss", "traj_loss", "inst_loss", "actor_grad_norm")
WEIGHT_METRICS = ("advantage", "advantage_std", "weight", "weight_max", "effective_share")


def metric_names(cfg: TrainConfig) -> tuple[str, ...]:
    """Return the columns of `TrainState.metric_sums_SQ`."""
    return ACTOR_METRICS if cfg.bc else ACTOR_METRICS + updates.CRITIC_METRICS + WEIGHT_METRICS


def layouts(cfg: TrainConfig | PolicyConfig, obs: ObsShape, action_dim: int) -> dict[str, Layout]:
    """Return where the parameters of the actor and of one head of the critic lie."""
    sizes = obs, action_dim, cfg.hidden
    return {"actor": actor_layout(*sizes), "critic": critic_layout(*sizes)}


def noise_columns(config: PolicyConfig) -> int:
    """Return how many standard normals one action takes."""
    return config.action_dim


def path(p: dict[str, Tensor], obs_SRD: Tensor, z_SRN: Tensor, config: PolicyConfig) -> list[Tensor]:
    """Return the K + 1 points from noise to action, unclamped, each (S, R, A); z_SRN (S, R, A) ~ N(0, I)."""
    levels = config.sigma_min, config.sigma_max, config.rho
    grid = equations.sampling_grid(config.sampling_steps, *levels, z_SRN.device).to(z_SRN)
    return equations.sample_path(p, obs_SRD, z_SRN, grid, config.sigma_data, config.sigma_min, config.process)


def make_step(cfg: TrainConfig, state: TrainState, buffer: Buffer) -> Callable[[], None]:
    """Return a function that makes one train step in place: sample, chain, critic, weights, actor, average."""
    const = constants(cfg, layouts(cfg, buffer.obs_shape, buffer.action_dim), buffer, cfg.value_samples)

    @torch.no_grad()
    def step() -> None:
        with phase("sample"):
            random_bits, batch = sample(const, state, buffer)
        weight_SB, metrics = torch.ones_like(batch.reward_SB), []
        if state.critic is not None:
            with phase("chain"):
                next_SBA, policy_SBA = policy_actions(const, state, batch, random_bits, cfg.value_samples)
            with phase("critic"):
                metrics += updates.update_critic(const, state, batch, next_SBA)
            with phase("advantage"):
                advantage_SB = advantages(const, state, batch, policy_SBA)
                weight_SB = equations.advantage_weights(advantage_SB, const.eta_S, cfg.weight_cap)
                metrics += weight_metrics(advantage_SB, weight_SB)
        with phase("actor"):
            metrics = _update_actor(const, state, batch, random_bits, weight_SB) + metrics
        with phase("average"):
            updates.average(cfg, state)
            updates.record(state, torch.stack(metrics, dim=-1))

    return step


@dataclass(frozen=True)
class Constants(updates.Constants):
    """What a step reads and never writes, on the device."""

    schedule: equations.Schedule
    sampling_grid: Tensor


def constants(cfg: TrainConfig, nets: dict[str, Layout], buffer: Buffer, samples: int) -> Constants:
    """Gather a step's constants; samples: how many actions of the policy it draws at each observation."""
    device, rows, columns = buffer.rows.device, cfg.batch_size, buffer.action_dim
    normals = {rng.ACTION_NOISE: (rows, columns)}
    if not cfg.bc:
        normals[rng.TARGET_NOISE] = rows * updates.backup_samples(cfg), columns
        if samples:
            normals[rng.VALUE_NOISE] = rows * samples, columns
    levels = cfg.sigma_min, cfg.sigma_max, cfg.rho
    return Constants(
        **vars(updates.constants(cfg, nets, buffer, normals)),
        schedule=equations.schedule(cfg.steps, *grid_steps(cfg), *levels, device),
        sampling_grid=equations.sampling_grid(cfg.sampling_steps, *levels, device),
    )


def sample(const: Constants, state: TrainState, buffer: Buffer) -> tuple[rng.RandomBits, Batch]:
    """Draw the step's random bits and its batch, with the observations as the EMA actor sees them."""
    random_bits, batch = updates.sample(const, state, buffer)
    ema_obs_SBD = encode_obs(views(state.actor.ema, const.actor), batch.obs_SBD)
    return random_bits, replace(batch, ema_obs_SBD=ema_obs_SBD)


def policy_actions(
    const: Constants, state: TrainState, batch: Batch, random_bits: rng.RandomBits, samples: int
) -> tuple[Tensor, Tensor]:
    """Sample the EMA actor at o' (TD target) and `samples` times at o (baseline V) as one chain of K steps.

    Several samples of a state follow one another in blocks of B rows. Returns (S, samples B, A) for each.
    """
    assert batch.ema_obs_SBD is not None
    backup, rows, columns = updates.backup_samples(const.cfg), const.cfg.batch_size, batch.action_SBA.shape[-1]
    ema = views(state.actor.ema, const.actor)
    obs = encode_obs(ema, batch.next_obs_SBD).repeat(1, backup, 1)
    z = rng.normals(random_bits[rng.TARGET_NOISE], rows * backup, columns)
    if samples:
        obs = torch.cat([obs, batch.ema_obs_SBD.repeat(1, samples, 1)], dim=1)
        z = torch.cat([z, rng.normals(random_bits[rng.VALUE_NOISE], rows * samples, columns)], dim=1)
    levels = const.cfg.sigma_data, const.cfg.sigma_min, const.cfg.process
    actions = equations.sample_actions(ema, obs, z, const.sampling_grid, *levels)
    next_SBA, policy_SBA = actions.split([rows * backup, rows * samples], dim=1)
    return next_SBA, policy_SBA


def advantages(const: Constants, state: TrainState, batch: Batch, policy_SBA: Tensor) -> Tensor:
    """Return A = Qmin(o, a) - V(o) under the heads just updated, (S, B); V is the mean Qmin of the policy's samples."""
    q_SB = smaller_q(const, state, batch, policy_SBA)
    q_data, q_policy = q_SB.split([const.cfg.batch_size, const.cfg.batch_size * const.cfg.value_samples], dim=-1)
    return q_data - q_policy.unflatten(-1, (-1, const.cfg.batch_size)).mean(1)


def smaller_q(const: Constants, state: TrainState, batch: Batch, policy_SBA: Tensor) -> Tensor:
    """Return Qmin of the batch's actions, and behind them of the policy's, (S, B + samples B)."""
    assert state.critic is not None
    critic = views(state.critic.param, const.critic)
    samples = policy_SBA.shape[1] // batch.action_SBA.shape[1]
    obs = encode_obs(critic, batch.obs_SBD).repeat(1, 1 + samples, 1)
    return q_values(critic, obs, torch.cat([batch.action_SBA, policy_SBA], dim=1)).amin(dim=1)


def weight_metrics(advantage_SB: Tensor, weight_SB: Tensor) -> list[Tensor]:
    """Return WEIGHT_METRICS."""
    effective_S = weight_SB.mean(-1).square() / weight_SB.square().mean(-1)
    advantage = [advantage_SB.mean(-1), advantage_SB.std(-1, correction=0)]
    return [*advantage, weight_SB.mean(-1), weight_SB.amax(-1), effective_S]


def _update_actor(
    const: Constants, state: TrainState, batch: Batch, random_bits: rng.RandomBits, weight_SB: Tensor
) -> list[Tensor]:
    """Descend L_traj + lambda_flow L_inst (Eq. 17 to 19); return ACTOR_METRICS.

    The target is the EMA actor's jump from a_u, one grid step below a_t on the surrogate's line (Eq. 11), to s.
    """
    assert batch.ema_obs_SBD is not None
    bits, levels = random_bits[rng.INDEX], (const.cfg.sigma_data, const.cfg.sigma_min)
    t, u, s = equations.draw_times(const.schedule, state.step, bits[..., 1], bits[..., 2])
    z = rng.normals(random_bits[rng.ACTION_NOISE], const.cfg.batch_size, batch.action_SBA.shape[-1])
    a_t, a_u = equations.perturb(batch.action_SBA, t, z), equations.perturb(batch.action_SBA, u, z)
    ema, params = views(state.actor.ema, const.actor), updates.trainable(state.actor, const.actor)
    target = equations.Phi(a_u, equations.phi(ema, a_u, u, s, batch.ema_obs_SBD, *levels), u, s)
    w_traj, w_inst = equations.time_weights(t, u, const.cfg.sigma_data, const.cfg.weighting)
    with torch.enable_grad():
        # One forward of 2 B rows: (t, s) for the map, (t, t) for the denoiser.
        obs, times = encode_obs(params, batch.obs_SBD).repeat(1, 2, 1), (t.repeat(1, 2), torch.cat([s, t], dim=1))
        jump, denoised = equations.phi(params, a_t.repeat(1, 2, 1), *times, obs, *levels).split(
            const.cfg.batch_size, dim=1
        )
        traj_S = equations.trajectory_loss(equations.Phi(a_t, jump, t, s), target, weight_SB * w_traj)
        inst_S = equations.instantaneous_loss(batch.action_SBA, denoised, weight_SB * w_inst)
        loss_S = equations.actor_loss(traj_S, inst_S, const.cfg.lambda_flow)
    norm_S = updates.adam_step(const, state.actor, const.actor, params, loss_S, state.step)
    return [loss_S.detach(), traj_S.detach(), inst_S.detach(), norm_S]
