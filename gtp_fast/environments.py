"""Gymnasium environments, built from the catalogue's entry and never from what a data file says of itself."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium

from gtp_fast.data_spec import DataSpec, EvalEnv
from gtp_fast.errors import DataError, UsageError

EXTRAS = {"gymnasium_robotics": "maze"}  # package -> the extra of gtp-fast that installs it


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


def make_env(env: EvalEnv, **kwargs: Any) -> gymnasium.Env:
    """Build the environment of a catalogue entry.

    Raises: UsageError when its package is not installed.
    """
    with warnings.catch_warnings(), _without_compiler_warning():
        warnings.simplefilter("ignore", DeprecationWarning)  # v4 is D4RL's physics on purpose (DATA: Hopper, Walker2d)
        try:
            return gymnasium.make(env.id, **dict(env.kwargs), **kwargs)
        except (gymnasium.error.Error, ImportError) as error:
            package = next((name for name in EXTRAS if name in str(error)), None)
            remedy = f"pip install 'gtp-fast[{EXTRAS[package]}]', or " if package else ""
            raise UsageError(
                f"the environment {env.id} cannot be built ({error}); {remedy}pass --eval-every 0 to train"
            ) from None


def check_environment(spec: DataSpec, obs_dim: int, action_dim: int) -> None:
    """Build the entry's environment once, so that a run cannot fail at its first evaluation.

    Raises: UsageError when there is none or it cannot be built; DataError when its sizes are not the data's.
    """
    if spec.eval_env is None:
        raise UsageError(f"{spec.name} names no evaluation environment in this version; pass --eval-every 0")
    env = make_env(spec.eval_env)
    spaces = ((env.observation_space, obs_dim, "observation"), (env.action_space, action_dim, "action"))
    for space, size, what in spaces:
        if space.shape != (size,):
            raise DataError(
                f"{spec.eval_env.id} has {what}s of shape {space.shape} but the data have {size} numbers; name the "
                "environment that the data came from with --env"
            )
    env.close()
