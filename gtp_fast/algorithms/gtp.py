"""Generative Trajectory Policies, whole: the state, one train step in the order of the paper, what is saved to act.

Legend: S members (seeds), B batch rows, D observation, A action. The step touches only `TrainState` and the buffer,
reads step count, schedules and random numbers from the device, and returns nothing to the host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from gtp_kernels.reference import integer_below
from torch import Tensor

from gtp_fast import losses, rng, trajectory
from gtp_fast.algorithms import pieces
from gtp_fast.buffer import Batch, ReplayBuffer
from gtp_fast.config import TrainConfig, member_seeds, member_values
from gtp_fast.networks import Layout, actor_layout, critic_layout, q_values, views
from gtp_fast.policy_config import PolicyConfig
from gtp_fast.profiling import phase
from gtp_fast.state import TrainState

STEPS_ARE_FREE = True  # the map takes any grid of times: a policy acts in any number of steps
ACTOR_METRICS = ("actor_loss", "traj_loss", "inst_loss", "actor_grad_norm")
WEIGHT_METRICS = ("advantage", "advantage_std", "weight", "weight_max", "effective_share")


def metric_names(cfg: TrainConfig) -> tuple[str, ...]:
    """Return the columns of `TrainState.metric_sums_SQ`."""
    return ACTOR_METRICS if cfg.bc else ACTOR_METRICS + pieces.CRITIC_METRICS + WEIGHT_METRICS


def init_state(cfg: TrainConfig, obs_dim: int, action_dim: int, device: torch.device | str) -> TrainState:
    """Return a fresh state; each member depends on its own seed alone."""
    return pieces.fresh_state(cfg, layouts(cfg, obs_dim, action_dim), metric_names(cfg), device)


def layouts(cfg: TrainConfig | PolicyConfig, obs_dim: int, action_dim: int) -> dict[str, Layout]:
    """Return where the parameters of an actor and of one head of its critic lie."""
    sizes = obs_dim, action_dim, cfg.hidden
    return {"actor": actor_layout(*sizes), "critic": critic_layout(*sizes)}


def noise_columns(config: PolicyConfig) -> int:
    """Return how many standard normals one action takes."""
    return config.action_dim


def path(p: dict[str, Tensor], obs_SRD: Tensor, z_SRN: Tensor, config: PolicyConfig) -> list[Tensor]:
    """Return the points from noise to action, unclamped, each (S, R, A); z_SRN (S, R, noise_columns) ~ N(0, I)."""
    grid = trajectory.sampling_grid(
        config.sampling_steps, config.sigma_min, config.sigma_max, config.rho, z_SRN.device
    ).to(z_SRN)
    return trajectory.sample_path(p, obs_SRD, z_SRN, grid, config.sigma_data, config.sigma_min)


judge = q_values  # both heads' values (S, 2, R) of observations (S, R, D) and actions (S, R, A)


@dataclass(frozen=True)
class _Constants:
    """What a step reads and never writes, on the device."""

    keys_S2: Tensor
    plan: rng.Plan
    schedule: trajectory.Schedule
    sampling_grid: Tensor
    eta_S: Tensor
    lr_S: Tensor
    actor: Layout
    critic: Layout


def _constants(cfg: TrainConfig, buffer: ReplayBuffer) -> _Constants:
    device, rows = buffer.rows.device, cfg.batch_size
    counts = {rng.INDEX: rows, rng.ACTION_NOISE: rng.counters_for_normals(rows, buffer.action_dim)}
    if not cfg.bc:
        counts[rng.TARGET_NOISE] = rng.counters_for_normals(rows * pieces.backup_samples(cfg), buffer.action_dim)
        counts[rng.VALUE_NOISE] = rng.counters_for_normals(rows * cfg.value_samples, buffer.action_dim)
    return _Constants(
        keys_S2=rng.seed_keys(member_seeds(cfg), device),
        plan=rng.plan(counts, device),
        schedule=trajectory.schedule(cfg.steps, cfg.s0, cfg.s1, cfg.sigma_min, cfg.sigma_max, cfg.rho, device),
        sampling_grid=trajectory.sampling_grid(cfg.sampling_steps, cfg.sigma_min, cfg.sigma_max, cfg.rho, device),
        eta_S=torch.tensor(member_values(cfg, "eta"), device=device),
        lr_S=torch.tensor(member_values(cfg, "lr"), device=device),
        actor=actor_layout(buffer.obs_dim, buffer.action_dim, cfg.hidden),
        critic=critic_layout(buffer.obs_dim, buffer.action_dim, cfg.hidden),
    )


def make_step(cfg: TrainConfig, state: TrainState, buffer: ReplayBuffer) -> Callable[[], None]:
    """Return a function that makes one train step in place: sample, critic, actor, average (SPEC 5)."""
    const = _constants(cfg, buffer)

    @torch.no_grad()
    def step() -> None:
        with phase("sample"):
            words = rng.words(const.plan, const.keys_S2, state.step)
            batch = buffer.gather(integer_below(words[rng.INDEX][..., 0], buffer.size))
        weight_SB, metrics = torch.ones_like(batch.reward_SB), []
        if state.critic is not None:
            with phase("chain"):
                next_SBA, value_SBA = _policy_actions(cfg, const, state, batch, words)
            with phase("critic"):
                metrics += pieces.update_critic(cfg, state, const.critic, batch, next_SBA, const.lr_S)
            with phase("advantage"):
                weight_SB, more = _advantage_weights(cfg, const, state, batch, value_SBA)
                metrics += more
        with phase("actor"):
            metrics = _update_actor(cfg, const, state, batch, words, weight_SB) + metrics
        with phase("average"):
            pieces.average(cfg, state)
            pieces.record(state, torch.stack(metrics, dim=-1))

    return step


def _policy_actions(
    cfg: TrainConfig, const: _Constants, state: TrainState, batch: Batch, words: dict[int, Tensor]
) -> tuple[Tensor, Tensor]:
    """Sample the EMA actor at o' (TD target) and at o (baseline V) as one chain of K steps.

    Several samples of a state follow one another in blocks of B rows. Returns (S, samples B, A) for each.
    """
    backup, rows = pieces.backup_samples(cfg), cfg.batch_size
    columns = batch.action_SBA.shape[-1]
    obs = torch.cat([batch.next_obs_SBD.repeat(1, backup, 1), batch.obs_SBD.repeat(1, cfg.value_samples, 1)], dim=1)
    z_next = rng.normals(words[rng.TARGET_NOISE], rows * backup, columns)
    z_value = rng.normals(words[rng.VALUE_NOISE], rows * cfg.value_samples, columns)
    actions = trajectory.sample_actions(
        views(state.actor.slow, const.actor),
        obs,
        torch.cat([z_next, z_value], dim=1),
        const.sampling_grid,
        cfg.sigma_data,
        cfg.sigma_min,
    )
    next_SBA, value_SBA = actions.split([rows * backup, rows * cfg.value_samples], dim=1)
    return next_SBA, value_SBA


def _advantage_weights(
    cfg: TrainConfig, const: _Constants, state: TrainState, batch: Batch, value_SBA: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Form A = Qmin(o, a) - V(o) with the heads just updated, and w of Eq. 14; V is the mean over policy samples."""
    assert state.critic is not None
    obs = batch.obs_SBD.repeat(1, 1 + cfg.value_samples, 1)
    actions = torch.cat([batch.action_SBA, value_SBA], dim=1)
    q_SB = q_values(views(state.critic.param, const.critic), obs, actions).amin(dim=1)
    q_data, q_policy = q_SB.split([cfg.batch_size, cfg.batch_size * cfg.value_samples], dim=-1)
    advantage_SB = q_data - q_policy.unflatten(-1, (-1, cfg.batch_size)).mean(1)
    weight_SB = losses.advantage_weights(advantage_SB, const.eta_S, cfg.weight_cap)
    effective_S = weight_SB.mean(-1).square() / weight_SB.square().mean(-1)
    advantage = [advantage_SB.mean(-1), advantage_SB.std(-1, correction=0)]
    return weight_SB, [*advantage, weight_SB.mean(-1), weight_SB.amax(-1), effective_S]


