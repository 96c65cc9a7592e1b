"""Flow Q-learning (Park, Li, Levine 2025): a behaviour flow, a one-step policy distilled from it, and a twin critic.

As published: x_t = (1 - t) z + t a with velocity a - z; ten Euler steps; networks of tanh-GELU, with LayerNorm behind
it in the critic alone; the mean of the heads in target and policy loss (q_agg "mean"); Q unscaled (normalize_q_loss
off); no EMA actor. All losses are taken at the parameters before the step, so the Adam steps of our two buffers equal
the published single Adam over the sum of losses. `--bc` trains the flow alone and acts by its Euler steps.

Differences: weights and biases start as torch's Linear does, not Glorot and zero; gradients may be clipped (grad_norm,
off by default), actor and critic separately; candidates may be drawn and judged by the smaller target head.

Legend: S members (seeds), M = 2 S heads, B batch rows, D observation, A action, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from gtp_kernels.primitives import uniform_from_bits
from torch import Tensor
from torch.nn import functional

from gtp_fast import rng
from gtp_fast.algorithms import equations, optimizer, updates
from gtp_fast.algorithms.encoder import encode_obs, encoder_shapes, input_width
from gtp_fast.algorithms.networks import Layout, dense, dense_shapes, gelu, layout_of, norm_shapes, views
from gtp_fast.algorithms.policy_config import PolicyConfig
from gtp_fast.algorithms.state import TrainState
from gtp_fast.config import TrainConfig
from gtp_fast.data.buffers import Buffer
from gtp_fast.data.replay import Batch
from gtp_fast.data.spec import ObsShape
from gtp_fast.profiling import phase

FLOW, ONE_STEP, CRITIC = "flow.", "one.", ""  # what the names of each network's parameters begin with
NORM_EPS = 1e-6  # flax's, where torch has 1e-5
Sizes = TrainConfig | PolicyConfig  # both have hidden, layers and bc
STEPS_ARE_FREE = False  # acting is one step, or of BC the Euler steps of training
POLICY_METRICS = ("actor_loss", "flow_loss", "distill_loss", "policy_q", "actor_grad_norm")


def metric_names(cfg: TrainConfig) -> tuple[str, ...]:
    """Return the columns of `TrainState.metric_sums_SQ`."""
    return ("actor_loss", "actor_grad_norm") if cfg.bc else POLICY_METRICS + updates.CRITIC_METRICS


def layouts(cfg: Sizes, obs: ObsShape, action_dim: int) -> dict[str, Layout]:
    """Return where the parameters of both actors and of one head of the critic lie."""
    return {"actor": actor_layout(cfg, obs, action_dim), "critic": critic_layout(cfg, obs, action_dim)}


def actor_layout(cfg: Sizes, obs: ObsShape, action_dim: int) -> Layout:
    """Return the layout of the flow, input [o, x_t, t], and behind it, but for BC, of the one-step policy, [o, z].

    Each has its own encoder for frames; the encoder of the network that acts has no prefix.
    """
    inputs = input_width(obs) + action_dim
    flow = _mlp_shapes(FLOW, inputs + 1, cfg, action_dim)
    acts = {} if cfg.bc else _mlp_shapes(ONE_STEP, inputs, cfg, action_dim) | encoder_shapes(obs, FLOW)
    return layout_of(flow | acts | encoder_shapes(obs))


def critic_layout(cfg: Sizes, obs: ObsShape, action_dim: int) -> Layout:
    """Return the layout of one head of the critic: input [o, a], one value."""
    norms = {name: shape for i in range(cfg.layers) for name, shape in norm_shapes(f"norm{i}", cfg.hidden).items()}
    return layout_of(_mlp_shapes(CRITIC, input_width(obs) + action_dim, cfg, 1) | norms | encoder_shapes(obs))


def _mlp_shapes(prefix: str, inputs: int, cfg: Sizes, outputs: int) -> dict[str, tuple[int, int]]:
    widths = [inputs, *[cfg.hidden] * cfg.layers, outputs]
    layers = [dense_shapes(f"{prefix}mlp{i}", widths[i], widths[i + 1]) for i in range(cfg.layers + 1)]
    return {name: shape for layer in layers for name, shape in layer.items()}


def network(p: dict[str, Tensor], prefix: str, x_MBI: Tensor) -> Tensor:
    """Run one network, (M, B, out): in each hidden layer Linear, GELU and, where it has one, LayerNorm."""
    i = 0
    while f"{prefix}mlp{i + 1}.w" in p:
        x_MBI = gelu(dense(p, f"{prefix}mlp{i}", x_MBI))
        if f"{prefix}norm{i}.gain" in p:
            normed = functional.layer_norm(x_MBI, x_MBI.shape[-1:], eps=NORM_EPS)
            x_MBI = torch.addcmul(p[f"{prefix}norm{i}.shift"], normed, p[f"{prefix}norm{i}.gain"])
        i += 1
    return dense(p, f"{prefix}mlp{i}", x_MBI)


def velocity(p: dict[str, Tensor], obs_SBD: Tensor, x_SBA: Tensor, time_SB1: Tensor) -> Tensor:
    """Return the flow's velocity v(o, x_t, t), (S, B, A); noise is at t = 0, data at t = 1."""
    return network(p, FLOW, torch.cat([obs_SBD, x_SBA, time_SB1], dim=-1))


