"""Evaluation environments: from the catalogue's entry to a Gymnasium environment whose spaces fit the data.

The catalogue says what is built, never a data file. Functions import Gymnasium when they build an environment: training
without evaluations, and acting, do not need it.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gtp_fast.data import gym_ids, units
from gtp_fast.data.spec import Bounds, DataSpec, EvalEnv, ObsShape
from gtp_fast.data.units import Actions
from gtp_fast.errors import DataError, UsageError

if TYPE_CHECKING:
    import gymnasium

INSTALLED_BY = {  # package -> argument of pip install
    "gymnasium": "gymnasium[mujoco]",
    "mujoco": "gymnasium[mujoco]",
    "gymnasium_robotics": "gtp-fast[maze]",
    "ogbench": "gtp-fast[ogbench]",
}
NOTICES = (b"attribute 'settotalmass'", b"environment's reward functions were updated")


@contextmanager
def _without_notices() -> Iterator[None]:
    """Filter NOTICES, which no user can act on, out of standard error; lines from C code included.

    MuJoCo 4 warns about an attribute of Gymnasium's own model file whenever a HalfCheetah is built: ten episodes of two
    seeds would print it twenty times. gymnasium-robotics prints a notice when it is imported.
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
            rest = b"".join(line for line in held if line.strip() and not any(notice in line for notice in NOTICES))
            os.write(2, rest)


def make_env(env: EvalEnv, frame_stack: int = 1, acts: Actions | None = None, **kwargs: Any) -> gymnasium.Env:
    """Build the environment of a catalogue entry, with vectors of the data's order and scale in its spaces.

    Images stay images; with frame_stack above 1 the last ones are stacked as channels. acts are the units of the
    policy's actions, as of `spaces.as_vectors`.
    Raises: UsageError when its package is not installed, or the environment fails when it is built.
    """
    made = _made(env, frame_stack, **kwargs)
    from gtp_fast.data.spaces import as_vectors

    return as_vectors(made, acts)


def _made(env: EvalEnv, frame_stack: int, **kwargs: Any) -> gymnasium.Env:
    if env.id.startswith("ogbench:"):  # it warns twice about float64 bounds at each reset
        warnings.filterwarnings("ignore", ".*precision lowered", UserWarning)
    with warnings.catch_warnings(), _without_notices():
        warnings.simplefilter("ignore", DeprecationWarning)  # v4 has the physics of D4RL's data
        warnings.filterwarnings("ignore", ".*DISPLAY", UserWarning)  # no display is needed
        try:
            import gymnasium

            from gtp_fast.data.spaces import StackedFrames

            made = _with_fixed_spaces(gymnasium.make(env.id, disable_env_checker=True, **dict(env.kwargs), **kwargs))
            return StackedFrames(made, frame_stack) if frame_stack > 1 else made
        except UsageError:
            raise
        except Exception as error:  # of any kind: on MuJoCo 4 Fetch fails by an assertion
            if (package := _absent(error)) in INSTALLED_BY:
                raise UsageError(
                    f"the environment {env.id} needs the package {package}, which is not installed; "
                    f"pip install '{INSTALLED_BY[package]}', or pass --eval-every 0 to train"
                ) from None
            reason = str(error) or type(error).__name__
            if env.id.startswith("ogbench:visual-"):  # a rendering driver raises errors of any kind
                raise UsageError(
                    f"{env.id} cannot render its observations here ({reason}); set MUJOCO_GL=egl or osmesa, or pass "
                    "--eval-every 0 to train"
                ) from None
            raise UsageError(_not_built(env.id, error, reason)) from None


def _not_built(env_id: str, error: Exception, reason: str) -> str:
    """Say why an environment cannot be built: Gymnasium does not know its id, wrong arguments, or its own error."""
    said, missing = (
        gym_ids.unknown(env_id, error),
        re.search(r"missing \d+ required .*arguments?: (.*?)( was |$)", reason),
    )
    if said is not None:
        return f"the environment {env_id} cannot be built: {said}; pass --eval-every 0 to train without it"
    if missing is not None:
        named = re.findall(r"'(\w+)'", missing[1])
        example = json.dumps(dict.fromkeys(named, "..."))
        return (
            f"the environment {env_id} needs the argument{'s' * (len(named) > 1)} {missing[1]}; give "
            f"{'them' if len(named) > 1 else 'it'} as --env-kwargs '{example}', or pass --eval-every 0 to train"
        )
    flags = "check --env-kwargs, or " if isinstance(error, TypeError) and "argument" in reason else ""
    return f"the environment {env_id} cannot be built ({reason}); {flags}pass --eval-every 0 to train"


def _absent(error: BaseException) -> str:
    """Return the package whose failed import caused an error, "" for errors with another cause."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return error.name.partition(".")[0]
    cause = error.__cause__ or error.__context__
    return _absent(cause) if cause is not None else ""


def _with_fixed_spaces(env: gymnasium.Env) -> gymnasium.Env:
    """Store the spaces of OGBench's environments, which would build them from an observation at every access."""
    if env.spec is not None and "ogbench" in str(env.spec.entry_point):
        env.observation_space, env.action_space = env.observation_space, env.action_space
    return env


