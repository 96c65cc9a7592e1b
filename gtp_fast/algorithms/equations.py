"""The paper's equations, one function each: time grids, noising, the maps phi and Phi, sampling, losses and targets.

Tensors in, tensors out. No function draws a random number, holds a state or takes a gradient.

Legend: S members (seeds), B batch rows, A action, D observation, K sampling steps. t > u >= s are noise levels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from gtp_kernels.primitives import integer_below
from torch import Tensor

from gtp_fast.algorithms.networks import TIME_WIDTH, actor_network, mlp_tail, time_embedding
from gtp_fast.errors import UsageError

ADVANTAGE_EPS = 1e-8  # keeps Eq. 14 finite where every advantage of a batch is the same
INST_WEIGHT_CAP = 400.0  # the lineage's bound on 1 / c_out^2, reached at t = 0.05


def karras_grid(points: int, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    """Return the ascending Karras grid, float64 (points,).

    t_i = (smin^(1/rho) + i/(N-1) (smax^(1/rho) - smin^(1/rho)))^rho; the ends are exact.
    """
    ramp = torch.linspace(0.0, 1.0, points, dtype=torch.float64)
    low, high = sigma_min ** (1.0 / rho), sigma_max ** (1.0 / rho)
    grid = (low + ramp * (high - low)) ** rho
    grid[0], grid[-1] = sigma_min, sigma_max
    return grid


def grid_points(step: int, total_steps: int, s0: int, s1: int) -> int:
    """Return N(k) of Eq. 76: min(s0 2^floor(k/K'), s1) + 1, K' = floor(K_total / (log2 floor(s1/s0) + 1))."""
    return min(s0 * 2 ** (step // _stage_length(total_steps, s0, s1)), s1) + 1


def _stage_length(total_steps: int, s0: int, s1: int) -> int:
    return max(1, math.floor(total_steps / (math.log2(s1 // s0) + 1)))  # a run shorter than its stages: one step each


@dataclass(frozen=True)
class Schedule:
    """The grids of all stages on the device: `points` int64 (stages,), `grid` float32 (stages * width,).

    Where n is not uniform, `cumulative` int64 (stages, width) holds 2^32 P(n <= 1), 2^32 P(n <= 2), ...
    """

    points: Tensor
    grid: Tensor
    width: int
    stage_length: int
    cumulative: Tensor | None = None


def schedule(
    total_steps: int,
    s0: int,
    s1: int,
    sigma_min: float,
    sigma_max: float,
    rho: float,
    device: torch.device | str,
    lognormal: tuple[float, float] | None = None,
) -> Schedule:
    """Compute every grid that a run of `total_steps` will use (Eq. 76); rows are padded with sigma_max.

    lognormal: mean and standard deviation of ln t, for times drawn by `lognormal_cumulative`.
    """
    length = _stage_length(total_steps, s0, s1)
    stages = math.ceil(math.log2(s1 / s0)) + 1
    points = [grid_points(stage * length, total_steps, s0, s1) for stage in range(stages)]
    grid = torch.full((stages, s1 + 1), sigma_max, dtype=torch.float32)
    for row, count in zip(grid, points, strict=True):
        row[:count] = karras_grid(count, sigma_min, sigma_max, rho).to(torch.float32)
    cumulative = None
    if lognormal:
        rows = [lognormal_cumulative(row[:count], s1 + 1, *lognormal) for row, count in zip(grid, points, strict=True)]
        cumulative = torch.stack(rows).to(device)
    return Schedule(torch.tensor(points).to(device), grid.flatten().to(device), s1 + 1, length, cumulative)


def lognormal_cumulative(grid: Tensor, width: int, mean: float, std: float) -> Tensor:
    """Return 2^32 P(n <= i + 1), int64 (width,), P(n) being the chance of a log-normal time in (t_(n-1), t_n].

    P(n) ~ erf((ln t_n - mean)/(sqrt 2 std)) - erf((ln t_(n-1) - mean)/(sqrt 2 std)), as in improved consistency
    training. Raises: UsageError where no part of the distribution lies on the grid.
    """
    below = torch.erf((grid.double().log() - mean) / (math.sqrt(2.0) * std))
    share = (below[1:] - below[:1]) / (below[-1] - below[0])
    if not torch.isfinite(share).all():
        raise UsageError(
            f"--time-mean {mean} with --time-std {std} leaves no time between {grid[0]:g} and {grid[-1]:g}; "
            "pass another mean, or a larger deviation"
        )
    cumulative = torch.full((width,), 2**32, dtype=torch.int64)
    cumulative[: len(share)] = (share * 2.0**32).round().to(torch.int64)
    return cumulative


@dataclass(frozen=True)
class TimeIndices:
    """Indices into one stage's grid, int64: t is point `n`, s is point `j` below it; `row` is where the grid begins."""

    grid: Tensor
    row: Tensor
    n: Tensor
    j: Tensor

    def at(self, place: Tensor) -> Tensor:
        """Return the times at these points of the grid, float32."""
        return self.grid[self.row + place]


def draw_time_indices(schedule: Schedule, step: Tensor, bits_n: Tensor, bits_j: Tensor, back: int = 1) -> TimeIndices:
    """Draw n in {1..N-1} and j ~ U{0..max(n - back, 0)}, each in the shape of its bits.

    n is uniform, or follows `schedule.cumulative`. Args: step int64 () on the device; bits int64 in [0, 2^32).
    """
    stage = torch.clamp(step // schedule.stage_length, max=schedule.points.shape[0] - 1)
    if schedule.cumulative is None:
        # index_select, not []: indexing by a 0-d tensor would read it on the host.
        points = schedule.points.index_select(0, stage.reshape(1))
        n = 1 + integer_below(bits_n, points - 1)
    else:
        below = schedule.cumulative.index_select(0, stage.reshape(1))[0]
        n = 1 + torch.searchsorted(below, bits_n.contiguous(), right=True)
    j = integer_below(bits_j, n if back == 1 else (n - (back - 1)).clamp(min=1))
    return TimeIndices(schedule.grid, stage * schedule.width, n, j)


def draw_times(schedule: Schedule, step: Tensor, bits_n: Tensor, bits_j: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Draw t = t_n, u = t_(n-1) and s = t_j, with n ~ U{1..N-1} and j ~ U{0..n-1}, each in the shape of its bits.

    Args: step int64 () on the device; bits int64 in [0, 2^32). Returns t, u, s float32.
    """
    indices = draw_time_indices(schedule, step, bits_n, bits_j)
    return indices.at(indices.n), indices.at(indices.n - 1), indices.at(indices.j)


def direction(action_SBA: Tensor, z_SBA: Tensor, process: str) -> Tensor:
    """Return the surrogate field (x_t - a) / t, which is the same at every t: z for `edm`, z - a for `flow`."""
    return z_SBA - action_SBA if process == "flow" else z_SBA


def perturb(action_SBA: Tensor, time_SB: Tensor, z_SBA: Tensor) -> Tensor:
    """Return a_t = a + t z (Eq. 11). With the same z, a_t and a_u lie on one line of the surrogate field (x_t - a) / t.

    The flow process passes its `direction` in place of z: a_t = (1 - t) a + t z.
    """
    return torch.addcmul(action_SBA, time_SB[..., None], z_SBA)


def scalings(t: Tensor, sigma_data: float, process: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return c_skip, c_out and c_in at times of any shape.

    c_skip = sd^2/(t^2+sd^2), c_out = t sd/sqrt(t^2+sd^2), c_in = 1/sqrt(t^2+sd^2); in the flow process 0, 1 and 1.
    """
    if process == "flow":
        return torch.zeros_like(t), torch.ones_like(t), torch.ones_like(t)
    variance = t * t + sigma_data**2
    c_in = variance.rsqrt()
    return sigma_data**2 / variance, t * sigma_data * c_in, c_in


def phi(
    p: dict[str, Tensor],
    x_SBA: Tensor,
    t_SB: Tensor,
    s_SB: Tensor,
    obs_SBD: Tensor,
    sigma_data: float,
    sigma_min: float,
    process: str = "edm",
) -> Tensor:
    """Return phi(x_t, t, s) = c_skip(t) x_t + c_out(t) F(c_in(t) x_t, emb(t), emb(s), o), (S, B, A) (Eq. 3, 5).

    At s = t it is the denoiser E[a | x_t] of either process, since x_t moves along (x_t - a) / t in both.
    """
    if process == "flow":  # c_skip 0, c_out and c_in 1
        return actor_network(p, x_SBA, t_SB, s_SB, obs_SBD, sigma_min)
    c_skip, c_out, c_in = scalings(t_SB[..., None], sigma_data, process)
    return c_skip * x_SBA + c_out * actor_network(p, c_in * x_SBA, t_SB, s_SB, obs_SBD, sigma_min)


def Phi(x_SBA: Tensor, phi_SBA: Tensor, t_SB: Tensor, s_SB: Tensor) -> Tensor:  # noqa: N802 (the paper's symbol)
    """Return the solution map Phi(x_t, t, s) = (s/t) x_t + (1 - s/t) phi (Eq. 4); at s = t it is x_t itself."""
    ratio = (s_SB / t_SB)[..., None]
    return torch.where(ratio == 1.0, x_SBA, ratio * x_SBA + (1.0 - ratio) * phi_SBA)


def sampling_grid(
    sampling_steps: int, sigma_min: float, sigma_max: float, rho: float, device: torch.device | str = "cpu"
) -> Tensor:
    """Return the K + 1 descending noise levels of the sampler, float32; the last, sigma_min, is taken as 0."""
    grid = karras_grid(sampling_steps + 1, sigma_min, sigma_max, rho).flip(0).to(torch.float32)
    grid[-1] = 0.0
    return grid.to(device)


def sample_path(
    p: dict[str, Tensor],
    obs_SBD: Tensor,
    z_SBA: Tensor,
    grid: Tensor,
    sigma_data: float,
    sigma_min: float,
    process: str = "edm",
) -> list[Tensor]:
    """Follow a <- Phi(a, t_i, t_(i+1)) from a_T = sigma_max z (z itself in the flow process).

    Returns all K + 1 points, unclamped, each (S, B, A). The observation's share of the first layer is computed once for
    all steps. The time embeddings of a step are the same for every row: they enter as one more row of the weight.
    """
    action_dim, steps = z_SBA.shape[-1], grid.shape[0] - 1
    first_SIH = p["mlp0.w"]
    w_action, w_times, w_obs = first_SIH.split([action_dim, 2 * TIME_WIDTH, obs_SBD.shape[-1]], dim=1)
    fixed_SBH = torch.baddbmm(p["mlp0.b"], obs_SBD, w_obs)
    times = grid.expand(z_SBA.shape[0], -1)
    e_t = time_embedding(p, "t", times[:, :-1], sigma_min)
    e_s = time_embedding(p, "s", times[:, 1:], sigma_min)
    times_SKH = torch.bmm(torch.cat([e_t, e_s], dim=-1), w_times)
    c_skip, c_out, c_in = scalings(grid, sigma_data, process)
    ones_SB1 = torch.ones_like(z_SBA[..., :1])
    path = [grid[0] * z_SBA]
    for k in range(steps):
        a_SBA = path[-1]
        weight = torch.cat([w_action, times_SKH[:, k : k + 1]], dim=1)
        hidden = torch.baddbmm(fixed_SBH, torch.cat([c_in[k] * a_SBA, ones_SB1], dim=-1), weight)
        denoised = c_skip[k] * a_SBA + c_out[k] * mlp_tail(p, hidden)
        ratio = grid[k + 1] / grid[k]
        path.append(ratio * a_SBA + (1.0 - ratio) * denoised)
    return path


def sample_actions(
    p: dict[str, Tensor],
    obs_SBD: Tensor,
    z_SBA: Tensor,
    grid: Tensor,
    sigma_data: float,
    sigma_min: float,
    process: str = "edm",
) -> Tensor:
    """Return the actions at the end of `sample_path`, clamped to [-1, 1], (S, B, A); z ~ N(0, I) decides them."""
    return sample_path(p, obs_SBD, z_SBA, grid, sigma_data, sigma_min, process)[-1].clamp(-1.0, 1.0)


def weighted_square(error_SBA: Tensor, weight_SB: Tensor) -> Tensor:
    """Return mean_B w mean_A error^2, (S,): the form that Eq. 17 and 18 share."""
    return (weight_SB * error_SBA.square().mean(-1)).mean(-1)


def trajectory_loss(student_SBA: Tensor, target_SBA: Tensor, weight_SB: Tensor) -> Tensor:
    """Return L_traj = mean w || Phi_theta(o, a_t, t, s) - sg Phi_theta^-(o, a_u, u, s) ||^2, (S,) (Eq. 17)."""
    return weighted_square(student_SBA - target_SBA.detach(), weight_SB)


def instantaneous_loss(action_SBA: Tensor, denoised_SBA: Tensor, weight_SB: Tensor) -> Tensor:
    """Return L_inst = mean w || a - phi_theta(o, a_t, t, t) ||^2, (S,) (Eq. 18)."""
    return weighted_square(action_SBA - denoised_SBA, weight_SB)


def actor_loss(traj_S: Tensor, inst_S: Tensor, lambda_flow: float) -> Tensor:
    """Return L_actor = L_traj + lambda_flow L_inst, (S,) (Eq. 19)."""
    return traj_S + lambda_flow * inst_S


def linear_q(loss_S: Tensor, q_S: Tensor, lambda_q: float) -> Tensor:
    """Return L_gen - lambda mean Q(o, pi(o)), (S,): the unweighted loss with Q as a second objective (Eq. 69)."""
    return loss_S - lambda_q * q_S


def average_map_target(t_SB: Tensor, s_SB: Tensor, inst_SBA: Tensor, phi_SBA: Tensor, slope_SBA: Tensor) -> Tensor:
    """Return (s/t) phi_inst + (1 - s/t) phi - (t - s) dphi/dt, (S, B, A), without gradient (Eq. 31).

    It follows from d/dt (t - s)(phi - x)/t = -f along x's path, in a form that stays finite at s = 0.
    """
    ratio = (s_SB / t_SB)[..., None]
    return (ratio * inst_SBA + (1.0 - ratio) * phi_SBA - (t_SB - s_SB)[..., None] * slope_SBA).detach()


def time_weights(
    t_SB: Tensor, u_SB: Tensor, sigma_data: float, weighting: str, process: str = "edm"
) -> tuple[Tensor, Tensor]:
    """Return the factors of L_traj and L_inst over t, each (S, B).

    `paper`: both are 1. `stable`, from the lineage: 1/(t - u) and 1/c_out^2 = (t^2 + sd^2)/(t sd)^2, at most 400; in
    the flow process 1/c_out^2 is 1.
    """
    if weighting == "paper":
        return torch.ones_like(t_SB), torch.ones_like(t_SB)
    if process == "flow":
        return 1.0 / (t_SB - u_SB), torch.ones_like(t_SB)
    inst = (t_SB.square() + sigma_data**2) / (t_SB * sigma_data).square()
    return 1.0 / (t_SB - u_SB), inst.clamp(max=INST_WEIGHT_CAP)


def advantage_weights(advantage_SB: Tensor, eta_S: Tensor, cap: float, normed: bool = False) -> Tensor:
    """Return w = exp(eta max(0, A) / (std(A) + eps)), at most `cap` where cap > 0, (S, B) (Eq. 14).

    std is over the batch (divisor B). eta = 0 gives w = 1 exactly. `normed` divides the capped weights by their batch
    mean. No gradient flows.
    """
    advantage_SB = advantage_SB.detach()
    scale_S1 = advantage_SB.std(dim=-1, correction=0, keepdim=True) + ADVANTAGE_EPS
    weight_SB = (eta_S[:, None] * advantage_SB.clamp(min=0.0) / scale_S1).exp()
    weight_SB = weight_SB.clamp(max=cap) if cap > 0 else weight_SB
    return weight_SB / weight_SB.mean(-1, keepdim=True) if normed else weight_SB


def td_target(reward_SB: Tensor, bootstrap_SB: Tensor, next_q_SB: Tensor, gamma: float) -> Tensor:
    """Return y = r + gamma (1 - terminal) min_j Q_j^-(o', a'), (S, B), without gradient (Eq. 16).

    bootstrap_SB is 1 - terminal: 0 at a terminal state, 1 elsewhere, time limits included.
    """
    return (reward_SB + gamma * bootstrap_SB * next_q_SB).detach()


def next_value(q_S2B: Tensor, rows: int) -> Tensor:
    """Return min over heads of the maximum over samples, (S, rows).

    q_S2B holds the samples of a state one after another in blocks of `rows`: (S, 2, samples * rows). With one sample
    this is min_j Q_j; with several it is max_q_backup: the maximum for each head, then the minimum of the heads.
    """
    return q_S2B.unflatten(-1, (-1, rows)).amax(dim=2).amin(dim=1)


def critic_loss(q_S2B: Tensor, target_SB: Tensor) -> Tensor:
    """Return mse(Q1, y) + mse(Q2, y), (S,) (Eq. 16)."""
    return (q_S2B - target_SB[:, None]).square().mean(-1).sum(-1)


def expectile_loss(value_SB: Tensor, q_SB: Tensor, expectile: float) -> Tensor:
    """Return mean |tau - 1(Q < V)| (Q - V)^2, (S,): its minimum is the tau-expectile of Q over data actions [IQL]."""
    error_SB = q_SB.detach() - value_SB
    weight_SB = (expectile - (error_SB < 0.0).to(error_SB)).abs()
    return (weight_SB * error_SB.square()).mean(-1)