def euler_path(p: dict[str, Tensor], obs_SBD: Tensor, z_SBA: Tensor, steps: int) -> list[Tensor]:
    """Follow x <- x + v(o, x, k / steps) / steps from z; return all steps + 1 points, unclamped, each (S, B, A)."""
    points = [z_SBA]
    for k in range(steps):
        time_SB1 = torch.full_like(z_SBA[..., :1], k / steps)
        points.append(points[-1] + velocity(p, obs_SBD, points[-1], time_SB1) / steps)
    return points


def one_step(p: dict[str, Tensor], obs_SBD: Tensor, z_SBA: Tensor) -> Tensor:
    """Return the one-step policy's action mu(o, z), unclamped, (S, B, A)."""
    return network(p, ONE_STEP, torch.cat([obs_SBD, z_SBA], dim=-1))


def noise_columns(config: PolicyConfig) -> int:
    """Return how many standard normals one action takes."""
    return config.action_dim


def path(p: dict[str, Tensor], obs_SRD: Tensor, z_SRN: Tensor, config: PolicyConfig) -> list[Tensor]:
    """Return the points from noise to action, unclamped, each (S, R, A): Euler's for BC, else noise and action."""
    if config.bc:
        return euler_path(p, obs_SRD, z_SRN, config.sampling_steps)
    return [z_SRN, one_step(p, obs_SRD, z_SRN)]


def q_values(p: dict[str, Tensor], obs_SRD: Tensor, action_SRA: Tensor) -> Tensor:
    """Return both heads' values, (S, 2, R), of observations (S, R, D) and actions (S, R, A)."""
    x_SRI = torch.cat([obs_SRD, action_SRA], dim=-1)
    return network(p, CRITIC, x_SRI.repeat_interleave(2, dim=0)).view(x_SRI.shape[0], 2, x_SRI.shape[1])


def make_step(cfg: TrainConfig, state: TrainState, buffer: Buffer) -> Callable[[], None]:
    """Return a function that makes one train step in place: sample, targets, actors, critic, average.

    Targets are computed before the actors' update, and that runs before the critic's: each reads the others' old
    parameters.
    """
    streams = (rng.ACTION_NOISE,) if cfg.bc else (rng.ACTION_NOISE, rng.TARGET_NOISE, rng.VALUE_NOISE)
    normals = dict.fromkeys(streams, (cfg.batch_size, buffer.action_dim))
    const = updates.constants(cfg, layouts(cfg, buffer.obs_shape, buffer.action_dim), buffer, normals)

    @torch.no_grad()
    def step() -> None:
        with phase("sample"):
            random_bits, batch = updates.sample(const, state, buffer)
        if state.critic is None:
            with phase("actor"):
                metrics = _update_flow(const, state, batch, random_bits)
        else:
            with phase("chain"):
                y_SB, taught_SBA = _targets(const, state, batch, random_bits)
            with phase("actor"):
                metrics = _update_actors(const, state, batch, random_bits, taught_SBA)
            with phase("critic"):
                metrics += _update_critic(const, state, batch, y_SB)
        with phase("average"):
            state.actor.ema.copy_(state.actor.param)  # FQL acts with the trained parameters
            if state.critic is not None:
                optimizer.average_(state.critic.ema, state.critic.param, cfg.tau)
            updates.record(state, torch.stack(metrics, dim=-1))

    return step


def _noise(random_bits: rng.RandomBits, stream: int, batch: Batch) -> Tensor:
    return rng.normals(random_bits[stream], *batch.action_SBA.shape[1:])


