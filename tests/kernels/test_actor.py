"""The actor's losses and gradients against autograd in float64."""

from __future__ import annotations

import pytest
import torch
from fused_cases import DEVICE, STABLE
from kernel_cases import PRECISIONS, SIZES, Case
from torch import Tensor

from gtp_fast import rng
from gtp_fast.algorithms import equations
from gtp_fast.algorithms.networks import views


def _actor_losses(case: Case) -> tuple[Tensor, Tensor]:
    """Return both losses of every transition without its advantage weight, (S, B) each."""
    cfg, batch = case.cfg, case.batch
    bits = case.words[rng.INDEX]
    t, u, s = (x.double() for x in equations.draw_times(case.bind.times, case.state.step, bits[..., 1], bits[..., 2]))
    z = case.normals(rng.ACTION_NOISE, cfg.batch_size)
    a_t, a_u = equations.perturb(batch.action_SBA, t, z), equations.perturb(batch.action_SBA, u, z)
    sigmas = cfg.sigma_data, cfg.sigma_min
    slow = {name: tensor.detach() for name, tensor in case.parameters("actor", "ema").items()}
    target = equations.Phi(a_u, equations.phi(slow, a_u, u, s, batch.obs_SBD, *sigmas), u, s)
    p = case.parameters("actor")
    student = equations.Phi(a_t, equations.phi(p, a_t, t, s, batch.obs_SBD, *sigmas), t, s)
    denoised = equations.phi(p, a_t, t, t, batch.obs_SBD, *sigmas)
    w_traj, w_inst = equations.time_weights(t, u, cfg.sigma_data, cfg.weighting)
    traj_SB = w_traj * (student - target).square().mean(-1)
    return traj_SB, w_inst * (denoised - batch.action_SBA).square().mean(-1)


# One precision is enough for the weights over t: they come after the products and are always float32.
@pytest.mark.parametrize(
    ("precision", "changes"), [*((p, {}) for p in PRECISIONS), ("fp32", STABLE | {"lambda_flow": 0.3})]
)
@pytest.mark.parametrize("sizes", SIZES)
def test_the_actor_has_the_gradient_of_its_weighted_losses(sizes, changes, precision):
    case = Case(sizes, precision=precision, **changes)
    weight = torch.rand(2, case.cfg.batch_size, generator=torch.Generator().manual_seed(1)).to(DEVICE) * 5.0
    case.bind.scratch["weights"].copy_(weight)
    case.bind.teacher()()
    case.bind.actor()()
    case.bind.gradients("actor")()
    traj_SB, inst_SB = _actor_losses(case)
    loss = (weight.double() * (traj_SB + case.cfg.lambda_flow * inst_SB)).mean(-1).sum()
    (expected,) = torch.autograd.grad(loss, case.leaf)
    case.near(case.bind.scratch["losses"], torch.stack([traj_SB, inst_SB], dim=1).detach(), precision)
    for name, gradient in views(expected, case.layouts[0]).items():
        found = views(case.bind.scratch["actor.grad"], case.layouts[0])[name]
        # One norm a tensor, because the small time networks would vanish in a common one.
        case.near(found, gradient, precision, 2, name)


def test_where_u_is_s_the_target_is_the_noisy_action_itself():
    case = Case(s0=1, s1=1, steps=10)  # a grid of two points: t = sigma_max, u = s = sigma_min
    case.bind.teacher()()
    case.bind.actor()()
    traj_SB, _ = _actor_losses(case)
    case.near(case.bind.scratch["losses"][:, 0], traj_SB.detach(), "fp32")
