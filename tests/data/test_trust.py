"""What a file names is imported only if the user typed its module."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gtp_fast.data.trust import module_of, refuse_imports
from gtp_fast.errors import UsageError

FILE = Path("run/config.yaml")


@pytest.mark.parametrize(
    ("env", "module"),
    [
        ("my_env:X-v0", ("my_env",)),
        ("my.env:ns/X", ("my.env",)),
        ("minari:x-v0", ()),
        ("Hopper-v5", ()),
        ("ns/X-v0", ()),
        (None, ()),
    ],
)
def test_an_id_with_a_module_names_it(env, module):
    assert module_of(env) == module


def test_a_module_that_only_a_file_names_is_refused_with_the_flag_that_allows_it():
    with pytest.raises(UsageError) as error:
        refuse_imports("my_env:X-v0", None, FILE, ["my_en", "my_env_2"])
    assert str(error.value) == (
        "run/config.yaml names the environment my_env:X-v0, and a file may not decide what is imported; if you trust "
        "it, pass --allow-import my_env"
    )


@pytest.mark.parametrize(
    "kwargs",
    [{"env_id": "evil:X"}, {"a": [{"b": ["evil:0"]}]}, {"evil:X-v0": 1}, {"a": "evil:"}, {"a": "evil-1:X"}],
    ids=str,
)
def test_an_argument_that_names_a_module_is_refused_at_any_depth(kwargs):
    with pytest.raises(
        UsageError, match=r"gives an environment the argument 'evil(-1)?:.*pass --allow-import evil(-1)?$"
    ):
        refuse_imports("Hopper-v5", json.dumps(kwargs), FILE, [])


def test_a_module_of_this_package_is_no_exception():
    with pytest.raises(UsageError, match=r"--allow-import gtp_fast\.evaluation\.mazes$"):
        refuse_imports("gtp_fast.evaluation.mazes:gtp_fast/PointMaze-v0", '{"env_id": "evil:X-v0"}', FILE, [])


@pytest.mark.parametrize(
    ("env", "kwargs", "allowed"),
    [
        ("my_env:X-v0", None, ["my_env"]),
        ("my_env:X-v0", None, ["my_env:X-v0"]),
        ("my_env.sub:X-v0", None, ["other", "my_env"]),
        ("ogbench:cube-single-singletask-v0", None, []),
        ("gymnasium_robotics:FetchReach-v4", None, []),
        ("minari:x-v0", None, []),
        ("Hopper-v5", {"device": "cuda:0", "at": "12:30", "in": "0.5:-1", "said": "to b: c", "of": "a/b:c"}, []),
        ("Wraps-v0", {"env_id": "my_env:X-v0"}, ["my_env"]),
    ],
    ids=["allowed", "as the id", "inside", "ogbench", "robotics", "minari", "other texts", "argument"],
)
def test_what_is_allowed_or_names_no_module_passes(env, kwargs, allowed):
    refuse_imports(env, json.dumps(kwargs or {}), FILE, allowed)


def test_what_a_file_says_is_not_handed_to_a_shell():
    with pytest.raises(UsageError, match=r"if you trust it, type it as --env-kwargs$") as error:
        refuse_imports("Hopper-v5", json.dumps({"a": "$(reboot)\x1b[2J:x"}), FILE, [])
    assert "\x1b" not in str(error.value) and "--allow-import" not in str(error.value)