def _targets(
    const: updates.Constants, state: TrainState, batch: Batch, random_bits: rng.RandomBits
) -> tuple[Tensor, Tensor]:
    """Return y = r + gamma (1 - terminal) mean_j Q_j^-(o', mu(o', z')), (S, B), and the flow's actions at o, (S, B, A).

    mu's action and the flow's Euler end are clamped, as published; no gradient flows.
    """
    assert state.critic is not None
    actors, ema = views(state.actor.param, const.actor), views(state.critic.ema, const.critic)
    next_obs = encode_obs(actors, batch.next_obs_SBD)
    next_SBA = one_step(actors, next_obs, _noise(random_bits, rng.TARGET_NOISE, batch)).clamp(-1.0, 1.0)
    next_q_SB = q_values(ema, encode_obs(ema, batch.next_obs_SBD), next_SBA).mean(1)
    y_SB = equations.td_target(batch.reward_SB, batch.bootstrap_SB, next_q_SB, const.cfg.gamma)
    obs, z = encode_obs(actors, batch.obs_SBD, FLOW), _noise(random_bits, rng.VALUE_NOISE, batch)
    flow = euler_path(actors, obs, z, const.cfg.sampling_steps)
    return y_SB, flow[-1].clamp(-1.0, 1.0)


def _flow_loss(p: dict[str, Tensor], batch: Batch, random_bits: rng.RandomBits, eye: str = FLOW) -> Tensor:
    """Return mean || v(o, (1 - t) z + t a, t) - (a - z) ||^2, t ~ U[0, 1), (S,)."""
    time_SB1 = uniform_from_bits(random_bits[rng.INDEX][..., 1:2])
    z, action = _noise(random_bits, rng.ACTION_NOISE, batch), batch.action_SBA
    predicted = velocity(p, encode_obs(p, batch.obs_SBD, eye), torch.lerp(z, action, time_SB1), time_SB1)
    return (predicted - (action - z)).square().mean((1, 2))


def _update_flow(
    const: updates.Constants, state: TrainState, batch: Batch, random_bits: rng.RandomBits
) -> list[Tensor]:
    params = updates.trainable(state.actor, const.actor)
    with torch.enable_grad():
        loss_S = _flow_loss(params, batch, random_bits, eye="")
    norm_S = updates.adam_step(const, state.actor, const.actor, params, loss_S, state.step)
    return [loss_S.detach(), norm_S]


def _update_actors(
    const: updates.Constants, state: TrainState, batch: Batch, random_bits: rng.RandomBits, taught_SBA: Tensor
) -> list[Tensor]:
    """Take a step on flow loss + alpha mean || mu(o, z) - taught ||^2 - mean Q(o, mu(o, z)).

    Q sees the clamped action; distillation uses the unclamped one, as published.
    """
    assert state.critic is not None
    critic, params = views(state.critic.param, const.critic), updates.trainable(state.actor, const.actor)
    with torch.enable_grad():
        flow_S = _flow_loss(params, batch, random_bits)
        action_SBA = one_step(params, encode_obs(params, batch.obs_SBD), _noise(random_bits, rng.VALUE_NOISE, batch))
        distill_S = (action_SBA - taught_SBA).square().mean((1, 2))
        q_S = q_values(critic, encode_obs(critic, batch.obs_SBD), action_SBA.clamp(-1.0, 1.0)).mean((1, 2))
        loss_S = flow_S + const.cfg.alpha * distill_S - q_S
    norm_S = updates.adam_step(const, state.actor, const.actor, params, loss_S, state.step)
    return [loss_S.detach(), flow_S.detach(), distill_S.detach(), q_S.detach(), norm_S]


def _update_critic(const: updates.Constants, state: TrainState, batch: Batch, y_SB: Tensor) -> list[Tensor]:
    """Regress both heads on y, their squares averaged over heads and batch; return CRITIC_METRICS."""
    assert state.critic is not None
    params = updates.trainable(state.critic, const.critic)
    with torch.enable_grad():
        q_S2B = q_values(params, encode_obs(params, batch.obs_SBD), batch.action_SBA)
        loss_S = (q_S2B - y_SB[:, None]).square().mean((1, 2))
    norm_S = updates.adam_step(const, state.critic, const.critic, params, loss_S, state.step)
    return [loss_S.detach(), q_S2B.detach().mean((1, 2)), y_SB.mean(-1), norm_S]
