"""What the paper compares GTP with: other actor losses, other values V(o), other times and noising, in one train step.

An actor loss takes the batch and the trained parameters and returns L_traj and L_inst of each member, (S,). Gradients
flow inside `torch.enable_grad()` alone. Targets come from the EMA actor, except in `meanflow`.

Legend: S members (seeds), B batch rows, R rows, A action, D observation.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gtp_fast import rng
from gtp_fast.algorithms import equations, gtp, updates
from gtp_fast.algorithms.encoder import encode_obs
from gtp_fast.algorithms.networks import Layout, q_values, state_values, value_layout, views
from gtp_fast.algorithms.policy_config import PolicyConfig
from gtp_fast.algorithms.state import TrainState
from gtp_fast.config import TrainConfig, grid_steps
from gtp_fast.data.buffers import Buffer
from gtp_fast.data.replay import Batch
from gtp_fast.data.spec import ObsShape
from gtp_fast.profiling import phase

STEPS_ARE_FREE = True
Params = dict[str, Tensor]
noise_columns, path = gtp.noise_columns, gtp.path


def metric_names(cfg: TrainConfig) -> tuple[str, ...]:
    """Return the columns of `TrainState.metric_sums_SQ`."""
    if cfg.actor_loss == "linear-q":
        return (*gtp.ACTOR_METRICS, "policy_q", *updates.CRITIC_METRICS)
    return gtp.metric_names(cfg) + (updates.VALUE_METRICS if cfg.value == "expectile" else ())


def layouts(cfg: TrainConfig | PolicyConfig, obs: ObsShape, action_dim: int) -> dict[str, Layout]:
    """Return where the parameters of the actor, of one head of the critic and of a learned V lie."""
    learned = isinstance(cfg, TrainConfig) and cfg.value == "expectile"
    return gtp.layouts(cfg, obs, action_dim) | ({"value": value_layout(obs, cfg.hidden)} if learned else {})


def make_step(cfg: TrainConfig, state: TrainState, buffer: Buffer) -> Callable[[], None]:
    """Return a function that makes one train step in place, in the order of `gtp.make_step`."""
    nets = layouts(cfg, buffer.obs_shape, buffer.action_dim)
    const, samples = _constants(cfg, nets, buffer), _value_samples(cfg)

    @torch.no_grad()
    def step() -> None:
        with phase("sample"):
            random_bits, batch = gtp.sample(const, state, buffer)
        weight_SB, metrics = torch.ones_like(batch.reward_SB), []
        if state.critic is not None:
            with phase("chain"):
                next_SBA, policy_SBA = gtp.policy_actions(const, state, batch, random_bits, samples)
            with phase("critic"):
                metrics += updates.update_critic(const, state, batch, next_SBA)
            if cfg.actor_loss != "linear-q":
                with phase("advantage"):
                    advantage_SB, more = _advantages(const, state, batch, policy_SBA)
                    weight_SB = equations.advantage_weights(advantage_SB, const.eta_S, cfg.weight_cap, cfg.weight_norm)
                    metrics += gtp.weight_metrics(advantage_SB, weight_SB) + more
        with phase("actor"):
            metrics = _update_actor(const, state, batch, random_bits, weight_SB) + metrics
        with phase("average"):
            updates.average(cfg, state)
            updates.record(state, torch.stack(metrics, dim=-1))

    return step


def _value_samples(cfg: TrainConfig) -> int:
    """Return how many actions of the policy are drawn at each observation for V(o)."""
    return cfg.value_samples if cfg.value == "policy" and cfg.actor_loss != "linear-q" else 0


def _constants(cfg: TrainConfig, nets: dict[str, Layout], buffer: Buffer) -> gtp.Constants:
    """Return GTP's constants, with a schedule of log-normal times if cfg.times asks for them."""
    const = gtp.constants(cfg, nets, buffer, 1 if cfg.actor_loss == "linear-q" else _value_samples(cfg))
    if cfg.times == "grid":
        return const
    levels = cfg.sigma_min, cfg.sigma_max, cfg.rho
    lognormal = cfg.time_mean, cfg.time_std
    return replace(
        const, schedule=equations.schedule(cfg.steps, *grid_steps(cfg), *levels, buffer.rows.device, lognormal)
    )


