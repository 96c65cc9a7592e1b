"""Gymnasium's spaces as vectors of numbers, in the same order for the rows of a data set and for an environment.

In: a space, with observations, actions or an environment of it. Out: float32 vectors. The order is that of
`gymnasium.spaces.flatten`: a Dict key by key, a Tuple part by part, a Box raveled, MultiBinary unchanged, Discrete and
MultiDiscrete as one-hot vectors. Keys are in alphabetical order, in which Gymnasium sorts a plain dictionary; data keep
no other order. A goal-conditioned observation is achieved_goal, desired_goal, observation. A policy's actions lie in
[-1, 1]; `units` says what they stand for.

Legend: n rows, A action; (H, W, C) an image.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from gtp_fast.data import units
from gtp_fast.data.spec import Bounds
from gtp_fast.data.units import Actions
from gtp_fast.errors import UsageError


def ordered(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """Return the space with the keys of every Dict inside it in alphabetical order."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict([(key, ordered(space[key])) for key in sorted(space)])
    if isinstance(space, spaces.Tuple):
        return spaces.Tuple([ordered(part) for part in space])
    return space


def no_vector(space: spaces.Space[Any]) -> str | None:
    """Name the part of an observation space that cannot become numbers; None if every part can."""
    if isinstance(space, spaces.Dict):
        return next(filter(None, (no_vector(space[key]) for key in sorted(space))), None)
    if isinstance(space, spaces.Tuple):
        return next(filter(None, map(no_vector, space)), None)
    if isinstance(space, spaces.Box):
        image = len(space.shape) == 3 and space.dtype == np.uint8
        return f"a Box of images, shape {space.shape} of uint8" if image else None
    known = isinstance(space, (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary))
    return None if known else f"a {type(space).__name__} space"


def parts(space: spaces.Space[Any], name: str = "") -> list[str]:
    """Name the parts of a space in order, each with its size: `achieved_goal 3`."""
    if isinstance(space, spaces.Dict):
        return [part for key in sorted(space) for part in parts(space[key], f"{name}/{key}".strip("/"))]
    if isinstance(space, spaces.Tuple):
        return [part for i, inner in enumerate(space) for part in parts(inner, f"{name}/{i}".strip("/"))]
    return [f"{name} {spaces.flatdim(space)}".strip()]


def flatten_rows(space: spaces.Space[Any], values: Any, name: str = "observations") -> np.ndarray:
    """Flatten n observations of a space to float32 (n, size).

    Args: values are arrays (n, ...), nested in dictionaries and tuples as the space is. name is the part's, for errors.
    Raises: ValueError for an array of the wrong shape, or a value outside a discrete part.
    """
    if isinstance(space, spaces.Dict):
        inner = [flatten_rows(space[key], values[key], f"{name}/{key}") for key in sorted(space)]
        return np.concatenate(inner, axis=1)
    if isinstance(space, spaces.Tuple):
        inner = [flatten_rows(part, values[i], f"{name}/{i}") for i, part in enumerate(space)]
        return np.concatenate(inner, axis=1)
    array, shape = np.asarray(values), space.shape or ()
    if array.shape[1:] != shape or not array.ndim:
        raise ValueError(f"{name} has shape {array.shape}, its space (n, {', '.join(map(str, shape))})")
    rows = array.reshape(len(array), -1)
    if isinstance(space, spaces.Discrete):
        return _one_hot(rows - space.start, np.array([space.n]), name)
    if isinstance(space, spaces.MultiDiscrete):
        return _one_hot(rows - space.start.ravel(), space.nvec.ravel(), name)
    with np.errstate(over="ignore"):  # a value too large for float32 becomes Inf, which `rules` refuses by its row
        return rows.astype(np.float32, copy=False)


def _one_hot(choices: np.ndarray, counts: np.ndarray, name: str) -> np.ndarray:
    """Return a one-hot vector for each column, side by side; choices (n, columns) count from 0."""
    if ((choices < 0) | (choices >= counts)).any():
        raise ValueError(f"{name} holds a choice outside its space of {counts.tolist()}")
    rows = np.zeros((len(choices), int(counts.sum())), np.float32)
    column = choices + np.concatenate([[0], np.cumsum(counts)[:-1]])
    rows[np.arange(len(rows))[:, None], column.astype(np.int64)] = 1.0
    return rows


def as_vectors(env: gymnasium.Env[Any, Any], acts: Actions | None = None) -> gymnasium.Env[Any, Any]:
    """Wrap an environment so that its observations and actions are vectors as above; leave it unwrapped if they are.

    Args: acts, the units of the policy's actions; None: -1 and 1 stand for the bounds where one lies outside [-1, 1].
    """
    own = env.observation_space
    if not (isinstance(own, spaces.Box) and len(own.shape) == 1) and no_vector(own) is None:
        space = ordered(own)
        flat = spaces.flatten_space(space)
        env = gymnasium.wrappers.TransformObservation(env, lambda obs: spaces.flatten(space, obs), flat)
    return _with_actions(env, bounds(env.action_space), acts or Actions("environment"))


def _with_actions(env: gymnasium.Env[Any, Any], own: Bounds, acts: Actions) -> gymnasium.Env[Any, Any]:
    stands_for = replace(acts, bounds=acts.bounds or own)
    low, high = own
    if not stands_for.scales and max(low, default=-1) <= -1 and min(high, default=1) >= 1:
        return env
    return ActionsOfPolicy(env, stands_for.bounds if stands_for.scales else None)


class StackedFrames(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Stack the last n images (H, W, C) to (H, W, n C), the oldest first; after a reset the first one is repeated."""

    def __init__(self, env: gymnasium.Env, n: int):
        """Wrap an environment with image observations."""
        super().__init__(gymnasium.wrappers.FrameStackObservation(env, n))
        space = env.observation_space
        if not isinstance(space, spaces.Box) or len(space.shape) != 3:
            raise UsageError(
                f"--frame-stack {n} needs image observations, and the environment has {space}; leave it out"
            )
        low, high = (np.concatenate([side] * n, axis=-1) for side in (space.low, space.high))
        self.observation_space = spaces.Box(low, high, dtype=space.dtype.type)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """Move the stack's axis (n, H, W, C) to the channels."""
        return np.concatenate(list(observation), axis=-1)


def bounds(space: spaces.Space[Any]) -> Bounds:
    """Return the bounds of a Box of one axis, which may be infinite.

    Raises: UsageError for another space.
    """
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        raise UsageError(f"actions are in {space}, expected a Box of one axis: policies act with vectors of numbers")
    return tuple(map(float, space.low)), tuple(map(float, space.high))


class ActionsOfPolicy(gymnasium.ActionWrapper[Any, Any, Any]):
    """Take a policy's actions in [-1, 1]: map them to `stands_for`, if it is given, and hold them to the bounds."""

    def __init__(self, env: gymnasium.Env[Any, Any], stands_for: Bounds | None):
        """Wrap an environment with actions in a Box; stands_for, what -1 and 1 stand for."""
        super().__init__(env)
        self._stands_for, space = stands_for, env.action_space
        assert isinstance(space, spaces.Box)
        self._low, self._high, self._dtype = space.low, space.high, space.dtype
        self.action_space = spaces.Box(-1.0, 1.0, space.shape, np.float32)

    def action(self, action: np.ndarray) -> np.ndarray:
        """Return the action in the environment's units."""
        if self._stands_for is not None:
            action = units.from_unit(action, self._stands_for)
        return np.clip(action, self._low, self._high).astype(self._dtype, copy=False)
