"""Small files in OGBench's layout, whole or spoiled on purpose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from data_cases import changed
from places import SHARED

REAL = SHARED / "cube-single-play-v0.npz"
QPOS = {28: 21, 37: 28}  # numbers of qpos for those of an observation: one cube, two


def columns(trajectories: int = 3, length: int = 20, obs_dim: int = 28) -> dict[str, Any]:
    """Return trajectories of `length` steps and one row more; the first cube moves from 0.1 m off onto its goal, the
    second from 0.2 m.

    Row i of the observations is filled with i; the goals are those of task 2.
    """
    rows = trajectories * (length + 1)
    ends = np.zeros(rows, dtype=bool)
    ends[length :: length + 1] = True
    qpos = np.zeros((rows, QPOS[obs_dim]), np.float32)
    goals = ((0.50, 0.0, 0.02),) if obs_dim == 28 else ((0.35, 0.1, 0.02), (0.50, 0.1, 0.02))
    for cube, goal in enumerate(goals):
        qpos[:, 14 + 7 * cube : 17 + 7 * cube] = goal
        qpos[:, 14 + 7 * cube] += (1 + cube) * np.tile(np.linspace(0.1, 0.0, length + 1), trajectories)
    return {
        "observations": np.repeat(np.arange(rows, dtype=np.float32)[:, None], obs_dim, axis=1),
        "actions": np.random.default_rng(0).uniform(-1, 1, (rows, 5)).astype(np.float32),
        "terminals": ends,
        "qpos": qpos,
        "qvel": np.zeros((rows, qpos.shape[1] - 1), np.float32),
    }


def write(path: Path, values: dict[str, Any] | None = None) -> Path:
    """Write columns as numpy's own savez does; None leaves a key out."""
    kept = {key: value for key, value in (columns() if values is None else values).items() if value is not None}
    np.savez_compressed(path, **kept)  # type: ignore[arg-type]
    return path


def spoiled(path: Path, **changes: Any) -> Path:
    """Write a whole file with some columns changed."""
    return write(path, changed(columns(), changes))
