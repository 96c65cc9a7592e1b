"""OGBench's npz files: trajectories without rewards, which a task then rewards from the simulator states in the file.

In: a file, and the entry whose task gives the rewards. Out: `Arrays`. r(s) = (parts in place) - (parts); where all are
in place the task has succeeded and the episode ends. The end of a trajectory is a time limit; its last row holds only
the last observation. The goals of the paper's cubes are here; for other families the `ogbench` package computes the
rewards. Nothing is unpickled, and every declared size is checked before the array is read.

Legend: N rows, D observation, (H, W, C) a frame, C3 the positions of C cubes in metres.
"""

from __future__ import annotations

import math
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from gtp_fast.data import catalog, foreign
from gtp_fast.data.rules import machine_memory
from gtp_fast.data.spec import DataSpec
from gtp_fast.data.transitions import Arrays
from gtp_fast.errors import DataError, UsageError
from gtp_fast.files import sha256_of

ROWS = ("observations", "actions", "terminals")
RADIUS_M = 0.04  # a cube this near its goal is in place
FIRST_CUBE, CUBE = 14, 7  # columns of qpos: arm and gripper, then position and quaternion of each cube
# goal_xyzs of CubeEnv.set_tasks in ogbench 1.2.2, tasks 1 to 5; a test compares them with the package.
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
# The exceptions of zipfile, zlib and numpy on damaged bytes. numpy's header is Python source, which is tokenized.
# RuntimeError: the bytes claim to be encrypted, or of a later version.
_DAMAGED = (zipfile.BadZipFile, zlib.error, tokenize.TokenError, OSError, EOFError)
_DAMAGED += (ValueError, RuntimeError, SyntaxError, TypeError, KeyError, MemoryError)


def read(path: Path, spec: DataSpec) -> Arrays:
    """Read a file of OGBench's layout, with the rewards of the entry's task.

    Image observations stay uint8 (N, H, W, C), one per row of the file, without next observations. Vector observations
    become float32 pairs (observation, next observation), one per row that has a successor.
    Raises: DataError when the file is absent, damaged, lacks a key or is of another environment; UsageError when the
    entry names no task of OGBench.
    """
    if said := foreign.special(path):
        raise DataError(said)
    if not path.is_file():
        raise DataError(f"{path} does not exist; check the path, or leave --dataset out to use the named data set")
    task = catalog.ogbench_task(spec)
    if task is None:
        if not foreign.is_ogbench(path) and (said := foreign.refusal(path)):
            raise DataError(said)
        raise UsageError(
            f"{path} is an OGBench file, which is rewarded for a task, and '{spec.name}' names none; pass --env "
            "cube-single-play-singletask-task1-v0, or the name of another task"
        )
    columns = _columns(path, (*ROWS, *state_keys(task[0])))
    obs, action, ends = (columns.pop(key) for key in ROWS)
    _check_observations(path, obs, spec)
    ends = _flags(path, ends)
    reward, success = relabel(*task, columns, str(path))
    return _arrays(path, obs, action.astype(np.float32, copy=False), reward, success, ends)


