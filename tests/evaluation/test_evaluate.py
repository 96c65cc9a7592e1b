"""Rollouts lose no step and count none twice, and live with what an environment does."""

from __future__ import annotations

import json
import os
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eval_cases import config, spec, tensors, untrained

from gtp_fast.data import catalog
from gtp_fast.data.spec import EvalEnv
from gtp_fast.errors import DataError, GtpError, UsageError
from gtp_fast.evaluation.environments import _without_notices, make_env, step_limit, with_limit
from gtp_fast.evaluation.evaluate import evaluate_policy
from gtp_fast.policy.policy import Policy
from gtp_fast.runs import records
from gtp_fast.runs.directory import RunDir
from gtp_fast.runs.records import EvalResult

COUNTING = replace(spec("Counting"), ref_random=0.0, ref_expert=10.0)
HOPPER = catalog.resolve("Hopper-v5")


@pytest.mark.parametrize("workers", [1, 2])
def test_each_episode_runs_whole_and_no_step_is_lost_or_counted_twice(workers):
    result = evaluate_policy(untrained(), COUNTING, episodes=9, seed=0, workers=workers)
    expected = np.array([[3 + episode % 7 for episode in range(9)]] * 2)
    assert np.array_equal(result.lengths_SE, expected)
    assert np.array_equal(result.returns_SE, expected * (expected + 1) / 2)
    assert np.allclose(result.scores_SE, 10.0 * result.returns_SE)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_time_limit_ends_an_episode_and_each_has_a_seed_that_members_share(workers):
    result = evaluate_policy(untrained(), spec("Numbered"), 7, seed=2, workers=workers)
    assert result.lengths_SE.tolist() == [[6] * 7] * 2
    assert result.returns_SE.tolist() == [[6 * (200_006 + episode) for episode in range(7)]] * 2


@pytest.mark.parametrize("algo", ["gtp", "td3bc"])
def test_neither_workers_nor_episodes_nor_other_members_change_an_episode_by_a_bit(algo):
    c = replace(config(11), algo=algo)
    policy = Policy(c, tensors(c))
    alone = evaluate_policy(policy, HOPPER, 7, seed=3, workers=1)
    for workers in (2, 3):
        again = evaluate_policy(policy, HOPPER, 7, seed=3, workers=workers)
        assert np.array_equal(alone.returns_SE, again.returns_SE) and np.array_equal(alone.lengths_SE, again.lengths_SE)
    fewer = evaluate_policy(policy.member(1), HOPPER, 3, seed=3, workers=2)
    assert np.array_equal(alone.returns_SE[1:, :3], fewer.returns_SE)


def test_an_episode_without_an_end_is_cut_and_counts_with_its_return_up_to_there(monkeypatch):
    monkeypatch.setattr("gtp_fast.evaluation.environments.LONGEST", 40)
    result = evaluate_policy(untrained(), spec("Endless"), 3)
    assert result.lengths_SE.tolist() == [[40] * 3] * 2 and result.returns_SE.tolist() == [[40.0] * 3] * 2
    (note,) = result.notes
    assert "6 of 6 episodes had not ended after 40 steps; they count with their return up to there" in note
    back = EvalResult.from_json(json.loads(json.dumps(result.to_json())))
    assert back.notes == result.notes and back.limit == 40
    older = {name: value for name, value in result.to_json().items() if name not in ("cut", "limit")}
    assert EvalResult.from_json(older).notes == []


@pytest.mark.parametrize(
    ("name", "asked", "lengths", "cut"),
    [("Numbered", 0, 6, 0), ("Numbered", 4, 4, 4), ("Numbered", 9, 9, 4), ("Small", 8, 8, 0), ("Small", 7, 7, 4)],
    ids=["its own", "shorter", "longer than its own", "as it ends", "before it ends"],
)
def test_the_limit_that_is_asked_for_stands_in_place_of_the_environments(name, asked, lengths, cut):
    result = evaluate_policy(untrained(), with_limit(spec(name), asked), 2)
    assert result.lengths_SE.tolist() == [[lengths] * 2] * 2 and result.cut_SE is not None
    assert result.cut_SE.sum() == cut and result.limit == (asked or None)


@pytest.mark.parametrize(
    ("name", "limit"),
    [("multigoal-v0", None), ("antmaze-umaze-v0", None), ("Hopper-v5", None), ("PointMaze_UMaze-v3", None)],
)
def test_environments_that_end_by_themselves_are_not_limited(name, limit):
    entry = catalog.resolve(name).eval_env
    assert entry is not None
    try:
        with closing(make_env(entry)) as env:
            assert step_limit(entry, env) is limit
    except UsageError as absent:
        pytest.skip(str(absent))


def test_an_episode_draws_the_noise_of_its_own_row():
    policy, obs = untrained(), np.ones((2, 9, 4), np.float32)
    whole = [policy.act_members(obs) for _ in range(3)]
    later = policy.reset_noise(4)
    assert np.allclose([later.act_members(obs[:, 4:]) for _ in range(3)], np.array(whole)[:, :, 4:], atol=1e-6)


