"""GTP's variants: the properties of each, and who refuses them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from learn_cases import ACTION_DIM, FLOW, OBS_DIM, buffer_of, case, small_config
from run_cases import tiny

from gtp_fast import device
from gtp_fast.algorithms import equations, gtp, gtp_variants, networks
from gtp_fast.algorithms.policy_config import PolicyConfig
from gtp_fast.config import TrainConfig, validate
from gtp_fast.data.catalog import run_settings
from gtp_fast.errors import CheckpointError, UsageError
from gtp_fast.policy import policy
from gtp_fast.policy.policy import load_policy
from gtp_fast.policy.samplers import AlgorithmSampler, CpuSampler
from gtp_fast.runs import checkpoint
from gtp_fast.training.train import train


def _normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def drawn(cfg: TrainConfig, rows: int = 40, j: int | None = None):
    """Return what a loss takes, in float64, and the parameters to be trained."""
    layout = networks.actor_layout(OBS_DIM, ACTION_DIM, 16)
    slow, params = (networks.views(networks.init_flat(layout, [seed]).double(), layout) for seed in (0, 1))
    grid = equations.karras_grid(21, cfg.sigma_min, cfg.sigma_max, cfg.rho)
    n = 1 + torch.arange(rows)[None] % 20
    below = torch.full_like(n, j) if j is not None else n * (torch.arange(rows) % 7) // 7
    places = equations.TimeIndices(grid, torch.tensor(0), n, below)
    action, z, weight = _normal(1, rows, ACTION_DIM), _normal(1, rows, ACTION_DIM, seed=1), _normal(1, rows).abs()
    towards = equations.direction(action, z, cfg.process)
    obs = _normal(1, rows, OBS_DIM, seed=2)
    times = places.at(n), places.at(below)
    leaves = {name: p.requires_grad_() for name, p in params.items()}
    return gtp_variants.ActorBatch(cfg, slow, obs, obs, action, towards, weight, places, *times), leaves


@pytest.mark.parametrize("heun", [True, False])
@pytest.mark.parametrize("process", ["edm", "flow"])
def test_a_solver_of_the_surrogate_field_reproduces_a_u(heun, process):
    action, z = _normal(1, 6, 2), _normal(1, 6, 2, seed=1)
    towards = equations.direction(action, z, process)
    times = [torch.full((1, 6), t, dtype=torch.float64) for t in (0.9, 0.4, 0.03, 0.002, 0.002)]
    a_u = gtp_variants.solve(lambda x, t: action, equations.perturb(action, times[0], towards), times, heun)
    assert torch.allclose(a_u, equations.perturb(action, times[-1], towards), atol=1e-12)


@pytest.mark.parametrize(("heun", "order"), [(True, 2), (False, 1)])
def test_a_solver_has_the_order_of_its_method(heun, order):
    # Of Gaussian data of deviation 1/2: E[a | x] = x / (1 + 4 t^2), x_u = x_t sqrt((u^2 + 1/4) / (t^2 + 1/4)).
    def error(steps: int) -> float:
        times = [torch.tensor([[t]], dtype=torch.float64) for t in torch.linspace(2.0, 0.5, steps + 1).tolist()]
        x = gtp_variants.solve(lambda x, t: x / (1 + 4 * t[..., None] ** 2), torch.ones(1, 1, 1).double(), times, heun)
        return abs(float(x) - math.sqrt(0.5 / 4.25))

    assert math.log2(error(50) / error(100)) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("changes", [{}, FLOW], ids=["edm", "flow"])
def test_meanflow_takes_the_derivative_along_the_path(changes):
    given, params = drawn(case("gtp", actor_loss="meanflow", **changes))
    traj_S, inst_S = gtp_variants.meanflow(given, params)
    t, s = given.t_SB, given.s_SB
    with torch.no_grad():
        h = 1e-6 * t
        a_t, f = given.at(t), (given.at(t) - given.action_SBA) / t[..., None]
        sides = [given.phi(params, a_t + sign * h[..., None] * f, t + sign * h, s) for sign in (1, -1)]
        slope = (sides[0] - sides[1]) / (2 * h)[..., None]
        ratio = (s / t)[..., None]
        phi = given.phi(params, a_t, t, s)
        residual = ratio * (phi - given.action_SBA) + (t - s)[..., None] * slope
        expected = (given.weight_SB * residual.square().mean(-1)).mean(-1)
    assert torch.allclose(traj_S, expected, rtol=1e-6) and bool(inst_S > 0)


def test_the_average_map_of_one_data_point_is_its_own_target():
    t, s = torch.tensor([[3.0, 0.5]]), torch.tensor([[1.0, 0.002]])
    point, still = torch.full((1, 2, 2), 0.7), torch.zeros(1, 2, 2)
    assert torch.allclose(equations.average_map_target(t, s, point, point, still), point)
    moving = equations.average_map_target(t, torch.zeros_like(s), 9 * point, point, torch.ones_like(point))
    assert torch.allclose(moving, point - t[..., None])  # at s = 0 phi_inst has no part


def test_losses_compared_at_zero_are_the_plain_ones_where_s_is_zero():
    changes = {"compare_at_zero": True}
    for j, same in ((0, True), (None, False)):
        (carried, _), (plain, _) = (gtp_variants.published(*drawn(case("gtp", **c), j=j)) for c in (changes, {}))
        assert torch.equal(carried, plain) == same


@pytest.mark.parametrize("cap", [0.0, 2.0])
def test_normed_weights_have_mean_one_and_their_old_ratios(cap):
    advantage, eta = _normal(2, 64), torch.tensor([1.0, 3.0])
    plain = equations.advantage_weights(advantage, eta, cap)
    normed = equations.advantage_weights(advantage, eta, cap, normed=True)
    assert normed.mean(-1).tolist() == pytest.approx([1.0, 1.0], abs=1e-9)
    assert torch.allclose(normed / normed[:, :1], plain / plain[:, :1])


@pytest.mark.parametrize(("mean", "std"), [(-1.1, 2.0), (0.5, 0.7)])
def test_lognormal_times_have_the_frequencies_of_the_normal_distribution(mean, std):
    table = equations.schedule(100, 10, 20, 0.002, 80.0, 7.0, "cpu", (mean, std))
    draws = 200_000
    bits = torch.randint(0, 2**32, (2, 1, draws), generator=torch.Generator().manual_seed(0))
    for step, count in ((0, 11), (99, 21)):
        places = equations.draw_time_indices(table, torch.tensor(step), bits[0], bits[1])
        grid = equations.karras_grid(count, 0.002, 80.0, 7.0).tolist()
        below = [math.erf((math.log(t) - mean) / (math.sqrt(2) * std)) for t in grid]
        share = np.diff(below) / (below[-1] - below[0])
        seen = np.bincount(places.n[0].numpy(), minlength=count)[1:]
        assert len(seen) == count - 1
        common = share * draws > 5
        chi = ((seen - draws * share)[common] ** 2 / (draws * share[common])).sum()
        assert chi < common.sum() + 5 * math.sqrt(2 * common.sum())  # five deviations of a chi-square
        assert bool((places.j < places.n).all())


def test_the_ends_of_the_random_words_stay_on_the_grid():
    table = equations.schedule(100, 10, 20, 0.002, 80.0, 7.0, "cpu", (-1.1, 2.0))
    bits = torch.tensor([[0, 2**32 - 1]])
    assert equations.draw_time_indices(table, torch.tensor(0), bits, bits).n.tolist() == [[1, 10]]
    with pytest.raises(UsageError, match="leaves no time between"):
        equations.schedule(100, 10, 20, 0.002, 80.0, 7.0, "cpu", (90.0, 0.1))


@pytest.mark.parametrize("back", [1, 2, 3])
def test_s_lies_at_or_below_u_and_reaches_it(back):
    table = equations.schedule(100, 5, 5, 0.002, 80.0, 7.0, "cpu")
    bits = torch.randint(0, 2**32, (2, 1, 5_000), generator=torch.Generator().manual_seed(0))
    places = equations.draw_time_indices(table, torch.tensor(0), bits[0], bits[1], back)
    pairs = set(zip(places.n[0].tolist(), places.j[0].tolist(), strict=True))
    assert pairs == {(n, j) for n in range(1, 6) for j in range(max(n - back, 0) + 1)}


def test_a_fixed_schedule_has_one_stage_and_keeps_its_points():
    cfg = case("gtp", steps_schedule="fixed:40")
    table = gtp_variants._constants(cfg, gtp.layouts(cfg, OBS_DIM, ACTION_DIM), buffer_of(cfg)).schedule
    assert table.points.tolist() == [41] and table.width == 41
    assert torch.equal(table.grid, equations.karras_grid(41, 0.002, 80.0, 7.0).float())


def test_the_flow_process_goes_from_the_action_to_the_noise():
    action, z = _normal(1, 3, 2), _normal(1, 3, 2, seed=1)
    towards = equations.direction(action, z, "flow")
    for t in (0.0, 0.25, 1.0):
        time = torch.full((1, 3), t, dtype=torch.float64)
        assert torch.allclose(equations.perturb(action, time, towards), (1 - t) * action + t * z, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_every_sampler_acts_with_the_flow_process(steps):
    layout = networks.actor_layout(OBS_DIM, ACTION_DIM, 32)
    flat = networks.init_flat(layout, [0, 1])
    p = networks.views(flat, layout)
    grid = equations.sampling_grid(steps, 0.002, 1.0, 1.0)
    double = {name: view.double() for name, view in p.items()}
    drawn = np.random.default_rng(0)
    obs = drawn.normal(size=(2, 7, OBS_DIM)).astype(np.float32)
    z = drawn.normal(size=(2, 7, ACTION_DIM)).astype(np.float32)
    x, obs_in = torch.tensor(z).double(), torch.tensor(obs).double()
    for t, s in zip(grid.tolist()[:-1], grid.tolist()[1:], strict=True):
        time, to = torch.full((2, 7), t).double(), torch.full((2, 7), s).double()
        x = s / t * x + (1 - s / t) * networks.actor_network(double, x, time, to, obs_in, 0.002)
    expected = x.clamp(-1, 1).numpy()
    described = PolicyConfig(OBS_DIM, ACTION_DIM, 32, 0.002, 1.0, 0.5, 1.0, steps, 1, "none", (0, 1), process="flow")
    assert np.abs(AlgorithmSampler(described, double, None).actions(obs, z, None) - expected).max() < 1e-9
    assert np.abs(CpuSampler(p, None, grid, 0.5, 0.002, "flow").actions(obs, z, None) - expected).max() < 2e-6
    plain = policy.Policy(described, {"actor": flat}).reference()
    assert np.abs(plain.act_members(obs, z) - expected).max() < 2e-6


def test_a_run_of_the_flow_process_saves_it_and_its_policy_acts(tmp_path):
    cfg = tiny(tmp_path, process="flow", seeds=1)
    assert (cfg.sigma_max, cfg.rho) == (1.0, 1.0)
    train(cfg)
    loaded = load_policy(tmp_path / "run")
    assert loaded.config.process == "flow"
    obs, z = np.ones((3, 17), np.float32), np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    assert np.abs(loaded.act(obs, z) - loaded.reference().act(obs, z)).max() < 2e-6
    tensors, _ = checkpoint.load_policy(tmp_path / "run/ckpt/step-00000030")
    as_edm = policy.Policy(replace(loaded.config, process="edm"), tensors)
    assert np.abs(loaded.act(obs, z) - as_edm.act(obs, z)).max() > 1e-3


def test_an_older_description_means_edm_and_an_unknown_process_is_refused():
    saved = PolicyConfig(4, 3, 16, 0.002, 10.0, 0.5, 7.0, 5, 1, "none", (0,)).to_json()
    assert PolicyConfig.from_json({k: v for k, v in saved.items() if k != "process"}).process == "edm"
    with pytest.raises(CheckpointError, match="process"):
        PolicyConfig.from_json(saved | {"process": "vp"})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps_schedule": "fixed"}, "'fixed' is neither doubling nor fixed:N"),
        ({"steps_schedule": "fixed:-3"}, "is neither doubling nor fixed:N"),
        ({"steps_schedule": "fixed:0"}, r"is outside \[fixed:1, fixed:1000000\]"),
        ({"solver_steps": 4, "actor_loss": "solver"}, r"--solver-steps 4 is outside \[1, 3\]"),
        ({"solver": "euler"}, "--solver euler has no effect with --actor-loss gtp"),
        ({"lambda_q": 1.0}, "--lambda-q 1.0 has no effect with --actor-loss gtp"),
        ({"actor_loss": "denoiser", "compare_at_zero": True}, "--compare-at-zero has no effect"),
        ({"actor_loss": "consistency", "lambda_flow": 0.5}, "--lambda-flow 0.5 has no effect"),
        ({"actor_loss": "linear-q", "weight_norm": True}, "--weight-norm has no effect"),
        ({"actor_loss": "linear-q", "bc": True}, "--bc trains no critic, which --actor-loss linear-q needs"),
        ({"value": "expectile", "bc": True}, "--bc trains no critic, which --value expectile needs"),
        ({"value": "behaviour", "value_samples": 3}, "--value-samples 3 has no effect with --value behaviour"),
        ({"time_std": 1.0}, "--time-std 1.0 has no effect with --times grid"),
        ({"process": "flow"}, "pass --sigma-max 1, not 80"),
        ({"algo": "dql", "actor_loss": "denoiser"}, "--actor-loss denoiser is for --algo gtp, not dql"),
        ({"algo": "cac", "steps_schedule": "fixed:40"}, "--steps-schedule fixed:40 is for --algo gtp, not cac"),
    ],
)
def test_a_variant_that_cannot_be_run_or_changes_nothing_is_refused(changes, words):
    with pytest.raises(UsageError, match=words):
        validate(TrainConfig(env="x", **changes))


def test_a_flow_may_take_another_grid():
    assert run_settings({"env": "HalfCheetah-v5", "process": "flow", "rho": 3}).rho == 3.0
    with pytest.raises(UsageError, match="pass --sigma-max 1"):
        run_settings({"env": "HalfCheetah-v5", "process": "flow", "sigma_max": 5})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"actor_loss": "solver"}, "--actor-loss gtp: the fused step .*, not --actor-loss solver"),
        ({"process": "flow", "sigma_max": 1.0}, "--process edm: .*, not --process flow"),
        ({"compare_at_zero": True}, "no --compare-at-zero"),
        ({"value": "expectile"}, "--value policy: .*, not --value expectile"),
        ({"weight_norm": True}, "no --weight-norm"),
        ({"times": "lognormal"}, "--times grid: .*, not --times lognormal"),
    ],
)
def test_the_fused_backend_names_the_variant_that_it_lacks(changes, words):
    with pytest.raises(UsageError, match=f"--backend fused needs {words}"):
        device.resolve(TrainConfig(env="x", backend="fused", **changes))
    published = replace(small_config(), lambda_flow=0.5, weight_cap=5.0, steps_schedule="fixed:40")
    assert "computes the published loss" not in (device.missing_for_fused(published, "cuda") or "")
