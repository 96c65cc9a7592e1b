"""From a policy to a video of one episode, as an animated GIF.

The film shows the first member's first episode of an evaluation with the same seed, step by step: the policy acts as it
does there, with the rows of a whole group.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gtp_fast.data.spec import DataSpec
from gtp_fast.errors import UsageError
from gtp_fast.evaluation.environments import make_env
from gtp_fast.evaluation.rollout import GROUP, episode_seed, one_thread
from gtp_fast.files import publish
from gtp_fast.policy.policy import Policy

if TYPE_CHECKING:
    import gymnasium
    from PIL.Image import Image


def record_video(policy: Policy, spec: DataSpec, path: Path, seed: int = 0, frames: int = 500) -> None:
    """Write the first member's first episode as an animated GIF of at most `frames` frames, whole or not at all.

    `evaluate_policy` with the same seed plays this episode first.
    Raises: UsageError when the environment cannot render here, or the file cannot be written.
    """
    if spec.eval_env is None:
        raise UsageError(f"{spec.name} names no evaluation environment in this version")
    with closing(make_env(spec.eval_env)) as env:
        modes = env.metadata.get("render_modes", [])
        if "rgb_array" not in modes:
            raise UsageError(f"{spec.eval_env.id} draws no pictures (its render modes are {modes}); leave --video out")
    with closing(make_env(spec.eval_env, policy.config.frame_stack, render_mode="rgb_array")) as env:
        with one_thread():
            images = list(_film(policy.member(policy.config.seeds[0]), env, spec.eval_env.id, seed, frames))
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

    obs, ended = _float32(env.reset(seed=episode_seed(seed, 0))[0]), False
    for _ in range(frames):
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*(DISPLAY|GLFW)", UserWarning)  # the error below says it
                picture = np.asarray(env.render(), dtype=np.uint8)
        except Exception as error:  # rendering back ends raise whatever their driver raises
            raise UsageError(f"{env_id} cannot render here ({error}); try MUJOCO_GL=egl or osmesa") from error
        # One byte a pixel: 500 frames of MuJoCo are 115 MB. The octree takes a sixth of the default's time.
        yield Image.fromarray(picture).quantize(method=Image.Quantize.FASTOCTREE)
        if ended or not np.isfinite(obs).all():
            return
        # As its group acts in an evaluation.
        action = policy.act_members(np.stack([obs] * GROUP)[None])[0, 0]
        following, _, terminated, truncated, _ = env.step(action)
        obs, ended = _float32(following), terminated or truncated


def _float32(values: Any) -> np.ndarray:
    """Return float32, with Inf for what is too large for it; pictures stay uint8."""
    if (found := np.asarray(values)).dtype == np.uint8 and found.ndim == 3:
        return found
    with np.errstate(over="ignore"):
        return found.astype(np.float32)
