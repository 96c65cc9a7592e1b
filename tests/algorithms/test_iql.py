"""Implicit Q-learning: its equations by hand, and the size of its networks."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from learn_cases import case

from gtp_fast.algorithms import iql, networks, updates


def test_weights_by_hand():
    advantage, eta = torch.tensor([[1.0, -1.0, 50.0], [2.0, 0.0, 1.0]]), torch.tensor([3.0, 0.0])
    expected = torch.tensor([[math.exp(3), math.exp(-3), 100.0], [1.0, 1.0, 1.0]])
    assert torch.allclose(iql.weights(advantage, eta, 100.0), expected)
    assert float(iql.weights(advantage[:1], torch.tensor([0.2]), 0.0)[0, 2]) == pytest.approx(math.exp(10), rel=1e-5)


@pytest.mark.parametrize(("log_std", "std"), [(0.0, 1.0), (-9.0, math.exp(-5)), (4.0, math.exp(2))])
def test_the_likelihood_is_the_gaussians_with_its_deviation_in_the_published_range(log_std, std):
    layout = networks.policy_layout(1, 2, 4, gaussian=True)
    p = networks.views(torch.zeros(1, layout.size), layout)
    p["mlp3.b"].fill_(0.5)
    p["policy.log_std"].fill_(log_std)
    action = torch.tensor([[[0.4, 0.6]]])
    expected = torch.distributions.Normal(torch.tensor(0.5).tanh(), std).log_prob(action).sum()
    assert float(iql.log_likelihood(p, torch.zeros(1, 1, 1), action)) == pytest.approx(float(expected), rel=1e-4)


def test_parameter_counts_are_the_sum_of_four_networks():
    cfg = case("iql", hidden=256)
    hidden = 2 * (256 * 256 + 256)
    actor, head, value = (inputs * 256 + 256 + hidden + 257 * out for inputs, out in ((17, 6), (23, 1), (17, 1)))
    assert updates.parameter_count(cfg, iql.layouts(cfg, 17, 6)) == actor + 6 + 2 * head + value
    assert updates.parameter_count(replace(cfg, bc=True), iql.layouts(cfg, 17, 6)) == actor + 6
