"""Rewards of OGBench's single tasks, from the simulator states that its files keep beside the observations.

r(s) = (parts of the scene in place) - (parts), and the task has succeeded, and ends, where every part is in place. Of
the cubes of the paper the goals stand here; of other families the `ogbench` package is asked, whose environments hold
them. Legend: N rows, C cubes, 3 metres.
"""

from __future__ import annotations

import warnings

import numpy as np

from gtp_fast.errors import DataError

RADIUS_M = 0.04  # a cube is in place within this of its goal
FIRST_CUBE, CUBE = 14, 7  # columns of qpos: arm and gripper, then position and quaternion of each cube
# goal_xyzs of CubeEnv.set_tasks in ogbench 1.2.2, tasks 1 to 5; a test holds them to the package.
GOALS_M = {
    "cube-single": (
        ((0.425, -0.1, 0.02),),
        ((0.50, 0.0, 0.02),),
        ((0.35, 0.0, 0.02),),
        ((0.50, 0.2, 0.02),),
        ((0.50, -0.2, 0.02),),
    ),
    "cube-double": (
        ((0.425, 0.0, 0.02), (0.425, 0.1, 0.02)),
        ((0.35, 0.1, 0.02), (0.50, 0.1, 0.02)),
        ((0.425, -0.2, 0.02), (0.425, 0.2, 0.02)),
        ((0.425, 0.1, 0.02), (0.425, -0.1, 0.02)),
        ((0.425, 0.0, 0.02), (0.425, 0.0, 0.06)),
    ),
}
DEFAULT_TASK = 2  # of both


def needs(stem: str) -> tuple[str, ...]:
    """Return the keys of a file that hold what the rewards of an environment are computed from."""
    if stem.startswith("puzzle"):
        return ("button_states",)
    return ("qpos", "button_states") if stem == "scene" else ("qpos",)


def relabel(stem: str, task: int, states: dict[str, np.ndarray], where: str) -> tuple[np.ndarray, np.ndarray]:
    """Compute reward, float32 (N,), and success, bool (N,), of every row.

    Args: stem such as "cube-single"; task 1 to 5, or 0 for the environment's default; states holds the keys that
    `needs` names; where names the file in errors.
    Raises: DataError when the states are not that environment's, or the package is needed and absent.
    """
    for key, array in states.items():
        if not np.isfinite(array).all():
            row = int(np.argwhere(~np.isfinite(array))[0][0])
            raise DataError(f"{where}: {key} in row {row:,} is not finite; fetch the file again")
    if stem not in GOALS_M:
        return _by_package(stem, task, states, where)
    goal_C3 = np.array(GOALS_M[stem][(task or DEFAULT_TASK) - 1])
    cubes, qpos = len(goal_C3), states["qpos"]
    columns = FIRST_CUBE + CUBE * cubes
    if qpos.shape[1:] != (columns,):
        raise DataError(
            f"{where}: qpos has shape {qpos.shape}, expected (N, {columns}) of {stem}; name its task by --env"
        )
    position_NC3 = qpos[:, FIRST_CUBE:].reshape(len(qpos), cubes, CUBE)[:, :, :3]
    placed_NC = np.linalg.norm(goal_C3 - position_NC3, axis=-1) <= RADIUS_M
    return (placed_NC.sum(axis=1) - cubes).astype(np.float32), placed_NC.all(axis=1)


def _by_package(stem: str, task: int, states: dict[str, np.ndarray], where: str) -> tuple[np.ndarray, np.ndarray]:
    """Let OGBench's own environment and function relabel a copy of the states' names."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of a display that nothing here opens
            import gymnasium
            import ogbench  # registers the environments
            from ogbench.relabel_utils import relabel_dataset
    except ImportError as error:
        raise DataError(
            f"{where}: the rewards of {stem} are computed by OGBench's own environment ({error}); "
            "pip install 'gtp-fast[ogbench]'"
        ) from None
    del ogbench
    columns = dict(states)
    with warnings.catch_warnings(action="ignore"):  # of bounds in float64
        env = gymnasium.make(f"{stem}-singletask{f'-task{task}' if task else ''}-v0")  # of states: draws no frames
        relabel_dataset(stem, env, columns)
    env.close()
    return columns["rewards"], columns["masks"] == 0
