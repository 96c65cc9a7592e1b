"""What reaches an environment: the actions of the data, in the units in which the file recorded them."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from data_cases import columns, write
from eval_cases import config, spec, tensors
from families import family

import gtp_fast
from gtp_fast.data.units import Actions
from gtp_fast.errors import DataError, UsageError
from gtp_fast.evaluation.environments import make_env
from gtp_fast.evaluation.evaluate import EvalConfig, eval_run, evaluate_policy
from gtp_fast.policy.export import drawn, onnx_bytes, reader
from gtp_fast.policy.policy import Policy

WIDE, QUARTER, POSITIVE = (-2.0, 2.0), (-0.25, 0.25), (0.0, 1.0)
# Bounds of the environment, what is known of the policy's actions, the policy's action, what must arrive.
REACHES = {
    "scaled to wide bounds": (WIDE, Actions("scaled", ((-2.0,), (2.0,))), 0.3, 0.6),
    "scaled to narrow bounds": (QUARTER, Actions("scaled", ((-0.25,), (0.25,))), 1.0, 0.25),
    "scaled to unsymmetric bounds": (POSITIVE, Actions("scaled", ((0.0,), (1.0,))), -0.5, 0.25),
    "scaled to bounds that were not known": (POSITIVE, Actions("scaled", None), -0.5, 0.25),
    "the environment's own, held to narrow bounds": (QUARTER, Actions("environment", ((-0.25,), (0.25,))), 1.0, 0.25),
    "the environment's own, inside": (QUARTER, Actions("environment", ((-0.25,), (0.25,))), 0.125, 0.125),
    "the environment's own, held to 0": (POSITIVE, Actions("environment", ((0.0,), (1.0,))), -0.7, 0.0),
    "a former policy, wide bounds": (WIDE, None, 0.3, 0.6),
    "a former policy, narrow bounds": (QUARTER, None, 1.0, 0.25),
}


CLONING = {"algo": "td3bc", "bc": True, "steps": 400, "lr": 3e-3, "hidden": 32, "batch_size": 64, "backend": "eager"}
CLONING |= {"eval_every": 400, "eval_episodes": 1, "threads": 1, "sampling_steps": 1, "ema_every": 1, "ema_decay": 0.9}


@pytest.mark.parametrize(("bounds", "acts", "action", "arrives"), REACHES.values(), ids=REACHES)
def test_a_policys_action_reaches_the_environment_in_its_units(bounds, acts, action, arrives):
    low, high = bounds
    with closing(make_env(spec("Bounded", low=low, high=high).eval_env, acts=acts)) as env:
        env.reset(seed=0)
        assert env.step(np.float32([action]))[1] == pytest.approx(arrives, abs=1e-6)


@pytest.mark.parametrize(
    ("recorded", "bounds", "units"),
    [
        pytest.param(0.6, WIDE, "environment", marks=pytest.mark.long),
        pytest.param(1.5, WIDE, "auto", marks=pytest.mark.long),
        pytest.param(0.2, QUARTER, "auto", marks=pytest.mark.long),
        (0.8, POSITIVE, "auto"),
    ],
)
def test_a_clone_plays_the_numbers_that_were_recorded(tmp_path: Path, recorded, bounds, units):
    low, high = bounds
    env = f"eval_cases:gtp_fast_tests/{'Wide' if bounds == WIDE else 'Quarter' if bounds == QUARTER else 'Positive'}-v0"
    values = columns(episodes=10, sizes=(4, 1)) | {"actions": np.full((200, 1), recorded, np.float32)}
    values["observations"] = values["observations"] / 200
    result = gtp_fast.train(
        env=env,
        dataset=str(write(tmp_path / "a.hdf5", values)),
        run_dir=str(tmp_path / "run"),
        action_units=units,
        **CLONING,
    )
    assert result.return_last is not None
    assert result.return_last[0] / 8 == pytest.approx(recorded, abs=0.05 * (high - low))
    policy = gtp_fast.load_policy(result.run_dir)
    taken = policy.to_environment(policy.act(np.zeros(4, np.float32)))
    assert taken == pytest.approx(recorded, abs=0.05 * (high - low)) and low <= taken[0] <= high
    about = json.loads((tmp_path / "run/policy.json").read_text())
    assert (about["action_low"], about["action_high"]) == ([low], [high])
    assert about["action_units"] == ("scaled" if bounds == WIDE else "environment")
    asked = EvalConfig(episodes=1, env_seed=0, allow_import=["eval_cases"])
    again = eval_run(tmp_path / "run", asked).result.returns_SE[0, 0]
    assert again == pytest.approx(result.return_last[0], abs=1e-5)


def test_a_policy_of_other_bounds_than_the_environments_is_not_scored():
    policy = _policy(action_units="scaled", action_low=(-3.0,), action_high=(3.0,))
    with pytest.raises(DataError, match=r"actions of other bounds, \[-2, 2\], than the data, \[-3, 3\]"):
        evaluate_policy(policy, spec("Bounded", low=-2.0, high=2.0), 1)


def test_a_policy_that_does_not_know_its_units_says_so():
    for policy in (_policy(), _policy(action_units="scaled")):
        with pytest.raises(UsageError, match="does not say what its actions stand for"):
            policy.to_environment(np.zeros(1, np.float32))


@pytest.mark.parametrize("units", family(["scaled", "environment"], quick=["scaled"]))
def test_the_exported_file_tells_what_its_actions_stand_for(units):
    onnxruntime = pytest.importorskip("onnxruntime")
    policy = _policy(action_units=units, action_low=(-0.25,), action_high=(0.5,), sampling_steps=1).member(0)
    data = onnx_bytes(policy, {"policy": policy.config.to_json()})
    about = json.loads(onnxruntime.InferenceSession(data).get_modelmeta().custom_metadata_map["gtp_fast.policy"])
    inputs = drawn(policy, 5)
    action = reader("onnx", data)(inputs)
    low, high = np.array(about["action_low"]), np.array(about["action_high"])
    if about["action_units"] == "scaled":
        action = low + (action + 1) / 2 * (high - low)
    assert np.allclose(np.clip(action, low, high), policy.to_environment(policy.act(**inputs)), atol=1e-4)


def _policy(**changes) -> Policy:
    described = replace(config(4, 1), **changes)
    return Policy(described, tensors(described))


def test_a_file_of_small_actions_and_wide_bounds_stops_before_a_run_exists(tmp_path: Path):
    values = columns(sizes=(4, 1)) | {"actions": np.full((60, 1), 0.6, np.float32)}
    path = write(tmp_path / "a.hdf5", values)
    settings = {"env": "eval_cases:gtp_fast_tests/Wide-v0", "dataset": str(path), "run_dir": str(tmp_path / "run")}
    with pytest.raises(DataError, match="pass --action-units environment if the environment received them"):
        gtp_fast.train(**settings, steps=2)
    assert not (tmp_path / "run").exists()
    with h5py.File(path, "a") as file:
        file.attrs["action_units"] = "scaled"
    gtp_fast.train(**settings, steps=2, eval_every=0, hidden=16, backend="eager")
    log = (tmp_path / "run/train.log").read_text()
    assert "note   actions are scaled: evaluations map [-1, 1] to the environment's [-2, 2]" in log
