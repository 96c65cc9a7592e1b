"""The two data sets that need no network: what they hold, and that they are what they say."""

from __future__ import annotations

import runpy
from importlib.resources import files
from pathlib import Path

import gymnasium
import h5py
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from places import ROOT, SHARED

from gtp_fast.data import embedded
from gtp_fast.data.catalog import resolve
from gtp_fast.data.dataset import Transitions, load
from gtp_fast.data.embedded import GOALS, MODE_CENTRES, MODE_RADIUS
from gtp_fast.evaluation.multigoal import MultiGoalEnv

DEMO = str(files("gtp_fast") / "data" / "hopper-demo-v0.hdf5")


@pytest.fixture(scope="module")
def goals() -> Transitions:
    return load(resolve("multigoal-v0"))


@pytest.fixture(scope="module")
def hopper() -> Transitions:
    return load(resolve("hopper-demo-v0"))


def test_the_four_goal_environment_keeps_gymnasiums_contract():
    check_env(gymnasium.make("gtp_fast.evaluation.multigoal:gtp_fast/MultiGoal-v0").unwrapped, skip_render_check=True)


@pytest.mark.parametrize(
    ("action", "steps", "end"),
    [(0.7, 3, (1.0, True, False)), (0.0, embedded.MAX_STEPS, (0.0, False, True))],
    ids=["at a goal with a reward", "by the time limit without one"],
)
def test_an_episode_among_the_goals_ends(action, steps, end):
    env = MultiGoalEnv()
    env.reset(seed=0)
    *before, last = [env.step(np.full(2, action, np.float32))[1:4] for _ in range(steps)]
    assert last == end and set(before) == {(0.0, False, False)}


def test_the_generator_gives_the_same_bits_for_a_seed():
    one, same, other = (embedded.multigoal_arrays(episodes=8, seed=seed) for seed in (3, 3, 4))
    assert one.sha256 == same.sha256 != other.sha256
    assert np.array_equal(one.action, same.action)


def nearest_goal(place_ND: np.ndarray) -> np.ndarray:
    return np.linalg.norm(place_ND[:, None] - GOALS[None], axis=-1).argmin(axis=1)


def test_the_observation_does_not_tell_the_goal(goals: Transitions):
    ends = np.flatnonzero(goals.terminal_N)
    starts = np.concatenate([[0], ends[:-1] + 1])
    alike = nearest_goal(goals.next_obs_ND[ends]) == nearest_goal(goals.obs_ND[starts])
    assert goals.obs_ND.shape[1] == 2 and abs(alike.mean() - 0.25) < 0.04


def test_every_expert_episode_reaches_its_goal_and_every_goal_is_reached_equally_often(goals: Transitions):
    reached = nearest_goal(goals.next_obs_ND[goals.terminal_N])
    assert goals.return_mean == 1.0 and np.bincount(reached).tolist() == [1000] * 4


def test_at_the_origin_the_experts_actions_have_four_separate_modes(goals: Transitions):
    start = np.linalg.norm(goals.obs_ND, axis=1) < 4 * embedded.START_STD
    masses, off = embedded.mode_masses(goals.action_NA[start])
    assert start.sum() > 3900 and np.allclose(masses, 0.25, atol=0.01) and off < 0.03
    gaps = np.linalg.norm(MODE_CENTRES[:, None] - MODE_CENTRES[None], axis=-1)[~np.eye(4, dtype=bool)]
    assert gaps.min() > 3 * MODE_RADIUS


def test_mode_masses_see_a_lost_mode_and_the_mean_of_two():
    masses, off = embedded.mode_masses(np.concatenate([MODE_CENTRES[:3], [[0.0, 0.0]]]))
    assert masses.tolist() == [0.25, 0.25, 0.25, 0.0] and off == 0.25


def test_the_experts_actions_stay_inside_the_bounds(goals: Transitions):
    assert np.abs(goals.action_NA).max() < 1.0 and goals.clipped == 0


def test_the_hopper_file_is_small_enough_to_ship():
    assert Path(DEMO).stat().st_size <= 6_000_000


def test_the_hopper_file_says_where_it_is_from():
    with h5py.File(DEMO) as file:
        assert file.attrs["environment"] == "Hopper-v5"
        assert file.attrs["source"] == "generated for gtp-fast; not D4RL data"


def test_the_hopper_data_are_whole_episodes(hopper: Transitions):
    assert (len(hopper.obs_ND), hopper.episodes, hopper.notes) == (99_552, 266, ())


def test_the_hopper_data_are_steps_of_the_environment_that_scores_them(hopper: Transitions):
    env = gymnasium.make("Hopper-v5").unwrapped
    env.reset(seed=0)
    # Velocities are clipped to +-10 in observations; and a float32 state is not quite the state that was stepped from.
    rows = np.flatnonzero(np.abs(hopper.obs_ND[:, 5:]).max(axis=1) < 9.9)[::2000]
    errors = []
    for row in rows:
        obs = hopper.obs_ND[row].astype(np.float64)
        env.set_state(np.concatenate([[0.0], obs[:5]]), obs[5:])
        found = env.step(hopper.action_NA[row])[0]
        errors.append(np.abs(found - hopper.next_obs_ND[row]).max())
    assert len(errors) > 30 and np.median(errors) < 1e-5


@pytest.mark.skipif(not SHARED.is_dir(), reason="the larger files it is made from are not beside this checkout")
def test_the_hopper_file_is_what_its_tool_makes(tmp_path: Path):
    out = tmp_path / "again.hdf5"
    main = runpy.run_path(str(ROOT / "tools" / "make_hopper_demo.py"))["main"]
    main(str(SHARED / "hopper_medium_replay.hdf5"), str(SHARED / "hopper_medium.hdf5"), str(out))
    with h5py.File(out) as made, h5py.File(DEMO) as shipped:
        for key in ("observations", "actions", "rewards", "terminals", "timeouts", "infos/final_observations"):
            assert np.array_equal(made[key][()], shipped[key][()])
