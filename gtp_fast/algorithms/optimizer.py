"""Clip, Adam, EMA and Polyak averaging on flat parameter buffers, in place, with every scalar on the device.

Legend: S members, M = S * heads rows of a buffer, P floats in a row. The buffers
keep their addresses, as a captured graph needs, and nothing allocated here outlives a call.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BETA1, BETA2, ADAM_EPS = 0.9, 0.999, 1e-8  # torch's defaults, as in the lineage
CLIP_EPS = 1e-6  # as in torch's clip_grad_norm_


def clip_scale(grad_MP: Tensor, members: int, largest_norm: float) -> tuple[Tensor, Tensor]:
    """Return each member's gradient norm (S,) and the factor min(1, largest / norm) for its rows (M, 1).

    The heads of a member's critic count as one network with one norm. largest_norm 0 disables clipping.
    """
    norm_S = torch.linalg.vector_norm(grad_MP.view(members, -1), dim=-1)
    scale_S = (largest_norm / (norm_S + CLIP_EPS)).clamp(max=1.0) if largest_norm > 0 else torch.ones_like(norm_S)
    return norm_S, scale_S.repeat_interleave(grad_MP.shape[0] // members)[:, None]


def adam_(
    param_MP: Tensor,
    grad_MP: Tensor,
    exp_avg_MP: Tensor,
    exp_avg_sq_MP: Tensor,
    step: Tensor,
    lr_M1: Tensor,
    scale_M1: Tensor,
) -> None:
    """Update parameters and moments in place by Adam with bias correction; `step` counts from 0, int64 ().

    Clipping is a factor on the gradient, so it needs no pass of its own.
    """
    count = (step + 1).to(torch.float32)
    correction1 = 1.0 - torch.pow(BETA1, count)
    correction2 = 1.0 - torch.pow(BETA2, count)
    clipped_MP = grad_MP * scale_M1
    exp_avg_MP.lerp_(clipped_MP, 1.0 - BETA1)
    exp_avg_sq_MP.mul_(BETA2).addcmul_(clipped_MP, clipped_MP, value=1.0 - BETA2)
    denominator = exp_avg_sq_MP.sqrt().mul_(correction2.rsqrt()).add_(ADAM_EPS)
    param_MP.sub_((exp_avg_MP / denominator).mul_(lr_M1 / correction1))


def average_(average_MP: Tensor, param_MP: Tensor, rate: Tensor | float) -> None:
    """Move the average towards the parameters by `rate` in place; a rate of 0 changes no bit."""
    average_MP.lerp_(param_MP, rate)


def ema_rate(step: Tensor, decay: float, every: int, start: int) -> Tensor:
    """Return 1 - decay on steps that update the EMA and 0 on others, float32 (); a captured graph cannot branch."""
    due = (step >= start) & (step % every == 0)
    return due.to(torch.float32) * (1.0 - decay)


def learning_rate(base_S: Tensor, step: Tensor, total_steps: int, schedule: str) -> Tensor:
    """Return each member's learning rate at a step, (S,): constant, or a cosine from base to 0 at the last step."""
    if schedule == "constant":
        return base_S
    return base_S * (0.5 + 0.5 * torch.cos(step.to(torch.float32) * (math.pi / total_steps)))
