"""Each kernel alone against its twin in float64: outputs and gradients, odd sizes, and each kind of operand.

The twins are the functions of the reference path, called in float64. Tolerances are of norms: an operand rounded to
p bits is off by at most 2^-(p+1) of itself, a sum of independent such errors by about as much of the sum, and a value
passes five products on its way from the input to a gradient: 8 unit roundings hold them all.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl
from fused_cases import DEVICE, STABLE, fused_config
from gtp_kernels import draws, mlp, primitives
from gtp_kernels.draws import turn
from gtp_kernels.launch import INTERPRETED, Tuning, round_to_tf32, tuned_for
from learn_cases import buffer_of, transitions
from torch import Tensor

from gtp_fast import rng
from gtp_fast.algorithms import equations, gtp, optimizer, updates
from gtp_fast.algorithms.fused import Binding
from gtp_fast.algorithms.networks import actor_layout, critic_layout, q_values, views
from gtp_fast.algorithms.state import TrainState
from gtp_fast.config import TrainConfig, member_seeds
from gtp_fast.data.replay import Batch, ReplayBuffer

UNIT = {"fp32": 2.0**-20, "tf32": 2.0**-11, "bf16": 2.0**-8}  # fp32: sums of hundreds of terms, fast exponentials
TOLERANCE = 8.0
# (observations, actions, batch): smaller and larger than a chunk of 32 columns, and batches that fill no block.
SIZES = [
    pytest.param((5, 3, 16), id="5-3-16"),
    pytest.param((37, 9, 21), id="37-9-21"),
    pytest.param((2, 1, 7), id="2-1-7"),
]
PRECISIONS = ["fp32", "tf32", "bf16"]


class Case:
    """A state with critics and moments that training could have left, and the batch that its next step draws."""

    def __init__(self, sizes: tuple[int, int, int] = (5, 3, 16), shapes: Tuning | None = None, **changes):
        obs_dim, self.action_dim, batch = sizes
        self.cfg: TrainConfig = fused_config(batch_size=batch, seeds=2, **changes)
        self.buffer = buffer_of(self.cfg, transitions(obs_dim=obs_dim, action_dim=self.action_dim), DEVICE)
        self.state: TrainState = gtp.init_state(self.cfg, obs_dim, self.action_dim, DEVICE)
        self.state.step.fill_(7)
        generator = torch.Generator().manual_seed(0)
        for net in (self.state.actor, self.state.critic):
            if net is not None:  # the slow copies must not be the parameters
                net.slow.mul_(1.0 + 0.2 * torch.rand(net.slow.shape, generator=generator).to(DEVICE))
        self.bind = Binding(self.cfg, self.state, self.buffer, shapes or tuned_for(self.cfg.hidden, batch, 0))
        self.layouts = [f(obs_dim, self.action_dim, self.cfg.hidden) for f in (actor_layout, critic_layout)]
        self.words = self._words()
        index = primitives.integer_below(self.words[rng.INDEX][..., 0], self.buffer.size)
        double = replace(self.buffer, rows=self.buffer.rows.double())
        self.batch: Batch = ReplayBuffer.gather(double, index)

    def _words(self) -> dict[int, Tensor]:
        counts = {rng.INDEX: self.cfg.batch_size, rng.ACTION_NOISE: self._counters(self.cfg.batch_size)}
        counts |= {rng.TARGET_NOISE: self._counters(self.bind.next_rows)}
        counts |= {rng.VALUE_NOISE: self._counters(self.cfg.batch_size * self.cfg.value_samples)}
        keys = rng.seed_keys(member_seeds(self.cfg), DEVICE)
        return rng.words(rng.plan(counts, DEVICE), keys, self.state.step)

    def _counters(self, rows: int) -> int:
        return rng.counters_for_normals(rows, self.action_dim)

    def normals(self, stream: int, rows: int) -> Tensor:
        """Return the normals of a stream, float64 (S, rows, A)."""
        return rng.normals(self.words[stream], rows, self.action_dim).double()

    def parameters(self, net: str, part: str = "param") -> dict[str, Tensor]:
        """Return the parameters of "actor" or "critic" by name, as float64 leaves."""
        flat = getattr(getattr(self.state, net), part).double().requires_grad_()
        self.leaf = flat
        return views(flat, self.layouts[net == "critic"])

    def near(self, found: Tensor, expected: Tensor, precision: str) -> None:
        """Hold a result to its twin: the norm of the difference, as a share of the twin's."""
        share = (found.double() - expected).norm() / expected.norm()
        assert share < TOLERANCE * UNIT[precision], float(share)


