"""The update against clip, Adam and average in float64."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import Case

from gtp_fast.algorithms import gtp, optimizer


@pytest.mark.parametrize("net", ["actor", "critic"])
@pytest.mark.parametrize("changes", [{}, {"grad_norm": 1e-3, "lr_schedule": "cosine", "ema_every": 7, "ema_start": 7}])
def test_the_update_is_clip_adam_and_the_ema_copy(net, changes):
    case = Case(**changes)
    cfg, own, scratch = case.cfg, getattr(case.state, net), case.bind.scratch
    generator = torch.Generator().manual_seed(3)
    for tensor in (scratch[f"{net}.grad"], own.exp_avg):
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 1e-2)
    own.exp_avg_sq.copy_(torch.rand(own.exp_avg_sq.shape, generator=generator) * 1e-4)
    rows = scratch[f"{net}.grad"].view(cfg.seeds, -1)
    scratch[f"{net}.squares"].zero_().view(cfg.seeds, -1)[:, 0] = rows.square().sum(-1)
    grad, param, first, second, slow = (
        x.double() for x in (scratch[f"{net}.grad"], own.param, own.exp_avg, own.exp_avg_sq, own.ema)
    )
    step = case.state.step.clone()
    norm, scale = optimizer.clip_scale(grad, cfg.seeds, cfg.grad_norm)
    lr = optimizer.learning_rate(case.bind.lr.double(), step, cfg.steps, cfg.lr_schedule)
    heads = len(grad) // cfg.seeds
    optimizer.adam_(param, grad, first, second, step, lr.repeat_interleave(heads)[:, None], scale)
    ema = optimizer.ema_rate(step, cfg.ema_decay, cfg.ema_every, cfg.ema_start)
    optimizer.average_(slow, param, cfg.tau if net == "critic" else ema.double())
    case.bind.update(net)()
    for found, expected in ((own.param, param), (own.exp_avg, first), (own.exp_avg_sq, second), (own.ema, slow)):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-7)
    recorded = scratch["metrics"][:, gtp.metric_names(cfg).index(f"{net}_grad_norm")]
    torch.testing.assert_close(recorded.double(), norm, rtol=1e-5, atol=0)
    assert int(case.state.step) == 7


def test_an_update_whose_ema_is_not_due_leaves_it_and_its_copies_alone():
    case = Case(precision="bf16", ema_every=1, ema_start=0)
    ema, copies = case.state.actor.ema.clone(), case.bind.operands["actor.ema"].copies.clone()
    case.bind.update("actor", due=False)()
    assert torch.equal(case.state.actor.ema, ema) and torch.equal(case.bind.operands["actor.ema"].copies, copies)
    case.bind.update("actor", due=True)()
    assert not torch.equal(case.state.actor.ema, ema)


def test_a_step_further_on_is_the_step_of_the_counter_plus_its_place():
    cases = [Case(lr_schedule="cosine"), Case(lr_schedule="cosine")]
    for k, case in zip((5, 0), cases, strict=True):
        case.bind.scratch["actor.grad"].fill_(1e-2)
        case.state.step.fill_(12 - k)
        case.bind.update("actor", k)()
    assert torch.equal(cases[0].state.actor.param, cases[1].state.actor.param)
