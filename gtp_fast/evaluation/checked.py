"""What an environment returns, held to what Gymnasium and its own spaces say: NumPy would broadcast one number.

In: an environment as its entry point made it. Out: the same, whose reset and step raise UsageError for what does not
fit, and whose reward is a float and whose ends are bools. It has a file of its own because it needs Gymnasium when it
is imported, which `environments` does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any, NoReturn

import gymnasium
import numpy as np
from gymnasium import spaces

from gtp_fast.config import shown
from gtp_fast.errors import UsageError
from gtp_fast.evaluation.silence import count_call

# The wrappers of `gymnasium.make` around what the entry point returned. They unpack five things without a word.
MADE = (gymnasium.wrappers.TimeLimit, gymnasium.wrappers.OrderEnforcing)
RESET = "return (observation, info) from reset(), as Gymnasium has it since 0.26"
STEP = "return (observation, reward, terminated, truncated, info) from step(), as Gymnasium has it since 0.26"


def checked(made: gymnasium.Env[Any, Any], name: str) -> gymnasium.Env[Any, Any]:
    """Put `Checked` around what the entry point returned, inside the wrappers that gymnasium.make put around it.

    Wrappers that the registration names stand outside those; what they return is checked too.
    """
    outer = made
    while isinstance(outer, gymnasium.Wrapper) and not isinstance(outer, MADE):
        outer = outer.env
    if not isinstance(outer, gymnasium.Wrapper):
        return Checked(made, name)
    further = outer is not made
    while isinstance(outer.env, MADE):
        outer = outer.env
    outer.env = Checked(outer.env, name)
    return Checked(made, name) if further else made


class Checked(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Raises UsageError where reset or step returns what Gymnasium or the observation space does not allow.

    A step costs 0.4 us more than a wrapper that only passes it on (Zen 5, 2026-11-27); HalfCheetah's takes 60 us.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], name: str):
        """Wrap an environment; name is the one that its user typed, for errors."""
        super().__init__(env)
        self._name = name
        self._space: spaces.Space[Any] | None = None  # read after the first reset: some build it from an observation
        self._shape: tuple[int, ...] | None = None  # of a Box's observations, once a step's was checked
        count_call()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset; the result is a pair of an observation and a mapping."""
        found = self.env.reset(seed=seed, options=options)
        count_call()
        if not isinstance(found, (tuple, list)) or len(found) != 2 or not isinstance(found[1], Mapping):
            self._refuse("reset", kind_of(found), "a pair of an observation and a dict", RESET)
        if self._space is None:
            self._space = self.env.observation_space
        self._check(found[0], "reset")
        return found[0], found[1]

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step; the result is five things of the kinds above."""
        found = self.env.step(action)
        count_call()
        try:
            obs, reward, terminated, truncated, info = found if type(found) is tuple else _listed(found)
        except (TypeError, ValueError):
            self._refuse("step", kind_of(found), "five things", STEP)
        if getattr(obs, "shape", None) != self._shape or self._shape is None:
            self._check(obs, "step")
        if not isinstance(reward, float):
            reward = self._number(reward)
        if terminated is not False and terminated is not True:
            terminated = self._flag(terminated, "terminated")
        if truncated is not False and truncated is not True:
            truncated = self._flag(truncated, "truncated")
        if type(info) is not dict and not isinstance(info, Mapping):
            self._refuse("step", f"{kind_of(info)} as info", "a dict", STEP)
        return obs, reward, terminated, truncated, info  # pyright: ignore[reportReturnType]

    def _check(self, obs: Any, where: str) -> None:
        assert self._space is not None  # OrderEnforcing, or the caller, resets first
        found = fault(self._space, obs)
        if found is not None:
            seen, expected = found
            self._refuse(where, seen, f"observations of {expected}", "return what observation_space says, or mend it")
        if where == "step" and isinstance(self._space, spaces.Box):
            self._shape = obs.shape  # what changes after the first step is seen by its shape

    def _number(self, reward: Any) -> float:
        one = _one(reward)
        if one is None:
            self._refuse("step", f"{kind_of(reward)} as the reward", "one number", "return a float")
        return float(one)

    def _flag(self, value: Any, name: str) -> bool:
        if isinstance(value, np.bool_):
            return bool(value)
        one = _one(value)
        if one is None or one not in (0, 1):
            self._refuse("step", f"{kind_of(value)} as {name}", "True or False", STEP)
        return bool(one)

    def _refuse(self, where: str, seen: str, expected: str, remedy: str) -> NoReturn:
        raise UsageError(f"{self._name}: its {where}() returned {seen}, expected {expected}; {remedy}")


def _listed(found: Any) -> list[Any]:
    """Return a list as it is: an array of five numbers is no result of a step."""
    if not isinstance(found, (tuple, list)):
        raise TypeError
    return [*found]


def fault(space: spaces.Space[Any], obs: Any, part: str = "") -> tuple[str, str] | None:
    """Say what came and what the space says, where an observation, or a part of it, does not fit; None where it does.

    The values of a Box are not held to its bounds: simulators leave them by a rounding error.
    """
    where = f" in {part}" if part else ""
    if isinstance(space, spaces.Dict):
        if not isinstance(obs, Mapping) or set(obs) != set(space):
            return f"{kind_of(obs)}{where}", f"a dict of {', '.join(sorted(space))}{where}"
        return next(filter(None, (fault(space[key], obs[key], f"{part}/{key}".strip("/")) for key in space)), None)
    if isinstance(space, spaces.Tuple):
        if not isinstance(obs, (tuple, list)) or len(obs) != len(space):
            return f"{kind_of(obs)}{where}", f"a tuple of {len(space)}{where}"
        parts = zip(space, obs, range(len(space)), strict=True)
        return next(filter(None, (fault(inner, one, f"{part}/{i}".strip("/")) for inner, one, i in parts)), None)
    if isinstance(space, spaces.Box):
        fits = isinstance(obs, (np.ndarray, np.generic)) and obs.shape == space.shape
        fits = fits and (obs.dtype == space.dtype or np.can_cast(obs.dtype, space.dtype, "same_kind"))
        return None if fits else (f"{kind_of(obs)}{where}", f"shape {space.shape} of {space.dtype}{where}")
    return None if space.contains(obs) else (f"{shown(obs)}{where}", f"{space}{where}")


def _one(value: Any) -> Any:
    """Return a value as one number: a number, or an array that holds exactly one; None for anything else."""
    if isinstance(value, Real):
        return value
    if value is None or isinstance(value, (str, bytes, list, tuple, Mapping)):
        return None
    try:
        array = np.asarray(value)
    except Exception:  # of a foreign kind of array, which says in its own way that it cannot be one
        return None
    return array.item() if array.size == 1 and array.dtype.kind in "biuf" else None


def kind_of(value: Any) -> str:
    """Say in words what a value is: its kind, and the shape, length or keys that an error is about."""
    if isinstance(value, (np.ndarray, np.generic)):
        return f"an array of shape {value.shape} of {value.dtype}"
    if isinstance(value, Mapping):
        return f"a dict of {', '.join(map(str, value)) or 'nothing'}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return shown(value) if value is None or isinstance(value, (Real, str)) else f"a {type(value).__name__}"