def check_environment(
    spec: DataSpec, obs: ObsShape, action_dim: int, frame_stack: int = 1, action_bounds: Bounds | None = None
) -> None:
    """Build the entry's environment once, so that a run does not fail at its first evaluation.

    Args: action_bounds, those of the data's actions before scaling; None where they are not known.
    Raises: UsageError when the entry has no environment or it cannot be built; DataError when its shapes or bounds
    differ from the data's.
    """
    if spec.eval_env is None:
        own = (
            f"name it with --env my_module:MyEnv-v0 --dataset minari:{spec.name}, or "
            if spec.source == "minari"
            else ""
        )
        near = gym_ids.nearest(spec.name) if "/" in spec.name else []  # ns/Name-v0 has the form of a Minari id
        meant = f"did you mean the environment {' or '.join(near)}? Otherwise " if near else ""
        raise UsageError(
            f"{spec.name} names no evaluation environment in this version; {meant}{own}pass --eval-every 0"
        )
    env_id, shape = spec.eval_env.id, (obs,) if isinstance(obs, int) else obs
    with closing(_made(spec.eval_env, frame_stack)) as made:
        from gtp_fast.data.spaces import as_vectors, bounds  # imports Gymnasium, which may be absent

        refuse_actions(env_id, made.action_space)
        env, theirs = as_vectors(made), bounds(made.action_space)
        spaces = ((env.observation_space, shape, "observation"), (env.action_space, (action_dim,), "action"))
    for space, expected, what in spaces:
        if space.shape != expected:
            data = f"{expected[0]} numbers" if len(expected) == 1 else f"images of {expected}"
            images = _other_images(env_id, made.observation_space, expected, frame_stack)
            raise DataError(
                images
                or f"{env_id} has {what}s of shape {space.shape} but the data have {data}; name the "
                "environment that the data came from with --env"
            )
    if action_bounds is not None and units.scalable(theirs) and not units.same(theirs, action_bounds):
        raise DataError(
            f"{env_id} has actions of other bounds, {units.shown(theirs)}, than the data, "
            f"{units.shown(action_bounds)}: no units fit both; name the environment that the data came from with --env"
        )


def with_bounds(spec: DataSpec, needed: bool) -> DataSpec:
    """Return the entry with the bounds of its environment's actions, from the environment where it lists none.

    Args: needed, whether the run evaluates: without that, an environment that cannot be built leaves them unknown.
    Raises: UsageError when a needed environment cannot be built, or DataError when its actions are no vectors.
    """
    if spec.eval_env is None or spec.action_bounds is not None:
        return spec
    try:
        made = _made(spec.eval_env, 1)
    except UsageError:
        if needed:
            raise
        return spec
    with closing(made):
        from gtp_fast.data.spaces import bounds

        refuse_actions(spec.eval_env.id, made.action_space)
        return replace(spec, action_bounds=bounds(made.action_space))


def refuse_actions(env_id: str, space: gymnasium.Space[Any]) -> None:
    """Refuse actions that no policy of this package can give: it draws from a Box of one axis.

    Raises: DataError for any other space.
    """
    from gymnasium import spaces

    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        return
    kind = "discrete actions" if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)) else ""
    raise DataError(
        f"{env_id} has {kind or 'actions'}, {space}; policies here act with vectors of numbers, a Box of one axis: "
        "name an environment with such actions"
    )


def _other_images(env_id: str, space: gymnasium.Space[Any], images: tuple[int, ...], frame_stack: int) -> str | None:
    """Return the error about an environment whose images have another form than the data's, with the wrapper to add.

    Args: space, of stacked images if frame_stack is above 1; images, the height, width and channels of the data's
    stack. Returns None where no wrapper is known.
    """
    shape, one = space.shape or (), (*images[:-1], images[-1] // frame_stack)
    shape = (*shape[:-1], shape[-1] // frame_stack) if shape else ()
    moved = {one: "o", (one[-1], *one[:-1]): "np.moveaxis(o, 0, -1)", (*one[:-1],) * (one[-1] == 1): "o[..., None]"}
    if len(one) != 3 or shape not in moved:
        return None
    value = moved[shape]
    if space.dtype != "uint8":
        scale = " * 255" if np.max(getattr(space, "high", 255.0)) <= 1.0 else ""
        value = f"({value}{scale}).astype(np.uint8)" if scale else f"{value}.astype(np.uint8)"
    return (
        f"{env_id} has images of shape {shape}, {space.dtype}, but the data have {one}, uint8; register it in your "
        f"module with space = gymnasium.spaces.Box(0, 255, {one}, np.uint8) and "
        f"gymnasium.wrappers.TransformObservation(env, lambda o: {value}, space)"
    )
