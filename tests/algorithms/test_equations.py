"""Grids, schedule, maps, sampler and losses: the paper's numbers and identities, float64 computations by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gtp_fast.algorithms import equations, networks

SIGMA_DATA, SIGMA_MIN = 0.5, 0.002


@pytest.fixture(scope="module")
def actor():
    layout = networks.actor_layout(4, 3, 32)
    return networks.views(networks.init_flat(layout, [0, 1]).double(), layout)


def _normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_sampling_grids_are_those_of_the_specification():
    five = equations.sampling_grid(5, 0.002, 80.0, 7.0).tolist()
    assert five == pytest.approx([80, 24.41, 5.839, 0.9654, 0.0851, 0], rel=1e-3)
    assert equations.sampling_grid(2, 0.002, 80.0, 7.0).tolist() == pytest.approx([80, 2.515, 0], rel=1e-3)


def test_the_schedule_doubles_through_eight_stages():
    total = 80_000
    counts = [equations.grid_points(step, total, 10, 1280) for step in range(0, total, 10_000)]
    assert counts == [11, 21, 41, 81, 161, 321, 641, 1281]
    assert equations.grid_points(total - 1, total, 10, 1280) == 1281


@given(st.integers(1, 3_000_000), st.floats(0, 0.999), st.sampled_from([(10, 1280), (10, 160), (5, 5), (10, 100)]))
def test_the_device_schedule_agrees_with_eq_76_at_every_step(total, fraction, sizes):
    step = int(total * fraction)
    table = equations.schedule(total, *sizes, 0.002, 80.0, 7.0, "cpu")
    stage = min(step // table.stage_length, len(table.points) - 1)
    assert int(table.points[stage]) == equations.grid_points(step, total, *sizes)


def test_times_are_adjacent_ordered_and_reach_both_ends_of_the_grid():
    table = equations.schedule(100, 10, 20, 0.002, 80.0, 7.0, "cpu")
    bits = torch.randint(0, 2**32, (2, 1, 20_000), generator=torch.Generator().manual_seed(0))
    t, u, s = equations.draw_times(table, torch.tensor(99), bits[0], bits[1])
    grid = equations.karras_grid(21, 0.002, 80.0, 7.0).float()
    n = torch.searchsorted(grid, t[0])
    assert torch.equal(grid[n], t[0]) and torch.equal(grid[n - 1], u[0])
    assert (s <= u).all() and set(n.tolist()) == set(range(1, 21))
    assert t.max() == 80.0 and u.min() == grid[0] and s.min() == grid[0]


def test_the_number_of_grid_points_follows_the_step_counter():
    table = equations.schedule(100, 10, 20, 0.002, 80.0, 7.0, "cpu")
    bits = torch.randint(0, 2**32, (2, 1, 5_000), generator=torch.Generator().manual_seed(0))
    early = equations.draw_times(table, torch.tensor(0), bits[0], bits[1])[0].unique().numel()
    late = equations.draw_times(table, torch.tensor(50), bits[0], bits[1])[0].unique().numel()
    assert (early, late) == (10, 20)


@given(st.floats(0.01, 80), st.floats(0.001, 1))
def test_a_t_and_a_u_lie_on_one_line_through_the_action(t, share):
    action, z = _normal(1, 3, 2), _normal(1, 3, 2, seed=1)
    u = t * share
    at = equations.perturb(action, torch.full((1, 3), t, dtype=torch.float64), z)
    au = equations.perturb(action, torch.full((1, 3), u, dtype=torch.float64), z)
    # Exact solution of dx/dt = (x - a)/t: (x_u - a)/u = (x_t - a)/t = z.
    assert torch.allclose((au - action) / u, (at - action) / t, rtol=1e-6, atol=1e-9)


@given(st.floats(0.002, 80))
def test_phi_map_at_equal_times_is_the_identity(time):
    x, phi = torch.randn(1, 4, 2), torch.full((1, 4, 2), 3.0)
    t = torch.full((1, 4), time)
    assert torch.equal(equations.Phi(x, phi, t, t), x)


def test_phi_map_at_time_zero_is_phi():
    x, phi, t = torch.randn(1, 4, 2), torch.randn(1, 4, 2), torch.full((1, 4), 5.0)
    assert torch.equal(equations.Phi(x, phi, t, torch.zeros(1, 4)), phi)


def test_phi_map_of_the_surrogate_field_composes():
    # For the field (x - a)/t the average map is the data point itself, and Eq. 6 holds exactly.
    a, z = _normal(1, 5, 2), _normal(1, 5, 2, seed=1)
    t, u, s = (torch.full((1, 5), value, dtype=torch.float64) for value in (9.0, 4.0, 0.5))
    x_t = equations.perturb(a, t, z)
    direct = equations.Phi(x_t, a, t, s)
    composed = equations.Phi(equations.Phi(x_t, a, t, u), a, u, s)
    assert torch.allclose(direct, composed, atol=1e-12)
    assert torch.allclose(direct, equations.perturb(a, s, z), atol=1e-12)


def test_phi_has_edm_scaling(actor):
    x, obs = _normal(2, 6, 3), _normal(2, 6, 4, seed=1)
    t, s = torch.rand(2, 6, dtype=torch.float64) * 10 + 0.1, torch.rand(2, 6, dtype=torch.float64) * 0.1
    network = networks.actor_network(actor, x / (t**2 + 0.25).sqrt()[..., None], t, s, obs, SIGMA_MIN)
    c_skip, c_out = 0.25 / (t**2 + 0.25), t * 0.5 / (t**2 + 0.25).sqrt()
    expected = c_skip[..., None] * x + c_out[..., None] * network
    assert torch.allclose(equations.phi(actor, x, t, s, obs, SIGMA_DATA, SIGMA_MIN), expected, atol=1e-12)


def test_phi_near_time_zero_returns_its_input(actor):
    x, obs, t = _normal(2, 6, 3), _normal(2, 6, 4), torch.full((2, 6), 1e-6, dtype=torch.float64)
    assert torch.allclose(equations.phi(actor, x, t, t, obs, SIGMA_DATA, SIGMA_MIN), x, atol=1e-5)


@pytest.mark.parametrize("steps", range(1, 11))
def test_the_hoisted_chain_equals_the_composition_of_maps(actor, steps):
    obs, z = _normal(2, 5, 4), _normal(2, 5, 3, seed=1)
    grid = equations.sampling_grid(steps, SIGMA_MIN, 80.0, 7.0).double()
    x = grid[0] * z
    for k in range(steps):
        t, s = grid[k].expand(2, 5), grid[k + 1].expand(2, 5)
        x = equations.Phi(x, equations.phi(actor, x, t, s, obs, SIGMA_DATA, SIGMA_MIN), t, s)
    path = equations.sample_path(actor, obs, z, grid, SIGMA_DATA, SIGMA_MIN)
    assert len(path) == steps + 1
    assert torch.allclose(path[-1], x, atol=1e-10)


def test_sampled_actions_are_clamped_only_at_the_end(actor):
    obs, z = _normal(2, 50, 4) * 30, _normal(2, 50, 3, seed=1)
    grid = equations.sampling_grid(2, SIGMA_MIN, 80.0, 7.0).double()
    end = equations.sample_path(actor, obs, z, grid, SIGMA_DATA, SIGMA_MIN)[-1]
    actions = equations.sample_actions(actor, obs, z, grid, SIGMA_DATA, SIGMA_MIN)
    assert torch.equal(actions, end.clamp(-1, 1))


def _random(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def test_trajectory_loss_matches_eq_17_by_hand():
    student, target, weight = _random(2, 3, 4), _random(2, 3, 4, seed=1), _random(2, 3, seed=2).abs()
    expected = [
        sum(
            float(weight[s, b]) * sum(float(student[s, b, a] - target[s, b, a]) ** 2 for a in range(4)) / 4
            for b in range(3)
        )
        / 3
        for s in range(2)
    ]
    assert equations.trajectory_loss(student, target, weight).tolist() == pytest.approx(expected, rel=1e-12)


def test_instantaneous_loss_matches_eq_18_by_hand():
    action, denoised, weight = _random(1, 3, 2), _random(1, 3, 2, seed=1), _random(1, 3, seed=2).abs()
    expected = sum(float(weight[0, b]) * float(((action - denoised)[0, b] ** 2).sum()) / 2 for b in range(3)) / 3
    assert float(equations.instantaneous_loss(action, denoised, weight)) == pytest.approx(expected, rel=1e-12)


def test_actor_loss_adds_lambda_flow_times_the_instantaneous_loss():
    assert equations.actor_loss(torch.tensor([2.0]), torch.tensor([3.0]), 0.5).tolist() == [3.5]


def test_targets_carry_no_gradient():
    student, target = _random(1, 2, 2).requires_grad_(), _random(1, 2, 2, seed=1).requires_grad_()
    equations.trajectory_loss(student, target, torch.ones(1, 2, dtype=torch.float64)).sum().backward()
    assert target.grad is None and student.grad is not None
    q = _random(1, 2).requires_grad_()
    assert not equations.td_target(_random(1, 2), torch.ones(1, 2), q, 0.99).requires_grad
    assert not equations.advantage_weights(q, torch.ones(1), 100.0).requires_grad


def test_paper_weighting_writes_no_factors():
    t, u = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 1.0]])
    w_traj, w_inst = equations.time_weights(t, u, 0.5, "paper")
    assert torch.equal(w_traj, torch.ones(1, 2)) and torch.equal(w_inst, torch.ones(1, 2))


def test_stable_weighting_divides_by_t_minus_u_and_by_c_out_squared_up_to_400():
    t, u = torch.tensor([[1.0, 0.002]]), torch.tensor([[0.5, 0.001]])
    w_traj, w_inst = equations.time_weights(t, u, 0.5, "stable")
    assert w_traj.tolist()[0] == pytest.approx([2.0, 1000.0])
    assert w_inst.tolist()[0] == pytest.approx([1.25 / 0.25, 400.0])


def test_advantage_weights_match_eq_14_by_hand():
    advantage = _random(2, 6)
    weight = equations.advantage_weights(advantage, torch.tensor([5.0, 1.0]), cap=0.0)
    for member, eta in enumerate((5.0, 1.0)):
        row = advantage[member].numpy()
        expected = np.exp(eta * np.maximum(0, row) / (row.std() + 1e-8))
        assert weight[member].tolist() == pytest.approx(expected.tolist(), rel=1e-10)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=32))
def test_eta_zero_gives_weight_one_exactly(values):
    weight = equations.advantage_weights(torch.tensor([values]), torch.zeros(1), cap=100.0)
    assert torch.equal(weight, torch.ones_like(weight))


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=32), st.floats(0, 10), st.floats(1, 1000))
def test_weights_lie_between_one_and_the_cap_and_grow_with_the_advantage(values, eta, cap):
    advantage = torch.tensor([values])
    weight = equations.advantage_weights(advantage, torch.tensor([eta]), cap)
    assert (weight >= 1).all() and (weight <= np.float32(cap)).all()
    order = advantage[0].argsort()
    assert (weight[0][order].diff() >= 0).all()


def test_equal_advantages_give_finite_weights():
    assert torch.isfinite(equations.advantage_weights(torch.zeros(1, 8), torch.full((1,), 5.0), cap=0.0)).all()


def test_td_target_bootstraps_at_time_limits_and_stops_at_terminals():
    reward, q = torch.tensor([[1.0, 1.0]]), torch.tensor([[10.0, 10.0]])
    bootstrap = torch.tensor([[1.0, 0.0]])  # a time limit keeps 1: it is no terminal
    assert equations.td_target(reward, bootstrap, q, 0.9).tolist() == [[10.0, 1.0]]


def test_next_value_is_the_minimum_of_the_heads():
    q = torch.tensor([[[1.0, 5.0], [2.0, 3.0]]])
    assert equations.next_value(q, rows=2).tolist() == [[1.0, 3.0]]


def test_max_q_backup_takes_the_maximum_for_each_head_before_the_minimum():
    # Two samples of two states, sample after sample: head 1 has maxima 4 and 5, head 2 has 3 and 9.
    q = torch.tensor([[[1.0, 5.0, 4.0, 2.0], [3.0, 0.0, 2.0, 9.0]]])
    assert equations.next_value(q, rows=2).tolist() == [[3.0, 5.0]]


def test_critic_loss_is_the_sum_of_both_heads_mean_squares():
    q, y = _random(2, 2, 5), _random(2, 5, seed=1)
    expected = [sum(float(((q[s, h] - y[s]) ** 2).mean()) for h in range(2)) for s in range(2)]
    assert equations.critic_loss(q, y).tolist() == pytest.approx(expected, rel=1e-12)


def test_expectile_loss_weighs_errors_by_their_side_by_hand():
    value, q = torch.tensor([[0.0, 0.0]], dtype=torch.float64), torch.tensor([[2.0, -1.0]], dtype=torch.float64)
    assert float(equations.expectile_loss(value, q, 0.7)) == pytest.approx((0.7 * 4.0 + 0.3 * 1.0) / 2, rel=1e-12)


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=8), st.floats(0.05, 0.95))
def test_the_minimum_of_the_expectile_loss_is_the_expectile(values, expectile):
    q = torch.tensor([values], dtype=torch.float64)
    low, high = q.min(), q.max()
    for _ in range(80):  # the expectile m solves tau E (q - m)+ = (1 - tau) E (m - q)+
        middle = (low + high) / 2
        above = expectile * (q - middle).clamp(min=0).mean() > (1 - expectile) * (middle - q).clamp(min=0).mean()
        low, high = (middle, high) if above else (low, middle)
    value = low.expand(1, len(values)).clone().requires_grad_()
    (slope,) = torch.autograd.grad(equations.expectile_loss(value, q, expectile).sum(), value)
    assert abs(float(slope.sum())) < 1e-9


def test_expectile_loss_lets_no_gradient_into_q():
    q = torch.ones(1, 3, requires_grad=True)
    assert torch.autograd.grad(
        equations.expectile_loss(torch.zeros(1, 3, requires_grad=True), q, 0.7), q, allow_unused=True
    ) == (None,)
