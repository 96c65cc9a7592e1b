"""The four goals of `embedded` as a Gymnasium environment: what scores a policy of multigoal-v0.

Gymnasium environments, built from the catalogue's entry and never from what a data file says of itself.

Gymnasium is imported where one is built: training without evaluations, and acting, go without it.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from gtp_fast.data.embedded import BOUND, Plane
from gtp_fast.data.spec import Bounds, DataSpec, EvalEnv, ObsShape
from gtp_fast.errors import DataError, UsageError

if TYPE_CHECKING:
    import gymnasium


class MultiGoalEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """A point in the plane [-3, 3]^2, moved by its action in [-1, 1]^2; a goal ends the episode.

    Reward 1 at a goal, 0 elsewhere; 25 steps at most. Observation: position, float32 (2,).
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(self) -> None:
        self.observation_space = Box(-BOUND, BOUND, (2,), np.float32)
        self.action_space = Box(-1.0, 1.0, (2,), np.float32)
        self._plane = Plane()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Place the point near the origin."""
        super().reset(seed=seed)
        return self._plane.reset(self.np_random), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move; end at a goal or after 25 steps."""
        return *self._plane.step(action), {}


gymnasium.register("gtp_fast/MultiGoal-v0", "gtp_fast.evaluation.environments:MultiGoalEnv")


INSTALLED_BY = {  # package -> what to give to pip
    "gymnasium": "gymnasium[mujoco]",
    "mujoco": "gymnasium[mujoco]",
    "gymnasium_robotics": "gtp-fast[maze]",
    "ogbench": "gtp-fast[ogbench]",
}
NOTICES = (b"attribute 'settotalmass'", b"environment's reward functions were updated")


@contextmanager
def _without_notices() -> Iterator[None]:
    """Hold back what is written to standard error, C code's too, and pass on all but lines that no user can act on.

    MuJoCo 4 warns at every construction of a HalfCheetah of an attribute in Gymnasium's own model file: ten episodes of
    two seeds would print it twenty times. gymnasium-robotics prints a notice when it is imported.
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


def make_env(env: EvalEnv, frame_stack: int = 1, **kwargs: Any) -> gymnasium.Env:
    """Build the environment of a catalogue entry; it gives and takes vectors, laid out and scaled as data are.

    Pictures stay pictures; with frame_stack above 1 it shows its last ones as channels.

    Raises: UsageError when its package is not installed, or it cannot be made for a reason of its own.
    """
    made = _made(env, frame_stack, **kwargs)
    from gtp_fast.data.spaces import as_vectors

    return as_vectors(made)


def _made(env: EvalEnv, frame_stack: int, **kwargs: Any) -> gymnasium.Env:
    if env.id.startswith("ogbench:"):  # two warnings, of bounds in float64, at each reset
        warnings.filterwarnings("ignore", ".*precision lowered", UserWarning)
    with warnings.catch_warnings(), _without_notices():
        warnings.simplefilter("ignore", DeprecationWarning)  # v4 is D4RL's physics on purpose (DATA: Hopper, Walker2d)
        warnings.filterwarnings("ignore", ".*DISPLAY", UserWarning)  # of a display that nothing here opens
        try:
            import gymnasium

            from gtp_fast.data.spaces import StackedFrames

            made = _settled(gymnasium.make(env.id, disable_env_checker=True, **dict(env.kwargs), **kwargs))
            return StackedFrames(made, frame_stack) if frame_stack > 1 else made
        except UsageError:
            raise
        except Exception as error:  # an environment may raise anything: Fetch fails by an assertion on MuJoCo 4
            if (package := _absent(error)) in INSTALLED_BY:
                raise UsageError(
                    f"the environment {env.id} needs the package {package}, which is not installed; "
                    f"pip install '{INSTALLED_BY[package]}', or pass --eval-every 0 to train"
                ) from None
            reason = str(error) or type(error).__name__
            if env.id.startswith("ogbench:visual-"):  # rendering back ends raise whatever their driver raises
                raise UsageError(
                    f"{env.id} cannot draw its observations here ({reason}); set MUJOCO_GL=egl or osmesa, or pass "
                    "--eval-every 0 to train"
                ) from None
            raise UsageError(
                f"the environment {env.id} cannot be built ({reason}); pass --eval-every 0 to train"
            ) from None


def _absent(error: BaseException) -> str:
    """Return the package whose import failed and led to an error, "" where none did."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return error.name.partition(".")[0]
    cause = error.__cause__ or error.__context__
    return _absent(cause) if cause is not None else ""


def _settled(env: gymnasium.Env) -> gymnasium.Env:
    """Ask OGBench's environments for their spaces once: they make them anew each time, with an observation."""
    if env.spec is not None and "ogbench" in str(env.spec.entry_point):
        env.observation_space, env.action_space = env.observation_space, env.action_space
    return env


def check_environment(
    spec: DataSpec, obs: ObsShape, action_dim: int, frame_stack: int = 1, action_bounds: Bounds | None = None
) -> None:
    """Build the entry's environment once, so that a run cannot fail at its first evaluation.

    Args: action_bounds are those of the data's actions before they were scaled; None where they are not known.
    Raises: UsageError when there is none or it cannot be built; DataError when its sizes or bounds are not the data's.
    """
    if spec.eval_env is None:
        own = (
            f"name it with --env my_module:MyEnv-v0 --dataset minari:{spec.name}, or "
            if spec.source == "minari"
            else ""
        )
        raise UsageError(f"{spec.name} names no evaluation environment in this version; {own}pass --eval-every 0")
    with closing(_made(spec.eval_env, frame_stack)) as made:
        _check_spaces(spec.eval_env.id, made, obs, action_dim, action_bounds)


def _check_spaces(
    env_id: str, made: gymnasium.Env, obs: ObsShape, action_dim: int, action_bounds: Bounds | None
) -> None:
    from gtp_fast.data.spaces import as_vectors, bounds, wide

    env = as_vectors(made)
    shape = (obs,) if isinstance(obs, int) else obs
    spaces = ((env.observation_space, shape, "observation"), (env.action_space, (action_dim,), "action"))
    for space, expected, what in spaces:
        if space.shape != expected:
            held = f"{expected[0]} numbers" if len(expected) == 1 else f"pictures of {expected}"
            raise DataError(
                f"{env_id} has {what}s of shape {space.shape} but the data have {held}; name the "
                "environment that the data came from with --env"
            )
    theirs = bounds(made.action_space)
    if action_bounds is not None and (wide(theirs) or wide(action_bounds)) and theirs != action_bounds:
        raise DataError(
            f"{env_id} has actions of other bounds {theirs} than the data {action_bounds}, so that one "
            "scaling to [-1, 1] does not fit both; name the environment that the data came from with --env"
        )
