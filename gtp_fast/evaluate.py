"""Roll out policies in Gymnasium environments, all members and episodes together.

Legend: S members (seeds), E episodes, D observation, A action.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gtp_fast.data_spec import DataSpec, normalised_score
from gtp_fast.environments import check_environment, make_env
from gtp_fast.errors import UsageError
from gtp_fast.policy import Policy
from gtp_fast.rundir import publish

if TYPE_CHECKING:
    import gymnasium
    from PIL.Image import Image


@dataclass(frozen=True)
class EvalResult:
    """What a policy scored: returns and lengths (S, E), scores (S, E) or None where no reference is known.

    `diverged_SE` marks episodes that ended because an observation or reward was not finite, after as many steps as
    `lengths_SE` says; they count with their return up to there.
    """

    step: int
    returns_SE: np.ndarray
    lengths_SE: np.ndarray
    scores_SE: np.ndarray | None
    diverged_SE: np.ndarray
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

    @property
    def notes(self) -> list[str]:
        """What a user should know of these figures: a sentence for each episode that diverged."""
        return [
            f"{self.env_id}, seed {self.seeds[member]}, episode {episode}: an observation or reward was not finite "
            f"after {self.lengths_SE[member, episode]} steps; the episode counts with its return up to there"
            for member, episode in np.argwhere(self.diverged_SE)
        ]

    def to_json(self) -> dict[str, Any]:
        """Return plain values; arrays as nested lists."""
        values = asdict(self)
        for name in ("returns_SE", "lengths_SE", "scores_SE", "diverged_SE"):
            array = values.pop(name)
            values[name[:-3]] = None if array is None else array.tolist()
        return values | {"seeds": list(self.seeds), "episodes": int(self.returns_SE.shape[1])}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> EvalResult:
        """Read `to_json`'s values."""
        arrays = ("returns", "lengths", "scores", "diverged", "seeds", "episodes")
        known = {k: v for k, v in values.items() if k not in arrays}
        scores, returns = values["scores"], np.array(values["returns"])
        return cls(
            returns_SE=returns,
            lengths_SE=np.array(values["lengths"]),
            scores_SE=None if scores is None else np.array(scores),
            diverged_SE=np.array(values.get("diverged", np.zeros(returns.shape, bool))),  # older files lack it
            seeds=tuple(values["seeds"]),
            **known,
        )


def evaluate_policy(policy: Policy, spec: DataSpec, episodes: int, seed: int = 0, step: int = 0) -> EvalResult:
    """Roll out every member for `episodes` episodes; the actions of all running episodes are one call.

    Each episode has its own environment with a seed of its own, the same for every member, and is stepped until it
    ends and never after: no step is lost or counted twice. The policy acts as if newly loaded: an evaluation repeats.
    Raises: UsageError when the entry names no environment, or one that is not finite at its reset; DataError when the
    observation's size is another.
    """
    started = time.perf_counter()
    check_environment(spec, policy.config.obs_shape, policy.config.action_dim, policy.config.frame_stack)
    assert spec.eval_env is not None
    with ExitStack() as stack:
        envs = [
            [stack.enter_context(closing(make_env(spec.eval_env, policy.config.frame_stack))) for _ in range(episodes)]
            for _ in range(policy.members)
        ]
        returns, lengths, diverged = _roll_out(policy.anew(), envs, seed, spec.eval_env.id)
    config = policy.config
    return EvalResult(
        step=step,
        returns_SE=returns,
        lengths_SE=lengths,
        scores_SE=normalised_score(spec, returns),
        diverged_SE=diverged,
        env_id=spec.eval_env.id,
        seeds=config.seeds,
        sampling_steps=config.sampling_steps,
        candidates=config.candidates,
        select=config.select,
        seconds=time.perf_counter() - started,
    )