@pytest.mark.parametrize(("score", "scored"), [("success", [[0.0, 100.0, 0.0]] * 2), ("return", None)])
def test_an_episode_succeeds_if_one_step_says_so(score, scored):
    result = evaluate_policy(untrained(), replace(spec("Succeeding"), score=score), 3)
    assert result.success_SE is not None and result.success_SE.tolist() == [[False, True, False]] * 2
    assert (None if result.scores_SE is None else result.scores_SE.tolist()) == scored
    back = EvalResult.from_json(json.loads(json.dumps(result.to_json())))
    assert back.success_SE is not None and back.success_SE.tolist() == result.success_SE.tolist()


@pytest.mark.parametrize("form", ["bool", "number", "array"])
def test_is_success_counts_as_success_in_every_form(form):
    result = evaluate_policy(untrained(), replace(spec("Fetching", form=form), score="success"), 3)
    assert result.success_SE is not None and result.success_SE.tolist() == [[False, True, False]] * 2
    assert result.scores_SE is not None and result.scores_SE.tolist() == [[0.0, 100.0, 0.0]] * 2


def test_success_that_no_step_reports_is_not_known():
    silent = evaluate_policy(untrained(), replace(spec("Small"), score="success"), 2)
    assert silent.success_SE is None and silent.scores_SE is None and silent.to_json()["success"] is None
    older = {name: value for name, value in silent.to_json().items() if name != "success"}
    assert EvalResult.from_json(older).success_SE is None


def test_an_evaluation_repeats_and_its_json_reads_back():
    first = evaluate_policy(untrained(11), HOPPER, 2, seed=3, step=7)
    again = evaluate_policy(untrained(11), HOPPER, 2, seed=3, step=7)
    assert np.array_equal(first.returns_SE, again.returns_SE)
    back = EvalResult.from_json(first.to_json())
    assert back.to_json() == first.to_json() and np.array_equal(back.returns_SE, first.returns_SE)
    other = evaluate_policy(untrained(11), HOPPER, 2, seed=4)
    assert not np.array_equal(first.returns_SE, other.returns_SE)


def test_an_evaluation_does_not_depend_on_what_the_policy_did_before():
    policy = untrained(11)
    first = evaluate_policy(policy, HOPPER, 2, seed=3)
    assert np.array_equal(evaluate_policy(policy, HOPPER, 2, seed=3).returns_SE, first.returns_SE)


@pytest.mark.parametrize("way", ["nan", "large", "reward", "healthy"])
def test_an_episode_that_diverges_ends_there_and_leaves_the_others_alone(way):
    result = evaluate_policy(untrained(), spec("Diverging", way=way), episodes=4)
    assert result.lengths_SE.tolist() == [[8, 3, 8, 3]] * 2
    # The reward of the last step counts where it is a number.
    assert result.returns_SE.tolist() == [[8, 2 if way == "reward" else 3] * 2] * 2
    assert result.diverged_SE.tolist() == [[False, True, False, True]] * 2 and np.isfinite(result.figures).all()


def test_an_episode_that_diverged_is_named():
    result = evaluate_policy(untrained(), spec("Diverging", way="nan"), episodes=2)
    assert len(result.notes) == 2 and "seed 1, episode 1" in result.notes[1] and "after 3 steps" in result.notes[1]
    back = EvalResult.from_json(json.loads(json.dumps(result.to_json())))
    assert back.notes == result.notes
    older = {name: value for name, value in result.to_json().items() if name != "diverged"}
    assert EvalResult.from_json(older).notes == []


def test_an_environment_that_is_not_finite_at_its_reset_is_refused():
    with pytest.raises(UsageError, match=r"Diverging-v0 gave an observation with NaN or Inf at its reset"):
        evaluate_policy(untrained(), spec("Diverging", way="reset"), episodes=1)


def test_an_environment_of_another_size_is_refused():
    with pytest.raises(DataError, match=r"has observations of shape \(11,\) but the data have 4 numbers"):
        evaluate_policy(untrained(), HOPPER, 1)


def test_building_an_environment_passes_on_what_was_written_but_for_known_notices(capfd):
    env = make_env(EvalEnv("HalfCheetah-v5"))
    env.close()
    assert "settotalmass" not in capfd.readouterr().err
    with _without_notices():
        os.write(2, b"AdroitHandDoorDense-v1 environment's reward functions were updated\nsomething else\n")
    assert capfd.readouterr().err == "something else\n"


def test_an_entry_without_an_environment_is_refused():
    with pytest.raises(UsageError, match="names no evaluation environment"):
        evaluate_policy(untrained(), replace(COUNTING, eval_env=None), 1)


@pytest.mark.parametrize(
    "damage",
    [{"step": [3]}, {"returns": 1.0}, {"returns": [[]]}, {"seeds": [0]}, {"lengths": [[1]]}, {"scores": "x"}, {"x": 1}],
    ids=str,
)
def test_a_damaged_evaluation_is_named(tmp_path: Path, damage: dict[str, Any]):
    run, two = RunDir(tmp_path), np.ones((2, 3))
    run.evaluations.mkdir()
    whole = EvalResult(3, two, two.astype(int), two, two < 0, None, "Hopper-v5", (0, 1), 2, 1, "none", 0.5).to_json()
    file = run.evaluations / "step-00000003.json"
    file.write_text(json.dumps(whole))
    assert [one.step for one in records.read_evaluations(run)] == [3]
    file.write_text(json.dumps(whole | damage))
    with pytest.raises(GtpError, match=r"step-00000003.json is not an evaluation \(.*; remove it and evaluate again"):
        records.read_evaluations(run)
