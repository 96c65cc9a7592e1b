"""From the arrays of a data set to transitions: validation, episode ends, successors.

Time limits are not terminals: they end an episode, and its last transition still bootstraps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gtp_fast.catalog import DataSpec
from gtp_fast.errors import DataError


@dataclass
class Arrays:
    """What a reader found: obs (N, D), action (N, A), reward (N,) float32; terminal, timeout (N,) bool; next_obs
    (N, D) or None; last_obs (episodes, D), the observation after each episode's last action, or None.
    """

    where: str
    obs: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminal: np.ndarray
    timeout: np.ndarray | None
    next_obs: np.ndarray | None
    last_obs: np.ndarray | None
    sha256: str


@dataclass(frozen=True)
class Transitions:
    """A validated data set on the host: float32 arrays (N, ...), terminal bool (N,), and where it came from."""

    obs_ND: np.ndarray
    action_NA: np.ndarray
    reward_N: np.ndarray
    next_obs_ND: np.ndarray
    terminal_N: np.ndarray
    name: str
    source: str
    sha256: str
    episodes: int
    return_mean: float
    return_std: float
    clipped: int


def validate(data: Arrays, spec: DataSpec, clip_actions: bool) -> int:
    """Refuse arrays that cannot be trained on; clip actions where asked and return how many.

    Raises: DataError naming the key, the row and the remedy.
    """
    rows = _check_shapes(data)
    _check_finite(data)
    expected = ((spec.obs_dim, data.obs, "observations"), (spec.action_dim, data.action, "actions"))
    for size, array, key in expected:
        if size is not None and array.shape[1] != size:
            raise DataError(
                f"{data.where}: {key} have {array.shape[1]} numbers, but {spec.name} has {size}; "
                "name the environment that the data came from with --env"
            )
    outside = np.abs(data.action) > 1.0
    count = int(np.count_nonzero(outside))
    if count and not clip_actions:
        row, column = np.argwhere(outside)[0]
        raise DataError(
            f"{data.where}: actions in row {row:,} reach {data.action[row, column]:.6g}, outside [-1, 1]; pass "
            f"--clip-actions to clip them ({count:,} values), or scale them when writing the file"
        )
    if count:
        np.clip(data.action, -1.0, 1.0, out=data.action)
    ends = data.terminal if data.timeout is None else data.terminal | data.timeout
    if not ends.any() and data.next_obs is None:
        raise DataError(
            f"{data.where}: none of the {rows:,} rows ends an episode (terminals and timeouts are all false); mark "
            "each episode's last row, so that no transition crosses into the next"
        )
    return count


def _check_shapes(data: Arrays) -> int:
    rows = len(data.obs)
    if rows == 0:
        raise DataError(f"{data.where}: observations has no rows; write at least one episode")
    ranks = {"observations": (data.obs, 2), "actions": (data.action, 2), "rewards": (data.reward, 1)}
    ranks |= {"terminals": (data.terminal, 1)}
    if data.timeout is not None:
        ranks["timeouts"] = (data.timeout, 1)
    if data.next_obs is not None:
        ranks["next_observations"] = (data.next_obs, 2)
    for key, (array, rank) in ranks.items():
        if array.ndim != rank:
            raise DataError(
                f"{data.where}: {key} has shape {array.shape}, expected {rank} axes; write it as "
                f"{'(N, size)' if rank == 2 else '(N,)'}"
            )
        if len(array) != rows:
            raise DataError(
                f"{data.where}: {key} has {len(array):,} rows but observations has {rows:,}; every array needs one "
                "row a transition"
            )
    if data.next_obs is not None and data.next_obs.shape != data.obs.shape:
        raise DataError(
            f"{data.where}: next_observations has shape {data.next_obs.shape}, observations {data.obs.shape}; they "
            "must be alike"
        )
    return rows


def _check_finite(data: Arrays) -> None:
    arrays = {"observations": data.obs, "actions": data.action, "rewards": data.reward}
    if data.next_obs is not None:
        arrays["next_observations"] = data.next_obs
    for key, array in arrays.items():
        # A sum over a row is finite only if every entry is, or nearly: look closer only then.
        if not np.isfinite(array).all():
            row = int(np.argwhere(~np.isfinite(array))[0][0])
            value = array[row][~np.isfinite(array[row])][0] if array.ndim > 1 else array[row]
            raise DataError(
                f"{data.where}: {key} in row {row:,} holds {value}; remove that episode, or fetch the file again"
            )


def build_transitions(data: Arrays, name: str, source: str, clipped: int) -> Transitions:
    """Pair every row with its successor inside its episode.

    The successor is next_observations where the file has them, else the following row, else the episode's last
    observation where the file keeps it. A terminal row needs none: its own observation stands in and is never used. A
    row with no successor (a time limit, or the end of the file) is left out.
    """
    rows = len(data.obs)
    ends = data.terminal.copy() if data.timeout is None else data.terminal | data.timeout
    ends[-1] = True
    keep = np.ones(rows, dtype=bool)
    if data.next_obs is not None:
        following = data.next_obs
    else:
        following = np.empty_like(data.obs)
        following[:-1] = data.obs[1:]
        last = np.flatnonzero(ends)
        if data.last_obs is not None and data.last_obs.shape == (len(last), data.obs.shape[1]):
            following[last] = data.last_obs
        else:
            following[last] = data.obs[last]
            keep[last] = data.terminal[last]
    returns = _episode_returns(data.reward, ends)
    whole = keep.all()
    return Transitions(
        obs_ND=data.obs if whole else data.obs[keep],
        action_NA=data.action if whole else data.action[keep],
        reward_N=data.reward if whole else data.reward[keep],
        next_obs_ND=following if whole else following[keep],
        terminal_N=data.terminal if whole else data.terminal[keep],
        name=name,
        source=source,
        sha256=data.sha256,
        episodes=len(returns),
        return_mean=float(returns.mean()),
        return_std=float(returns.std()),
        clipped=clipped,
    )


def _episode_returns(reward: np.ndarray, ends: np.ndarray) -> np.ndarray:
    starts = np.concatenate([[0], np.flatnonzero(ends)[:-1] + 1])
    return np.add.reduceat(reward.astype(np.float64), starts)
