"""Mazes from file to score: the quirks of D4RL's ant maze files, the task settings, PointMaze, and Minari's sets."""

from __future__ import annotations

import sys
from pathlib import Path

import gymnasium
import h5py
import numpy as np
import pytest
import torch
from data_cases import columns, write
from places import SHARED

from gtp_fast.data import catalog, dataset
from gtp_fast.data.catalog import run_settings
from gtp_fast.data.replay import ReplayBuffer
from gtp_fast.errors import UsageError
from gtp_fast.evaluation.environments import make_env

ANT_FILE, POINT_FILE = SHARED / "antmaze_umaze.hdf5", SHARED / "pointmaze_umaze.hdf5"
real_ant = pytest.mark.skipif(not ANT_FILE.exists(), reason="the real ant maze file is not beside this checkout")
real_point = pytest.mark.skipif(not POINT_FILE.exists(), reason="the real point maze file is not beside this checkout")


# Files: the quirks of v0 and v2, and what sparse rewards become.


def walk(episodes: int = 3, length: int = 20) -> dict[str, np.ndarray]:
    """Return ant maze columns of episodes that start near the origin and walk 0.1 m a step."""
    values = columns(episodes, length, sizes=(29, 8))
    values["observations"] = np.tile(np.arange(length, dtype=np.float32)[:, None] * 0.1, (episodes, 29))
    values["rewards"] = np.zeros(episodes * length, np.float32)
    return values


def read(path: Path, values: dict, name: str = "antmaze-umaze-v0") -> dataset.Transitions:
    return dataset.load(catalog.resolve(name), write(path / "ant.hdf5", values))


def test_rewards_and_terminals_of_two_axes_are_read_as_one(tmp_path):
    values = walk()
    values["rewards"][7], values["terminals"][7] = 1.0, True
    flat = read(tmp_path, values)
    for key in ("rewards", "terminals", "timeouts"):
        values[key] = values[key][:, None]
    assert np.array_equal(read(tmp_path, values).reward_N, flat.reward_N)
    assert flat.reward_N.sum() == flat.terminal_N.sum() == 1


@pytest.mark.parametrize("late", [1, 5, 13])
def test_v0_timeouts_that_are_out_of_step_let_no_transition_jump(tmp_path, late):
    values = walk(4, 20)
    values["observations"][:, 0] += np.repeat([0.0, 7.0, -7.0, 7.0], 20)  # where each episode takes place
    values["timeouts"] = np.roll(values["timeouts"], late)
    data = read(tmp_path, values)
    assert np.abs(data.next_obs_ND - data.obs_ND).max() < 0.11
    assert len(data.obs_ND) >= 4 * 20 - 8 and "3 episode ends were not marked" in data.notes[0]


def test_v2_successors_that_are_the_next_episodes_first_row_are_left_out(tmp_path):
    values = walk()
    values["next_observations"] = np.append(values["observations"][1:], values["observations"][-1:] + 0.1, axis=0)
    data = read(tmp_path, values, "antmaze-umaze-v2")
    assert np.abs(data.next_obs_ND - data.obs_ND).max() < 0.11 and len(data.obs_ND) == 3 * 20 - 2


@pytest.mark.parametrize("late", [0, 5])
def test_v2_transitions_are_the_files_own_wherever_its_timeouts_stand(tmp_path, late):
    values, last = walk(), np.arange(19, 60, 20)
    values["next_observations"] = np.roll(values["observations"], -1, axis=0)
    values["next_observations"][last] = values["observations"][last] + 0.1
    values["timeouts"] = np.roll(values["timeouts"], late)
    data = read(tmp_path, values, "antmaze-umaze-v2")
    assert np.allclose(data.next_obs_ND - data.obs_ND, 0.1, atol=1e-5)
    assert len(data.obs_ND) == 3 * 20 - (3 if late else 0)  # a mark in mid-trajectory costs its row


def test_a_goal_in_mid_trajectory_cuts_the_bootstrap_there_and_nothing_else(tmp_path):
    values = walk()
    for row in (7, 25):  # an ant that goes on after its goal, as in D4RL's files
        values["terminals"][row], values["rewards"][row] = True, 1.0
    data = read(tmp_path, values)
    at_goal = data.reward_N == 1.0
    assert np.array_equal(data.terminal_N, at_goal) and at_goal.sum() == 2
    assert np.abs(data.next_obs_ND[~data.terminal_N] - data.obs_ND[~data.terminal_N]).max() < 0.11
    cfg = run_settings({"env": "antmaze-umaze-v0"})
    rows = ReplayBuffer.from_transitions(data, cfg, "cpu").gather(torch.arange(len(at_goal))[None])
    assert np.array_equal(rows.bootstrap_SB[0].numpy(), 1.0 - at_goal)
    assert np.array_equal(rows.reward_SB[0].numpy(), np.where(at_goal, 2.0, -2.0))


