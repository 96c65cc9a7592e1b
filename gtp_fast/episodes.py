"""From the arrays of a data set to transitions: validation, episode ends, successors.

Time limits are not terminals: they end an episode, and its last transition still bootstraps. Whatever is left out,
clipped or split is counted and told in `Transitions.notes`. Legend: N rows, E episodes, D observation, A action.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gtp_fast.data_spec import DataSpec
from gtp_fast.errors import DataError
from gtp_fast.frame_data import are_frames, check_frames, number_frames

# An ant moves at most 0.4 m in one step (measured on 60,022 steps of umaze); D4RL's antmaze-v0 files miss the marks of
# some resets, which show as jumps of up to 21 m.
ANTMAZE_JUMP_M = 1.0


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
    frames_FHWC: np.ndarray | None = None

    @property
    def observations(self) -> np.ndarray:
        """What was observed, (N, D) or (F, H, W, C)."""
        return self.obs_ND if self.frames_FHWC is None else self.frames_FHWC


def validate(data: Arrays, spec: DataSpec, clip_actions: bool) -> int:
    """Refuse arrays that cannot be trained on; clip actions in place where asked and return how many values.

    Raises: DataError naming the file, the key, the row and the remedy.
    """
    if are_frames(data.obs):
        check_frames(data)
    rows = _check_shapes(data)
    _check_finite(data)
    expected = ((spec.obs_dim, data.obs, "observations"), (spec.action_dim, data.action, "actions"))
    for size, array, key in expected:
        if size is not None and array.shape[1:] != (size,):
            raise DataError(
                f"{data.where}: {key} {_sizes(array.shape[1:])}, but {spec.name} has {size}; "
                "name the environment that the data came from with --env"
            )
    if not (data.terminal.any() or data.timeout.any()):
        raise DataError(
            f"{data.where}: none of the {rows:,} rows ends an episode (terminals and timeouts are all false); mark "
            "each episode's last row, so that no transition crosses into the next"
        )
    _check_last_observations(data)
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
    return count


def _check_shapes(data: Arrays) -> int:
    ranks = {
        "observations": (data.obs, 4 if are_frames(data.obs) else 2),
        "actions": (data.action, 2),
        "rewards": (data.reward, 1),
        "terminals": (data.terminal, 1),
        "timeouts": (data.timeout, 1),
    }
    if data.next_obs is not None:
        ranks["next_observations"] = (data.next_obs, 2)
    for key, (array, rank) in ranks.items():
        if array.ndim != rank or (array.shape[-1:] == (0,) and rank == 2):
            raise DataError(
                f"{data.where}: {key} has shape {array.shape}, expected {rank} axes; write it as "
                f"{'(N, size)' if rank == 2 else '(N,)'}"
            )
    rows = len(data.obs)
    if rows == 0:
        raise DataError(f"{data.where}: observations has no rows; write at least one episode")
    for key, (array, _) in ranks.items():
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
    arrays |= {"next_observations": data.next_obs} if data.next_obs is not None else {}
    arrays |= {"infos/final_observations": data.last_obs} if data.last_obs is not None else {}
    for key, array in arrays.items():
        if array.dtype == np.uint8:
            continue
        finite = np.isfinite(array)
        if not finite.all():
            row = int(np.argwhere(~finite)[0][0])
            value = np.atleast_1d(array[row])[~np.atleast_1d(finite[row])][0]
            raise DataError(
                f"{data.where}: {key} in row {row:,} holds {value}; remove that episode, or fetch the file again"
            )


def _check_last_observations(data: Arrays) -> None:
    """Hold infos/final_observations to one row an episode; an unfinished last episode may have one, too."""
    if data.last_obs is None:
        return
    episodes, one = int(np.count_nonzero(data.terminal | data.timeout)), data.obs.shape[1:]
    if data.last_obs.shape not in ((episodes, *one), (episodes + 1, *one)):
        raise DataError(
            f"{data.where}: infos/final_observations has shape {data.last_obs.shape}, but {episodes:,} rows end an "
            f"episode and observations {_sizes(one)}; write one row an episode, or leave the key out"
        )


def _sizes(one: tuple[int, ...]) -> str:
    return f"have {one[0]} numbers" if len(one) == 1 else f"are pictures of {one}"


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
    row with no successor (a time limit, or the end of the file) is left out.
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
        obs_ND=data.obs if whole else data.obs[keep],
        action_NA=data.action if whole else data.action[keep],
        reward_N=data.reward if whole else data.reward[keep],
        next_obs_ND=next_obs if whole else next_obs[keep],
        terminal_N=data.terminal if whole else data.terminal[keep],
        name=name,
        source=source,
        sha256=data.sha256,
        episodes=len(returns),
        return_mean=float(returns.mean()),
        return_std=float(returns.std()),
        clipped=clipped,
        notes=notes,
        frames_FHWC=frames,
    )


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
    next_obs = np.empty_like(data.obs)
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


def _episode_returns(reward: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Sum the rewards of every whole episode in float64; a piece after the last end counts as none."""
    last = np.flatnonzero(ends)
    starts = np.concatenate([[0], last[:-1] + 1])
    return np.add.reduceat(reward[: last[-1] + 1].astype(np.float64), starts)
