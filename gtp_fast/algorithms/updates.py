"""What the steps of all algorithms share: fresh networks, a clipped Adam step, critic and value regression, metrics.

Legend: S members (seeds), B batch rows, M rows of a parameter buffer, D observation, A action, Q metrics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from gtp_kernels.primitives import integer_below
from torch import Tensor

from gtp_fast import rng
from gtp_fast.algorithms import equations, optimizer
from gtp_fast.algorithms.encoder import EYE, encode_obs
from gtp_fast.algorithms.networks import Layout, flat, init_flat, q_values, state_values, views
from gtp_fast.algorithms.state import Net, TrainState
from gtp_fast.config import TrainConfig, member_seeds, member_values
from gtp_fast.data.buffers import Buffer
from gtp_fast.data.replay import Batch
from gtp_fast.profiling import phase

BACKUP_SAMPLES = 10  # actions a state of max_q_backup, as in the lineage
CRITIC_METRICS = ("critic_loss", "q", "td_target", "critic_grad_norm")
VALUE_METRICS = ("value_loss", "value", "value_grad_norm")
# For each kind of device a 1 that requires a gradient. `backends.compile_step` fills it where torch cannot trace
# requires_grad_(): a compiled step then multiplies its parameters by this 1.
ASKING: dict[str, Tensor] = {}


def fresh_state(
    cfg: TrainConfig, layouts: dict[str, Layout], metrics: tuple[str, ...], device: torch.device | str
) -> TrainState:
    """Return a fresh state for seeds cfg.seed, cfg.seed + 1, ..., without a critic for BC.

    Each member depends on its own seed alone. layouts has "actor", "critic", one head of it, and "value" where V(o)
    is learned.
    """
    seeds = member_seeds(cfg)
    shape = (len(seeds), len(metrics))
    heads = None if cfg.bc else init_flat(layouts["critic"], seeds, heads=2, network=1).to(device)
    learns_value = "value" in layouts and not cfg.bc
    value = init_flat(layouts["value"], seeds, network=2).to(device) if learns_value else None
    return TrainState(
        actor=Net.fresh(init_flat(layouts["actor"], seeds, network=0).to(device)),
        critic=None if heads is None else Net.fresh(heads),
        step=torch.zeros((), dtype=torch.int64, device=device),
        metric_sums_SQ=torch.zeros(shape, device=device),
        first_bad_SQ=torch.full(shape, -1, dtype=torch.int64, device=device),
        value=None if value is None else Net.fresh(value),
    )


def parameter_count(cfg: TrainConfig, layouts: dict[str, Layout]) -> int:
    """Return the trained parameters of one member: actor, and twin critic and V unless it is a BC run."""
    if cfg.bc:
        return layouts["actor"].parameters
    value = layouts["value"].parameters if "value" in layouts else 0
    shared = sum(math.prod(shape) for name, _, shape in layouts["critic"].entries if name.startswith(EYE))
    return layouts["actor"].parameters + 2 * layouts["critic"].parameters - shared + value


def policy_tensors(state: TrainState) -> dict[str, Tensor]:
    """Return copies of what acting needs: the EMA actor (S, Pa) and, except for BC, the target critic (2 S, Pc)."""
    tensors = {"actor": state.actor.ema.clone()}
    return tensors if state.critic is None else tensors | {"critic": state.critic.ema.clone()}


@dataclass(frozen=True)
class Constants:
    """What a step reads and never writes: settings, and tensors on the device; value None where no V(o) is learned."""

    cfg: TrainConfig
    keys_S2: Tensor
    plan: rng.Plan
    eta_S: Tensor
    lr_S: Tensor
    actor: Layout
    critic: Layout
    value: Layout | None


def constants(
    cfg: TrainConfig, layouts: dict[str, Layout], buffer: Buffer, normals: Mapping[int, tuple[int, int]]
) -> Constants:
    """Gather the constants that all algorithms have. Args: normals, the rows and columns drawn of each stream."""
    device = buffer.rows.device
    counts = {stream: rng.counters_for_normals(rows, columns) for stream, (rows, columns) in normals.items()}
    return Constants(
        cfg=cfg,
        keys_S2=rng.seed_keys(member_seeds(cfg), device),
        plan=rng.plan({rng.INDEX: cfg.batch_size} | counts, device),
        eta_S=torch.tensor(member_values(cfg, "eta"), device=device),
        lr_S=torch.tensor(member_values(cfg, "lr"), device=device),
        actor=layouts["actor"],
        critic=layouts["critic"],
        value=layouts.get("value"),
    )


def sample(const: Constants, state: TrainState, buffer: Buffer) -> tuple[rng.RandomBits, Batch]:
    """Draw the step's random bits and its batch."""
    random_bits = rng.random_bits(const.plan, const.keys_S2, state.step)
    return random_bits, buffer.gather(integer_below(random_bits[rng.INDEX][..., 0], buffer.size), state.step)