@real_ant
def test_the_real_file_reads_whole(tmp_path):
    data = dataset.load(catalog.resolve("antmaze-umaze-v0"), ANT_FILE)
    assert (len(data.obs_ND), data.episodes, int(data.terminal_N.sum())) == (60_022, 376, 374)
    assert np.linalg.norm(data.next_obs_ND[:, :2] - data.obs_ND[:, :2], axis=1).max() < 0.5


# Settings: Table 4 of the paper, and Diffusion-QL's published gradient norms where our copy is not legible.

TABLE4 = {  # eta, gradient norm, learning rate, max-Q backup
    "umaze": (5.0, 2.0, 3e-4, False),
    "umaze-diverse": (1.0, 3.0, 3e-4, True),
    "medium-play": (5.0, 2.0, 1e-3, True),
    "medium-diverse": (5.0, 1.0, 3e-4, True),
    "large-play": (5.0, 10.0, 3e-4, True),
    "large-diverse": (5.0, 7.0, 3e-4, True),
}


@pytest.mark.parametrize("version", ["v0", "v2"])
@pytest.mark.parametrize("maze", TABLE4)
def test_the_settings_of_the_papers_mazes(maze, version):
    cfg = run_settings({"env": f"antmaze-{maze}-{version}"})
    assert (cfg.eta, cfg.grad_norm, cfg.lr, cfg.max_q_backup) == TABLE4[maze]
    assert (cfg.reward_shift, cfg.reward_scale, cfg.steps) == (-0.5, 4.0, 1_000_000)


# PointMaze, and Minari's sets, which are gymnasium-robotics' own.


@real_point
def test_a_recorded_point_steps_to_its_recorded_next_observation():
    env = make_env(catalog.resolve("PointMaze_UMaze-v3").eval_env)
    obs, _ = env.reset(seed=0)
    with h5py.File(POINT_FILE) as file:
        recorded, actions = file["observations"][:20], file["actions"][:20]
    played = [obs, *(env.step(action)[0] for action in actions[:19])]
    assert np.allclose(played, recorded, atol=1e-5)  # the file begins with the episode of seed 0


def test_a_point_at_its_goal_ends_the_episode_with_a_reward_of_one():
    env = make_env(catalog.resolve("PointMaze_UMaze-v3").eval_env)
    obs, _ = env.reset(seed=0)
    env.unwrapped.goal = obs[:2].copy()
    assert env.step(np.zeros(2, np.float32))[1:4] == (1.0, True, False)


@pytest.mark.parametrize("name", catalog.POINT_MAZES)
def test_the_sizes_of_the_point_mazes_are_the_environments(name):
    spec = catalog.resolve(name)
    env = make_env(spec.eval_env)
    assert (env.observation_space.shape, env.action_space.shape) == ((spec.obs_dim,), (spec.action_dim,))


@pytest.mark.parametrize(
    ("name", "env_id"),
    [
        ("D4RL/pointmaze/umaze-v2", "gymnasium_robotics:PointMaze_UMaze-v3"),
        ("D4RL/pointmaze/large-dense-v2", "gymnasium_robotics:PointMaze_LargeDense-v3"),
        ("D4RL/antmaze/umaze-v1", "gymnasium_robotics:AntMaze_UMaze-v4"),
        ("D4RL/antmaze/medium-diverse-v1", "gymnasium_robotics:AntMaze_Medium-v4"),
    ],
)
def test_minaris_mazes_are_scored_by_success_on_gymnasium_robotics_own(name, env_id):
    spec = catalog.resolve(name)
    assert spec.eval_env.id == env_id and dict(spec.eval_env.kwargs)["continuing_task"] is False
    assert (spec.score, spec.ref_random, spec.ref_expert) == ("success", 0.0, 1.0)
    env = gymnasium.make(spec.eval_env.id, **dict(spec.eval_env.kwargs))
    env.reset(seed=0)
    env.unwrapped.goal = env.unwrapped.reset_pos.copy()
    *_, terminated, _, info = env.step(np.zeros(env.action_space.shape, np.float32))
    assert terminated and info["success"] and env.action_space.shape == (spec.action_dim,)


def test_minaris_umaze_keeps_the_start_and_goal_of_its_data():
    spec = catalog.resolve("D4RL/antmaze/umaze-v1")
    maze = gymnasium.make(spec.eval_env.id, **dict(spec.eval_env.kwargs)).unwrapped.maze
    goals, starts = (
        np.round(np.array(places)).tolist() for places in (maze.unique_goal_locations, maze.unique_reset_locations)
    )
    assert (goals, starts) == ([[-4.0, 4.0]], [[-4.0, -4.0]])


def test_a_maze_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium_robotics", None)
    with pytest.raises(UsageError, match=r"pip install 'gtp-fast\[maze\]'"):
        make_env(catalog.resolve("PointMaze_Medium-v3").eval_env)
