"""What the two algorithms with one action for an observation, IQL and TD3+BC, promise like every other."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from capture_safety import problems_of
from learn_cases import ACTION_DIM, OBS_DIM, buffer_of, small_config

import gtp_fast
from gtp_fast import algorithms, device
from gtp_fast.algorithms import networks
from gtp_fast.algorithms.backends import stepper
from gtp_fast.config import DETERMINISTIC
from gtp_fast.data.catalog import run_settings
from gtp_fast.errors import UsageError
from gtp_fast.experiments import report
from gtp_fast.runs import checkpoint
from gtp_fast.runs.directory import RunDir

pytestmark = pytest.mark.parametrize("algo", DETERMINISTIC)


def _config(algo, **changes):
    return replace(small_config(), algo=algo, sampling_steps=1, **changes)


def _trained(cfg, steps):
    state = algorithms.of(cfg).init_state(cfg, OBS_DIM, ACTION_DIM, "cpu")
    stepper(cfg, state, buffer_of(cfg))(steps)
    return state


def test_a_seed_among_others_trains_like_the_seed_alone(algo):
    together, alone = (
        _trained(_config(algo, **changes), 10) for changes in ({"seed": 3, "seeds": 3}, {"seed": 4, "seeds": 1})
    )
    assert together.critic is not None and alone.critic is not None
    # Batched products may sum in another order: float32 rounding, grown over ten steps.
    assert torch.allclose(together.actor.param[1], alone.actor.param[0], atol=2e-6)
    assert torch.allclose(together.critic.param[2:4], alone.critic.param, atol=2e-6)


@pytest.mark.parametrize("changes", [{}, {"bc": True}, {"lr_schedule": "cosine", "grad_norm": 0.0}], ids=str)
def test_promise_9_the_step_stays_on_the_device(algo, changes):
    cfg = _config(algo, **changes)
    module = algorithms.of(cfg)
    state = module.init_state(cfg, OBS_DIM, ACTION_DIM, "cpu")
    assert problems_of(module.make_step(cfg, state, buffer_of(cfg)), state.tensors) == []
    state = module.init_state(cfg, OBS_DIM, ACTION_DIM, "meta")
    assert problems_of(module.make_step(cfg, state, buffer_of(cfg, device="meta")), dict, steps=1) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"candidates": 4}, "--candidates 4.*pass 1 for both"),
        ({"sampling_steps": 5}, "--sampling-steps 5.*pass 1 for both"),
        ({"max_q_backup": True}, "--max-q-backup does not apply to"),
    ],
    ids=str,
)
def test_what_a_policy_of_one_action_has_not_is_refused(algo, changes, words):
    with pytest.raises(UsageError, match=words):
        run_settings({"env": "multigoal-v0", "algo": algo} | changes)


def test_the_fused_backend_is_refused_by_name(algo):
    with pytest.raises(UsageError, match=f"the step of {algo} is not fused"):
        device.resolve(run_settings({"env": "multigoal-v0", "algo": algo, "backend": "fused"}))


def _run(folder: Path, algo, bc):
    settings = {"env": "multigoal-v0", "algo": algo, "bc": bc, "steps": 6, "batch_size": 32, "hidden": 32, "seeds": 2}
    every = {"log_every": 2, "save_every": 3, "eval_every": 3, "eval_episodes": 2}
    return gtp_fast.train(run_dir=str(folder), **settings, **every, threads=1, device="cpu", backend="eager")


@pytest.mark.parametrize("bc", [False, True], ids=["whole", "bc"])
def test_a_run_is_evaluated_saved_resumed_bitwise_reported_and_acts(algo, bc, tmp_path: Path):
    _run(tmp_path / "whole", algo, bc)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(RunDir(tmp_path / "cut").checkpoint(6))
    _run(tmp_path / "cut", algo, bc)
    first, second = (RunDir(tmp_path / name) for name in ("whole", "cut"))
    states = [(run.checkpoint(6) / checkpoint.STATE).read_bytes() for run in (first, second)]
    assert states[0] == states[1] and first.metrics.read_bytes() == second.metrics.read_bytes()
    assert first.evaluation(6).exists()
    assert (report.draw_report([first.path], tmp_path / "report") / "summary.json").exists()
    policy, obs = gtp_fast.load_policy(first.path, seed=1), np.random.default_rng(0).normal(size=(5, 2))
    tensors, _ = checkpoint.load_policy(first.checkpoint(6))
    p = networks.views(tensors["actor"][1:], algorithms.of(policy.config).layouts(policy.config, 2, 2)["actor"])
    expected = networks.mean_actions(p, torch.from_numpy(obs)[None].float())[0].numpy()
    # Nothing is drawn: each call has the same action, with no noise or with noise of no columns.
    for actions in (policy.act(obs), policy.act(obs), policy.act(obs, np.zeros((5, 0)))):
        assert np.allclose(actions, expected, atol=1e-6)
    with pytest.raises(UsageError, match="has one action for an observation"):
        gtp_fast.load_policy(first.path, candidates=4)
