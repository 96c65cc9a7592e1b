"""Roll out policies in Gymnasium environments, all members and episodes together.

Legend: S members (seeds), E episodes, D observation, A action. Environments are built from the catalogue's entry and
never from what a data file says of itself.
"""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from gtp_fast.catalog import DataSpec, EvalEnv, normalised_score
from gtp_fast.errors import DataError, UsageError
from gtp_fast.policy import Policy


@dataclass(frozen=True)
class EvalResult:
    """What a policy scored: returns and lengths (S, E), scores (S, E) or None where no reference is known."""

    step: int
    returns_SE: np.ndarray
    lengths_SE: np.ndarray
    scores_SE: np.ndarray | None
    env_id: str
    seeds: tuple[int, ...]
    sampling_steps: int
    candidates: int
    select: str
    seconds: float = field(compare=False)

    @property
    def figures(self) -> list[float]:
        """One figure a member, to rank by: the mean score, or the mean return where there is no reference."""
        return np.asarray(self.returns_SE if self.scores_SE is None else self.scores_SE).mean(axis=1).tolist()

    def to_json(self) -> dict[str, Any]:
        """Return plain values; arrays as nested lists."""
        values = asdict(self)
        for name in ("returns_SE", "lengths_SE", "scores_SE"):
            array = values.pop(name)
            values[name[:-3]] = None if array is None else array.tolist()
        return values | {"seeds": list(self.seeds), "episodes": int(self.returns_SE.shape[1])}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> EvalResult:
        """Read `to_json`'s values."""
        known = {k: v for k, v in values.items() if k not in ("returns", "lengths", "scores", "seeds", "episodes")}
        scores = values["scores"]
        return cls(
            returns_SE=np.array(values["returns"]),
            lengths_SE=np.array(values["lengths"]),
            scores_SE=None if scores is None else np.array(scores),
            seeds=tuple(values["seeds"]),
            **known,
        )


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
            raise UsageError(
                f"the environment {env.id} cannot be built ({error}); pass --eval-every 0 to train"
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


def evaluate_policy(policy: Policy, spec: DataSpec, episodes: int, seed: int = 0, step: int = 0) -> EvalResult:
    """Roll out every member for `episodes` episodes; the actions of all running episodes are one call.

    Each episode has its own environment with a seed of its own, the same for every member, and is stepped until it
    ends and never after: no step is lost or counted twice.
    Raises: UsageError when the entry names no environment; DataError when the observation's size is another.
    """
    started = time.perf_counter()
    check_environment(spec, policy.config.obs_dim, policy.config.action_dim)
    assert spec.eval_env is not None
    members = policy.members
    envs = [[make_env(spec.eval_env) for _ in range(episodes)] for _ in range(members)]
    obs = np.stack([[env.reset(seed=seed * 100_003 + e)[0] for e, env in enumerate(row)] for row in envs])
    returns, lengths = np.zeros((members, episodes)), np.zeros((members, episodes), dtype=np.int64)
    running = np.ones((members, episodes), dtype=bool)
    while running.any():
        actions = policy.act_members(obs.astype(np.float32))
        for member, episode in zip(*np.nonzero(running), strict=True):
            env = envs[member][episode]
            obs[member, episode], reward, terminated, truncated, _ = env.step(actions[member, episode])
            returns[member, episode] += float(reward)
            lengths[member, episode] += 1
            running[member, episode] = not (terminated or truncated)
    for env in (env for row in envs for env in row):
        env.close()
    config = policy.config
    return EvalResult(
        step=step,
        returns_SE=returns,
        lengths_SE=lengths,
        scores_SE=normalised_score(spec, returns),
        env_id=spec.eval_env.id,
        seeds=config.seeds,
        sampling_steps=config.sampling_steps,
        candidates=config.candidates,
        select=config.select,
        seconds=time.perf_counter() - started,
    )


def record_video(policy: Policy, spec: DataSpec, path: Path, seed: int = 0, frames: int = 500) -> None:
    """Write one episode of the first member as an animated GIF, at most `frames` frames.

    Raises: UsageError when the environment cannot render here.
    """
    from PIL import Image

    if spec.eval_env is None:
        raise UsageError(f"{spec.name} names no evaluation environment in this version")
    env = make_env(spec.eval_env, render_mode="rgb_array")
    obs, _ = env.reset(seed=seed)
    images, ended = [], False
    try:
        while not ended and len(images) < frames:
            images.append(Image.fromarray(np.asarray(env.render(), dtype=np.uint8)))
            action = policy.act_members(np.tile(obs.astype(np.float32), (policy.members, 1, 1)))[0, 0]
            obs, _, terminated, truncated, _ = env.step(action)
            ended = terminated or truncated
    except Exception as error:  # rendering back ends raise whatever their driver raises
        raise UsageError(f"{spec.eval_env.id} cannot render here ({error}); try MUJOCO_GL=egl or osmesa") from error
    finally:
        env.close()
    images[0].save(path, format="GIF", save_all=True, append_images=images[1:], duration=33, loop=0)
