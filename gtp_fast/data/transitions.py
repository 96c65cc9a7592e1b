"""Observations that are pictures, on the host: what is taken for one, and how transitions refer to frames by number.

Legend: N rows, E episodes, F frames of H x W pixels and C channels.

From the arrays of a data set to transitions: validation by `data_rules`, episode ends, successors.

Time limits are not terminals: they end an episode, and its last transition still bootstraps. Whatever is left out,
clipped or split is counted and told in `Transitions.notes`. Legend: N rows, E episodes, D observation, A action.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from gtp_fast.data.rules import LAST, Columns, faults
from gtp_fast.data.spec import Bounds, DataSpec, are_frames
from gtp_fast.errors import DataError


def number_frames(data: Arrays) -> tuple[np.ndarray, Arrays]:
    """Return all frames, and the data with an observation's numbers in its place.

    Returns: frames uint8 (F, H, W, C), the last ones of episodes behind the others; data with obs int64 (N, 2) and
    last_obs (E, 2): [number of the frame, number of its episode's first].
    """
    rows = np.arange(len(data.obs))
    ends = np.flatnonzero(data.terminal | data.timeout)
    starts = np.concatenate([[0], ends + 1])  # one more than episodes where the last row ends one
    first = starts[np.searchsorted(starts, rows, side="right") - 1]
    obs, frames, last = np.stack([rows, first], axis=1), data.obs, None
    if data.last_obs is not None:
        numbers = np.arange(len(data.last_obs))
        last = np.stack([len(rows) + numbers, starts[numbers]], axis=1)
        frames = np.concatenate([data.obs, data.last_obs])
    return frames, replace(data, obs=obs, last_obs=last)


# An ant moves at most 0.4 m in one step (measured on 60,022 steps of umaze); D4RL's antmaze-v0 files miss the marks of
# some resets, which show as jumps of up to 21 m.
ANTMAZE_JUMP_M = 1.0
ROW_ALIGN = 4  # floats: 16-byte rows
ROWS_MOVED = 8_192  # at a time, when rows are left out: half a megabyte of observations


@dataclass
class Arrays:
    """What a reader found: obs (N, D), action (N, A), reward (N,) float32; terminal, timeout (N,) bool; next_obs
    (N, D) or None; last_obs (E, D), the observation after each episode's last action, or None.

    Where observations are pictures, obs and last_obs are uint8 (N, H, W, C) and (E, H, W, C), and next_obs is None.
    """

    where: str
    obs: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminal: np.ndarray
    timeout: np.ndarray
    next_obs: np.ndarray | None
    last_obs: np.ndarray | None
    sha256: str
    notes: tuple[str, ...] = ()  # of the reader
    action_bounds: Bounds | None = None  # of the data's own actions, before they were scaled to [-1, 1]
    references: tuple[float, float] | None = None  # returns of a random and an expert policy, as the data set has them


@dataclass(frozen=True)
class Transitions:
    """A validated data set on the host: float32 arrays (N, ...), terminal bool (N,), and where it came from.

    Where observations are pictures, frames_FHWC holds each once, uint8, and obs_ND and next_obs_ND are int64 (N, 2):
    the number of a frame, and that of its episode's first.
    """

    obs_ND: np.ndarray
    action_NA: np.ndarray
    reward_N: np.ndarray
    next_obs_ND: np.ndarray
    terminal_N: np.ndarray
    name: str
    source: str  # path, address or 'embedded'
    sha256: str
    episodes: int  # whole ones
    return_mean: float  # raw returns of the whole episodes
    return_std: float
    clipped: int  # action values
    notes: tuple[str, ...] = ()  # what a person should be told
    action_bounds: Bounds | None = None  # as in Arrays
    references: tuple[float, float] | None = None
    frames_FHWC: np.ndarray | None = None

    @property
    def observations(self) -> np.ndarray:
        """What was observed, (N, D) or (F, H, W, C)."""
        return self.obs_ND if self.frames_FHWC is None else self.frames_FHWC


def validate(data: Arrays, spec: DataSpec, clip_actions: bool) -> int:
    """Refuse arrays that cannot be trained on; clip actions in place where asked and return how many values.

    Raises: DataError naming the file, the key, the row and the remedy: the first fault of `data_rules`.
    """
    clipped = 0
    for fault in faults(columns_of(data), spec):
        if not (clip_actions and fault.clips):
            fault.refuse(data.where)
        clipped = fault.count
    if clipped:
        np.clip(data.action, -1.0, 1.0, out=data.action)
    return clipped


def columns_of(data: Arrays) -> Columns:
    """Return the arrays by D4RL's names, without those that are not there."""
    named = {
        "observations": data.obs,
        "actions": data.action,
        "rewards": data.reward,
        "terminals": data.terminal,
        "timeouts": data.timeout,
        "next_observations": data.next_obs,
        LAST: data.last_obs,
    }
    return {key: array for key, array in named.items() if array is not None}


def split_jumps_(data: Arrays, spec: DataSpec) -> tuple[str, ...]:
    """End episodes of D4RL's ant mazes where the ant jumps, in place; return what was done as notes."""
    if not spec.name.startswith("antmaze-") or len(data.obs) < 2:
        return ()
    jump = np.linalg.norm(np.diff(data.obs[:, :2], axis=0), axis=1) > ANTMAZE_JUMP_M
    unmarked = np.flatnonzero(jump & ~(data.terminal | data.timeout)[:-1])
    if data.last_obs is not None or not len(unmarked):
        return ()
    data.timeout[unmarked] = True
    return (f"{len(unmarked):,} episode ends were not marked and were found by jumps over {ANTMAZE_JUMP_M:g} m",)


def build_transitions(data: Arrays, name: str, source: str, clipped: int, notes: tuple[str, ...] = ()) -> Transitions:
    """Pair every row with its successor inside its episode.

    The successor is next_observations where the file has them, else the following row, else the episode's last
    observation where the file keeps it. A terminal row needs none: its own observation stands in and is never used. A
    row with no successor (a time limit, or the end of the file) is left out. The arrays are taken over: their memory
    holds what is returned.
    """
    frames, data = number_frames(data) if are_frames(data.obs) else (None, data)
    ends = data.terminal | data.timeout
    returns = _episode_returns(data.reward, ends)
    next_obs, keep = _successors(data, ends)
    whole = bool(keep.all())
    if not keep.any():
        raise DataError(
            f"{data.where}: no transition is left, as each of the {len(keep):,} rows ends an episode without a "
            "successor; check terminals and timeouts"
        )
    if not whole:
        dropped = int(np.count_nonzero(~keep))
        notes += (f"left out {dropped:,} of {len(keep):,} rows, which end an episode and have no successor",)
    if clipped:
        notes += (f"clipped {clipped:,} action values into [-1, 1]",)
    return Transitions(
        obs_ND=data.obs if whole else _kept_(data.obs, keep),
        action_NA=data.action if whole else _kept_(data.action, keep),
        reward_N=data.reward if whole else _kept_(data.reward, keep),
        next_obs_ND=next_obs if whole else _kept_(next_obs, keep),
        terminal_N=data.terminal if whole else _kept_(data.terminal, keep),
        name=name,
        source=source,
        sha256=data.sha256,
        episodes=len(returns),
        return_mean=float(returns.mean()),
        return_std=float(returns.std()),
        clipped=clipped,
        notes=notes,
        action_bounds=data.action_bounds,
        references=data.references,
        frames_FHWC=frames,
    )


def _kept_(array: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Move the rows to be kept to the front of the array, and return them: a copy of every array is half the peak."""
    rows = 0
    for start in range(0, len(array), ROWS_MOVED):
        part = array[start : start + ROWS_MOVED][keep[start : start + ROWS_MOVED]]
        array[rows : rows + len(part)] = part
        rows += len(part)
    return array[:rows]


def _successors(data: Arrays, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the successor of every row, (N, D), and which rows have one or need none, bool (N,)."""
    last = np.flatnonzero(ends)
    keep = np.ones(len(data.obs), dtype=bool)
    if data.next_obs is not None:
        # Files made by shifting the observations hold the next episode's first one at a time limit: no successor.
        inner = last[last < len(keep) - 1]
        shifted = (data.next_obs[inner] == data.obs[inner + 1]).all(axis=1)
        keep[inner[shifted]] = data.terminal[inner[shifted]]
        return data.next_obs, keep
    # Made where the buffer wants it, which takes these rows over: apart, both would be the peak of a run's memory.
    obs_dim, action_dim = data.obs.shape[1], data.action.shape[1]
    rows = np.zeros((len(data.obs), row_width(obs_dim, action_dim)), data.obs.dtype)
    next_obs = rows[:, obs_dim + action_dim + 2 :][:, :obs_dim]
    next_obs[:-1] = data.obs[1:]
    if not ends[-1]:
        last = np.append(last, len(keep) - 1)
    found = 0 if data.last_obs is None else len(data.last_obs)
    if data.last_obs is not None:
        next_obs[last[:found]] = data.last_obs
    without = last[found:]
    next_obs[without] = data.obs[without]
    keep[without] = data.terminal[without]
    return next_obs, keep


def row_width(obs_dim: int, action_dim: int) -> int:
    """Return the floats in a row of the buffer, [o, a, r, 1 - terminal, o', padding]."""
    return -(-(2 * obs_dim + action_dim + 2) // ROW_ALIGN) * ROW_ALIGN


def _episode_returns(reward: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Sum the rewards of every whole episode in float64; a piece after the last end counts as none."""
    last = np.flatnonzero(ends)
    starts = np.concatenate([[0], last[:-1] + 1])
    return np.add.reduceat(reward[: last[-1] + 1].astype(np.float64), starts)
