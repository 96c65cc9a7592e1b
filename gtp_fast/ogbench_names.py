"""OGBench's single-task names and the files that they share."""

from __future__ import annotations

import re
from dataclasses import replace

from gtp_fast.data_spec import DataSpec

OGBENCH_BASE = "https://rail.eecs.berkeley.edu/datasets/ogbench"
_OGBENCH = re.compile(
    r"(visual-)?(?:cube-(single|double|triple|quadruple)|scene|puzzle-\dx\d|(?:ant|humanoid|point)maze-\w+|antsoccer-\w+)"
    r"-(?:play|noisy|navigate|stitch|explore)-singletask(?:-task[1-5])?-v0"
)


def entry(name: str) -> DataSpec | None:
    """Read an OGBench name; None where it is none."""
    match = _OGBENCH.fullmatch(name)
    if match is None:
        return None
    file = re.sub(r"-singletask(-task[1-5])?", "", name) + ".npz"
    obs_dim, action_dim = {"single": (28, 5), "double": (37, 5)}.get(match[2] or "", (None, None))
    if match[1]:
        obs_dim = None  # images
    spec = DataSpec(name, "ogbench", url=f"{OGBENCH_BASE}/{file}", filename=file, eval_episodes=100)
    return replace(spec, obs_dim=obs_dim, action_dim=action_dim)


def known() -> list[str]:
    """List the paper's members of the pattern."""
    return [f"{v}cube-{n}-play-singletask-v0" for v in ("", "visual-") for n in ("single", "double")]
