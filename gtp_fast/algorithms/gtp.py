"""Generative Trajectory Policies, whole: the state, one train step in the order of the paper, what is saved to act.

Legend: S members (seeds), B batch rows, D observation, A action. The step touches only `TrainState` and the buffer,
reads step count, schedules and random numbers from the device, and returns nothing to the host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from gtp_kernels.primitives import integer_below
from torch import Tensor

from gtp_fast import rng
from gtp_fast.algorithms import equations, updates
from gtp_fast.algorithms.encoder import see
from gtp_fast.algorithms.gtp_variants import ACTOR_LOSSES, Drawn, policy_q
from gtp_fast.algorithms.networks import (
    Layout,
    actor_layout,
    critic_layout,
    q_values,
    state_values,
    value_layout,
    views,
)
from gtp_fast.algorithms.policy_config import PolicyConfig
from gtp_fast.algorithms.state import TrainState
from gtp_fast.config import TrainConfig, grid_steps, member_seeds, member_values
from gtp_fast.data.frames import Buffer
from gtp_fast.data.replay import Batch
from gtp_fast.data.spec import ObsShape
from gtp_fast.profiling import phase

STEPS_ARE_FREE = True  # the map takes any grid of times: a policy acts in any number of steps
ACTOR_METRICS = ("actor_loss", "traj_loss", "inst_loss", "actor_grad_norm")
WEIGHT_METRICS = ("advantage", "advantage_std", "weight", "weight_max", "effective_share")


def metric_names(cfg: TrainConfig) -> tuple[str, ...]:
    """Return the columns of `TrainState.metric_sums_SQ`."""
    if cfg.bc:
        return ACTOR_METRICS
    if cfg.actor_loss == "linear-q":
        return (*ACTOR_METRICS, "policy_q", *updates.CRITIC_METRICS)
    value = updates.VALUE_METRICS if cfg.value == "expectile" else ()
    return ACTOR_METRICS + updates.CRITIC_METRICS + WEIGHT_METRICS + value


def init_state(cfg: TrainConfig, obs: ObsShape, action_dim: int, device: torch.device | str) -> TrainState:
    """Return a fresh state; each member depends on its own seed alone."""
    return updates.fresh_state(cfg, layouts(cfg, obs, action_dim), metric_names(cfg), device)


def layouts(cfg: TrainConfig | PolicyConfig, obs: ObsShape, action_dim: int) -> dict[str, Layout]:
    """Return where the parameters of an actor, of one head of its critic and of a learned V lie."""
    sizes = obs, action_dim, cfg.hidden
    learned = isinstance(cfg, TrainConfig) and cfg.value == "expectile"
    value = {"value": value_layout(obs, cfg.hidden)} if learned else {}
    return {"actor": actor_layout(*sizes), "critic": critic_layout(*sizes), **value}


def noise_columns(config: PolicyConfig) -> int:
    """Return how many standard normals one action takes."""
    return config.action_dim


def path(p: dict[str, Tensor], obs_SRD: Tensor, z_SRN: Tensor, config: PolicyConfig) -> list[Tensor]:
    """Return the points from noise to action, unclamped, each (S, R, A); z_SRN (S, R, noise_columns) ~ N(0, I)."""
    grid = equations.sampling_grid(
        config.sampling_steps, config.sigma_min, config.sigma_max, config.rho, z_SRN.device
    ).to(z_SRN)
    return equations.sample_path(p, obs_SRD, z_SRN, grid, config.sigma_data, config.sigma_min, config.process)


judge = q_values  # both heads' values (S, 2, R) of observations (S, R, D) and actions (S, R, A)


@dataclass(frozen=True)
class _Constants:
    """What a step reads and never writes, on the device."""

    keys_S2: Tensor
    plan: rng.Plan
    schedule: equations.Schedule
    sampling_grid: Tensor
    eta_S: Tensor
    lr_S: Tensor
    actor: Layout
    critic: Layout
    value: Layout | None


def _constants(cfg: TrainConfig, buffer: Buffer) -> _Constants:
    device, rows = buffer.rows.device, cfg.batch_size
    counts = {rng.INDEX: rows, rng.ACTION_NOISE: rng.counters_for_normals(rows, buffer.action_dim)}
    if not cfg.bc:
        counts[rng.TARGET_NOISE] = rng.counters_for_normals(rows * updates.backup_samples(cfg), buffer.action_dim)
        if samples := _value_samples(cfg) or (cfg.actor_loss == "linear-q"):
            counts[rng.VALUE_NOISE] = rng.counters_for_normals(rows * samples, buffer.action_dim)
    nets = layouts(cfg, buffer.obs_shape, buffer.action_dim)
    levels = cfg.sigma_min, cfg.sigma_max, cfg.rho
    lognormal = (cfg.time_mean, cfg.time_std) if cfg.times == "lognormal" else None
    return _Constants(
        keys_S2=rng.seed_keys(member_seeds(cfg), device),
        plan=rng.plan(counts, device),
        schedule=equations.schedule(cfg.steps, *grid_steps(cfg), *levels, device, lognormal),
        sampling_grid=equations.sampling_grid(cfg.sampling_steps, *levels, device),
        eta_S=torch.tensor(member_values(cfg, "eta"), device=device),
        lr_S=torch.tensor(member_values(cfg, "lr"), device=device),
        actor=nets["actor"],
        critic=nets["critic"],
        value=nets.get("value"),
    )


def _value_samples(cfg: TrainConfig) -> int:
    """Return how many actions of the policy are drawn at each observation for V(o)."""
    return cfg.value_samples if cfg.value == "policy" and cfg.actor_loss != "linear-q" else 0


def make_step(cfg: TrainConfig, state: TrainState, buffer: Buffer) -> Callable[[], None]:
    """Return a function that makes one train step in place: sample, critic, actor, average (SPEC 5)."""
    const = _constants(cfg, buffer)

    @torch.no_grad()
    def step() -> None:
        with phase("sample"):
            words = rng.words(const.plan, const.keys_S2, state.step)
            batch = buffer.gather(integer_below(words[rng.INDEX][..., 0], buffer.size), state.step)
            slow_obs_SBD = see(views(state.actor.slow, const.actor), batch.obs_SBD)
            batch = replace(batch, slow_obs_SBD=slow_obs_SBD)  # of the chain and of the actor's targets
        weight_SB, metrics = torch.ones_like(batch.reward_SB), []
        if state.critic is not None:
            with phase("chain"):
                next_SBA, value_SBA = _policy_actions(cfg, const, state, batch, words)
            with phase("critic"):
                metrics += updates.update_critic(cfg, state, const.critic, batch, next_SBA, const.lr_S)
            if cfg.actor_loss != "linear-q":
                with phase("advantage"):
                    weight_SB, more = _advantage_weights(cfg, const, state, batch, value_SBA)
                    metrics += more
        with phase("actor"):
            metrics = _update_actor(cfg, const, state, batch, words, weight_SB) + metrics
        with phase("average"):
            updates.average(cfg, state)
            updates.record(state, torch.stack(metrics, dim=-1))

    return step


def _policy_actions(
    cfg: TrainConfig, const: _Constants, state: TrainState, batch: Batch, words: dict[int, Tensor]
) -> tuple[Tensor, Tensor]:
    """Sample the EMA actor at o' (TD target) and at o (baseline V) as one chain of K steps.

    Several samples of a state follow one another in blocks of B rows. Returns (S, samples B, A) for each.
    """
    assert batch.slow_obs_SBD is not None  # every step asks for it
    backup, values, rows = updates.backup_samples(cfg), _value_samples(cfg), cfg.batch_size
    columns = batch.action_SBA.shape[-1]
    slow = views(state.actor.slow, const.actor)
    obs = see(slow, batch.next_obs_SBD).repeat(1, backup, 1)
    z = rng.normals(words[rng.TARGET_NOISE], rows * backup, columns)
    if values:
        z_value = rng.normals(words[rng.VALUE_NOISE], rows * values, columns)
        obs = torch.cat([obs, batch.slow_obs_SBD.repeat(1, values, 1)], dim=1)
        z = torch.cat([z, z_value], dim=1)
    levels = cfg.sigma_data, cfg.sigma_min, cfg.process
    actions = equations.sample_actions(slow, obs, z, const.sampling_grid, *levels)
    next_SBA, value_SBA = actions.split([rows * backup, rows * values], dim=1)
    return next_SBA, value_SBA


def _advantage_weights(
    cfg: TrainConfig, const: _Constants, state: TrainState, batch: Batch, value_SBA: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Form A = Qmin(o, a) - V(o) with the heads just updated, and w of Eq. 14; return it with WEIGHT_METRICS."""
    advantage_SB, more = _advantages(cfg, const, state, batch, value_SBA)
    weight_SB = equations.advantage_weights(advantage_SB, const.eta_S, cfg.weight_cap, cfg.weight_norm)
    effective_S = weight_SB.mean(-1).square() / weight_SB.square().mean(-1)
    advantage = [advantage_SB.mean(-1), advantage_SB.std(-1, correction=0)]
    return weight_SB, [*advantage, weight_SB.mean(-1), weight_SB.amax(-1), effective_S, *more]