Own = TypeVar("Own", bound=Constants)


def actor_critic_step(
    const: Own,
    state: TrainState,
    buffer: Buffer,
    next_actions: Callable[[Own, TrainState, Batch, rng.RandomBits], Tensor],
    update_actor: Callable[[Own, TrainState, Batch, rng.RandomBits], list[Tensor]],
) -> Callable[[], None]:
    """Return a function that makes one train step in place: sample, critic, actor, average.

    Args: next_actions returns the policy's actions at o', (S, samples B, A); update_actor the actor's metrics.
    """

    @torch.no_grad()
    def step() -> None:
        with phase("sample"):
            random_bits, batch = sample(const, state, buffer)
        metrics: list[Tensor] = []
        if state.critic is not None:
            with phase("chain"):
                next_SBA = next_actions(const, state, batch, random_bits)
            with phase("critic"):
                metrics = update_critic(const, state, batch, next_SBA)
        with phase("actor"):
            metrics = update_actor(const, state, batch, random_bits) + metrics
        with phase("average"):
            average(const.cfg, state)
            record(state, torch.stack(metrics, dim=-1))

    return step


def chain_normals(cfg: TrainConfig, action_dim: int) -> dict[int, tuple[int, int]]:
    """Return the normals of a step whose actor noises actions, and draws some with noise in every sampling step."""
    rows, chain = cfg.batch_size, action_dim * cfg.sampling_steps
    noising = {rng.ACTION_NOISE: (rows, action_dim)}
    drawing = {rng.TARGET_NOISE: (rows * backup_samples(cfg), chain), rng.VALUE_NOISE: (rows, chain)}
    return noising if cfg.bc else noising | drawing