def _update_actor(
    cfg: TrainConfig, const: _Constants, state: TrainState, batch: Batch, words: dict[int, Tensor], weight_SB: Tensor
) -> list[Tensor]:
    action, obs, rows = batch.action_SBA, batch.obs_SBD, cfg.batch_size
    bits = words[rng.INDEX]
    t, u, s = trajectory.draw_times(const.schedule, state.step, bits[..., 1], bits[..., 2])
    z = rng.normals(words[rng.ACTION_NOISE], rows, action.shape[-1])
    a_t, a_u = trajectory.perturb(action, t, z), trajectory.perturb(action, u, z)
    teacher = trajectory.phi(views(state.actor.slow, const.actor), a_u, u, s, obs, cfg.sigma_data, cfg.sigma_min)
    target = trajectory.Phi(a_u, teacher, u, s)
    w_traj, w_inst = losses.time_weights(t, u, cfg.sigma_data, cfg.weighting)
    params = pieces.leaves(state.actor, const.actor)
    with torch.enable_grad():
        # One forward of 2 B rows: (t, s) for the map, (t, t) for the denoiser.
        twice_t, t_then_s = t.repeat(1, 2), torch.cat([s, t], dim=1)
        both = trajectory.phi(
            params, a_t.repeat(1, 2, 1), twice_t, t_then_s, obs.repeat(1, 2, 1), cfg.sigma_data, cfg.sigma_min
        )
        student = trajectory.Phi(a_t, both[:, :rows], t, s)
        traj_S = losses.trajectory_loss(student, target, weight_SB * w_traj)
        inst_S = losses.instantaneous_loss(action, both[:, rows:], weight_SB * w_inst)
        loss_S = losses.actor_loss(traj_S, inst_S, cfg.lambda_flow)
    norm_S = pieces.descend(cfg, state.actor, const.actor, params, loss_S, const.lr_S, state.step)
    return [loss_S.detach(), traj_S.detach(), inst_S.detach(), norm_S]
