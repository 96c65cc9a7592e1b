"""An environment that cannot score a policy is refused when the run starts, with what would make it fit."""

from __future__ import annotations

import json
from typing import Any

import gymnasium
import numpy as np
import own_envs
import pytest

from gtp_fast.data.catalog import resolve
from gtp_fast.errors import DataError, GtpError, UsageError
from gtp_fast.evaluation.environments import check_environment


def refused(name: str, obs: Any = 3, frame_stack: int = 1, **kwargs: Any) -> str:
    with pytest.raises(GtpError) as error:
        check_environment(resolve(name, json.dumps(kwargs)), obs, 1, frame_stack)
    assert isinstance(error.value, (DataError, UsageError))
    return str(error.value)


@pytest.mark.parametrize("name", ["Pendulum-v1", "Unversioned", "yard/Armed-v0", "own_envs:Unversioned"])
def test_any_registered_id_may_score_a_policy(name: str):
    check_environment(resolve(name), 3, 1)


def test_a_missing_argument_is_named_with_its_flag():
    assert refused("own_envs:Armed-v0") == (
        "the environment own_envs:Armed-v0 needs the argument 'arm'; give it as --env-kwargs '{\"arm\": \"...\"}', or "
        "pass --eval-every 0 to train"
    )
    check_environment(resolve("own_envs:Armed-v0", '{"arm": "short"}'), 3, 1)


def test_an_argument_that_the_environment_has_not_is_named_with_its_flag():
    said = refused("own_envs:Armed-v0", leg=1)
    assert "got an unexpected keyword argument 'leg'" in said and "; check --env-kwargs, or pass --eval-every 0" in said


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_such_module:Arm-v0", "the module no_such_module cannot be imported: No module named 'no_such_module'; "),
        ("own_envs:Armd-v0", "the module own_envs registers no Armd-v0 (did you mean own_envs:Armed-v0?); "),
        ("own_envs:Xyz", "the module own_envs registers no Xyz; "),
    ],
    ids=["no module", "no such id", "nothing near"],
)
def test_a_module_that_cannot_be_imported_is_not_one_that_lacks_the_id(name: str, said: str):
    assert refused(name) == f"the environment {name} cannot be built: {said}pass --eval-every 0 to train without it"


def test_a_name_in_the_form_of_a_minari_id_is_answered_with_the_environments_near_it():
    assert "did you mean the environment yard/Armed-v0? Otherwise name it with --env" in refused("yard/Armd-v0")


@pytest.mark.parametrize("name", ["CartPole-v1", "Taxi-v4"])
def test_discrete_actions_are_refused_in_one_line(name: str):
    said = refused(name, obs=4)
    assert said.startswith(f"{name} has discrete actions, Discrete(") and "\n" not in said
    assert said.endswith(
        "policies here act with vectors of numbers, a Box of one axis: name an environment with such actions"
    )


WRAPPED = {
    "channels first": ((16, 16, 4), {}, "lambda o: np.moveaxis(o, 0, -1), space)"),
    "from 0 to 1": ((16, 16, 3), {"shape": (16, 16, 3), "high": 1, "dtype": "float32"}, "(o * 255).astype(np.uint8)"),
    "both": ((16, 16, 3), {"shape": (3, 16, 16), "dtype": "float32"}, "np.moveaxis(o, 0, -1).astype(np.uint8)"),
    "no channels": ((16, 20, 1), {"shape": (16, 20)}, "lambda o: o[..., None]"),
}


@pytest.mark.parametrize(("images", "kwargs", "words"), WRAPPED.values(), ids=WRAPPED.keys())
def test_images_of_another_form_are_refused_with_the_wrapper_that_turns_them(images: Any, kwargs: Any, words: str):
    said = refused("Camera-v0", images, **kwargs)
    assert words in said and f"but the data have {images}, uint8; register it in your module with space = " in said
    space, wrapper = said.split("with space = ")[1].split(" and ")
    names = {"gymnasium": gymnasium, "np": np, "env": own_envs.Camera(**kwargs)}
    names["space"] = eval(space, names)  # noqa: S307  # as a user does who pastes it
    env = eval(wrapper, names)  # noqa: S307
    obs = env.reset(seed=0)[0]
    assert env.observation_space.contains(obs) and obs.shape == images


def test_stacked_images_with_channels_first_are_known_too():
    said = refused("Camera-v0", (16, 16, 12), frame_stack=3)
    assert said.startswith("Camera-v0 has images of shape (4, 16, 16), uint8, but the data have (16, 16, 4), uint8; ")