def _advantages(
    const: gtp.Constants, state: TrainState, batch: Batch, policy_SBA: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Return A, (S, B), and the metrics of a learned V.

    V is the mean Qmin of the policy's samples; or the mean Qmin of the batch's actions, one number for all rows; or the
    value network, which has just learned an expectile of Qmin(o, a).
    """
    if const.cfg.value == "policy":
        return gtp.advantages(const, state, batch, policy_SBA), []
    q_SB = gtp.smaller_q(const, state, batch, policy_SBA)
    if const.cfg.value == "behaviour":
        return q_SB - q_SB.mean(-1, keepdim=True), []
    assert state.value is not None and const.value is not None
    more = updates.update_value(const, state, batch, q_SB)
    p = views(state.value.param, const.value)
    return q_SB - state_values(p, encode_obs(p, batch.obs_SBD)), more


def _update_actor(
    const: gtp.Constants, state: TrainState, batch: Batch, random_bits: rng.RandomBits, weight_SB: Tensor
) -> list[Tensor]:
    params, more = updates.trainable(state.actor, const.actor), []
    with torch.enable_grad():
        own = replace(batch, obs_SBD=encode_obs(params, batch.obs_SBD))
    actor_batch = _actor_batch(const, state, own, random_bits, weight_SB)
    traj_S, inst_S = ACTOR_LOSSES[const.cfg.actor_loss](actor_batch, params)
    with torch.enable_grad():
        loss_S = equations.actor_loss(traj_S, inst_S, const.cfg.lambda_flow)
        if const.cfg.actor_loss == "linear-q":
            assert state.critic is not None
            z = rng.normals(random_bits[rng.VALUE_NOISE], const.cfg.batch_size, batch.action_SBA.shape[-1])
            critic = views(state.critic.param, const.critic)
            q_S = policy_q(actor_batch, params, critic, encode_obs(critic, batch.obs_SBD), z, const.sampling_grid)
            loss_S, more = equations.linear_q(loss_S, q_S, const.cfg.lambda_q), [q_S.detach()]
    norm_S = updates.adam_step(const, state.actor, const.actor, params, loss_S, state.step)
    return [loss_S.detach(), traj_S.detach(), inst_S.detach(), norm_S, *more]


def _actor_batch(
    const: gtp.Constants, state: TrainState, batch: Batch, random_bits: rng.RandomBits, weight_SB: Tensor
) -> ActorBatch:
    """Draw the times and the noise of the actor's loss; batch.obs_SBD holds the trained actor's features."""
    assert batch.ema_obs_SBD is not None
    bits, back = random_bits[rng.INDEX], const.cfg.solver_steps if const.cfg.actor_loss == "solver" else 1
    indices = equations.draw_time_indices(const.schedule, state.step, bits[..., 1], bits[..., 2], back)
    z = rng.normals(random_bits[rng.ACTION_NOISE], const.cfg.batch_size, batch.action_SBA.shape[-1])
    return ActorBatch(
        cfg=const.cfg,
        ema=views(state.actor.ema, const.actor),
        obs_SBD=batch.obs_SBD,
        ema_obs_SBD=batch.ema_obs_SBD,
        action_SBA=batch.action_SBA,
        direction_SBA=equations.direction(batch.action_SBA, z, const.cfg.process),
        weight_SB=weight_SB,
        indices=indices,
        t_SB=indices.at(indices.n),
        s_SB=indices.at(indices.j),
    )


@dataclass(frozen=True)
class ActorBatch:
    """The actor's batch: its times, its noise (a_t = a + t direction) and the weights w of its rows."""

    cfg: TrainConfig
    ema: Params  # of the EMA actor
    obs_SBD: Tensor  # features of the trained actor, with gradient
    ema_obs_SBD: Tensor  # features of the EMA actor
    action_SBA: Tensor
    direction_SBA: Tensor
    weight_SB: Tensor
    indices: equations.TimeIndices
    t_SB: Tensor
    s_SB: Tensor

    def at(self, time_SB: Tensor) -> Tensor:
        """Return the actions noised to these times (Eq. 11), (S, B, A)."""
        return equations.perturb(self.action_SBA, time_SB, self.direction_SBA)

    def phi(self, p: Params, x_SBA: Tensor, t_SB: Tensor, s_SB: Tensor) -> Tensor:
        """Return phi(x, t, s) of the trained actor; x may hold several blocks of B rows."""
        return self._phi(p, self.obs_SBD, x_SBA, t_SB, s_SB)

    def ema_phi(self, x_SBA: Tensor, t_SB: Tensor, s_SB: Tensor) -> Tensor:
        """Return the EMA actor's phi(x, t, s)."""
        return self._phi(self.ema, self.ema_obs_SBD, x_SBA, t_SB, s_SB)

    def _phi(self, p: Params, seen_SBD: Tensor, x_SBA: Tensor, t_SB: Tensor, s_SB: Tensor) -> Tensor:
        cfg, times = self.cfg, x_SBA.shape[1] // seen_SBD.shape[1]
        obs = seen_SBD if times == 1 else seen_SBD.repeat(1, times, 1)
        return equations.phi(p, x_SBA, t_SB, s_SB, obs, cfg.sigma_data, cfg.sigma_min, cfg.process)

    def jump(self, x_SBA: Tensor, t_SB: Tensor, s_SB: Tensor) -> Tensor:
        """Return the EMA actor's Phi(x, t, s)."""
        return equations.Phi(x_SBA, self.ema_phi(x_SBA, t_SB, s_SB), t_SB, s_SB)


def published(batch: ActorBatch, params: Params) -> tuple[Tensor, Tensor]:
    """Return both losses of Eq. 19; the target starts from a_u, one grid step below a_t on the surrogate's line."""
    u = batch.indices.at(batch.indices.n - 1)
    return _both(batch, params, batch.jump(batch.at(u), u, batch.s_SB), u)


def consistency(batch: ActorBatch, params: Params) -> tuple[Tensor, Tensor]:
    """Return L_traj alone."""
    u, t, s = batch.indices.at(batch.indices.n - 1), batch.t_SB, batch.s_SB
    target = batch.jump(batch.at(u), u, s)
    w_traj, _ = _time_weights(batch, u)
    a_t = batch.at(t)
    with torch.enable_grad():
        student = equations.Phi(a_t, batch.phi(params, a_t, t, s), t, s)
        traj_S = _trajectory(batch, student, target, w_traj)
    return traj_S, torch.zeros_like(traj_S)


def denoiser(batch: ActorBatch, params: Params) -> tuple[Tensor, Tensor]:
    """Return L_inst alone: phi(x, t, s) learns s = t only, although sampling by Phi evaluates it at s < t."""
    _, w_inst = _time_weights(batch, batch.indices.at(batch.indices.n - 1))
    a_t = batch.at(batch.t_SB)
    with torch.enable_grad():
        denoised = batch.phi(params, a_t, batch.t_SB, batch.t_SB)
        inst_S = equations.instantaneous_loss(batch.action_SBA, denoised, batch.weight_SB * w_inst)
    return torch.zeros_like(inst_S), inst_S


def solver(batch: ActorBatch, params: Params) -> tuple[Tensor, Tensor]:
    """Return both losses; a solver integrates the EMA actor's field from a_t to a_u, `solver_steps` grid steps below.

    Near time 0 the grid may end first. Then u is its lowest point, and the remaining steps have length 0.
    """
    cfg, n = batch.cfg, batch.indices.n
    ladder = [batch.t_SB, *(batch.indices.at((n - i).clamp(min=0)) for i in range(1, cfg.solver_steps + 1))]
    a_u = solve(lambda x, time: batch.ema_phi(x, time, time), batch.at(ladder[0]), ladder, cfg.solver == "heun")
    return _both(batch, params, batch.jump(a_u, ladder[-1], batch.s_SB), ladder[-1])


def solve(denoise: Callable[[Tensor, Tensor], Tensor], x_SBA: Tensor, times: list[Tensor], heun: bool = True) -> Tensor:
    """Integrate dx/dt = (x - denoise(x, t)) / t through `times`, each (S, B) and above 0, by Heun's or Euler's method.

    Two equal times make a step of length 0.
    """
    for t_SB, to_SB in itertools.pairwise(times):
        t_SB1, step_SB1 = t_SB[..., None], (to_SB - t_SB)[..., None]
        slope = (x_SBA - denoise(x_SBA, t_SB)) / t_SB1
        if heun:
            ahead = torch.addcmul(x_SBA, step_SB1, slope)
            slope = 0.5 * (slope + (ahead - denoise(ahead, to_SB)) / to_SB[..., None])
        x_SBA = torch.addcmul(x_SBA, step_SB1, slope)
    return x_SBA


def shortcut(batch: ActorBatch, params: Params) -> tuple[Tensor, Tensor]:
    """Return both losses; the target is two jumps from a_t: to the grid's midpoint m of t and s, and on to s (Eq. 23).

    Where t and s are neighbours, m is s and the second jump is the identity: L_inst alone anchors them, as in shortcut
    models.
    """
    t, s, indices = batch.t_SB, batch.s_SB, batch.indices
    m = indices.at((indices.n + indices.j) // 2)
    return _both(batch, params, batch.jump(batch.jump(batch.at(t), t, m), m, s), m)


def meanflow(batch: ActorBatch, params: Params) -> tuple[Tensor, Tensor]:
    """Return both losses; phi(x, t, s) is regressed on a target made of its own derivative along the path (Eq. 31).

    phi_inst is the action and f is the direction of the surrogate field. The target is linear in both, so its mean over
    actions is the target that E[a | x_t] would give. L_inst is Eq. 31 at s = t. Both losses carry phi's weight.
    """
    t, s = batch.t_SB, batch.s_SB
    a_t = batch.at(t)
    frozen = {name: p.detach() for name, p in params.items()}
    phi, slope = torch.func.jvp(  # pyright: ignore[reportAssignmentType]
        lambda x, time: batch.phi(frozen, x, time, s), (a_t, t), (batch.direction_SBA, torch.ones_like(t))
    )
    target = equations.average_map_target(t, s, batch.action_SBA, phi, slope)
    _, w_inst = _time_weights(batch, s)
    with torch.enable_grad():
        both = batch.phi(params, a_t.repeat(1, 2, 1), t.repeat(1, 2), torch.cat([s, t], dim=1))
        average, denoised = both.split(a_t.shape[1], dim=1)
        traj_S = equations.trajectory_loss(average, target, batch.weight_SB * w_inst)
        inst_S = equations.instantaneous_loss(batch.action_SBA, denoised, batch.weight_SB * w_inst)
    return traj_S, inst_S


ACTOR_LOSSES: dict[str, Callable[[ActorBatch, Params], tuple[Tensor, Tensor]]] = {
    "gtp": published,
    "consistency": consistency,
    "denoiser": denoiser,
    "solver": solver,
    "linear-q": published,  # with `policy_q` beside it
    "shortcut": shortcut,
    "meanflow": meanflow,
}


def policy_q(
    batch: ActorBatch, params: Params, critic: Params, critic_obs_SBD: Tensor, z_SBA: Tensor, grid: Tensor
) -> Tensor:
    """Return mean Qmin(o, pi(o)), (S,), of K-step samples; gradients flow through the whole chain, not into the critic.

    Eq. 69 does not say which head Q is. We take Qmin, as Eq. 14 and 16 do: one head, or the mean of both, would pull
    the actor towards actions that a head overrates.
    """
    cfg, obs = batch.cfg, batch.obs_SBD
    actions = equations.sample_actions(params, obs, z_SBA, grid, cfg.sigma_data, cfg.sigma_min, cfg.process)
    return q_values(critic, critic_obs_SBD, actions).amin(dim=1).mean(-1)


def _both(batch: ActorBatch, params: Params, target_SBA: Tensor, u_SB: Tensor) -> tuple[Tensor, Tensor]:
    """Return both losses from one forward pass of 2 B rows: (t, s) for the map, (t, t) for the denoiser."""
    t, s, rows = batch.t_SB, batch.s_SB, batch.action_SBA.shape[1]
    w_traj, w_inst = _time_weights(batch, u_SB)
    a_t = batch.at(t)
    with torch.enable_grad():
        both = batch.phi(params, a_t.repeat(1, 2, 1), t.repeat(1, 2), torch.cat([s, t], dim=1))
        student = equations.Phi(a_t, both[:, :rows], t, s)
        traj_S = _trajectory(batch, student, target_SBA, w_traj)
        inst_S = equations.instantaneous_loss(batch.action_SBA, both[:, rows:], batch.weight_SB * w_inst)
    return traj_S, inst_S


def _trajectory(batch: ActorBatch, student_SBA: Tensor, target_SBA: Tensor, w_traj_SB: Tensor) -> Tensor:
    """Return L_traj; with `compare_at_zero` the EMA actor first carries both sides from s to time 0, sigma_min."""
    if batch.cfg.compare_at_zero:
        zero = torch.full_like(batch.s_SB, batch.cfg.sigma_min)
        student_SBA, target_SBA = (batch.jump(x, batch.s_SB, zero) for x in (student_SBA, target_SBA))
    return equations.trajectory_loss(student_SBA, target_SBA, batch.weight_SB * w_traj_SB)


def _time_weights(batch: ActorBatch, u_SB: Tensor) -> tuple[Tensor, Tensor]:
    cfg = batch.cfg
    return equations.time_weights(batch.t_SB, u_SB, cfg.sigma_data, cfg.weighting, cfg.process)
