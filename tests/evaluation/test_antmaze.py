"""D4RL's ant and mazes rebuilt: number by number, as an environment, and against real data that was made in it."""

from __future__ import annotations

import os
import subprocess
import sys

import h5py
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from places import SHARED

from gtp_fast.data import catalog
from gtp_fast.data.catalog import run_settings
from gtp_fast.evaluation.environments import make_env
from gtp_fast.evaluation.mazes import HORIZON, MAZES, AntMazeEnv, build_model

ANT_FILE = SHARED / "antmaze_umaze.hdf5"
real_ant = pytest.mark.skipif(not ANT_FILE.exists(), reason="the real ant maze file is not beside this checkout")
NAMES = [f"antmaze-{maze}-v{v}" for maze in ("umaze", "umaze-diverse") for v in (0, 2)]
NAMES += [f"antmaze-{size}-{kind}-v{v}" for size in ("medium", "large") for kind in ("play", "diverse") for v in (0, 2)]


# The model: what d4rl/locomotion/assets/ant.xml and maze_env.py of Farama's D4RL (89141a6) say, and what follows from
# densities and shapes there (a sphere's mass is 5 * 4/3 pi 0.25^3, a leg's that of its capsule).


@pytest.fixture(scope="module")
def model() -> mujoco.MjModel:
    return build_model("umaze")


def test_the_physics_steps_are_those_of_d4rl(model):
    assert (model.opt.timestep, model.opt.integrator) == (0.02, mujoco.mjtIntegrator.mjINT_RK4)


def test_the_motors_give_30_newton_metres_at_most(model):
    assert model.actuator_gear[:, 0].tolist() == [1.0] * 8
    assert model.actuator_ctrlrange.tolist() == [[-30.0, 30.0]] * 8 and model.actuator_ctrllimited.all()


def test_the_motors_stand_in_the_order_of_d4rls_file(model):
    driven = [model.joint(joint).name for joint in model.actuator_trnid[:, 0]]
    assert driven == [f"{part}_{leg}" for leg in (4, 1, 2, 3) for part in ("hip", "ankle")]


def test_the_joints_are_those_of_d4rl(model):
    hinges = model.jnt_type == mujoco.mjtJoint.mjJNT_HINGE
    assert model.dof_damping.tolist() == [0.0] * 6 + [1.0] * 8 == model.dof_armature.tolist()
    assert hinges.sum() == 8 and model.jnt_limited[hinges].all()
    ranges = np.rad2deg(model.jnt_range[hinges])
    ankles = [[30, 70], [-70, -30], [-70, -30], [30, 70]]
    assert np.allclose(ranges, [pair for ankle in ankles for pair in ([-30, 30], ankle)])


def test_the_contacts_are_those_of_d4rl(model):
    ant = model.geom_bodyid > 0
    assert np.allclose(model.geom_solimp[:, :3], [0.8, 0.8, 0.01]) and np.allclose(model.geom_solref, [0.02, 1.0])
    assert np.allclose(model.geom_friction, [1.0, 0.5, 0.5]) and np.allclose(model.geom_margin, 0.01)
    assert (model.geom_conaffinity[ant] == 0).all() and (model.geom_conaffinity[~ant] == 1).all()
    assert (model.geom_condim == 3).all()


def test_the_masses_follow_from_d4rls_density_and_shapes(model):
    sphere = 5 * 4 / 3 * np.pi * 0.25**3
    short, long = (
        5 * (np.pi * 0.08**2 * length + 4 / 3 * np.pi * 0.08**3) for length in (np.hypot(0.2, 0.2), np.hypot(0.4, 0.4))
    )
    assert np.allclose(model.body_mass, [0.0, sphere, *[short, short, long] * 4])
    assert np.allclose(model.body_inertia[1], 2 / 5 * sphere * 0.25**2)


def test_the_ant_starts_at_the_models_own_position_with_straight_legs(model):
    assert model.qpos0.tolist() == [0, 0, 0.75, 1, 0, 0, 0, *[0] * 8]


@pytest.mark.parametrize("maze", MAZES)
def test_the_walls_are_whole_cells_around_a_free_start(maze):
    model = build_model(maze)
    boxes = model.geom_type == mujoco.mjtGeom.mjGEOM_BOX
    assert boxes.sum() == sum(row.count("1") for row in MAZES[maze])
    assert np.allclose(model.geom_size[boxes], [2.0, 2.0, 1.0]) and np.allclose(model.geom_pos[boxes, 2], 1.0)
    assert np.allclose(model.geom_pos[boxes] % [4.0, 4.0, 4.0], [0.0, 0.0, 1.0])
    assert np.abs(model.geom_pos[boxes, :2]).max(axis=1).min() == 4.0  # next to the start, not on it


def test_a_maze_of_another_name_is_refused():
    with pytest.raises(ValueError, match="no ant maze is called 'giant'; expected one of umaze, medium, large"):
        build_model("giant")


# The environment.


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_scored_in_its_maze_over_100_episodes(name):
    spec = catalog.resolve(name)
    env = make_env(spec.eval_env)
    assert env.unwrapped._maze == name.split("-")[1] and (spec.ref_random, spec.ref_expert) == (0.0, 1.0)
    assert run_settings({"env": name}).eval_episodes == 100
    assert (env.observation_space.shape, env.action_space.shape) == ((spec.obs_dim,), (spec.action_dim,))


def test_the_environment_keeps_gymnasiums_contract():
    check_env(AntMazeEnv("umaze"), skip_render_check=True)


