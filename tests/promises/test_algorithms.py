"""What every algorithm promises: it follows a slow twin, keeps members apart, stays on the device, and runs end to end.

The cases are in `tests/support/learn_cases.py`; what is an algorithm's own mathematics is in `tests/algorithms`.
"""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from capture_safety import problems_of
from families import family
from learn_cases import ACTION_DIM, ALGORITHMS, CASES, OBS_DIM, buffer_of, case, fresh, trained, transitions, went_alike
from oracles import ORACLES
from run_cases import multigoal

import gtp_fast
from gtp_fast import algorithms, device
from gtp_fast.algorithms import networks
from gtp_fast.algorithms.policy_config import of_run
from gtp_fast.config import DETERMINISTIC
from gtp_fast.data.catalog import run_settings
from gtp_fast.errors import UsageError
from gtp_fast.experiments import report
from gtp_fast.runs import checkpoint
from gtp_fast.runs.directory import RunDir

every_algorithm = pytest.mark.parametrize("name", ALGORITHMS)


@pytest.mark.parametrize("name", CASES)
def test_steps_follow_the_slow_implementation(name):
    cfg, data = case(name), transitions()
    state, start = trained(cfg, 12, data).tensors(), fresh(cfg).tensors()
    for member in range(cfg.seeds):
        slow = ORACLES[cfg.algo](cfg, data, OBS_DIM, ACTION_DIM, cfg.seed + member)
        for _ in range(12):
            slow.train_step()
        for key, expected in slow.tensors().items():
            rows = slice(member * len(expected), (member + 1) * len(expected))
            way = (expected - start[key][rows].double()).norm(dim=1)
            # Of the way that twelve steps went, float32 may lose 1e-3: Adam divides small gradients by their size.
            assert ((state[key][rows].double() - expected).norm(dim=1) < 1e-3 * way).all(), key
        assert {*slow.raised} in ({0, 1}, set()), "where a coin falls, it fell on both sides"
    assert (state["first_bad"] == -1).all()


CAPTURED: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in CASES} | {
    "gtp-cosine-two-samples": ("gtp", {"lr_schedule": "cosine", "value_samples": 2}),
    "cac-cosine": ("cac", {"lr_schedule": "cosine"}),
    "fql-cosine-clipped": ("fql", {"lr_schedule": "cosine", "grad_norm": 1.0}),
    "iql-cosine-plain": ("iql", {"lr_schedule": "cosine", "grad_norm": 0.0}),
    "td3bc-cosine-plain": ("td3bc", {"lr_schedule": "cosine", "grad_norm": 0.0}),
}


NOT_SHARED = ["gtp-meanflow", "gtp-shortcut", "gtp-heun", "gtp-max-q-backup", "gtp-denoiser", "gtp-flow"]
NOT_SHARED += ["gtp-cosine-two-samples", "cac-cosine", "cac-bc", "dql-max-q-backup", "iql-bc", "td3bc-plain"]


@pytest.mark.parametrize("name", family(CAPTURED, quick=[*ALGORITHMS, *NOT_SHARED]))
def test_promise_9_the_step_stays_on_the_device(name):
    cfg = case(CAPTURED[name][0], **CAPTURED[name][1])
    module, state = algorithms.of(cfg), fresh(cfg)
    state.step.fill_(3)  # the EMA starts at 4 and is due every fifth step, and the trace must not show it
    assert problems_of(module.make_step(cfg, state, buffer_of(cfg)), state.tensors) == []
    on_meta = module.make_step(cfg, fresh(cfg, "meta"), buffer_of(cfg, device="meta"))
    assert problems_of(on_meta, dict, steps=1) == [], "a tensor of the step lives on the host"


@every_algorithm
def test_a_seed_among_others_trains_like_the_seed_alone(name):
    cfg = case(name, seed=4, seeds=1)
    together, alone, start = trained(case(name, seed=3, seeds=3), 10), trained(cfg, 10), fresh(cfg)
    assert went_alike(together.actor.param[1], alone.actor.param[0], start.actor.param[0])
    assert together.critic is not None and alone.critic is not None and start.critic is not None
    assert went_alike(together.critic.param[2:4], alone.critic.param, start.critic.param)