def _advantages(
    cfg: TrainConfig, const: _Constants, state: TrainState, batch: Batch, value_SBA: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Return A, (S, B), and the metrics of a learned V.

    V is the mean Qmin of the policy's samples; or of the batch's own actions, one number for all observations; or the
    network that has just learned an expectile of Qmin(o, a).
    """
    assert state.critic is not None
    critic = views(state.critic.param, const.critic)
    obs = see(critic, batch.obs_SBD).repeat(1, 1 + _value_samples(cfg), 1)
    actions = torch.cat([batch.action_SBA, value_SBA], dim=1)
    q_SB = q_values(critic, obs, actions).amin(dim=1)
    if cfg.value == "behaviour":
        return q_SB - q_SB.mean(-1, keepdim=True), []
    if cfg.value == "expectile":
        assert state.value is not None and const.value is not None
        more = updates.update_value(cfg, state, const.value, batch, q_SB, const.lr_S)
        value = views(state.value.param, const.value)
        return q_SB - state_values(value, see(value, batch.obs_SBD)), more
    q_data, q_policy = q_SB.split([cfg.batch_size, cfg.batch_size * cfg.value_samples], dim=-1)
    return q_data - q_policy.unflatten(-1, (-1, cfg.batch_size)).mean(1), []


def _update_actor(
    cfg: TrainConfig, const: _Constants, state: TrainState, batch: Batch, words: dict[int, Tensor], weight_SB: Tensor
) -> list[Tensor]:
    params, more = updates.leaves(state.actor, const.actor), []
    with torch.enable_grad():
        own = replace(batch, obs_SBD=see(params, batch.obs_SBD))
    drawn = _drawn(cfg, const, state, own, words, weight_SB)
    traj_S, inst_S = ACTOR_LOSSES[cfg.actor_loss](drawn, params)
    with torch.enable_grad():
        loss_S = equations.actor_loss(traj_S, inst_S, cfg.lambda_flow)
        if cfg.actor_loss == "linear-q":
            assert state.critic is not None
            z = rng.normals(words[rng.VALUE_NOISE], cfg.batch_size, batch.action_SBA.shape[-1])
            critic = views(state.critic.param, const.critic)
            q_S = policy_q(drawn, params, critic, see(critic, batch.obs_SBD), z, const.sampling_grid)
            loss_S, more = equations.linear_q(loss_S, q_S, cfg.lambda_q), [q_S.detach()]
    norm_S = updates.descend(cfg, state.actor, const.actor, params, loss_S, const.lr_S, state.step)
    return [loss_S.detach(), traj_S.detach(), inst_S.detach(), norm_S, *more]


def _drawn(
    cfg: TrainConfig, const: _Constants, state: TrainState, batch: Batch, words: dict[int, Tensor], weight_SB: Tensor
) -> Drawn:
    """Draw the times and the noise of the actor's loss; obs_SBD is what the actor sees."""
    assert batch.slow_obs_SBD is not None
    bits, back = words[rng.INDEX], cfg.solver_steps if cfg.actor_loss == "solver" else 1
    places = equations.draw_places(const.schedule, state.step, bits[..., 1], bits[..., 2], back)
    z = rng.normals(words[rng.ACTION_NOISE], cfg.batch_size, batch.action_SBA.shape[-1])
    return Drawn(
        cfg=cfg,
        slow=views(state.actor.slow, const.actor),
        obs_SBD=batch.obs_SBD,
        slow_obs_SBD=batch.slow_obs_SBD,
        action_SBA=batch.action_SBA,
        direction_SBA=equations.direction(batch.action_SBA, z, cfg.process),
        weight_SB=weight_SB,
        places=places,
        t_SB=places.at(places.n),
        s_SB=places.at(places.j),
    )
