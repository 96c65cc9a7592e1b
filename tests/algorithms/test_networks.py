"""Shapes, counts and values of the networks against torch.nn in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from gtp_fast.algorithms import networks


def test_parameter_counts_are_those_of_the_specification():
    assert networks.actor_layout(17, 6, 256).parameters == 149_606
    assert 2 * networks.critic_layout(17, 6, 256).parameters == 275_970


def test_every_tensor_of_a_flat_buffer_starts_on_a_128_byte_line_and_none_overlap():
    layout = networks.actor_layout(11, 3, 100)
    end = 0
    for _, offset, shape in layout.entries:
        assert offset % 32 == 0 and offset >= end
        end = offset + math.prod(shape)
    assert end <= layout.size


def test_init_is_torch_linears_default_and_padding_is_zero():
    layout = networks.critic_layout(17, 6, 256)
    flat = networks.init_flat(layout, [0, 1], heads=2)
    views = networks.views(flat, layout)
    for name, view in views.items():
        bound = 1 / math.sqrt(views[name[:-1] + "w"].shape[1])
        assert view.abs().max() <= bound
        if view.numel() > 1000:
            assert view.std() == pytest.approx(bound / math.sqrt(3), rel=0.03)
        view.zero_()
    assert flat.abs().sum() == 0


def test_heads_seeds_and_networks_start_apart_and_a_seed_starts_alike_alone():
    layout = networks.critic_layout(3, 2, 16)
    flat = networks.init_flat(layout, [4, 9], heads=2)
    assert len({tuple(row.tolist()) for row in flat}) == 4
    assert torch.equal(flat[2:], networks.init_flat(layout, [9], heads=2))
    assert not torch.equal(flat, networks.init_flat(layout, [4, 9], heads=2, network=1))


def _sequential(p, member, prefix, count):
    layers: list[nn.Module] = []
    for i in range(count):
        w, b = p[f"{prefix}{i}.w"][member], p[f"{prefix}{i}.b"][member]
        linear = nn.Linear(*w.shape, dtype=torch.float64)
        linear.weight.data, linear.bias.data = w.double().T, b[0].double()
        layers += [linear, nn.Mish()]
    return nn.Sequential(*layers[:-1])


def _double(flat, layout):
    return networks.views(flat.double(), layout)


def test_twin_q_values_match_torch_modules():
    layout = networks.critic_layout(5, 3, 32)
    p = _double(networks.init_flat(layout, [0, 1], heads=2), layout)
    obs, action = torch.randn(2, 7, 5, dtype=torch.float64), torch.randn(2, 7, 3, dtype=torch.float64)
    q = networks.q_values(p, obs, action)
    for seed in range(2):
        for head in range(2):
            expected = _sequential(p, 2 * seed + head, "mlp", 4)(torch.cat([obs[seed], action[seed]], -1))[:, 0]
            assert torch.allclose(q[seed, head], expected, atol=1e-12)


def test_actor_network_concatenates_action_times_and_observation():
    layout = networks.actor_layout(5, 3, 32)
    p = _double(networks.init_flat(layout, [0], heads=1), layout)
    x, obs = torch.randn(1, 7, 3, dtype=torch.float64), torch.randn(1, 7, 5, dtype=torch.float64)
    t, s = torch.rand(1, 7, dtype=torch.float64) * 80 + 1, torch.rand(1, 7, dtype=torch.float64)

    def embed(name, time):
        phase = 0.25 * time.log()[:, None] * torch.tensor([10_000 ** (-i / 7) for i in range(8)], dtype=torch.float64)
        return _sequential(p, 0, name, 2)(torch.cat([phase.sin(), phase.cos()], -1))

    expected = _sequential(p, 0, "mlp", 4)(torch.cat([x[0], embed("t", t[0]), embed("s", s[0]), obs[0]], -1))
    assert torch.allclose(networks.actor_network(p, x, t, s, obs, 0.002)[0], expected, atol=1e-12)


def test_time_zero_is_embedded_as_sigma_min():
    layout = networks.actor_layout(2, 2, 16)
    p = networks.views(networks.init_flat(layout, [0]), layout)
    zero, least = torch.zeros(1, 1), torch.full((1, 1), 0.002)
    assert torch.equal(networks.time_embedding(p, "s", zero, 0.002), networks.time_embedding(p, "s", least, 0.002))


def test_views_share_the_memory_of_the_buffer():
    layout = networks.actor_layout(2, 2, 16)
    flat = networks.init_flat(layout, [0, 1])
    views = networks.views(flat, layout)
    views["mlp1.w"][1].fill_(7.0)
    assert (flat == 7.0).sum() == 16 * 16


def test_parts_are_laid_out_where_views_find_them_and_padding_is_zero():
    layout = networks.critic_layout(3, 2, 24)
    start = networks.init_flat(layout, [0, 1], heads=2)
    parts = [view.clone() for view in networks.views(start, layout).values()]
    assert torch.equal(networks.flat(parts, layout), start)


def test_parts_that_are_no_parameters_of_the_layout_are_refused():
    layout = networks.critic_layout(3, 2, 24)
    with pytest.raises(ValueError, match="zip"):
        networks.flat(list(networks.views(networks.init_flat(layout, [0]), layout).values())[1:], layout)


def test_gelu_is_the_tanh_form_also_far_out():
    x = torch.linspace(-30, 30, 1001, dtype=torch.float64)
    expected = torch.nn.functional.gelu(x, approximate="tanh")
    torch.testing.assert_close(networks.gelu(x), expected, rtol=1e-12, atol=1e-15)
    ours = networks.gelu(x.float()).double()
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(networks.gelu(torch.tensor([-1e20, 1e20])), torch.tensor([-0.0, 1e20]))