def _columns(path: Path, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Read arrays of equal length from the archive, after checking what all of them declare."""
    try:
        with zipfile.ZipFile(path) as archive:
            held = {name.removesuffix(".npy") for name in archive.namelist()}
            missing = [key for key in keys if key not in held]
            if missing:
                raise DataError(
                    f"{path} has no {', '.join(missing)}; it holds {foreign.shown(sorted(held)) or 'nothing'}; fetch "
                    "OGBench's own file"
                )
            _check_declared(path, {key: _declared(path, archive, key) for key in keys})
            columns = {}
            for key in keys:
                with _member(path, archive, key) as file:
                    columns[key] = np.ascontiguousarray(npy.read_array(file, allow_pickle=False))
            return columns
    except _DAMAGED as error:
        raise DataError(
            f"{path} cannot be read as an npz archive ({path.stat().st_size:,} bytes; {error}); delete it and fetch it "
            "again"
        ) from None


@contextmanager
def _member(path: Path, archive: zipfile.ZipFile, key: str) -> Iterator[IO[bytes]]:
    try:
        with archive.open(f"{key}.npy") as file:
            yield file
    except _DAMAGED as error:
        raise DataError(f"{path}: {key} cannot be read ({error}); delete the file and fetch it again") from None


def _declared(path: Path, archive: zipfile.ZipFile, key: str) -> tuple[tuple[int, ...], int]:
    """Read the shape of one array and its bytes from its header, and compare them with the archive's bytes."""
    with _member(path, archive, key) as file:
        version = npy.read_magic(file)
        header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = header(file)
        found = archive.getinfo(f"{key}.npy").file_size - file.tell()
    nbytes = math.prod(shape) * dtype.itemsize
    if dtype.kind not in "biuf":
        raise DataError(f"{path}: {key} holds {dtype}, expected numbers; fetch OGBench's own file")
    if found != nbytes:
        raise DataError(
            f"{path}: {key} declares shape {shape} of {dtype}, {nbytes:,} bytes, and has {found:,}; delete the file "
            "and fetch it again"
        )
    return shape, nbytes


def _check_declared(path: Path, found: dict[str, tuple[tuple[int, ...], int]]) -> None:
    """Refuse arrays of unequal length, without rows, with wrong axes, or larger than this machine's memory."""
    ranks = {"observations": (2, 4), "terminals": (1,)}
    for key, (shape, _) in found.items():
        allowed = ranks.get(key, (2,))
        if len(shape) not in allowed or 0 in shape[1:]:
            raise DataError(f"{path}: {key} has shape {shape}, expected {' or '.join(map(str, allowed))} axes")
    lengths = {key: shape[0] for key, (shape, _) in found.items()}
    if len(set(lengths.values())) > 1 or not lengths["observations"]:
        shown = ", ".join(f"{key} {length:,}" for key, length in lengths.items())
        raise DataError(f"{path}: rows are {shown}; every array needs one row per observation, and at least one")
    total, memory = sum(nbytes for _, nbytes in found.values()), machine_memory()
    if total > memory:
        raise DataError(
            f"{path}: its arrays declare {total / 1e9:,.0f} GB, and this machine has {memory / 1e9:,.0f} GB of memory; "
            "fetch the file again, or use a larger machine"
        )


def _check_observations(path: Path, obs: np.ndarray, spec: DataSpec) -> None:
    """Compare the observations with the environment's sizes, before its task is computed from the states."""
    expected = spec.obs_shape or (spec.obs_dim,)
    if obs.shape[1:] != expected or (obs.dtype == np.uint8) != (spec.obs_shape is not None):
        raise DataError(
            f"{path}: observations have shape {obs.shape[1:]} of {obs.dtype}, but {spec.name} has {expected} of "
            f"{'uint8' if spec.obs_shape else 'float32'}; name the task that the data came from with --env"
        )


def _flags(path: Path, values: np.ndarray) -> np.ndarray:
    """Return the ends of trajectories as booleans; the last row must be one."""
    flags = values.astype(bool)
    if (values != flags).any():
        row = int(np.flatnonzero(values != flags)[0])
        raise DataError(f"{path}: terminals in row {row:,} holds {values[row]}, expected 0 or 1; fetch the file again")
    if not flags[-1]:
        raise DataError(
            f"{path}: its last row ends no trajectory (terminals is 0 there); the file was cut: fetch it again"
        )
    return flags


def state_keys(stem: str) -> tuple[str, ...]:
    """Return the keys of the simulator states from which an environment's rewards are computed."""
    if stem.startswith("puzzle"):
        return ("button_states",)
    return ("qpos", "button_states") if stem == "scene" else ("qpos",)


def relabel(stem: str, task: int, states: dict[str, np.ndarray], where: str) -> tuple[np.ndarray, np.ndarray]:
    """Compute reward, float32 (N,), and success, bool (N,), of every row.

    Args: stem such as "cube-single"; task 1 to 5, or 0 for the environment's default; states holds the keys that
    `state_keys` names; where names the file in errors.
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
            f"{where}: qpos has shape {qpos.shape}, expected (N, {columns}) of {stem}; name the file's task with --env"
        )
    position_NC3 = qpos[:, FIRST_CUBE:].reshape(len(qpos), cubes, CUBE)[:, :, :3]
    placed_NC = np.linalg.norm(goal_C3 - position_NC3, axis=-1) <= RADIUS_M
    return (placed_NC.sum(axis=1) - cubes).astype(np.float32), placed_NC.all(axis=1)


def _by_package(stem: str, task: int, states: dict[str, np.ndarray], where: str) -> tuple[np.ndarray, np.ndarray]:
    """Compute rewards and success with OGBench's own environment and relabelling function."""
    try:
        with warnings.catch_warnings(action="ignore"):  # about a display, which nothing here opens
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
    with warnings.catch_warnings(action="ignore"):  # about bounds in float64
        # The state version, which draws no frames.
        env = gymnasium.make(f"{stem}-singletask{f'-task{task}' if task else ''}-v0")
        relabel_dataset(stem, env, columns)
    env.close()
    return columns["rewards"], columns["masks"] == 0


def _arrays(
    path: Path, obs: np.ndarray, action: np.ndarray, reward: np.ndarray, success: np.ndarray, ends: np.ndarray
) -> Arrays:
    """Pair vector observations with their successors; images are too large to store twice."""
    where, sha256 = str(path), sha256_of(path)
    keep = ~ends
    rows, ended = int(keep.sum()), int(success[keep].sum())
    note = (
        f"{len(ends) - rows:,} trajectories, rewarded for the task: {ended:,} of {rows:,} rows are successes, and each "
        "ends an episode"
    )
    if obs.dtype == np.uint8:
        return Arrays(where, obs, action, reward, success & keep, ends, None, None, sha256, (note,))
    obs = obs.astype(np.float32, copy=False)
    return Arrays(
        where=where,
        obs=obs[keep],
        action=action[keep],
        reward=reward[keep],
        terminal=success[keep],
        timeout=ends[1:][keep[:-1]],
        next_obs=obs[1:][keep[:-1]],
        last_obs=None,
        sha256=sha256,
        notes=(note,),
    )
