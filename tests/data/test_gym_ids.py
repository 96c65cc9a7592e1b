"""`--env` takes any id that Gymnasium knows in this process; a wrong one is answered with names of its kind."""

from __future__ import annotations

import own_envs  # noqa: F401  # registers environments
import pytest
from run_cases import gtp_fast, python

from gtp_fast.data import catalog
from gtp_fast.data.catalog import resolve
from gtp_fast.data.spec import BODIES, EvalEnv
from gtp_fast.errors import UsageError


def answer(name: str) -> list[str]:
    """Return the names with which an unknown one is answered."""
    with pytest.raises(UsageError, match=r"--env ID --dataset FILE.*docs/data\.md") as error:
        resolve(name)
    said = str(error.value)
    return said.split("did you mean ")[1].split("?")[0].split(" or ") if "did you mean" in said else []


@pytest.mark.parametrize(
    "name",
    [
        *("Pendulum-v1", "Humanoid-v5", "InvertedPendulum-v5", "Unversioned", "yard/Armed-v0", "phys2d/Pendulum-v0"),
        *("my_module:MyEnv-v0", "my_module:MyEnv", "my.module:ns/MyEnv-v0", "my_module:ns/MyEnv"),
    ],
)
def test_an_id_names_the_environment_for_a_file(name: str):
    spec = resolve(name)
    assert (spec.name, spec.source, spec.eval_env) == (name, "file", EvalEnv(name))


@pytest.mark.parametrize("body", BODIES)
def test_a_mujoco_body_keeps_its_sizes_and_references(body: str):
    spec = resolve(f"{body}-v5")
    assert (spec.obs_dim, spec.action_dim, spec.ref_random, spec.ref_expert) == BODIES[body]


def test_another_version_of_a_body_may_have_other_sizes():
    assert (resolve("Ant-v4").obs_dim, resolve("Humanoid-v4").ref_expert) == (None, None)


def test_an_id_without_a_file_asks_for_one():
    done = gtp_fast("data", "info", "Pendulum-v1")
    assert (done.returncode, done.stderr) == (
        2,
        "error: --env Pendulum-v1 names an environment, not a data set; pass its data with --dataset PATH\n",
    )


def test_a_minari_id_that_is_registered_too_is_minaris_by_its_prefix():
    assert (resolve("yard/Armed-v0").source, resolve("minari:yard/Armed-v0").source) == ("file", "minari")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("Pendulum-v0", ["Pendulum-v1"]),
        ("Pendulum", ["Pendulum-v1"]),
        ("HalfCheatah-v5", ["HalfCheetah-v5", "HalfCheetah-v4"]),
        ("halfcheetah", ["HalfCheetah-v5", "HalfCheetah-v4"]),
        ("Unversiond", ["Unversioned"]),
        ("yard/Armed", ["yard/Armed-v0"]),
        ("halfcheetah-medim-v2", ["halfcheetah-medium-v2"]),
        ("antmaze-umaze-v3", ["antmaze-umaze-v2"]),
        ("mujoco/halfcheeta/medium", ["mujoco/halfcheetah/medium-v0"]),
        ("cube-sngle-play-singletask-v0", ["cube-single-play-singletask-v0"]),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest_of_its_kind(name: str, near: list[str]):
    found = answer(name)
    assert found[: len(near)] == near
    assert len({resolve(one).source for one in found}) == 1


def test_a_name_like_none_is_answered_without_a_guess():
    assert answer("qqqqq") == []


def test_no_module_is_imported_for_a_name():
    assert resolve("no_such_module:MyEnv-v0").eval_env == EvalEnv("no_such_module:MyEnv-v0")


def test_names_that_the_catalogue_knows_need_no_gymnasium():
    python(
        "import sys; from gtp_fast.data import catalog; catalog.listing()\n"
        "for name in ('Humanoid-v5', 'my_module:MyEnv', 'cube-single'): catalog.resolve(name)\n"
        "assert 'gymnasium' not in sys.modules; catalog.resolve('Pendulum-v1'); assert 'gymnasium' in sys.modules"
    )


def test_without_gymnasium_a_name_is_answered_with_what_is_known():
    code = (
        "import sys; sys.modules['gymnasium'] = None\nfrom gtp_fast.data import catalog\n"
        "try: catalog.resolve('HalfCheatah-v5')\nexcept Exception as error: print(error)"
    )
    said = python(code).stdout
    assert "did you mean HalfCheetah-v5" in said and "gymnasium, which knows their ids, is not installed" in said


def test_arguments_stand_above_the_entrys_own():
    spec = resolve("PointMaze_UMaze-v3", '{"env_id": "PointMaze_Open-v3", "more": [1, {"a": null}]}')
    assert spec.eval_env is not None
    assert dict(spec.eval_env.kwargs) == {"env_id": "PointMaze_Open-v3", "more": [1, {"a": None}]}


@pytest.mark.parametrize("name", ["hopper-demo-v0", "halfcheetah-medium-v2", "cube-single-play-singletask-v0"])
def test_arguments_are_refused_where_the_name_fixes_the_environment(name: str):
    with pytest.raises(UsageError, match=f"--env-kwargs: {name} names data whose environment is fixed; leave it out"):
        resolve(name, '{"a": 1}')


def test_arguments_of_a_minari_id_are_its_environments():
    spec = resolve("mujoco/hopper/medium-v0", '{"ctrl_cost_weight": 0.1}')
    assert spec.eval_env == EvalEnv("Hopper-v5", (("ctrl_cost_weight", 0.1),))
    with pytest.raises(UsageError, match="names no environment; name it with --env ID --dataset minari:my/data-v0"):
        resolve("my/data-v0", '{"a": 1}')


def test_a_run_of_an_id_that_this_process_does_not_know_is_still_reported():
    assert catalog.of_run({"env": "Gone-v0", "env_kwargs": '{"a": 1}'}).ref_random is None