@pytest.mark.parametrize("name", ["gtp", "cac", "dql", "iql"])
def test_members_of_a_sweep_train_as_alone_with_their_own_eta_and_learning_rate(name):
    together = trained(case(name, seeds=2, etas="0.5,8", lrs="1e-3,2e-4"), 6)
    for i, (eta, lr) in enumerate([(0.5, 1e-3), (8.0, 2e-4)]):
        alone = trained(case(name, seed=i, seeds=1, eta=eta, lr=lr), 6)
        assert torch.allclose(together.actor.param[i], alone.actor.param[0], atol=1e-6)


@pytest.mark.parametrize("name", ["gtp", "cac", "dql", "iql"])
def test_behaviour_cloning_has_neither_critic_nor_value_and_is_eta_zero_bit_for_bit(name):
    guided, cloned = trained(case(name, eta=0.0), 8), trained(case(name, bc=True), 8)
    assert torch.equal(guided.actor.param, cloned.actor.param)
    assert guided.critic is not None and cloned.critic is None and cloned.value is None


@pytest.mark.parametrize(
    ("name", "knob", "guided", "cloning", "steps", "least"),
    [
        pytest.param("fql", "alpha", 0.1, 1000.0, 300, 0.7, marks=pytest.mark.long),
        pytest.param("iql", "eta", 10.0, 0.0, 150, 0.4, marks=pytest.mark.long),
        ("td3bc", "alpha", 10.0, 0.0, 150, 0.7),
    ],
)
def test_the_policy_climbs_the_value_that_behaviour_does_not_know(name, knob, guided, cloning, steps, least):
    data, reached = transitions(size=2000), []
    data.reward_N[:], data.terminal_N[:] = data.action_NA[:, 0], True
    draw = torch.Generator().manual_seed(0)
    obs, z = (torch.randn(1, 500, size, generator=draw) for size in (OBS_DIM, ACTION_DIM))
    for value in (guided, cloning):
        cfg = case(name, **{knob: value}, seeds=1, batch_size=64, lr=1e-3 if name == "fql" else 3e-3)
        config, module = of_run(cfg, OBS_DIM, ACTION_DIM), algorithms.of(cfg)
        p = networks.views(trained(cfg, steps, data).actor.param, module.layouts(cfg, OBS_DIM, ACTION_DIM)["actor"])
        reached.append(float(module.path(p, obs, z, config)[-1].clamp(-1, 1)[..., 0].mean()))
    assert reached[0] > least and abs(reached[1]) < 0.2


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fql", {"hidden": 512, "layers": 4, "sampling_steps": 10, "grad_norm": 0.0, "lr": 3e-4, "reward_scale": 4.0}),
        ("iql", {"eta": 3.0, "expectile": 0.7, "weight_cap": 100.0, "lr": 3e-4, "grad_norm": 0.0, "sampling_steps": 1}),
        ("iql", {"lr_schedule": "cosine"}),
        ("td3bc", {"alpha": 2.5, "lr": 3e-4, "grad_norm": 0.0, "tau": 0.005, "sampling_steps": 1, "reward_scale": 4.0}),
    ],
)
def test_the_published_settings_stand_above_those_of_a_task(name, expected):
    cfg = run_settings({"env": "antmaze-medium-play-v0", "algo": name})
    assert {key: getattr(cfg, key) for key in expected} == expected
    assert not cfg.max_q_backup  # which GTP has for this task


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("fql", {"etas": "1,2"}, "does not apply to fql"),
        ("fql", {"max_q_backup": True}, "does not apply to fql"),
        *(
            (name, changes, words)
            for name in DETERMINISTIC
            for changes, words in (
                ({"candidates": 4}, "--candidates 4.*pass 1 for both"),
                ({"sampling_steps": 5}, "--sampling-steps 5.*pass 1 for both"),
                ({"max_q_backup": True}, "--max-q-backup does not apply to"),
            )
        ),
    ],
    ids=str,
)
def test_a_setting_that_an_algorithm_does_not_have_is_refused(name, changes, words):
    with pytest.raises(UsageError, match=words):
        run_settings({"env": "multigoal-v0", "algo": name, "bc": False, "seeds": 2} | changes)