def _chain_inputs(case: Case) -> tuple[Tensor, Tensor]:
    backup, samples = updates.backup_samples(case.cfg), case.cfg.value_samples
    obs = torch.cat([case.batch.next_obs_SBD.repeat(1, backup, 1), case.batch.obs_SBD.repeat(1, samples, 1)], dim=1)
    noise = [case.normals(rng.TARGET_NOISE, case.bind.next_rows)]
    noise.append(case.normals(rng.VALUE_NOISE, case.cfg.batch_size * samples))
    return obs, torch.cat(noise, dim=1)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("sizes", SIZES)
def test_the_chain_samples_what_its_twin_samples(sizes, precision):
    case = Case(sizes, precision=precision, value_samples=2)
    case.bind.chain()()
    obs, z = _chain_inputs(case)
    p = {name: tensor.detach() for name, tensor in case.parameters("actor", "slow").items()}
    expected = equations.sample_actions(p, obs, z, case.bind.grid.double(), case.cfg.sigma_data, case.cfg.sigma_min)
    # Noise of 80 standard deviations passes through three steps: what is rounded early is multiplied later.
    share = (case.bind.scratch["actions"].double() - expected).norm() / expected.norm()
    assert share < 3 * TOLERANCE * UNIT[precision], float(share)


def test_the_chain_leaves_the_batch_behind_for_the_launches_after_it():
    case = Case()
    case.bind.chain()()
    rows = case.bind.scratch["batch"]
    left = replace(case.buffer, rows=rows.flatten(0, 1)).gather(
        torch.arange(rows[..., 0].numel()).view(2, -1).to(DEVICE)
    )
    for name in ("obs_SBD", "action_SBA", "reward_SB", "bootstrap_SB", "next_obs_SBD"):
        assert torch.equal(getattr(left, name).double(), getattr(case.batch, name)), name


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("sizes", SIZES)
def test_the_heads_judge_as_their_twin(sizes, precision):
    case = Case(sizes, precision=precision)
    for launch in (case.bind.chain(), case.bind.target_q(), case.bind.advantage_q()):
        launch()
    next_actions, value_actions = case.bind.scratch["actions"].double().split(case.cfg.batch_size, dim=1)
    obs = case.batch.obs_SBD.repeat(1, 2, 1)
    actions = torch.cat([case.batch.action_SBA, value_actions], dim=1)
    with torch.no_grad():
        target = q_values(case.parameters("critic", "slow"), case.batch.next_obs_SBD, next_actions)
        updated = q_values(case.parameters("critic"), obs, actions)
    case.near(case.bind.scratch["next_q"], target, precision)
    case.near(case.bind.scratch["advantage_q"], updated, precision)


# The largest of ten samples is taken after the products, in float32 whatever their operands.
@pytest.mark.parametrize(("precision", "backup"), [*((p, False) for p in PRECISIONS), ("fp32", True)])
@pytest.mark.parametrize("sizes", SIZES)
def test_the_critic_has_the_gradient_of_its_loss(sizes, backup, precision):
    case = Case(sizes, precision=precision, max_q_backup=backup)
    scratch = case.bind.scratch
    for launch in (case.bind.chain(), case.bind.target_q(), case.bind.critic(), case.bind.gradients("critic")):
        launch()
    next_q = equations.next_value(scratch["next_q"].double(), case.cfg.batch_size)
    y = equations.td_target(case.batch.reward_SB, case.batch.bootstrap_SB, next_q, case.cfg.gamma)
    q = q_values(case.parameters("critic"), case.batch.obs_SBD, case.batch.action_SBA)
    (expected,) = torch.autograd.grad(equations.critic_loss(q, y).sum(), case.leaf)
    case.near(scratch["target"], y, "fp32")
    case.near(scratch["q"], q.detach(), precision)
    case.near(scratch["critic.grad"], expected, precision)
    squares = scratch["critic.squares"].view(2, -1).double().sum(-1)
    torch.testing.assert_close(squares, scratch["critic.grad"].view(2, -1).double().square().sum(-1), rtol=1e-5, atol=0)