def _roll_out(
    policy: Policy, envs: list[list[gymnasium.Env]], seed: int, env_id: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Step every environment to its end; return returns, lengths and whether values were not finite, each (S, E)."""
    obs = _float32([[env.reset(seed=_episode_seed(seed, e))[0] for e, env in enumerate(row)] for row in envs])
    if not np.isfinite(obs).all():
        raise UsageError(f"{env_id} gave an observation with NaN or Inf at its reset; mend the environment")
    returns, lengths = np.zeros(obs.shape[:2]), np.zeros(obs.shape[:2], dtype=np.int64)
    running, diverged = np.ones(obs.shape[:2], dtype=bool), np.zeros(obs.shape[:2], dtype=bool)
    while running.any():
        actions = policy.act_members(obs)
        for at in map(tuple, np.argwhere(running)):
            following, reward, terminated, truncated, _ = envs[at[0]][at[1]].step(actions[at])
            following, reward = _float32(following), float(reward)
            lengths[at] += 1
            returns[at] += reward if math.isfinite(reward) else 0.0
            # A simulation that blew up cannot go on, and must take no other episode and no training run with it.
            diverged[at] = not (np.isfinite(following).all() and math.isfinite(reward))
            running[at] = not (terminated or truncated or diverged[at])
            if running[at]:
                obs[at] = following
    return returns, lengths, diverged


def _float32(values: Any) -> np.ndarray:
    """Return float32, with Inf for what is too large for it; pictures stay uint8."""
    if (found := np.asarray(values)).dtype == np.uint8 and found.ndim > 2:
        return found
    with np.errstate(over="ignore"):
        return found.astype(np.float32)


def _episode_seed(seed: int, episode: int) -> int:
    return seed * 100_003 + episode


def record_video(policy: Policy, spec: DataSpec, path: Path, seed: int = 0, frames: int = 500) -> None:
    """Write the first member's first episode as an animated GIF of at most `frames` frames, whole or not at all.

    It is the episode that `evaluate_policy` with this seed plays first.
    Raises: UsageError when the environment cannot render here, or the file cannot be written.
    """
    if spec.eval_env is None:
        raise UsageError(f"{spec.name} names no evaluation environment in this version")
    with closing(make_env(spec.eval_env)) as env:
        modes = env.metadata.get("render_modes", [])
        if "rgb_array" not in modes:
            raise UsageError(f"{spec.eval_env.id} draws no pictures (its render modes are {modes}); leave --video out")
    with closing(make_env(spec.eval_env, policy.config.frame_stack, render_mode="rgb_array")) as env:
        images = list(_film(policy.anew(), env, spec.eval_env.id, seed, frames))
        # Viewers show what changes faster than every 20 ms at a tenth of a second a frame.
        duration = max(20, round(1_000 / env.metadata.get("render_fps", 30)))
    film = io.BytesIO()
    images[0].save(film, format="GIF", save_all=True, append_images=images[1:], duration=duration, loop=0)
    try:
        publish(path, film.getvalue())
    except OSError as error:
        raise UsageError(f"the video cannot be written to {path} ({error}); name another file") from None


def _film(policy: Policy, env: gymnasium.Env, env_id: str, seed: int, frames: int) -> Iterator[Image]:
    from PIL import Image

    obs, ended = _float32(env.reset(seed=_episode_seed(seed, 0))[0]), False
    for _ in range(frames):
        try:
            picture = np.asarray(env.render(), dtype=np.uint8)
        except Exception as error:  # rendering back ends raise whatever their driver raises
            raise UsageError(f"{env_id} cannot render here ({error}); try MUJOCO_GL=egl or osmesa") from error
        # One byte a pixel: 500 frames of MuJoCo are 115 MB. The octree takes a sixth of the default's time.
        yield Image.fromarray(picture).quantize(method=Image.Quantize.FASTOCTREE)
        if ended or not np.isfinite(obs).all():
            return
        action = policy.act_members(np.stack([obs[None]] * policy.members))[0, 0]
        following, _, terminated, truncated, _ = env.step(action)
        obs, ended = _float32(following), terminated or truncated
