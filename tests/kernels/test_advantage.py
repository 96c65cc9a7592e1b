"""The advantage weights and the metrics against their equations in float64."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import Case

from gtp_fast.algorithms import equations, gtp


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
