"""Rollouts lose no step and count none twice, and live with what an environment does."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import ClassVar

import gymnasium
import numpy as np
import pytest
from eval_cases import config, spec, tensors

from gtp_fast import catalog
from gtp_fast.data_spec import DataSpec, EvalEnv
from gtp_fast.environments import _without_compiler_warning, make_env
from gtp_fast.errors import DataError, UsageError
from gtp_fast.evaluate import EvalResult, evaluate_policy
from gtp_fast.policy import Policy


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


def test_an_evaluation_does_not_depend_on_what_the_policy_did_before():
    policy = Policy(config(11), tensors(config(11)))
    first = evaluate_policy(policy, HOPPER, 2, seed=3)
    assert np.array_equal(evaluate_policy(policy, HOPPER, 2, seed=3).returns_SE, first.returns_SE)


@pytest.mark.parametrize("way", ["nan", "large", "reward", "healthy"])
def test_an_episode_that_diverges_ends_there_and_leaves_the_others_alone(way):
    result = evaluate_policy(Policy(config(), tensors(config())), spec("Diverging", way=way), episodes=4)
    assert result.lengths_SE.tolist() == [[8, 3, 8, 3]] * 2
    # The reward of the last step counts where it is a number.
    assert result.returns_SE.tolist() == [[8, 2 if way == "reward" else 3] * 2] * 2
    assert result.diverged_SE.tolist() == [[False, True, False, True]] * 2 and np.isfinite(result.figures).all()


def test_an_episode_that_diverged_is_named():
    result = evaluate_policy(Policy(config(), tensors(config())), spec("Diverging", way="nan"), episodes=2)
    assert len(result.notes) == 2 and "seed 1, episode 1" in result.notes[1] and "after 3 steps" in result.notes[1]
    back = EvalResult.from_json(json.loads(json.dumps(result.to_json())))
    assert back.notes == result.notes
    older = {name: value for name, value in result.to_json().items() if name != "diverged"}
    assert EvalResult.from_json(older).notes == []


def test_an_environment_that_is_not_finite_at_its_reset_is_refused():
    with pytest.raises(UsageError, match=r"Diverging-v0 gave an observation with NaN or Inf at its reset"):
        evaluate_policy(Policy(config(), tensors(config())), spec("Diverging", way="reset"), episodes=1)


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
