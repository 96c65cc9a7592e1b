"""Evaluation environments: from the catalogue's entry to a Gymnasium environment whose spaces fit the data.

The catalogue says what is built, never a data file. Functions import Gymnasium when they build an environment: training
without evaluations, and acting, do not need it.
"""

from __future__ import annotations

import json
import os
import re
import sys
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
from gtp_fast.evaluation.failures import telling, told

if TYPE_CHECKING:
    import gymnasium

INSTALLED_BY = {  # package -> argument of pip install
    "gymnasium": "gymnasium[mujoco]",
    "mujoco": "gymnasium[mujoco]",
    "gymnasium_robotics": "gtp-fast[maze]",
    "ogbench": "gtp-fast[ogbench]",
}
OWN = "gtp_fast.evaluation."  # modules of environments whose episodes end by themselves, though no registration says so
LONGEST = 10_000  # steps of an episode where neither the user nor the environment sets a limit
NOTICES = (b"attribute 'settotalmass'", b"environment's reward functions were updated")


class UnknownEnvironmentError(UsageError):
    """No environment of this name is registered in this process."""


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
            from gtp_fast.evaluation.checked import checked

            # With -1 there is no limit of Gymnasium's: the rollout counts the user's own.
            limit = {"max_episode_steps": -1} if env.max_steps else {}
            typed = dict(env.kwargs) | kwargs | limit
            made = _with_fixed_spaces(checked(gymnasium.make(env.id, disable_env_checker=True, **typed), env.id))
            return StackedFrames(made, frame_stack) if frame_stack > 1 else made
        except UsageError:
            raise
        except (Exception, SystemExit) as error:  # of any kind: on MuJoCo 4 Fetch fails by an assertion
            if (package := _absent(error)) in INSTALLED_BY:
                raise UsageError(
                    f"the environment {env.id} needs the package {package}, which is not installed; "
                    f"pip install '{INSTALLED_BY[package]}', or pass --eval-every 0 to train"
                ) from None
            reason = told(error)
            if env.id.startswith("ogbench:visual-"):  # a rendering driver raises errors of any kind
                raise UsageError(
                    f"{env.id} cannot render its observations here ({reason}); set MUJOCO_GL=egl or osmesa, or pass "
                    "--eval-every 0 to train"
                ) from None
            kind = UnknownEnvironmentError if _unknown(env.id, error) else UsageError
            raise kind(_not_built(env.id, error, reason)) from None


def _not_built(env_id: str, error: BaseException, reason: str) -> str:
    """Say why an environment cannot be built: Gymnasium does not know its id, wrong arguments, or its own error."""
    said, missing = (
        _unknown(env_id, error),
        re.search(r"missing \d+ required .*arguments?: (.*?)( was |$)", str(error)),
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


def _unknown(env_id: str, error: BaseException) -> str | None:
    """Say why Gymnasium knows no environment of this id; None where it does, or its module fails by its own fault."""
    looked = isinstance(error, ModuleNotFoundError) or type(error).__module__ == "gymnasium.error"
    return gym_ids.unknown(env_id, error) if looked and isinstance(error, Exception) else None


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
    spec: DataSpec,
    obs: ObsShape,
    action_dim: int,
    frame_stack: int = 1,
    action_bounds: Bounds | None = None,
    try_it: bool = False,
) -> int | None:
    """Build the entry's environment once, so that a run does not fail at its first evaluation; return its `step_limit`.

    Args: action_bounds, those of the data's actions before scaling, None where they are not known; try_it also makes a
    reset and a step.
    Raises: UsageError when the entry has no environment, or it cannot be built or returns what its spaces do not allow;
    DataError when its shapes or bounds differ from the data's; RolloutError for what it raises.
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
    with telling(env_id), closing(_made(spec.eval_env, frame_stack)) as made:
        from gtp_fast.data.spaces import as_vectors, bounds  # imports Gymnasium, which may be absent

        refuse_actions(env_id, made.action_space)
        env, theirs = as_vectors(made), bounds(made.action_space)
        limit = step_limit(spec.eval_env, made)
        spaces = ((env.observation_space, shape, "observation"), (env.action_space, (action_dim,), "action"))
        fits = all(space.shape == expected for space, expected, _ in spaces)
        if try_it and fits:
            _try(env, env_id)
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
    return limit


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


def _try(env: gymnasium.Env, env_id: str) -> None:
    """Make one reset, and one step with the action nearest to 0 within the bounds."""
    check_start(env.reset(seed=0)[0], env_id)
    low, high = (getattr(env.action_space, side, None) for side in ("low", "high"))
    inside = env.action_space.sample() if low is None else np.clip(np.zeros_like(low), low, high)
    env.step(inside)


def check_start(obs: np.ndarray, env_id: str) -> None:
    """Raise UsageError where observations of a reset are not finite as float32, in which the policy takes them."""
    with np.errstate(over="ignore"):  # values too large for float32 become Inf
        if not np.isfinite(np.asarray(obs, obs.dtype if obs.dtype == np.uint8 else np.float32)).all():
            raise UsageError(f"{env_id} gave an observation with NaN or Inf at its reset; fix the environment")


def step_limit(env: EvalEnv, made: gymnasium.Env) -> int | None:
    """Return after how many steps an evaluation ends an episode; None where the environment has a limit of its own."""
    if env.max_steps:
        return env.max_steps
    limited = made.spec is not None and made.spec.max_episode_steps is not None
    return None if limited or env.id.startswith(OWN) or "TimeLimit" in _wrappers(made) else LONGEST


def _wrappers(env: Any) -> list[str]:
    """Name the classes of an environment's wrappers, from the outermost."""
    return [type(env).__name__, *_wrappers(env.env)] if hasattr(env, "env") and env is not env.unwrapped else []


def limit_note(env: EvalEnv | None, limit: int | None) -> tuple[str, ...]:
    """Return a note where the limit is neither the user's nor the environment's."""
    if env is None or env.max_steps or limit is None:
        return ()
    return (
        f"{env.id} sets no time limit: an episode of an evaluation ends after {limit:,} steps; --eval-max-steps N sets "
        "another limit",
    )


def with_limit(spec: DataSpec, max_steps: int) -> DataSpec:
    """Return the entry with the user's own limit of an episode's steps; 0: the environment's."""
    return replace(spec, eval_env=replace(spec.eval_env, max_steps=max_steps)) if spec.eval_env else spec


def only_here(env_id: str) -> str | None:
    """Say what to type where this process knows an environment that its worker does not; None where neither does."""
    name, gymnasium = env_id.rpartition(":")[2], sys.modules.get("gymnasium")
    known = gymnasium.registry.get(name) if gymnasium is not None else None
    if known is None:
        return None
    entry = known.entry_point
    module = entry.partition(":")[0] if isinstance(entry, str) else getattr(entry, "__module__", "__main__")
    start = f"{env_id} is registered in this process alone, and evaluations run in another"
    if module == "__main__":
        return f"{start}; move it with its registration into a module, as my_envs.py, and pass --env my_envs:{name}"
    return f"{start}; pass --env {module}:{name}, whose module registers it when it is imported"
