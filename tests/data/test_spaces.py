"""Data and environments laid out alike: from Minari's own writer to a policy that acts where the data came from."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import gymnasium
import minari
import numpy as np
import pytest
from families import family
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple, flatdim
from gymnasium.vector.utils import concatenate, create_empty_array
from hypothesis import given, settings
from hypothesis import strategies as st
from minari.data_collector import EpisodeBuffer
from run_cases import tiny

import gtp_fast
from gtp_fast.data import dataset, spaces
from gtp_fast.data.catalog import resolve
from gtp_fast.data.spec import EvalEnv
from gtp_fast.errors import DataError, UsageError
from gtp_fast.evaluation.environments import check_environment, make_env
from gtp_fast.evaluation.evaluate import EvalConfig, eval_run
from gtp_fast.training.train import train

REACHING = "eval_cases:gtp_fast_tests/Reaching-v0"
MAZE = "gymnasium_robotics:PointMaze_UMaze-v3"
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path


def collect(env_id: str, name: str, episodes: int = 3) -> list[np.ndarray]:
    """Write random episodes with Minari's own writer; return what each observation is, flattened by Gymnasium.

    Its DataCollector would do the same, and needs jax.
    """
    if env_id == MAZE:
        pytest.importorskip("gymnasium_robotics", reason="gymnasium-robotics is the extra maze")
    env, seen, buffers = gymnasium.make(env_id), [], []
    env.action_space.seed(0)
    space = spaces.ordered(env.observation_space)
    for episode in range(episodes):
        observations, actions, rewards, ends = [env.reset(seed=episode)[0]], [], [], [(False, False)]
        while not any(ends[-1]):
            actions.append(env.action_space.sample())
            obs, reward, terminated, truncated, _ = env.step(actions[-1])
            observations.append({key: np.copy(value) for key, value in obs.items()})
            rewards.append(reward)
            ends.append((terminated, truncated))
        seen += [gymnasium.spaces.flatten(space, obs) for obs in observations[:-1]]
        terminations, truncations = (list(flags) for flags in zip(*ends[1:], strict=True))
        stacked = _stacked(env.observation_space, observations)
        buffers.append(
            EpisodeBuffer(episode, None, None, stacked, np.stack(actions), rewards, terminations, truncations)
        )
    minari.create_dataset_from_buffers(
        name, buffers, observation_space=env.observation_space, action_space=env.action_space
    )
    env.close()
    return seen


leaves = st.sampled_from(
    [
        *(Box(-1, 1, (2,)), Box(-9, 9, (2, 3), np.float64), Box(0, 255, (2,), np.uint8), Discrete(3, start=-1)),
        *(MultiBinary([2, 2]), MultiDiscrete([3, 2]), MultiDiscrete([2, 2], start=[5, -1])),
    ]
)
keys = st.sampled_from(["observation", "desired_goal", "a", "Z", "10", "9"])
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3).map(Tuple)
        | st.lists(st.tuples(keys, inner), min_size=1, max_size=3, unique_by=lambda p: p[0]).map(
            lambda p: Dict(OrderedDict(p))
        )
    ),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None)
@given(trees)
def test_rows_are_gymnasiums_own_flattening_of_any_space(space):
    space.seed(0)
    samples, canonical = [space.sample() for _ in range(4)], spaces.ordered(space)
    rows = spaces.flatten_rows(canonical, _stacked(space, samples))
    expected = np.stack([gymnasium.spaces.flatten(canonical, sample) for sample in samples]).astype(np.float32)
    assert np.array_equal(rows, expected) and rows.shape[1] == flatdim(space)
    assert sum(int(part.split()[-1]) for part in spaces.parts(canonical)) == flatdim(space)


def _stacked(space, samples) -> Any:
    return concatenate(space, samples, create_empty_array(space, len(samples)))


@pytest.mark.parametrize(
    ("values", "words"),
    [(np.zeros((4, 3)), "has shape"), (np.float32(0), "has shape"), (np.full((4, 2), 3), "a choice outside")],
    ids=["another size", "no rows", "no such choice"],
)
def test_values_that_are_not_of_the_space_are_refused(values, words):
    with pytest.raises(ValueError, match=words):
        spaces.flatten_rows(MultiDiscrete([3, 3]), values)


@pytest.mark.parametrize("env_id", [REACHING, MAZE], ids=["toy", "PointMaze"])
def test_what_an_environment_gives_is_what_its_data_hold(cache: Path, env_id: str):
    seen = collect(env_id, "toy/seen-v0")
    data = dataset.load(resolve("toy/seen-v0"))
    assert np.array_equal(data.obs_ND, np.stack(seen).astype(np.float32))
    env = make_env(EvalEnv(env_id))
    assert np.array_equal(np.float32(env.reset(seed=0)[0]), data.obs_ND[0])
    assert np.array_equal(np.float32(env.step(data.action_NA[0])[0]), data.next_obs_ND[0])
    env.close()


@pytest.mark.slow
@pytest.mark.parametrize("normalise", family([False, True], quick=[True]), ids=["raw", "normalised"])
@pytest.mark.parametrize("env_id", family([REACHING, MAZE], quick=[REACHING]), ids=["toy", "PointMaze"])
def test_a_policy_is_trained_scored_and_used_on_goals(cache: Path, env_id: str, normalise: bool):
    collect(env_id, "toy/goals-v0")
    about = cache / "minari/toy/goals-v0/data/metadata.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"ref_min_score": -100.0, "ref_max_score": 0.0}))
    run = cache / "run"
    result = train(tiny(cache, env=env_id, dataset="toy/goals-v0", steps=20, eval_every=20, normalise_obs=normalise))
    assert result.dataset == "minari:toy/goals-v0" and Path(result.run_dir) == run
    assert np.allclose(result.score_last, [100 + x for x in result.return_last])  # by the data set's references
    again = eval_run(run, EvalConfig(episodes=2, env_seed=3, allow_import=["eval_cases"])).result
    assert np.allclose(again.scores_SE, again.returns_SE + 100)
    raw = gymnasium.make(env_id)
    obs = gymnasium.spaces.flatten(spaces.ordered(raw.observation_space), raw.reset(seed=0)[0])
    action = gtp_fast.load_policy(run, seed=0).act(obs)
    assert action.shape == raw.action_space.shape and np.abs(action).max() <= 1
    raw.close()


def test_forces_of_a_wider_box_reach_the_environment_as_they_were():
    env = make_env(EvalEnv(REACHING))
    env.reset(seed=0)
    env.step(np.float32([1.0, -0.5]))
    assert env.unwrapped.at.tolist() == [2.0, -1.0] and (env.action_space.high == 1).all()


def test_data_of_other_bounds_than_the_environments_are_refused():
    with pytest.raises(DataError, match=r"actions of other bounds, \[-2, 2\], than the data, \[-3, 3\]"):
        check_environment(resolve(REACHING), 15, 2, action_bounds=((-3.0, -3.0), (3.0, 3.0)))
    check_environment(resolve(REACHING), 15, 2, action_bounds=((-2.0, -2.0), (2.0, 2.0)))


def test_a_data_set_without_an_environment_asks_for_one(cache: Path):
    collect(REACHING, "toy/reaching-v0")
    with pytest.raises(
        UsageError, match="--env my_module:MyEnv-v0 --dataset minari:toy/reaching-v0, or pass --eval-every 0"
    ):
        train(tiny(cache, env="toy/reaching-v0", dataset=None, eval_every=10))
    assert train(tiny(cache, env="toy/reaching-v0", dataset=None, steps=2)).score_last is None


def test_environments_of_vectors_are_left_as_they_are():
    env = make_env(EvalEnv("HalfCheetah-v5"))
    wrappers = []
    while isinstance(env, gymnasium.Wrapper):
        wrappers.append(type(env).__name__)
        env = env.env
    assert not {"TransformObservation", "RescaleAction"} & set(wrappers)
