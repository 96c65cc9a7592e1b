"""Each equation of the paper's losses is one function (SPEC 3 to 5): tensors in, one number a member out.

Legend: S members (seeds), B batch rows, A action. No randomness, no networks, no state.
"""

from __future__ import annotations

import torch
from torch import Tensor

ADVANTAGE_EPS = 1e-8  # keeps Eq. 14 finite where every advantage of a batch is the same
INST_WEIGHT_CAP = 400.0  # the lineage's bound on 1 / c_out^2, reached at t = 0.05


def weighted_square(error_SBA: Tensor, weight_SB: Tensor) -> Tensor:
    """Return mean_B w mean_A error^2, (S,): the common form of Eq. 17 and 18."""
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
    """Return L_gen - lambda mean Q(o, pi(o)), (S,): Q raised beside the generative loss, without weights (Eq. 69)."""
    return loss_S - lambda_q * q_S


def average_map_target(t_SB: Tensor, s_SB: Tensor, inst_SBA: Tensor, phi_SBA: Tensor, slope_SBA: Tensor) -> Tensor:
    """Return (s/t) phi_inst + (1 - s/t) phi - (t - s) dphi/dt, (S, B, A), without gradient (Eq. 31).

    What d/dt (t - s)(phi - x)/t = -f says of phi along x's path, in the form that stays finite at s = 0.
    """
    ratio = (s_SB / t_SB)[..., None]
    return (ratio * inst_SBA + (1.0 - ratio) * phi_SBA - (t_SB - s_SB)[..., None] * slope_SBA).detach()


def time_weights(
    t_SB: Tensor, u_SB: Tensor, sigma_data: float, weighting: str, process: str = "edm"
) -> tuple[Tensor, Tensor]:
    """Return the factors of L_traj and L_inst over t, each (S, B).

    `paper` writes none: both are 1. `stable`, from the lineage: 1/(t - u) and min(400, (t^2 + sd^2)/(t sd)^2), which
    is 1 / c_out^2: 1 in the flow process.
    """
    if weighting == "paper":
        return torch.ones_like(t_SB), torch.ones_like(t_SB)
    if process == "flow":
        return 1.0 / (t_SB - u_SB), torch.ones_like(t_SB)
    inst = (t_SB.square() + sigma_data**2) / (t_SB * sigma_data).square()
    return 1.0 / (t_SB - u_SB), inst.clamp(max=INST_WEIGHT_CAP)


def advantage_weights(advantage_SB: Tensor, eta_S: Tensor, cap: float, normed: bool = False) -> Tensor:
    """Return w = exp(eta max(0, A) / (std(A) + eps)), at most `cap` where cap > 0, (S, B) (Eq. 14).

    std is that of the batch itself (divisor B); eta = 0 gives w = 1 exactly. normed divides by the batch mean of the
    capped weights. No gradient flows.
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