@pytest.mark.parametrize("name", ALGORITHMS[1:])
def test_the_fused_backend_is_refused_by_name(name):
    with pytest.raises(UsageError, match=f"the step of {name} is not fused"):
        device.resolve(run_settings({"env": "multigoal-v0", "algo": name, "backend": "fused"}))


RUNS: dict[str, dict[str, Any]] = {
    "cac": {},
    "dql": {"sampling_steps": 3, "candidates": 4, "select": "softmax"},
    "fql": {"layers": 2},
    "fql-bc": {"layers": 2, "bc": True},
    "iql": {},
    "iql-bc": {"bc": True},
    "td3bc": {},
    "td3bc-bc": {"bc": True},
}


def _run(folder: Path, name: str, **changes: Any) -> RunDir:
    own = {"algo": name.removesuffix("-bc"), "bc": False, "seeds": 2, "save_every": 3} | RUNS[name]
    return RunDir(Path(gtp_fast.train(**multigoal(folder, **(own | changes))).run_dir))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return what gives a run of six steps by name; nothing below changes it."""
    folder = tmp_path_factory.mktemp("runs")
    return cache(lambda name: _run(folder / name, name))


@pytest.mark.parametrize("name", RUNS)
def test_promise_2_a_run_resumed_from_a_checkpoint_ends_bitwise_equal(name, whole, tmp_path: Path):
    first, second = whole(name), RunDir(tmp_path / "cut")
    shutil.copytree(first.path, second.path)
    shutil.rmtree(second.checkpoint(6))
    _run(second.path, name)
    states = [(run.checkpoint(6) / checkpoint.STATE).read_bytes() for run in (first, second)]
    assert states[0] == states[1] and first.metrics.read_bytes() == second.metrics.read_bytes()


@pytest.mark.parametrize("name", family(RUNS, quick=["td3bc"]))
def test_a_run_is_evaluated_and_reported_and_trains_as_without(name, whole, tmp_path: Path):
    run = _run(tmp_path / "run", name, eval_every=3)
    assert run.evaluation(3).exists() and run.evaluation(6).exists()
    assert (run.checkpoint(6) / checkpoint.STATE).read_bytes() == (
        whole(name).checkpoint(6) / checkpoint.STATE
    ).read_bytes()
    page = report.draw_report([run.path], tmp_path / "report")
    assert (page / "summary.json").exists() and (page / "README.md").exists()


@pytest.mark.parametrize("name", RUNS)
def test_the_policy_of_a_run_acts_in_range_and_by_its_noise_alone(name, whole):
    policy, obs = gtp_fast.load_policy(whole(name).path, seed=1), np.random.default_rng(0).normal(size=(5, 2))
    assert policy.config.algo == name.removesuffix("-bc") and policy.act(np.zeros(2)).shape == (2,)
    columns = algorithms.of(policy.config).noise_columns(policy.config)
    noise = np.random.default_rng(0).normal(size=(5 * policy.config.candidates, columns)).astype(np.float32)
    actions = policy.act(obs, noise)
    assert actions.shape == (5, 2) and np.abs(actions).max() <= 1.0 and np.array_equal(actions, policy.act(obs, noise))


@pytest.mark.parametrize("name", [name for name in RUNS if name.removesuffix("-bc") in DETERMINISTIC])
def test_a_policy_of_one_action_returns_its_mean_whether_given_noise_or_not(name, whole):
    run, obs = whole(name), np.random.default_rng(0).normal(size=(5, 2))
    policy, (tensors, _) = gtp_fast.load_policy(run.path, seed=1), checkpoint.load_policy(run.checkpoint(6))
    p = networks.views(tensors["actor"][1:], algorithms.of(policy.config).layouts(policy.config, 2, 2)["actor"])
    expected = networks.mean_actions(p, torch.from_numpy(obs)[None].float())[0].numpy()
    for actions in (policy.act(obs), policy.act(obs), policy.act(obs, np.zeros((5, 0)))):
        assert np.allclose(actions, expected, atol=1e-6)
    with pytest.raises(UsageError, match="has one action for an observation"):
        gtp_fast.load_policy(run.path, candidates=4)
