"""The catalogue: every name the product knows, what it stands for, and what a wrong one is answered with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from gtp_fast import catalog
from gtp_fast.catalog import resolve
from gtp_fast.data_spec import normalised_score
from gtp_fast.errors import UsageError

CONFIGS = Path(__file__).parents[1] / "configs" / "tasks"
GYM_ROWS = {f"{body}-{level}" for body in ("halfcheetah", "hopper", "walker2d") for level in ("m", "mr", "me")}
MAZE_ROWS = {f"antmaze-{maze}" for maze in ("u", "ud", "mp", "md", "lp", "ld")}
SPECS = [resolve(name) for name in catalog.known_names()]


def test_every_row_of_the_papers_tables_has_a_data_set():
    assert {spec.paper_row for spec in SPECS} - {None} == GYM_ROWS | MAZE_ROWS


def test_published_addresses_name_the_file_in_the_cache():
    assert all(spec.url.endswith("/" + spec.filename) for spec in SPECS if spec.url)


def test_the_nine_gym_files_have_a_published_size_and_checksum():
    gym = [spec for spec in SPECS if spec.paper_row in GYM_ROWS]
    assert len(gym) == 9 and all(spec.size and len(spec.sha256) == 64 for spec in gym)


@pytest.mark.parametrize(
    ("name", "env_id"),
    [
        ("halfcheetah-medium-v2", "HalfCheetah-v5"),
        ("hopper-medium-replay-v2", "Hopper-v4"),
        ("walker2d-medium-expert-v2", "Walker2d-v4"),
        ("mujoco/walker2d/medium-v0", "Walker2d-v5"),
        ("hopper-demo-v0", "Hopper-v5"),
    ],
)
def test_data_are_scored_on_the_environment_they_came_from(name: str, env_id: str):
    assert resolve(name).eval_env == catalog.EvalEnv(env_id)


def test_d4rl_ant_mazes_are_scored_on_d4rls_own_ant_and_minaris_on_another():
    ids = [resolve(name).eval_env.id for name in ("antmaze-umaze-v2", "D4RL/antmaze/umaze-v1")]
    assert ids == ["gtp_fast.antmaze:gtp_fast/AntMaze-v0", "gymnasium_robotics:AntMaze_UMaze-v4"]


def test_a_minari_name_does_not_stand_for_the_d4rl_data():
    minari = resolve("mujoco/halfcheetah/medium-v0")
    assert (minari.source, minari.url, minari.paper_row) == ("minari", None, None)


@pytest.mark.parametrize("name", ["cube-single-play-singletask-v0", "cube-single-play-singletask-task3-v0"])
def test_ogbench_names_share_the_file_of_their_play_data(name: str):
    spec = resolve(name)
    assert (spec.source, spec.filename, spec.obs_dim, spec.action_dim) == ("ogbench", "cube-single-play-v0.npz", 28, 5)


def test_ogbench_visual_names_have_images_for_observations():
    spec = resolve("visual-cube-double-play-singletask-task1-v0")
    assert (spec.source, spec.filename, spec.obs_dim) == ("ogbench", "visual-cube-double-play-v0.npz", None)


def test_an_environment_of_ones_own_module_is_taken_as_it_is():
    assert resolve("my_lab.envs:Crane-v2").eval_env == catalog.EvalEnv("my_lab.envs:Crane-v2")


def test_a_misspelt_name_is_answered_with_the_nearest():
    with pytest.raises(
        UsageError, match=r"no data set is called 'halfcheeta-medum-v2'.*halfcheetah-medium-v2"
    ) as error:
        resolve("halfcheeta-medum-v2")
    assert error.value.exit_code == 2


@pytest.mark.parametrize("name", ["", "zzz", "../../etc/passwd", "mujoco/nothing/medium-v0"])
def test_a_name_that_is_like_none_is_a_usage_error(name: str):
    with pytest.raises(UsageError, match="gtp-fast data list"):
        resolve(name)


def test_the_references_normalise_to_0_and_100():
    spec = resolve("hopper-medium-v2")
    assert np.allclose(normalised_score(spec, [-20.272305, 3234.3]), [0.0, 100.0])


def test_without_references_there_is_no_score():
    assert normalised_score(resolve("D4RL/kitchen/mixed-v2"), [1.0]) is None


@pytest.mark.parametrize("spec", [s for s in SPECS if s.task], ids=lambda s: s.name)
def test_every_task_preset_exists(spec: catalog.DataSpec):
    assert (CONFIGS / f"{spec.task}.yaml").exists()


@pytest.mark.filterwarnings("ignore:.*out of date")
@pytest.mark.parametrize("name", catalog.OWN_DATA_ENVS)
def test_the_sizes_are_the_environments(name: str):
    spec, env = resolve(name), gymnasium.make(name)
    assert env.observation_space.shape == (spec.obs_dim,) and env.action_space.shape == (spec.action_dim,)
    assert (np.abs(env.action_space.low) == 1).all() and (env.action_space.high == 1).all()


def test_the_listing_is_flat_and_has_every_name_once():
    names = [row["name"] for row in catalog.listing()]
    assert len(set(names)) == len(names) == len(SPECS)


def test_importing_the_catalogue_loads_neither_torch_nor_gymnasium():
    code = "import sys, gtp_fast.catalog; sys.exit(bool({'torch', 'gymnasium', 'h5py', 'minari'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
