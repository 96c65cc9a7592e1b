"""What an environment returns is held to Gymnasium's API and its spaces before NumPy could broadcast it."""

from __future__ import annotations

from pathlib import Path

import gymnasium
import numpy as np
import pytest
from eval_cases import ODD, Reaching, Small, spec, untrained
from gymnasium import spaces

from gtp_fast.data.spec import EvalEnv
from gtp_fast.errors import UsageError
from gtp_fast.evaluation.checked import Checked, checked, fault
from gtp_fast.evaluation.environments import make_env
from gtp_fast.evaluation.evaluate import evaluate_policy
from gtp_fast.evaluation.video import record_video

FITS = [*ODD][[*ODD].index("reward of one") :]
REFUSED = [*ODD][: [*ODD].index("reward of one")]


@pytest.mark.parametrize("way", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line_with_the_environment_and_the_remedy(way):
    case = (
        "gave an observation with NaN" if way == "nan at reset" else r"its (reset|step)\(\) returned .*, expected .*; "
    )
    with pytest.raises(UsageError, match=rf"^eval_cases:gtp_fast_tests/Returning-v0:? {case}") as error:
        evaluate_policy(untrained(), spec("Returning", way=way), episodes=1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("way", FITS)
def test_one_number_and_one_boolean_are_taken_in_every_form(way):
    assert evaluate_policy(untrained(), spec("Returning", way=way), episodes=1).returns_SE.tolist() == [[8.0], [8.0]]


@pytest.mark.parametrize("way", ["obs alone", "row", "four", "two rewards"])
def test_a_video_is_held_to_the_same(way, tmp_path: Path):
    with pytest.raises(UsageError, match=r"its (reset|step)\(\) returned"):
        record_video(untrained(), spec("Returning", way=way), tmp_path / "film.gif")


def test_the_message_says_what_came_and_what_the_space_says():
    with pytest.raises(UsageError) as error:
        evaluate_policy(untrained(), spec("Returning", way="row"), episodes=1)
    assert str(error.value) == (
        "eval_cases:gtp_fast_tests/Returning-v0: its reset() returned an array of shape (1, 4) of float32, expected "
        "observations of shape (4,) of float32; return what observation_space says, or mend it"
    )


def test_an_observation_that_changes_its_shape_in_an_episode_is_refused_there():
    env = checked(Small(), "mine")
    env.reset(), env.step(None)
    with pytest.raises(UsageError, match=r"mine: its step\(\) returned an array of shape \(1,\)"):
        env.env.step = lambda action: (np.zeros(1, np.float32), 1.0, False, False, {})
        env.step(None)


PICTURE = spaces.Box(0, 255, (8, 8, 3), np.uint8)
PARTS = Reaching().observation_space
GOOD = Reaching().reset()[0]


@pytest.mark.parametrize(
    ("space", "obs", "said"),
    [
        (PICTURE, np.zeros((8, 8, 3), np.uint8), None),
        (PICTURE, np.zeros((8, 8, 3), np.float32), "an array of shape (8, 8, 3) of float32"),
        (PICTURE, np.zeros((3, 8, 8), np.uint8), "an array of shape (3, 8, 8) of uint8"),
        (PARTS, GOOD, None),
        (PARTS, {key: GOOD[key] for key in ("left", "observation", "desired_goal")}, "a dict of left, observation, "),
        (PARTS, GOOD | {"more": 1}, "a dict of desired_goal, left, observation, achieved_goal, more"),
        (PARTS, GOOD | {"observation": np.zeros(1)}, "an array of shape (1,) of float64 in observation"),
        (PARTS, GOOD | {"left": 9}, "9 in left"),
        (PARTS, np.zeros(4), "an array of shape (4,) of float64"),
        (spaces.Tuple([PICTURE, PARTS]), (np.zeros((8, 8, 3), np.uint8), GOOD), None),
        (spaces.Tuple([PICTURE, PARTS]), (GOOD,), "a tuple of 1"),
        (spaces.Tuple([PICTURE, PARTS]), (np.zeros((8, 8, 3), np.uint8), GOOD | {"left": -1}), "-1 in 1/left"),
        (spaces.Discrete(3), np.int64(2), None),
        (spaces.Discrete(3), 0.5, "0.5"),
        (spaces.MultiBinary(2), np.array([0, 1], np.int8), None),
    ],
)
def test_every_part_of_an_observation_is_of_its_spaces_shape_and_kind(space, obs, said):
    found = fault(space, obs)
    assert found is None if said is None else found is not None and found[0].startswith(said)


def test_the_check_stands_inside_the_wrappers_that_gymnasium_adds():
    env = make_env(EvalEnv("eval_cases:gtp_fast_tests/Numbered-v0"))
    assert isinstance(env, gymnasium.wrappers.TimeLimit) and isinstance(env.env, gymnasium.wrappers.OrderEnforcing)
    assert isinstance(env.env.env, Checked) and not isinstance(env.env.env.env, gymnasium.Wrapper)


def test_what_further_wrappers_of_a_registration_return_is_checked_too():
    wrapper = gymnasium.envs.registration.WrapperSpec("Row", "eval_cases:Row", {})
    gymnasium.register("gtp_fast_tests/Wrapped-v0", Small, additional_wrappers=(wrapper,), max_episode_steps=9)
    with pytest.raises(UsageError, match=r"returned an array of shape \(1, 4\)"):
        make_env(EvalEnv("gtp_fast_tests/Wrapped-v0")).reset()
