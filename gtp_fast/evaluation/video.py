"""Videos: from a policy to an animated GIF of one episode.

It shows the first member's first episode in an evaluation with the same seed. The policy acts with the rows of a whole
group, as it does there.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gtp_fast.data.spec import DataSpec
from gtp_fast.errors import UsageError
from gtp_fast.evaluation.environments import make_env, step_limit
from gtp_fast.evaluation.failures import telling
from gtp_fast.evaluation.rollout import GROUP, episode_seed, one_thread
from gtp_fast.files import publish
from gtp_fast.policy.policy import Policy
from gtp_fast.runs.disk import writing

if TYPE_CHECKING:
    import gymnasium
    from PIL.Image import Image


def record_video(policy: Policy, spec: DataSpec, path: Path, seed: int = 0, frames: int = 500) -> None:
    """Write the first member's first episode as an animated GIF of at most `frames` frames, whole or not at all.

    `evaluate_policy` with the same seed plays this episode first.
    Raises: UsageError when the environment cannot render here, or the file cannot be written; RolloutError for what the
    environment raises.
    """
    if spec.eval_env is None:
        raise UsageError(f"{spec.name} names no evaluation environment in this version; leave --video out")
    env_id = spec.eval_env.id
    with telling(env_id), closing(make_env(spec.eval_env)) as env:
        modes = env.metadata.get("render_modes", [])
        if "rgb_array" not in modes:
            raise UsageError(f"{env_id} renders no images (its render modes are {modes}); leave --video out")
    config, made = policy.config, partial(make_env, spec.eval_env, render_mode="rgb_array")
    with telling(env_id), closing(made(config.frame_stack, config.acts)) as env:
        most = min(frames, (step_limit(spec.eval_env, env) or frames) + 1)  # one before each step, and the last
        with one_thread():
            images = list(_frames(policy.member(config.seeds[0]), env, env_id, seed, most))
        # Viewers show frames of less than 20 ms for a tenth of a second each.
        duration = max(20, round(1_000 / env.metadata.get("render_fps", 30)))
    film = io.BytesIO()
    images[0].save(film, format="GIF", save_all=True, append_images=images[1:], duration=duration, loop=0)
    with writing(path, "name another file"):
        publish(path, film.getvalue())


def _frames(policy: Policy, env: gymnasium.Env, env_id: str, seed: int, frames: int) -> Iterator[Image]:
    from PIL import Image

    obs, ended = _float32(env.reset(seed=episode_seed(seed, 0))[0]), False
    for _ in range(frames):
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*(DISPLAY|GLFW)", UserWarning)  # the error below reports it
                picture = np.asarray(env.render(), dtype=np.uint8)
        except Exception as error:  # a rendering driver raises errors of any kind
            raise UsageError(f"{env_id} cannot render here ({error}); try MUJOCO_GL=egl or osmesa") from error
        # One byte per pixel: 500 frames of MuJoCo are 115 MB. The octree takes a sixth of the default's time.
        yield Image.fromarray(picture).quantize(method=Image.Quantize.FASTOCTREE)
        if ended or not np.isfinite(obs).all():
            return
        # The same rows as in the evaluation's group.
        action = policy.act_members(np.stack([obs] * GROUP)[None])[0, 0]
        following, _, terminated, truncated, _ = env.step(action)
        obs, ended = _float32(following), terminated or truncated


def _float32(values: Any) -> np.ndarray:
    """Return float32, where larger values become Inf; images stay uint8."""
    if (found := np.asarray(values)).dtype == np.uint8 and found.ndim == 3:
        return found
    with np.errstate(over="ignore"):
        return found.astype(np.float32)
