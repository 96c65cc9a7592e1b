"""Gymnasium environments, built from the catalogue's entry and never from what a data file says of itself."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np

from gtp_fast.data_spec import DataSpec, EvalEnv
from gtp_fast.encoder import ObsShape
from gtp_fast.errors import DataError, UsageError


@contextmanager
def _without_compiler_warning() -> Iterator[None]:
    """Hold back what C code writes to standard error, and pass on all but one line.

    MuJoCo 4 warns at every construction of a HalfCheetah of an attribute in Gymnasium's own model file, which a user
    can do nothing about; ten episodes of two seeds would print it twenty times.
    """
    with tempfile.TemporaryFile() as held:
        stderr = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            rest = b"".join(line for line in held if line.strip() and b"attribute 'settotalmass'" not in line)
            os.write(2, rest)


def make_env(env: EvalEnv, frame_stack: int = 1, **kwargs: Any) -> gymnasium.Env:
    """Build the environment of a catalogue entry; with frame_stack above 1 it shows its last pictures as channels.

    Raises: UsageError when its package is not installed.
    """
    with warnings.catch_warnings(), _without_compiler_warning():
        warnings.simplefilter("ignore", DeprecationWarning)  # v4 is D4RL's physics on purpose (DATA: Hopper, Walker2d)
        try:
            made = gymnasium.make(env.id, **dict(env.kwargs), **kwargs)
            return StackedFrames(made, frame_stack) if frame_stack > 1 else made
        except (gymnasium.error.Error, ImportError) as error:
            raise UsageError(
                f"the environment {env.id} cannot be built ({error}); pass --eval-every 0 to train"
            ) from None


class StackedFrames(gymnasium.ObservationWrapper):
    """The last n pictures (H, W, C) as one of (H, W, n C), the oldest first; the first one is repeated at a reset."""

    def __init__(self, env: gymnasium.Env, n: int):
        """Wrap an environment of pictures."""
        super().__init__(gymnasium.wrappers.FrameStackObservation(env, n))
        space = env.observation_space
        if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 3:
            raise UsageError(f"--frame-stack {n} needs an environment of pictures, not of {space}")
        low, high = (np.concatenate([side] * n, axis=-1) for side in (space.low, space.high))
        self.observation_space = gymnasium.spaces.Box(low, high, dtype=space.dtype.type)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """Move the stack's axis (n, H, W, C) to the channels."""
        return np.concatenate(list(observation), axis=-1)


def check_environment(spec: DataSpec, obs: ObsShape, action_dim: int, frame_stack: int = 1) -> None:
    """Build the entry's environment once, so that a run cannot fail at its first evaluation.

    Raises: UsageError when there is none or it cannot be built; DataError when its sizes are not the data's.
    """
    if spec.eval_env is None:
        raise UsageError(f"{spec.name} names no evaluation environment in this version; pass --eval-every 0")
    env = make_env(spec.eval_env, frame_stack)
    shape = (obs,) if isinstance(obs, int) else obs
    spaces = ((env.observation_space, shape, "observation"), (env.action_space, (action_dim,), "action"))
    for space, expected, what in spaces:
        if space.shape != expected:
            held = f"{expected[0]} numbers" if len(expected) == 1 else f"pictures of {expected}"
            raise DataError(
                f"{spec.eval_env.id} has {what}s of shape {space.shape} but the data have {held}; name the "
                "environment that the data came from with --env"
            )
    env.close()
