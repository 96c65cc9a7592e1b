"""The catalogue: every name the product knows, what it stands for, and what a wrong one is answered with."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import get_args

import gymnasium
import numpy as np
import pytest
from families import family
from hypothesis import given
from hypothesis import strategies as st
from places import ROOT
from run_cases import python

from gtp_fast.data import catalog
from gtp_fast.data.catalog import resolve
from gtp_fast.data.spec import Source, normalised_score
from gtp_fast.data.trust import WITH_MODULE
from gtp_fast.errors import UsageError

GYM_ROWS = {f"{body}-{level}" for body in ("halfcheetah", "hopper", "walker2d") for level in ("m", "mr", "me")}
MAZE_ROWS = {f"antmaze-{maze}" for maze in ("u", "ud", "mp", "md", "lp", "ld")}
CUBE_ROWS = {f"cube-{n}-singletask" for n in ("single", "double")} | {
    f"visual-cube-{n}-play-singletask-task1-v0" for n in ("single", "double")
}
NAMES = catalog.known_names()
SPECS = [resolve(name) for name in NAMES]


def test_every_row_of_the_paper_is_listed_with_source_size_and_references():
    rows = {row["paper_row"]: row for row in catalog.listing() if row["paper_row"]}
    assert rows.keys() == GYM_ROWS | MAZE_ROWS | CUBE_ROWS
    for name, row in rows.items():
        cube = name in CUBE_ROWS
        assert row["source"] == ("ogbench" if cube else "d4rl")
        assert row["ref_random"] < row["ref_expert"] and (row["score"] == "success") >= cube
        # Of OGBench's files, and of one AntMaze file, no size is recorded.
        assert row["megabytes"] or cube or row["name"] == "antmaze-medium-play-v2"


def test_a_line_of_the_list_reads_as_the_row():
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in map(catalog.line, catalog.listing())}
    assert lines["hopper-medium-v2"] == "d4rl 152.8 MB 11/3 Hopper-v4 return -20.2723 to 3234.3"
    single, visual = "ogbench:cube-single-singletask-v0", "ogbench:visual-cube-double-singletask-task1-v0"
    assert lines["cube-single-singletask"] == f"ogbench - 28/5 {single} success 0 to 1"
    assert lines["visual-cube-double-play-singletask-task1-v0"] == f"ogbench - 64x64x3/5 {visual} success 0 to 1"
    assert lines["Swimmer-v5"] == "file - 8/2 Swimmer-v5 -"


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
        ("antmaze-umaze-v2", "gtp_fast.evaluation.mazes:gtp_fast/AntMaze-v0"),  # D4RL's own ant
        ("D4RL/antmaze/umaze-v1", "gymnasium_robotics:AntMaze_UMaze-v4"),  # another ant
        ("cube-double-play-singletask-task4-v0", "ogbench:cube-double-singletask-task4-v0"),
        ("my_lab.envs:Crane-v2", "my_lab.envs:Crane-v2"),  # of one's own module
    ],
)
def test_data_are_scored_on_the_environment_they_came_from(name: str, env_id: str):
    found = resolve(name).eval_env
    assert found is not None and found.id == env_id and ("antmaze" in name or not found.kwargs)


def test_a_minari_name_does_not_stand_for_the_d4rl_data():
    minari = resolve("mujoco/halfcheetah/medium-v0")
    assert (minari.source, minari.url, minari.paper_row) == ("minari", None, None)


@pytest.mark.parametrize("name", ["cube-single-play-singletask-v0", "cube-single-play-singletask-task3-v0"])
def test_ogbench_names_share_the_file_of_their_play_data(name: str):
    spec = resolve(name)
    assert (spec.source, spec.filename, spec.obs_dim, spec.action_dim) == ("ogbench", "cube-single-play-v0.npz", 28, 5)


def test_ogbench_visual_names_have_frames_for_observations():
    spec = resolve("visual-cube-double-play-singletask-task1-v0")
    assert (spec.source, spec.filename, spec.obs_dim) == ("ogbench", "visual-cube-double-play-v0.npz", None)
    assert spec.obs_shape == (64, 64, 3)


def test_the_papers_short_names_stand_for_its_rows():
    for short in ("cube-single", "cube-double", "visual-cube-single", "visual-cube-double"):
        assert resolve(short).paper_row in CUBE_ROWS and short in resolve(short).paper_row
    assert replace(resolve("cube-single"), name="") == replace(resolve("cube-single-play-singletask-v0"), name="")


def test_an_ogbench_task_is_scored_by_its_success():
    spec = resolve("cube-double-play-singletask-task4-v0")
    assert (spec.score, spec.ref_random, spec.ref_expert, spec.eval_episodes) == ("success", 0.0, 1.0, 50)


BUILT_AT_ONCE = {stem for stem in catalog.OGBENCH_SIZES if "maze" in stem or "soccer" in stem}


@pytest.mark.filterwarnings("ignore:.*precision lowered", "ignore:.*DISPLAY")
@pytest.mark.parametrize("stem", family(catalog.OGBENCH_SIZES, quick=BUILT_AT_ONCE | {"cube-double", "puzzle-3x3"}))
def test_the_sizes_of_ogbenchs_environments_are_theirs(stem: str):
    env = gymnasium.make(f"ogbench:{stem}-singletask-v0")
    assert (env.observation_space.shape, env.action_space.shape) == tuple((n,) for n in catalog.OGBENCH_SIZES[stem])
    env.close()


@pytest.mark.parametrize("visual", ["", "visual-"])
@pytest.mark.parametrize("stem", catalog.OGBENCH_SIZES)
def test_every_ogbench_task_is_registered_by_the_package(stem: str, visual: str):
    import ogbench  # noqa: F401  # registers the environments

    kind = "navigate" if "maze" in stem or "soccer" in stem else "play"
    name = f"{visual}{stem}-{kind}-singletask-task5-v0"
    spec = catalog.ogbench_entry(name)
    env_id = f"{visual}{stem}-singletask-task5-v0"
    assert (spec is not None and spec.eval_env is not None) == (env_id in gymnasium.registry)
    assert spec is None or spec.eval_env == catalog.EvalEnv(f"ogbench:{env_id}")


def test_a_misspelt_name_is_answered_with_the_nearest():
    with pytest.raises(
        UsageError, match=r"no data set is called 'halfcheeta-medum-v2'.*halfcheetah-medium-v2"
    ) as error:
        resolve("halfcheeta-medum-v2")
    assert error.value.exit_code == 2


# Names like none, and those of tasks that OGBench has not.
UNKNOWN = ["", "zzz", "../../etc/passwd", "../a/b-v0", "a/../b-v0", "mujoco/nothing/medium", "mine-v0"]
UNKNOWN += ["antmaze-medium-play-singletask-v0", "scene-navigate-singletask-v0", "cube-single-play-v0"]
UNKNOWN += ["cube-single-play-singletask-task6-v0", "visual-pointmaze-medium-navigate-singletask-v0"]


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_name_is_a_usage_error(name: str):
    with pytest.raises(UsageError, match=r"no data set is called .*gtp-fast data list"):
        resolve(name)


def test_the_references_normalise_to_0_and_100():
    spec = resolve("hopper-medium-v2")
    assert np.allclose(normalised_score(spec, [-20.272305, 3234.3]), [0.0, 100.0])


def test_without_references_there_is_no_score():
    assert normalised_score(resolve("D4RL/kitchen/mixed-v2"), [1.0]) is None


@pytest.mark.parametrize("spec", [s for s in SPECS if s.task], ids=lambda s: s.name)
def test_every_task_preset_exists(spec: catalog.DataSpec):
    assert (ROOT / f"configs/tasks/{spec.task}.yaml").exists()


@pytest.mark.filterwarnings("ignore:.*out of date")
@pytest.mark.parametrize("name", catalog.OWN_DATA_ENVS)
def test_the_sizes_are_the_environments(name: str):
    spec, env = resolve(name), gymnasium.make(name)
    assert env.observation_space.shape == (spec.obs_dim,) and env.action_space.shape == (spec.action_dim,)
    assert (np.abs(env.action_space.low) == 1).all() and (env.action_space.high == 1).all()


@st.composite
def nearly_known(draw) -> str:
    """Draw a known name with a few characters cut, put in or exchanged."""
    name = draw(st.sampled_from(NAMES))
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(name)))
        name = (
            name[:at] + draw(st.text("abv-_/:.0123456789 \n\u0663", max_size=2)) + name[at + draw(st.integers(0, 2)) :]
        )
    return name


ANY_NAME = st.one_of(
    st.text(),
    nearly_known(),
    st.builds("{}{}".format, st.sampled_from(("minari:", "ogbench:", "visual-", "a.b:")), nearly_known()),
    st.from_regex(catalog._MINARI_ID),
    st.from_regex(catalog._OGBENCH_NAME, fullmatch=True),
    st.from_regex(WITH_MODULE, fullmatch=True),
)


def claims(name: str) -> list[str]:
    """Return which sources take a name for theirs."""
    sources = {
        "named": catalog._NAMED.get,
        "minari": catalog.minari_entry,
        "ogbench": catalog.ogbench_entry,
        "own": catalog._own_data_entry,
    }
    return [source for source, entry in sources.items() if entry(name) is not None]


@given(ANY_NAME)
def test_any_text_is_an_entry_or_a_usage_error(name: str):
    try:
        spec = resolve(name)
    except UsageError as error:
        assert claims(name) == [] and f"'{name}'" in str(error) and "gtp-fast data list" in str(error)
    else:
        assert claims(name)
        assert spec.name == (catalog.minari_id(name) or name)  # "minari:" only says whose a name is


@given(ANY_NAME)
def test_no_name_is_claimed_by_two_sources(name: str):
    found = claims(name)
    # A prefix says whose a name is, though it could be that of a module of one's own.
    assert len(found) <= 1 or (name.startswith(("minari:", "ogbench:")) and len(found) == 2 and found[1] == "own")


@pytest.mark.parametrize("name", NAMES)
def test_a_known_name_is_one_sources_and_stands_for_itself(name: str):
    assert len(claims(name)) == 1 and resolve(name).name == name


def test_the_listing_has_every_name_once_in_a_complete_row():
    listing, sources = catalog.listing(), set(get_args(Source))
    keys = list(listing[0])
    assert len({row["name"] for row in listing}) == len(listing) == len(SPECS)
    for row in listing:
        assert list(row) == keys and row["source"] in sources and json.loads(json.dumps(row)) == row
        assert (row["url"] is None) == (row["source"] not in ("d4rl", "ogbench"))
        assert not (row["obs_dim"] and row["obs_shape"]) and (row["ref_random"] is None) == (row["ref_expert"] is None)
        assert row["action_dim"] or row["source"] == "minari"
        assert row["obs_dim"] or row["obs_shape"] or row["source"] == "minari"
        assert row["ref_random"] is None or row["ref_random"] < row["ref_expert"]
        assert (
            row["score"] != "success" or (row["ref_random"], row["ref_expert"]) == (0.0, 1.0) or row["source"] == "d4rl"
        )
        assert catalog.line(row).startswith(row["name"]) and "\n" not in catalog.line(row)


def test_importing_the_catalogue_loads_neither_torch_nor_gymnasium():
    python("import sys, gtp_fast.data.catalog; assert not {'torch', 'gymnasium', 'h5py', 'minari'} & set(sys.modules)")