def _actor_losses(case: Case) -> tuple[Tensor, Tensor]:
    """Return the two losses of every transition, not yet weighted by its advantage: (S, B) each."""
    cfg, batch = case.cfg, case.batch
    bits = case.words[rng.INDEX]
    t, u, s = (x.double() for x in equations.draw_times(case.bind.times, case.state.step, bits[..., 1], bits[..., 2]))
    z = case.normals(rng.ACTION_NOISE, cfg.batch_size)
    a_t, a_u = equations.perturb(batch.action_SBA, t, z), equations.perturb(batch.action_SBA, u, z)
    sigmas = cfg.sigma_data, cfg.sigma_min
    slow = {name: tensor.detach() for name, tensor in case.parameters("actor", "slow").items()}
    target = equations.Phi(a_u, equations.phi(slow, a_u, u, s, batch.obs_SBD, *sigmas), u, s)
    p = case.parameters("actor")
    student = equations.Phi(a_t, equations.phi(p, a_t, t, s, batch.obs_SBD, *sigmas), t, s)
    denoised = equations.phi(p, a_t, t, t, batch.obs_SBD, *sigmas)
    w_traj, w_inst = equations.time_weights(t, u, cfg.sigma_data, cfg.weighting)
    traj_SB = w_traj * (student - target).square().mean(-1)
    return traj_SB, w_inst * (denoised - batch.action_SBA).square().mean(-1)


# The weights over t are taken after the products, in float32 whatever their operands.
@pytest.mark.parametrize(
    ("precision", "changes"), [*((p, {}) for p in PRECISIONS), ("fp32", STABLE | {"lambda_flow": 0.3})]
)
@pytest.mark.parametrize("sizes", SIZES)
def test_the_actor_has_the_gradient_of_its_weighted_losses(sizes, changes, precision):
    case = Case(sizes, precision=precision, **changes)
    weight = torch.rand(2, case.cfg.batch_size, generator=torch.Generator().manual_seed(1)).to(DEVICE) * 5.0
    case.bind.scratch["weights"].copy_(weight)
    case.bind.actor()()
    case.bind.gradients("actor")()
    traj_SB, inst_SB = _actor_losses(case)
    loss = (weight.double() * (traj_SB + case.cfg.lambda_flow * inst_SB)).mean(-1).sum()
    (expected,) = torch.autograd.grad(loss, case.leaf)
    case.near(case.bind.scratch["losses"], torch.stack([traj_SB, inst_SB], dim=1).detach(), precision)
    for name, gradient in views(expected, case.layouts[0]).items():
        found = views(case.bind.scratch["actor.grad"], case.layouts[0])[name]
        # Each tensor for itself: the small time networks would vanish in the norm of the whole.
        share = (found.double() - gradient).norm() / gradient.norm()
        assert share < 2 * TOLERANCE * UNIT[precision], (name, float(share))


def test_where_u_is_s_the_target_is_the_noisy_action_itself():
    case = Case(s0=1, s1=1, steps=10)  # a grid of two points: t = sigma_max, u = s = sigma_min
    case.bind.actor()()
    traj_SB, _ = _actor_losses(case)
    case.near(case.bind.scratch["losses"][:, 0], traj_SB.detach(), "fp32")


