"""The rules that data must keep to be trained on, each written once: training stops at the first fault, `data check`
tells them all.

In: columns by D4RL's names, whatever of them was found. Out: faults in order of importance. Legend: N rows, E episodes.

What is allowed in data and seldom meant: `data check` tells it, training does not stop at it.

In: columns by D4RL's names, sound ones alone. Out: doubts, in the form of faults. Legend: N rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NoReturn

import numpy as np

from gtp_fast.data.spec import DataSpec, are_frames
from gtp_fast.errors import DataError

SMALLEST = 8  # pixels a side: the encoder halves them three times
FLOATS = ("observations", "actions", "rewards")
ENDS = ("terminals", "timeouts")
LAST = "infos/final_observations"
AXES = {"observations": 2, "actions": 2, "rewards": 1, "terminals": 1, "timeouts": 1, "next_observations": 2}
SHOWN = 5  # rows named of each fault
BLOCK = 16_384  # rows looked at together

Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class Fault:
    """What is wrong with a column: what was seen (and expected), what to do, the first rows, their values, how many."""

    key: str
    seen: str
    remedy: str
    rows: tuple[int, ...] = ()
    values: tuple[float, ...] = ()
    count: int = 0
    joint: str = ": "
    clips: bool = False  # --clip-actions mends it

    def sentence(self, where: str) -> str:
        """Say it of a file, in one line."""
        return f"{where}{self.joint}{self.seen}; {self.remedy}"

    def refuse(self, where: str) -> NoReturn:
        """Raise it as the DataError with which training ends."""
        raise DataError(self.sentence(where))


def faults(columns: Columns, spec: DataSpec) -> Iterator[Fault]:
    """Yield every fault of the columns that are there; a column of a wrong shape is not looked at further."""
    wrong = list(_wrong_shapes(columns))
    yield from wrong
    sound = {key: array for key, array in columns.items() if key not in {fault.key for fault in wrong}}
    yield from _not_finite(sound)
    yield from _wrong_sizes(sound, spec)
    yield from _wrong_ends(sound)
    yield from _outside(sound)


def _wrong_shapes(columns: Columns) -> Iterator[Fault]:
    right: Columns = {}
    for key, rank in AXES.items():
        array = columns.get(key)
        if array is None:
            continue
        if are_frames(array) and key == "observations":
            yield from _wrong_pictures(array, columns)
            right[key] = array
        elif array.ndim == rank and (rank == 1 or array.shape[-1] > 0):
            right[key] = array
        else:
            form = "(N, size)" if rank == 2 else "(N,)"
            yield Fault(key, f"{key} has shape {array.shape}, expected {rank} axes", f"write it as {form}")
    if not right:
        return
    first = next(iter(right))  # the observations, where they are there
    rows = len(right[first])
    if rows == 0:
        yield Fault(first, f"{first} has no rows", "write at least one episode")
    for key, array in right.items():
        if len(array) != rows:
            seen = f"{key} has {len(array):,} rows but {first} has {rows:,}"
            yield Fault(key, seen, "every array needs one row a transition", count=abs(len(array) - rows))
        elif key == "next_observations" and first == "observations" and array.shape != right[first].shape:
            seen = f"next_observations has shape {array.shape}, observations {right[first].shape}"
            yield Fault(key, seen, "they must be alike")


def _wrong_pictures(frames: np.ndarray, columns: Columns) -> Iterator[Fault]:
    """Ask of pictures that they can be seen, and kept once."""
    if min(frames.shape[1:3]) < SMALLEST or not frames.shape[3]:
        seen = (
            f"observations are pictures of {frames.shape[1:]}, expected (H, W, C) of at least {SMALLEST} x {SMALLEST}"
        )
        yield Fault("observations", seen, "write them larger")
    if "next_observations" in columns:
        remedy = (
            "leave the key out, and write each episode's last picture as a row of its own with timeouts true, or into "
            f"{LAST}"
        )
        yield Fault("next_observations", "next_observations of pictures are a second copy of the file", remedy)
    if LAST in columns and columns[LAST].dtype != np.uint8:
        seen = f"{LAST} hold {columns[LAST].dtype} beside observations of uint8"
        yield Fault(LAST, seen, "write uint8 there, too")


def _not_finite(columns: Columns) -> Iterator[Fault]:
    for key in (*FLOATS, "next_observations", LAST):
        if key not in columns or columns[key].dtype == np.uint8:
            continue
        fault = rowwise(key, columns[key], lambda block: ~np.isfinite(block))
        if fault is not None:
            seen = f"{key} in row {fault.rows[0]:,} holds {fault.values[0]}"
            yield replace(fault, seen=seen, remedy="remove that episode, or fetch the file again")


def _wrong_sizes(columns: Columns, spec: DataSpec) -> Iterator[Fault]:
    for size, key in ((spec.obs_dim, "observations"), (spec.action_dim, "actions")):
        if size is not None and key in columns and columns[key].shape[1:] != (size,):
            seen = f"{key} {_sizes(columns[key].shape[1:])}, but {spec.name} has {size}"
            yield Fault(key, seen, "name the environment that the data came from with --env")


def _wrong_ends(columns: Columns) -> Iterator[Fault]:
    """Ask for one marked end at least, and for one row of infos/final_observations an episode.

    An unfinished last episode may have its last observation, too.
    """
    if not set(ENDS) <= set(columns):
        return
    ends = columns["terminals"] | columns["timeouts"]
    if not ends.any() and len(ends):
        yield Fault(
            "timeouts",
            f"none of the {len(ends):,} rows ends an episode (terminals and timeouts are all false)",
            "mark each episode's last row, so that no transition crosses into the next",
        )
        return
    if LAST not in columns or "observations" not in columns:
        return
    episodes, one = int(np.count_nonzero(ends)), columns["observations"].shape[1:]
    unfinished = len(ends) > 0 and not ends[-1]
    if columns[LAST].shape not in ((episodes, *one), (episodes + unfinished, *one)):
        yield Fault(
            LAST,
            f"{LAST} has shape {columns[LAST].shape}, but {episodes:,} rows end an episode and observations "
            f"{_sizes(one)}",
            "write one row an episode, or leave the key out",
        )


def _outside(columns: Columns) -> Iterator[Fault]:
    if "actions" not in columns:
        return
    fault = rowwise("actions", columns["actions"], lambda block: (np.abs(block) > 1.0) & np.isfinite(block))
    if fault is not None:
        seen = f"actions in row {fault.rows[0]:,} reach {fault.values[0]:.6g}, outside [-1, 1]"
        remedy = f"pass --clip-actions to clip them ({fault.count:,} values), or scale them when writing the file"
        yield replace(fault, seen=seen, remedy=remedy, clips=True)


def _sizes(one: tuple[int, ...]) -> str:
    return f"have {one[0]} numbers" if len(one) == 1 else f"are pictures of {one}"


def rowwise(key: str, array: np.ndarray, is_bad: Callable[[np.ndarray], np.ndarray]) -> Fault | None:
    """Note the first rows with a bad value, the first such value in each, and how many values there are; None without.

    Args: is_bad marks the values of a block of rows: masks of whole arrays would count in the peak of a run's memory.
    """
    array, rows, values, count = np.atleast_1d(array), [], [], 0
    for start in range(0, len(array) if array.size else 0, BLOCK):
        block = array[start : start + BLOCK]
        two = block.reshape(len(block), -1)
        mask = is_bad(two)
        if mask.any():
            count += int(np.count_nonzero(mask))
            found = np.flatnonzero(mask.any(axis=1))[: SHOWN - len(rows)]
            rows += [start + int(row) for row in found]
            values += [float(two[row, mask[row].argmax()]) for row in found]
    return Fault(key, "", "", tuple(rows), tuple(values), count) if count else None


LARGE_OBSERVATION = 1e3  # networks see observations as they are, but for --normalise-obs; D4RL's bodies stay within 100
SMALL_ACTION = 0.1
EPISODES_TO_GUESS = 3  # of equal length, before their terminals are taken for time limits


def row_doubts(columns: Columns) -> Iterator[Fault]:
    """Yield what single rows of one file make doubtful."""
    if set(ENDS) <= set(columns):
        both = columns["terminals"] & columns["timeouts"]
        yield from _rows(
            "timeouts", both, "both terminals and timeouts are true", "such a row counts as terminal: unset one"
        )
    keys = [key for key in ("observations", "actions", "rewards") if key in columns and columns[key].ndim < 4]
    if len(keys) == 3:
        repeated = _repeated([columns[key] for key in keys])
        yield from _rows(
            "observations", repeated, "observation, action and reward repeat an earlier row", "was it written twice?"
        )
    if {"observations", "next_observations", *ENDS} <= set(columns):
        inner = ~(columns["terminals"] | columns["timeouts"])[:-1]
        apart = (columns["next_observations"][:-1] != columns["observations"][1:]).any(axis=1) & inner
        yield from _rows(
            "next_observations",
            apart,
            "next_observations inside an episode are not the next row's observations",
            "is an episode end unmarked, or are rows in another order than they were made?",
        )


def set_doubts(columns: Columns) -> Iterator[Fault]:
    """Yield what the whole set makes doubtful."""
    yield from _unmarked_time_limits(columns)
    rewards = columns.get("rewards")
    if rewards is not None and (rewards == rewards[0]).all():
        seen = f"rewards are {rewards[0]:g} in all {len(rewards):,} rows"
        yield Fault("rewards", seen, "nothing to learn from but the data's own behaviour: --bc")
    for key in ("observations", "actions"):
        if key in columns and columns[key].ndim == 2:
            yield from _constant(key, columns[key])
    actions, obs = columns.get("actions"), columns.get("observations")
    if actions is not None and 0 < (reach := np.abs(actions).max()) < SMALL_ACTION:
        yield Fault("actions", f"actions reach {reach:.3g} at most", "a policy acts in [-1, 1]: scale them to fill it")
    if obs is not None and obs.ndim == 2 and (reach := np.abs(obs).max()) > LARGE_OBSERVATION:
        yield Fault(
            "observations", f"observations reach {reach:.3g}", "bring them near 1, or train with --normalise-obs"
        )


def lengths(columns: Columns) -> np.ndarray:
    """Return the rows of each whole episode, int64 (E,)."""
    last = np.flatnonzero(columns["terminals"] | columns["timeouts"])
    return np.diff(last, prepend=-1)


def _unmarked_time_limits(columns: Columns) -> Iterator[Fault]:
    if not set(ENDS) <= set(columns) or columns["timeouts"].any():
        return
    found = lengths(columns)
    if len(found) >= EPISODES_TO_GUESS and (found == found[0]).all():
        yield Fault(
            "timeouts",
            f"all {len(found):,} episodes are {found[0]:,} rows long and end as terminal",
            "time limits belong in timeouts: as terminals they teach that nothing comes after",
        )


def _constant(key: str, array: np.ndarray) -> Iterator[Fault]:
    same = np.flatnonzero((array == array[0]).all(axis=0))
    if len(same):
        named = ", ".join(map(str, same[:SHOWN])) + (" ..." if len(same) > SHOWN else "")
        seen = f"{key} never change in {len(same)} of {array.shape[1]} numbers ({named})"
        yield Fault(key, seen, "were they recorded?", count=len(same))


def _rows(key: str, mask: np.ndarray, seen: str, remedy: str) -> Iterator[Fault]:
    rows = np.flatnonzero(mask)
    if len(rows):
        shown = tuple(map(int, rows[:SHOWN]))
        count = f"{len(rows):,} row{'s' * (len(rows) > 1)}"
        yield Fault(key, f"{seen}: {count}, first row {rows[0]:,}", remedy, shown, (), len(rows))


def _repeated(arrays: list[np.ndarray]) -> np.ndarray:
    """Say of each row whether the same numbers came before, by a 64-bit hash: bool (N,)."""
    hashed = np.zeros(len(arrays[0]), dtype=np.uint64)
    for array in arrays:
        for column in array.reshape(len(array), -1).T:
            hashed = (hashed ^ np.ascontiguousarray(column).view(np.uint32)) * np.uint64(0x9E3779B97F4A7C15)
            hashed ^= hashed >> np.uint64(29)
    _, first = np.unique(hashed, return_index=True)
    repeated = np.ones(len(hashed), dtype=bool)
    repeated[first] = False
    return repeated
