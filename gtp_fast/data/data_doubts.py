"""What is allowed in data and seldom meant: `data check` tells it, training does not stop at it.

In: columns by D4RL's names, sound ones alone. Out: doubts, in the form of faults. Legend: N rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gtp_fast.data.rules import ENDS, SHOWN, Columns, Fault

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
