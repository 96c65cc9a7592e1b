"""Rollouts lose no step and count none twice; the worker overlaps, survives, and agrees with a rollout here."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from typing import ClassVar

import gymnasium
import numpy as np
import pytest
import torch

from gtp_fast import catalog, networks
from gtp_fast.catalog import DataSpec, EvalEnv
from gtp_fast.errors import DataError, UsageError
from gtp_fast.evaluate import EvalResult, _without_compiler_warning, evaluate_policy, make_env
from gtp_fast.evaluator import EvaluationError, Evaluator
from gtp_fast.policy import Policy, PolicyConfig


class CountingEnv(gymnasium.Env):
    """Ends after as many steps as its seed says (3 to 9), by either cause; counts every step after its end."""

    late: ClassVar[list[int]] = []

    def __init__(self):
        self.observation_space = gymnasium.spaces.Box(-1, 1, (4,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.length, self.taken = 3 + (seed or 0) % 7, 0
        return np.zeros(4, np.float32), {}

    def step(self, action):
        self.taken += 1
        if self.taken > self.length:
            CountingEnv.late.append(self.taken)
        ended = self.taken == self.length
        by_time = self.length % 2 == 0
        return np.full(4, self.taken / 10, np.float32), 1.0, ended and not by_time, ended and by_time, {}


gymnasium.register("gtp_fast_tests/Counting-v0", CountingEnv, disable_env_checker=True)
COUNTING = DataSpec("counting", "file", eval_env=EvalEnv("gtp_fast_tests/Counting-v0"), ref_random=0.0, ref_expert=10.0)
HOPPER = catalog.resolve("Hopper-v5")


def config(obs_dim=4, action_dim=3, seeds=(0, 1)):
    return PolicyConfig(obs_dim, action_dim, 16, 0.002, 10.0, 0.5, 7.0, 2, 1, "none", seeds)


def tensors(c: PolicyConfig):
    return {"actor": networks.init_flat(networks.actor_layout(c.obs_dim, c.action_dim, c.hidden), list(c.seeds))}


def test_each_environment_runs_one_whole_episode_and_no_step_more():
    CountingEnv.late.clear()
    result = evaluate_policy(Policy(config(), tensors(config())), COUNTING, episodes=9, seed=0)
    expected = [3 + episode % 7 for episode in range(9)]
    assert result.lengths_SE.tolist() == [expected, expected] and CountingEnv.late == []
    assert np.array_equal(result.returns_SE, result.lengths_SE)
    assert np.allclose(result.scores_SE, 10.0 * result.returns_SE)


def test_an_evaluation_repeats_and_its_json_reads_back():
    first = evaluate_policy(Policy(config(11), tensors(config(11))), HOPPER, 2, seed=3, step=7)
    again = evaluate_policy(Policy(config(11), tensors(config(11))), HOPPER, 2, seed=3, step=7)
    assert np.array_equal(first.returns_SE, again.returns_SE)
    back = EvalResult.from_json(first.to_json())
    assert back.to_json() == first.to_json() and np.array_equal(back.returns_SE, first.returns_SE)
    other = evaluate_policy(Policy(config(11), tensors(config(11))), HOPPER, 2, seed=4)
    assert not np.array_equal(first.returns_SE, other.returns_SE)


def test_an_environment_of_another_size_is_refused():
    with pytest.raises(DataError, match=r"has observations of shape \(11,\) but the data have 4 numbers"):
        evaluate_policy(Policy(config(), tensors(config())), HOPPER, 1)


def test_building_an_environment_passes_on_what_was_written_but_for_one_known_line(capfd):
    env = make_env(EvalEnv("HalfCheetah-v5"))
    env.close()
    assert "settotalmass" not in capfd.readouterr().err
    with _without_compiler_warning():
        os.write(2, b"something else\n")
    assert capfd.readouterr().err == "something else\n"


def test_an_entry_without_an_environment_is_refused():
    with pytest.raises(UsageError, match="names no evaluation environment"):
        evaluate_policy(Policy(config(), tensors(config())), replace(COUNTING, eval_env=None), 1)


@pytest.fixture
def evaluator():
    running = Evaluator(config(11), HOPPER, episodes=2, seed=0)
    yield running
    running.close()


def _all(evaluator):
    results = []
    for _ in range(600):
        results += evaluator.poll(wait=0.1)
        if not evaluator.pending():
            return results
    raise AssertionError("the worker did not answer within a minute")


@pytest.mark.slow
def test_the_worker_gives_what_a_rollout_here_gives_and_submitting_does_not_wait(evaluator):
    snapshot = tensors(config(11))
    started = time.monotonic()
    for step in (10, 20, 30):
        evaluator.submit(step, snapshot)
    assert time.monotonic() - started < 1.0 and list(evaluator.pending()) == [10, 20, 30]
    results = _all(evaluator)
    here = evaluate_policy(Policy(config(11), snapshot), HOPPER, 2, seed=0, step=10)
    assert [result.step for result, _ in results] == [10, 20, 30]
    assert np.array_equal(results[0][0].returns_SE, here.returns_SE)
    assert torch.equal(results[0][1]["actor"], snapshot["actor"])


@pytest.mark.slow
def test_a_killed_worker_is_started_again_once(evaluator):
    evaluator.submit(10, tensors(config(11)))
    os.kill(evaluator._process.pid, signal.SIGKILL)
    assert [result.step for result, _ in _all(evaluator)] == [10]
    evaluator.submit(20, tensors(config(11)))
    os.kill(evaluator._process.pid, signal.SIGKILL)
    with pytest.raises(EvaluationError, match="died twice"):
        _all(evaluator)


@pytest.mark.slow
def test_a_failure_in_the_worker_is_an_error_here_with_its_words():
    failing = Evaluator(config(5), HOPPER, episodes=1, seed=0)
    failing.submit(10, tensors(config(5)))
    with pytest.raises(EvaluationError, match=r"has observations of shape \(11,\) but the data have 5 numbers"):
        _all(failing)
