"""From the arrays that a reader returns to the transitions that training uses: validation, episode ends, successors.

In: `Arrays`, one row per step, as a file holds them. Out: `Transitions`, in which every row has a successor inside its
own episode or is terminal. A time limit is not a terminal: it ends an episode, and its last transition still
bootstraps. `Transitions.notes` reports every row that was left out, clipped or split.

Legend: N rows, E episodes, D observation, A action; F frames of H x W pixels and C channels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from gtp_fast.data.rules import FINAL_OBS, Columns, action_limits, faults
from gtp_fast.data.spec import Bounds, DataSpec, Units, are_frames
from gtp_fast.data.units import Actions
from gtp_fast.errors import DataError

# An ant moves at most 0.4 m in one step (measured on 60,022 steps of umaze). D4RL's antmaze-v0 files do not mark some
# resets, and these show as jumps of up to 21 m.
ANTMAZE_JUMP_M = 1.0
# Columns under D4RL's names, and the fields of Arrays that hold them.
FIELDS = {
    "observations": "obs",
    "actions": "action",
    "rewards": "reward",
    "terminals": "terminal",
    "timeouts": "timeout",
    "next_observations": "next_obs",
    FINAL_OBS: "last_obs",
}
ROW_ALIGN = 4  # floats: 16-byte rows
ROWS_MOVED = 8_192  # at a time, when rows are left out: half a megabyte of observations


@dataclass
class Arrays:
    """The arrays of one data set, as its reader returns them.

    obs (N, D), action (N, A) and reward (N,) are float32; terminal and timeout (N,) are bool. next_obs is (N, D) or
    None. last_obs (E, D) is the observation after each episode's last action, or None.
    Image observations are uint8: obs (N, H, W, C) and last_obs (E, H, W, C); next_obs is then None.
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
    notes: tuple[str, ...] = ()  # from the reader
    action_units: Units | None = None  # as the file states them, or as the reader left them
    action_bounds: Bounds | None = None  # the data's own, before actions were scaled to [-1, 1]
    references: tuple[float, float] | None = None  # the data set's own returns of a random and an expert policy


@dataclass(frozen=True)
class Transitions:
    """A validated data set on the host: float32 arrays (N, ...), terminal bool (N,), and the data's origin.

    Image observations are stored once, in frames_FHWC, as uint8. obs_ND and next_obs_ND are then int64 (N, 2): the
    index of a frame, and the index of the first frame of its episode.
    """

    obs_ND: np.ndarray
    action_NA: np.ndarray
    reward_N: np.ndarray
    next_obs_ND: np.ndarray
    terminal_N: np.ndarray
    name: str
    source: str  # path, address or 'embedded'
    sha256: str
    episodes: int  # complete ones
    return_mean: float  # raw returns of the complete episodes
    return_std: float
    clipped: int  # action values
    notes: tuple[str, ...] = ()  # to show to the user
    action_units: Units | None = None  # scaled: -1 and 1 stand for action_bounds; environment: those of its own
    action_bounds: Bounds | None = None  # of the environment; None where they are not known
    acting: str = ""  # what reaches the environment, in words
    references: tuple[float, float] | None = None
    frames_FHWC: np.ndarray | None = None

    @property
    def observations(self) -> np.ndarray:
        """The observations themselves, (N, D) or (F, H, W, C)."""
        return self.obs_ND if self.frames_FHWC is None else self.frames_FHWC


def validate(data: Arrays, spec: DataSpec, clip_actions: bool, known: Actions) -> int:
    """Refuse arrays that training cannot use; with clip_actions, clip actions in place and return how many values.

    Args: known, the units and bounds of the actions. Raises: DataError with the first fault of `rules.faults`; it names
    the file, the key, the row and the remedy.
    """
    clipped = 0
    for fault in faults(d4rl_columns(data), spec, known):
        if not (clip_actions and fault.clippable):
            raise fault.error(data.where)
        clipped = fault.count
    if clipped:
        np.clip(data.action, *np.array(action_limits(known, data.action.shape[1]), np.float32), out=data.action)
    return clipped


def d4rl_columns(data: Arrays) -> Columns:
    """Return the arrays that are not None, under D4RL's names."""
    named = {key: getattr(data, field) for key, field in FIELDS.items()}
    return {key: array for key, array in named.items() if array is not None}