@pytest.mark.parametrize(("maze", "cell"), [("umaze", (0, 8)), ("medium", (20, 20)), ("large", (32, 24))])
def test_goals_lie_up_to_a_metre_and_a_half_from_their_cell_and_mostly_between(maze, cell):
    env = AntMazeEnv(maze)
    goals = np.array([env.reset(seed=seed)[1]["goal"] for seed in range(300)]) - cell
    assert goals.min() >= 0.0 and goals.max() <= 1.5 and goals.max() > 1.3
    assert np.allclose(goals.mean(axis=0), 0.75, atol=0.08) and np.allclose(goals.std(axis=0), 0.323, atol=0.05)


def test_a_start_is_the_models_position_with_noise():
    env = AntMazeEnv()
    starts = np.array([env.reset(seed=seed)[0] for seed in range(300)])
    assert 0.09 < np.abs(starts[:, :15] - env.model.qpos0).max() <= 0.1
    assert np.allclose(starts[:, 15:].std(), 0.1, atol=0.01)


def test_the_goal_is_half_a_metre_wide_and_ends_the_episode():
    env = AntMazeEnv()
    found = {}
    for far in (0.3, 0.45, 0.6, 2.0):
        env.reset(seed=0)
        obs = env.step(np.zeros(8))[0]
        env.reset(seed=0)
        env.goal = obs[:2] + np.array([far, 0.0])
        found[far] = env.step(np.zeros(8))[1:4]
    assert [found[far] for far in (0.3, 0.45)] == [(1.0, True, False)] * 2
    assert [found[far] for far in (0.6, 2.0)] == [(0.0, False, False)] * 2


@pytest.mark.parametrize("maze", MAZES)
def test_an_episode_without_the_goal_is_cut_off_at_d4rls_horizon(maze):
    env = AntMazeEnv(maze)
    env.reset(seed=0)
    env._steps = HORIZON[maze] - 2
    assert [env.step(np.zeros(8))[1:4] for _ in range(2)] == [(0.0, False, False), (0.0, False, True)]


def test_actions_beyond_the_bounds_are_their_bounds():
    env, ends = AntMazeEnv(), []
    for action in (np.full(8, 3.0), np.ones(8)):
        env.reset(seed=0)
        ends.append(env.step(action)[0])
    assert np.array_equal(*ends)


def test_an_episode_repeats_by_its_seed():
    env = AntMazeEnv()
    runs = [np.array([env.reset(seed=5)[0], *(env.step(np.sin(np.arange(8) + t))[0] for t in range(20))]) for _ in "ab"]
    assert np.array_equal(*runs)


@pytest.mark.slow
def test_the_maze_is_drawn_from_above():
    code = (
        "from gtp_fast.evaluation.mazes import AntMazeEnv as E\n"
        "e = E('large'); e.reset(seed=0); p = e.render(); e.close()"
    )
    environment = os.environ | {"MUJOCO_GL": "egl"}  # is read when mujoco is imported
    done = subprocess.run(
        [sys.executable, "-c", code + "; print(p.shape, p.dtype, len(set(p[160, :, 0].tolist())) > 20)"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"nothing can be drawn here: {done.stderr.strip().splitlines()[-1]}")
    assert done.stdout.split("\n")[0] == "(320, 320, 3) uint8 True"


# Real data of the rebuilt environment, made by other code than ours.


@pytest.fixture(scope="module")
def real() -> dict[str, np.ndarray]:
    with h5py.File(ANT_FILE) as file:
        keys = ("observations", "actions", "rewards", "terminals", "infos/goal", "infos/episode_lengths")
        columns = {key: file[key][()] for key in (*keys, "infos/final_observations")}
    ends = np.cumsum(columns["infos/episode_lengths"]) - 1
    following = np.roll(columns["observations"], -1, axis=0)
    following[ends] = columns["infos/final_observations"]
    return columns | {"next": following, "ends": ends}


@real_ant
def test_a_step_from_any_recorded_state_gives_the_recorded_next_one_and_its_reward(real):
    env = AntMazeEnv()
    env.reset(seed=0)
    # Every 60th step and the last of every fourth episode. States are float32, so that steps agree to about 1e-6.
    rows = np.union1d(np.arange(0, len(real["rewards"]), 60), real["ends"][::4])
    errors, rewards = [], []
    for row in rows:
        state = real["observations"][row].astype(np.float64)
        env.set_state(state[:15], state[15:])
        env.goal = real["infos/goal"][row].astype(np.float64)
        obs, reward, terminated, *_ = env.step(real["actions"][row])
        errors.append(np.abs(obs - real["next"][row]).max())
        rewards.append((reward, terminated))
    assert len(rows) > 1_000 and max(errors) < 5e-6
    expected = zip(real["rewards"][rows].tolist(), real["terminals"][rows].tolist(), strict=True)
    assert rewards == list(expected) and sum(reward for reward, _ in rewards) > 90


@real_ant
def test_an_episode_replays_from_its_first_state_until_contacts_make_it_chaotic(real):
    env, errors = AntMazeEnv(), []
    env.reset(seed=0)
    for start in (0, *(real["ends"][:7] + 1)):
        state = real["observations"][start].astype(np.float64)
        env.set_state(state[:15], state[15:])
        played = [env.step(real["actions"][start + t])[0] for t in range(20)]
        errors.append(np.abs(played - real["next"][start : start + 20]).max())
    assert max(errors) < 2e-5  # twenty steps, two seconds: rounding of the first state grows by about 10


@real_ant
def test_another_ant_does_not_replay_the_data(real):
    env = AntMazeEnv()
    env.reset(seed=0)
    env.model.opt.timestep = 0.01  # gymnasium-robotics'
    state = real["observations"][100].astype(np.float64)
    env.set_state(state[:15], state[15:])
    assert np.abs(env.step(real["actions"][100])[0] - real["next"][100]).max() > 0.1
