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
    scratch["now"].copy_(case.state.step.expand(2))
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
    assert int(case.state.step) == (8 if net == "actor" else 7)