def target_chain(
    const: Constants, state: TrainState, batch: Batch, random_bits: rng.RandomBits
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Return what the chain at o' starts from: the EMA actor, observations, and the noise that `chain_normals` plans.

    Several samples of a state follow one another in blocks of B rows.
    """
    samples, columns = backup_samples(const.cfg), batch.action_SBA.shape[-1] * const.cfg.sampling_steps
    ema = views(state.actor.ema, const.actor)
    obs = encode_obs(ema, batch.next_obs_SBD).repeat(1, samples, 1)
    return ema, obs, rng.normals(random_bits[rng.TARGET_NOISE], const.cfg.batch_size * samples, columns)


def backup_samples(cfg: TrainConfig) -> int:
    """Return how many actions are drawn at each next observation."""
    return BACKUP_SAMPLES if cfg.max_q_backup else 1


def trainable(net: Net, layout: Layout) -> dict[str, Tensor]:
    """Return the parameters as autograd leaves that share the buffer's memory, one for each tensor.

    Where ASKING is filled, a compiled step gets products with 1 instead: copies of the same bits.
    """
    if torch.compiler.is_compiling() and ASKING:
        with torch.enable_grad():
            asking = ASKING[net.param.device.type]
            return {name: view.detach() * asking for name, view in views(net.param, layout).items()}
    return {name: view.detach().requires_grad_() for name, view in views(net.param, layout).items()}


def adam_step(
    const: Constants, net: Net, layout: Layout, params: dict[str, Tensor], loss_S: Tensor, step: Tensor
) -> Tensor:
    """Take one clipped Adam step on each member's loss; return the gradient norms (S,). Members share no parameter."""
    with torch.enable_grad():
        loss = loss_S.sum()
    grads = torch.autograd.grad(loss, list(params.values()))
    grad_MP = flat(grads, layout)
    norm_S, scale_M1 = optimizer.clip_scale(grad_MP, const.cfg.seeds, const.cfg.grad_norm)
    lr_S = optimizer.learning_rate(const.lr_S, step, const.cfg.steps, const.cfg.lr_schedule)
    lr_M1 = lr_S.repeat_interleave(net.param.shape[0] // const.cfg.seeds)[:, None]
    optimizer.adam_(net.param, grad_MP, net.exp_avg, net.exp_avg_sq, step, lr_M1, scale_M1)
    return norm_S


def update_critic(const: Constants, state: TrainState, batch: Batch, next_SBA: Tensor) -> list[Tensor]:
    """Regress both heads on y = r + gamma (1 - terminal) min_j Q_j^-(o', a') (Eq. 16); return CRITIC_METRICS.

    next_SBA (S, samples B, A) are the policy's actions at o'; several samples of a state lie in blocks of B rows.
    """
    assert state.critic is not None
    ema = views(state.critic.ema, const.critic)
    next_obs = encode_obs(ema, batch.next_obs_SBD).repeat(1, backup_samples(const.cfg), 1)
    next_q = equations.next_value(q_values(ema, next_obs, next_SBA), const.cfg.batch_size)
    target_SB = equations.td_target(batch.reward_SB, batch.bootstrap_SB, next_q, const.cfg.gamma)
    return regress_critic(const, state, batch, target_SB)


def regress_critic(const: Constants, state: TrainState, batch: Batch, target_SB: Tensor) -> list[Tensor]:
    """Regress both heads at the data's actions on target_SB (S, B); return CRITIC_METRICS."""
    assert state.critic is not None
    params = trainable(state.critic, const.critic)
    with torch.enable_grad():
        q_S2B = q_values(params, encode_obs(params, batch.obs_SBD), batch.action_SBA)
        loss_S = equations.critic_loss(q_S2B, target_SB)
    norm_S = adam_step(const, state.critic, const.critic, params, loss_S, state.step)
    return [loss_S.detach(), q_S2B.detach().mean((1, 2)), target_SB.mean(-1), norm_S]


def update_value(const: Constants, state: TrainState, batch: Batch, q_SB: Tensor) -> list[Tensor]:
    """Regress V(o) on the `expectile` of Q over the batch's actions, q_SB (S, B); return VALUE_METRICS."""
    assert state.value is not None and const.value is not None
    params = trainable(state.value, const.value)
    with torch.enable_grad():
        value_SB = state_values(params, encode_obs(params, batch.obs_SBD))
        loss_S = equations.expectile_loss(value_SB, q_SB, const.cfg.expectile)
    norm_S = adam_step(const, state.value, const.value, params, loss_S, state.step)
    return [loss_S.detach(), value_SB.detach().mean(-1), norm_S]


def average(cfg: TrainConfig, state: TrainState) -> None:
    """Update the target critic, and on the steps that are due the EMA actor."""
    rate = optimizer.ema_rate(state.step, cfg.ema_decay, cfg.ema_every, cfg.ema_start)
    optimizer.average_(state.actor.ema, state.actor.param, rate)
    if state.critic is not None:
        optimizer.average_(state.critic.ema, state.critic.param, cfg.tau)


def record(state: TrainState, metrics_SQ: Tensor) -> None:
    """Add up the metrics, record the first step at which one was not finite, and count the step."""
    bad = ~torch.isfinite(metrics_SQ) & (state.first_bad_SQ < 0)
    state.first_bad_SQ.copy_(torch.where(bad, state.step, state.first_bad_SQ))
    state.metric_sums_SQ.add_(metrics_SQ)
    state.step.add_(1)
