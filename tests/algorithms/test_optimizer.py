"""Clip, Adam and averages against torch.optim, in place and at fixed addresses."""

from __future__ import annotations

import math

import pytest
import torch

from gtp_fast.algorithms import optimizer


def _normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_adam_with_clipping_follows_torch_for_many_steps():
    ours, first, second = _normal(2, 64), torch.zeros(2, 64), torch.zeros(2, 64)
    theirs = [torch.nn.Parameter(row.clone()) for row in ours]
    adams = [torch.optim.Adam([p], lr=lr) for p, lr in zip(theirs, (3e-4, 1e-2), strict=True)]
    lr = torch.tensor([[3e-4], [1e-2]])
    for step in range(50):
        grad = _normal(2, 64, seed=step) * (0.01 if step % 2 else 10.0)
        _, scale = optimizer.clip_scale(grad, 2, 1.0)
        optimizer.adam_(ours, grad, first, second, torch.tensor(step), lr, scale)
        for p, adam, row in zip(theirs, adams, grad, strict=True):
            p.grad = row.clone()
            torch.nn.utils.clip_grad_norm_([p], 1.0)
            adam.step()
    # Fifty steps of at most 1e-2 with a relative rounding of a few float32 ulp each.
    assert torch.allclose(ours, torch.stack([p.detach() for p in theirs]), atol=2e-6)


def test_a_members_heads_share_one_gradient_norm():
    grad = torch.tensor([[3.0, 0.0], [0.0, 4.0], [0.3, 0.0], [0.0, 0.4]])
    norm, scale = optimizer.clip_scale(grad, members=2, largest_norm=1.0)
    assert norm.tolist() == pytest.approx([5.0, 0.5])
    assert scale.flatten().tolist() == pytest.approx([0.2, 0.2, 1.0, 1.0], rel=1e-6)


def test_a_norm_near_zero_is_clipped_with_torchs_own_small_number():
    grad_MP = torch.tensor([[3e-6, 0.0]])
    assert float(optimizer.clip_scale(grad_MP, 1, 1e-6)[1]) == pytest.approx(1e-6 / (3e-6 + 1e-6), rel=1e-5)


def test_norm_zero_means_no_clipping():
    _, scale = optimizer.clip_scale(torch.full((1, 4), 1e6), members=1, largest_norm=0.0)
    assert scale.tolist() == [[1.0]]


def test_ema_waits_for_its_start_and_its_interval():
    due = [k for k in range(1_000, 1_021) if float(optimizer.ema_rate(torch.tensor(k), 0.995, 5, 1_003)) > 0]
    assert due == [1_005, 1_010, 1_015, 1_020]
    assert float(optimizer.ema_rate(torch.tensor(1_005), 0.995, 5, 0)) == pytest.approx(0.005)


def test_a_rate_of_zero_leaves_every_bit_of_the_average():
    average, param = _normal(3, 100), _normal(3, 100, seed=1)
    before = average.clone()
    optimizer.average_(average, param, torch.tensor(0.0))
    assert torch.equal(average, before)


def test_average_moves_by_its_rate_in_place():
    average, param = torch.zeros(2, 3), torch.ones(2, 3)
    address = average.data_ptr()
    optimizer.average_(average, param, 0.005)
    assert average.data_ptr() == address and average.tolist() == torch.full((2, 3), 0.005).tolist()


def test_cosine_falls_from_base_to_zero_and_constant_stays():
    base = torch.tensor([3e-4, 1e-3])
    rates = [optimizer.learning_rate(base, torch.tensor(k), 100, "cosine") for k in (0, 50, 100)]
    for member, start in enumerate((3e-4, 1e-3)):
        assert [float(r[member]) for r in rates] == pytest.approx([start, start / 2, 0.0], abs=1e-9)
    assert torch.equal(optimizer.learning_rate(base, torch.tensor(70), 100, "constant"), base)


def test_first_adam_step_has_the_size_of_the_learning_rate():
    param, grad = torch.zeros(1, 3), torch.tensor([[1e-3, -5.0, 70.0]])
    optimizer.adam_(
        param, grad, torch.zeros(1, 3), torch.zeros(1, 3), torch.tensor(0), torch.full((1, 1), 0.1), torch.ones(1, 1)
    )
    assert param[0].tolist() == pytest.approx([-0.1, 0.1, -0.1], rel=1e-4)
    assert math.isfinite(float(param.sum()))