def split_jumps_(data: Arrays, spec: DataSpec) -> tuple[str, ...]:
    """In D4RL's ant mazes, end the episode in place wherever the ant jumps; return notes about the changes."""
    if not spec.name.startswith("antmaze-") or len(data.obs) < 2:
        return ()
    jump = np.linalg.norm(np.diff(data.obs[:, :2], axis=0), axis=1) > ANTMAZE_JUMP_M
    unmarked = np.flatnonzero(jump & ~(data.terminal | data.timeout)[:-1])
    if data.last_obs is not None or not len(unmarked):
        return ()
    data.timeout[unmarked] = True
    return (f"{len(unmarked):,} episode ends were not marked and were found by jumps over {ANTMAZE_JUMP_M:g} m",)


def build_transitions(data: Arrays, name: str, source: str, clipped: int, notes: tuple[str, ...] = ()) -> Transitions:
    """Pair every row with its successor inside its episode. The arrays are reused: the result lies in their memory.

    The successor comes from next_observations if the file has them; otherwise it is the following row, and for the
    last row of an episode the final observation if the file keeps one. A terminal row needs no successor: its own
    observation fills the place and is never used. A row without a successor (a time limit, or the end of the file) is
    left out.
    """
    frames, data = number_frames(data) if are_frames(data.obs) else (None, data)
    ends = data.terminal | data.timeout
    returns = _episode_returns(data.reward, ends)
    next_obs, keep = _successors(data, ends)
    whole = bool(keep.all())
    if not keep.any():
        raise DataError(
            f"{data.where}: no transition is left: each of the {len(keep):,} rows ends an episode and has no "
            "successor; check terminals and timeouts"
        )
    if not whole:
        dropped = int(np.count_nonzero(~keep))
        notes += (f"left out {dropped:,} of {len(keep):,} rows, which end an episode and have no successor",)
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
        action_units=data.action_units,
        action_bounds=data.action_bounds,
        references=data.references,
        frames_FHWC=frames,
    )


def number_frames(data: Arrays) -> tuple[np.ndarray, Arrays]:
    """Return all frames, and the data with frame indices in place of the image observations.

    Returns: frames uint8 (F, H, W, C), with the final frames of episodes after all others; data with obs int64 (N, 2)
    and last_obs (E, 2): [index of the frame, index of the first frame of its episode].
    """
    rows = np.arange(len(data.obs))
    ends = np.flatnonzero(data.terminal | data.timeout)
    starts = np.concatenate([[0], ends + 1])  # one more than there are episodes if the last row ends one
    first = starts[np.searchsorted(starts, rows, side="right") - 1]
    obs, frames, last = np.stack([rows, first], axis=1), data.obs, None
    if data.last_obs is not None:
        numbers = np.arange(len(data.last_obs))
        last = np.stack([len(rows) + numbers, starts[numbers]], axis=1)
        frames = np.concatenate([data.obs, data.last_obs])
    return frames, replace(data, obs=obs, last_obs=last)


def _successors(data: Arrays, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the successor of every row, (N, D), and which rows to keep, bool (N,): those with one or terminal."""
    last = np.flatnonzero(ends)
    keep = np.ones(len(data.obs), dtype=bool)
    if data.next_obs is not None:
        # A file made by shifting the observations holds, at a time limit, the next episode's first one: no successor.
        inner = last[last < len(keep) - 1]
        shifted = (data.next_obs[inner] == data.obs[inner + 1]).all(axis=1)
        keep[inner[shifted]] = data.terminal[inner[shifted]]
        return data.next_obs, keep
    # Written into rows of the buffer's layout, which the buffer then reuses: a second copy would be the run's peak of
    # memory.
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
    """Return the floats in a row of the buffer, [o, a, r, 1 - terminal, o', padding]; frames have no o in theirs."""
    return -(-(2 * obs_dim + action_dim + 2) // ROW_ALIGN) * ROW_ALIGN


def _kept_(array: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Move the kept rows to the front of the array and return them: copies of all arrays would be half the peak."""
    rows = 0
    for start in range(0, len(array), ROWS_MOVED):
        part = array[start : start + ROWS_MOVED][keep[start : start + ROWS_MOVED]]
        array[rows : rows + len(part)] = part
        rows += len(part)
    return array[:rows]


def _episode_returns(reward: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Sum the rewards of every complete episode in float64; rows after the last end belong to none."""
    last = np.flatnonzero(ends)
    starts = np.concatenate([[0], last[:-1] + 1])
    return np.add.reduceat(reward[: last[-1] + 1].astype(np.float64), starts)
