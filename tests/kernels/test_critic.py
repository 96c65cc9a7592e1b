"""The twin critic's values and gradients against autograd in float64."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import PRECISIONS, SIZES, Case

from gtp_fast.algorithms import equations
from gtp_fast.algorithms.networks import q_values


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
        target = q_values(case.parameters("critic", "ema"), case.batch.next_obs_SBD, next_actions)
        updated = q_values(case.parameters("critic"), obs, actions)
    case.near(case.bind.scratch["next_q"], target, precision)
    case.near(case.bind.scratch["advantage_q"], updated, precision)


# One precision is enough for the largest of ten samples: it comes after the products and is always float32.
@pytest.mark.parametrize(("precision", "backup"), [*((p, False) for p in PRECISIONS), ("fp32", True)])
@pytest.mark.parametrize("sizes", SIZES)
def test_the_critic_has_the_gradient_of_its_loss(sizes, backup, precision):
    case = Case(sizes, precision=precision, max_q_backup=backup)
    scratch = case.bind.scratch
    bind = case.bind
    for launch in (bind.chain(), bind.critic_forward(), bind.target_q(), bind.critic_backward()):
        launch()
    bind.gradients("critic")()
    next_q = equations.next_value(scratch["next_q"].double(), case.cfg.batch_size)
    y = equations.td_target(case.batch.reward_SB, case.batch.bootstrap_SB, next_q, case.cfg.gamma)
    q = q_values(case.parameters("critic"), case.batch.obs_SBD, case.batch.action_SBA)
    (expected,) = torch.autograd.grad(equations.critic_loss(q, y).sum(), case.leaf)
    case.near(scratch["target"], y, "fp32")
    case.near(scratch["q"], q.detach(), precision)
    case.near(scratch["critic.grad"], expected, precision)
    squares = scratch["critic.squares"].view(2, -1).double().sum(-1)
    torch.testing.assert_close(squares, scratch["critic.grad"].view(2, -1).double().square().sum(-1), rtol=1e-5, atol=0)