@pytest.mark.parametrize(("samples", "cap"), [(1, 100.0), (3, 1.5), (1, 0.0)])
def test_advantage_weights_are_those_of_the_equation(samples, cap):
    case = Case((5, 3, 1_500), value_samples=samples, weight_cap=cap)  # more than one chunk of a batch
    scratch, batch = case.bind.scratch, case.cfg.batch_size
    generator = torch.Generator().manual_seed(2)
    for name in ("advantage_q", "q", "target", "losses"):
        scratch[name].copy_(torch.randn(scratch[name].shape, generator=generator))
    case.bind.advantage()()
    own, policy = scratch["advantage_q"].double().amin(1).split([batch, samples * batch], dim=-1)
    advantage = own - policy.unflatten(-1, (samples, batch)).mean(1)
    expected = equations.advantage_weights(advantage, case.bind.eta.double(), cap)
    case.near(scratch["weights"], expected, "fp32")
    metrics = dict(zip(gtp.metric_names(case.cfg), scratch["metrics"].double().unbind(-1), strict=False))
    q, y = scratch["q"].double(), scratch["target"].double()
    traj, inst = (expected[:, None] * scratch["losses"].double()).mean(-1).unbind(1)
    hand = {
        "actor_loss": traj + case.cfg.lambda_flow * inst,
        "traj_loss": traj,
        "inst_loss": inst,
        "critic_loss": equations.critic_loss(q, y),
        "q": q.mean((1, 2)),
        "td_target": y.mean(-1),
        "advantage": advantage.mean(-1),
        "advantage_std": advantage.std(-1, correction=0),
        "weight": expected.mean(-1),
        "weight_max": expected.amax(-1),
        "effective_share": expected.mean(-1).square() / expected.square().mean(-1),
    }
    for name, value in hand.items():
        torch.testing.assert_close(metrics[name], value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("head", [0, 1])
@pytest.mark.parametrize("row", [3, 19], ids=["of-the-batch", "of-the-policy"])
def test_a_value_that_is_no_number_is_not_hidden_by_the_other_head(row, head):
    case = Case()
    for name in ("advantage_q", "q", "target", "losses"):
        case.bind.scratch[name].fill_(1.0)
    case.bind.scratch["advantage_q"][0, head, row] = float("nan")
    case.bind.advantage()()
    metrics = dict(zip(gtp.metric_names(case.cfg), case.bind.scratch["metrics"].unbind(-1), strict=False))
    for name in ("actor_loss", "advantage", "advantage_std", "weight", "weight_max"):
        assert metrics[name][0].isnan() and metrics[name][1].isfinite(), name


@pytest.mark.parametrize("net", ["actor", "critic"])
@pytest.mark.parametrize("changes", [{}, {"grad_norm": 1e-3, "lr_schedule": "cosine", "ema_every": 7, "ema_start": 7}])
def test_the_update_is_clip_adam_and_the_slow_copy(net, changes):
    case = Case(**changes)
    cfg, own, scratch = case.cfg, getattr(case.state, net), case.bind.scratch
    generator = torch.Generator().manual_seed(3)
    for tensor in (scratch[f"{net}.grad"], own.first):
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 1e-2)
    own.second.copy_(torch.rand(own.second.shape, generator=generator) * 1e-4)
    rows = scratch[f"{net}.grad"].view(cfg.seeds, -1)
    scratch[f"{net}.squares"].zero_().view(cfg.seeds, -1)[:, 0] = rows.square().sum(-1)
    scratch["now"].copy_(case.state.step.expand(2))
    grad, param, first, second, slow = (
        x.double() for x in (scratch[f"{net}.grad"], own.param, own.first, own.second, own.slow)
    )
    step = case.state.step.clone()
    norm, scale = optimizer.clip_scale(grad, cfg.seeds, cfg.grad_norm)
    lr = optimizer.learning_rate(case.bind.lr.double(), step, cfg.steps, cfg.lr_schedule)
    heads = len(grad) // cfg.seeds
    optimizer.adam_(param, grad, first, second, step, lr.repeat_interleave(heads)[:, None], scale)
    ema = optimizer.ema_rate(step, cfg.ema_decay, cfg.ema_every, cfg.ema_start)
    optimizer.average_(slow, param, cfg.tau if net == "critic" else ema.double())
    case.bind.update(net)()
    for found, expected in ((own.param, param), (own.first, first), (own.second, second), (own.slow, slow)):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-7)
    recorded = scratch["metrics"][:, gtp.metric_names(cfg).index(f"{net}_grad_norm")]
    torch.testing.assert_close(recorded.double(), norm, rtol=1e-5, atol=0)
    assert int(case.state.step) == (8 if net == "actor" else 7)


@triton.jit
def _drawn(seed_ptr, step_ptr, word_ptr, normal_ptr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PADDED: tl.constexpr):
    seed, step = tl.load(seed_ptr), tl.load(step_ptr)
    r = tl.arange(0, ROWS)
    w0, w1, w2, w3 = draws.words(seed, step, 5, r)
    tl.store(word_ptr + 4 * r, w0.to(tl.int64))
    tl.store(word_ptr + 4 * r + 1, w1.to(tl.int64))
    tl.store(word_ptr + 4 * r + 2, w2.to(tl.int64))
    tl.store(word_ptr + 4 * r + 3, w3.to(tl.int64))
    column = tl.arange(0, PADDED)[None, :]
    z = draws.normals(seed, step, 6, r[:, None], column, COLUMNS)
    tl.store(normal_ptr + r[:, None] * COLUMNS + column, z, mask=column < COLUMNS)


@pytest.mark.parametrize("seed", [0, 2**63 + 12_345, 2**32 - 1])
@pytest.mark.parametrize("step", [0, 2**32 + 5])
def test_draws_are_those_of_the_reference_streams(seed, step):
    keys = rng.seed_keys([seed], DEVICE)
    word, normal = torch.empty(64, 4, dtype=torch.int64, device=DEVICE), torch.empty(64, 6, device=DEVICE)
    steps = torch.tensor([step], device=DEVICE)
    _drawn[(1,)](keys[:, 0] | (keys[:, 1] << 32), steps, word, normal, ROWS=64, COLUMNS=6, PADDED=8)
    drawn = rng.words(rng.plan({5: 64, 6: rng.counters_for_normals(64, 6)}, DEVICE), keys, steps[0])
    assert torch.equal(word, drawn[5][0])
    torch.testing.assert_close(normal, rng.normals(drawn[6], 64, 6)[0], rtol=1e-5, atol=2e-6)


@triton.jit
def _turned(u_ptr, cos_ptr, sin_ptr, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    cos, sin = turn(tl.load(u_ptr + i))
    tl.store(cos_ptr + i, cos)
    tl.store(sin_ptr + i, sin)


def test_a_turn_is_a_turn():
    edges = torch.tensor([0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0 - 2.0**-24, -0.125, -0.3, 3.7])
    u = torch.cat([edges, torch.rand(4_096 - len(edges), generator=torch.Generator().manual_seed(0)) * 2 - 1]).to(
        DEVICE
    )
    cos, sin = torch.empty_like(u), torch.empty_like(u)
    _turned[(1,)](u, cos, sin, SIZE=4_096)
    angle = u.double() * 2 * torch.pi
    assert (cos.double() - angle.cos()).abs().max() < 3e-7 and (sin.double() - angle.sin()).abs().max() < 3e-7


@triton.jit
def _rounded(x_ptr, out_ptr, SIZE: tl.constexpr, PREC: tl.constexpr, INTERP: tl.constexpr):
    i = tl.arange(0, SIZE)
    tl.store(out_ptr + i, mlp.operand(tl.load(x_ptr + i), PREC, INTERP).to(tl.float32))


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_operands_are_rounded_to_the_nearest_bit_for_bit(precision):
    x = torch.randn(4_096, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    x[:4] = torch.tensor([1.0 + 2.0**-8, 1.0 + 3 * 2.0**-8, -1.0 - 2.0**-11, 0.0])  # halfway between neighbours
    found = torch.empty_like(x)
    _rounded[(1,)](x, found, SIZE=4_096, PREC=precision, INTERP=INTERPRETED)
    assert torch.equal(found, x.bfloat16().float() if precision == "bf16" else round_to_tf32(x))


def test_rounding_goes_to_the_nearest():
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    rounded = round_to_tf32(x)
    assert ((rounded - x).abs() <= x.abs() * 2.0**-11).all()
    assert (rounded.view(torch.int32) & 0x1FFF == 0).all()
    assert abs(float(((rounded - x) / x).mean())) < 2e-6, "truncation would shrink by 2^-12 on average"
