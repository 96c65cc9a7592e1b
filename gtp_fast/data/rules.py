"""The rules that data must satisfy, each written once, and warnings about data that is valid but probably not meant.

In: columns under D4RL's names, all or some of them. Out: faults in order of importance, or warnings as faults.
Training stops at the first fault; `data check` lists every fault and every warning.

Legend: N rows, E episodes; an image is (H, W, C).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from gtp_fast.data import units
from gtp_fast.data.remedies import (
    ENDS,
    FINAL_OBS,
    MIN_IMAGE_SIDE,
    Columns,
    Fault,
    apart,
    final_observations_inside,
    image_form,
    misformed_images,
    repair,
    wrong_length,
    wrong_rank,
)
from gtp_fast.data.spec import DataSpec, are_frames
from gtp_fast.data.units import Actions
from gtp_fast.device import memory_bytes

FLOATS = ("observations", "actions", "rewards")
AXES = {"observations": 2, "actions": 2, "rewards": 1, "terminals": 1, "timeouts": 1, "next_observations": 2}
ROWS_SHOWN = 5  # of each fault
BLOCK = 16_384  # rows examined at a time

LARGE_OBSERVATION = 1e3  # only --normalise-obs scales what networks receive; D4RL's bodies stay within 100
SMALL_ACTION = 0.1
EPISODES_TO_GUESS = 3  # of equal length, before their terminals are suspected to be time limits


def machine_memory() -> int:
    """Return the bytes of memory that this process may have. A damaged file can declare more: readers refuse that."""
    return memory_bytes()


def faults(columns: Columns, spec: DataSpec, known: Actions) -> Iterator[Fault]:
    """Yield every fault of the given columns; after a fault in its shape a column is not examined further.

    Args: known, the units and bounds of the actions, as `units.decide` returned them for the whole data set.
    """
    wrong = list(_wrong_shapes(columns))
    yield from wrong
    sound = {key: array for key, array in columns.items() if key not in {fault.key for fault in wrong}}
    yield from _not_finite(sound)
    sizes = list(_wrong_sizes(sound, spec))
    yield from sizes
    yield from _wrong_ends(sound)
    if "actions" in sound and "actions" not in {fault.key for fault in sizes}:
        yield from _wrong_actions(sound["actions"], known)


def _wrong_shapes(columns: Columns) -> Iterator[Fault]:
    right: Columns = {}
    for key, rank in AXES.items():
        array = columns.get(key)
        if array is None:
            continue
        form = image_form(array, columns) if key == "observations" else None
        if form not in (None, "old"):
            yield misformed_images(array, columns, str(form))
        elif are_frames(array) and key == "observations":
            yield from _wrong_images(array, columns)
            right[key] = array
        elif array.ndim == rank and (rank == 1 or array.shape[-1] > 0):
            right[key] = array
        else:
            yield wrong_rank(key, array, rank)
    if not right:
        return
    first = next(iter(right))  # the observations, if the file has them
    rows = len(right[first])
    if rows == 0:
        yield Fault(first, f"{first} has no rows", "write at least one episode")
    longer = final_observations_inside(right)
    if longer is not None:
        yield longer
        return
    for key, array in right.items():
        if len(array) != rows:
            yield wrong_length(key, array, first, right[first])
        elif key == "next_observations" and first == "observations" and array.shape != right[first].shape:
            seen = f"next_observations has shape {array.shape}, observations {right[first].shape}"
            yield Fault(key, seen, "write both in the same shape")


def _wrong_images(frames: np.ndarray, columns: Columns) -> Iterator[Fault]:
    """Check that images are large enough for the encoder and that the file stores each once."""
    if min(frames.shape[1:3]) < MIN_IMAGE_SIDE or not frames.shape[3]:
        smallest = f"{MIN_IMAGE_SIDE} x {MIN_IMAGE_SIDE}"
        seen = f"observations are images of {frames.shape[1:]}, expected (H, W, C) of at least {smallest} pixels"
        yield Fault("observations", seen, "write larger images")
    if "next_observations" in columns:
        remedy = (
            "leave the key out, and write each episode's last image as a row of its own with timeouts true, or into "
            f"{FINAL_OBS}"
        )
        seen = "next_observations of images are a second copy of the observations"
        ends = "np.flatnonzero(np.ravel(file['terminals']) + np.ravel(file['timeouts']))"
        moved = f"file['{FINAL_OBS}'] = file['next_observations'][:][{ends}]; " if FINAL_OBS not in columns else ""
        yield Fault("next_observations", seen, remedy, lines=repair(f"{moved}del file['next_observations']"))
    if FINAL_OBS in columns and columns[FINAL_OBS].dtype != np.uint8:
        seen = f"{FINAL_OBS} holds {columns[FINAL_OBS].dtype} beside observations of uint8"
        yield Fault(FINAL_OBS, seen, "write it as uint8")


def _not_finite(columns: Columns) -> Iterator[Fault]:
    for key in (*FLOATS, "next_observations", FINAL_OBS):
        if key not in columns or columns[key].dtype == np.uint8:
            continue
        fault = find_bad_values(key, columns[key], lambda block: ~np.isfinite(block))
        if fault is not None:
            seen = f"{key} in row {fault.rows[0]:,} holds {fault.values[0]}"
            yield replace(fault, seen=seen, remedy="remove that episode, or fetch the file again")


def _wrong_sizes(columns: Columns, spec: DataSpec) -> Iterator[Fault]:
    for size, key in ((spec.obs_dim, "observations"), (spec.action_dim, "actions")):
        if size is not None and key in columns and columns[key].shape[1:] != (size,):
            seen = f"{key} {_sizes(columns[key].shape[1:])}, but {spec.name} has {size}"
            yield Fault(key, seen, "name the environment that the data came from with --env")


def _wrong_ends(columns: Columns) -> Iterator[Fault]:
    """Check that some row ends an episode, and that infos/final_observations has one row per episode.

    The unfinished episode at the end of a file may have a final observation too.
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
    if FINAL_OBS not in columns or "observations" not in columns:
        return
    episodes, one = int(np.count_nonzero(ends)), columns["observations"].shape[1:]
    unfinished = len(ends) > 0 and not ends[-1]
    if columns[FINAL_OBS].shape not in ((episodes, *one), (episodes + unfinished, *one)):
        yield Fault(
            FINAL_OBS,
            f"{FINAL_OBS} has shape {columns[FINAL_OBS].shape}, but {episodes:,} rows end an episode and observations "
            f"{_sizes(one)}",
            "write one row per episode, or leave the key out",
        )


def _wrong_actions(actions: np.ndarray, known: Actions) -> Iterator[Fault]:
    """Check the actions' size, units and range. In open units nothing is clippable: clipping needs a range."""
    width, bounds = actions.shape[1], known.bounds
    if bounds is not None and len(bounds[0]) != width:
        seen = f"actions have {width} numbers, but the environment's have {len(bounds[0])}"
        yield Fault("actions", seen, "name the environment that the data came from with --env")
    elif known.units is None or (known.units == "environment" and bounds is None):
        yield _open_units(actions, known)
    else:
        yield from _actions_outside(actions, known)


def _open_units(actions: np.ndarray, known: Actions) -> Fault:
    most = f"{float(np.nanmax(np.abs(actions))):.3g}"
    if known.bounds is None:
        needed = "file.attrs['action_low'] and file.attrs['action_high']"
        if known.units is None:
            seen = f"actions reach {most}, and the bounds of the environment's actions are not known here"
            remedy = "pass --action-units scaled if -1 and 1 stand for them; else environment, and write them into"
            return Fault("actions", seen, f"{remedy} {needed}")
        seen = "actions are in the environment's units, and its bounds are not known"
        return Fault("actions", seen, f"name the environment with --env, or write {needed}")
    limits, fault = units.shown(known.bounds), find_bad_values("actions", actions, _outside(known.bounds))
    if fault is None:
        seen = f"actions reach {most}: they lie in [-1, 1] and may be scaled, or in the environment's units, {limits}"
        remedy = (
            "pass --action-units environment if the environment received them as they are, or scaled if -1 and 1 "
            "stood for its bounds (a file states it by file.attrs['action_units'] = 'environment')"
        )
        return Fault("actions", seen, remedy)
    seen = f"actions in row {fault.rows[0]:,} reach {fault.values[0]:.6g}, outside the environment's bounds {limits}"
    remedy = (
        "pass --action-units scaled if -1 and 1 stand for its bounds, or --action-units environment and "
        f"--clip-actions to clip them ({fault.count:,} values)"
    )
    return replace(fault, seen=seen, remedy=remedy)


def _outside(bounds: units.Bounds) -> Callable[[np.ndarray], np.ndarray]:
    low, high = np.array(bounds, np.float32)
    return lambda block: ((block < low) | (block > high)) & np.isfinite(block)


def _actions_outside(actions: np.ndarray, known: Actions) -> Iterator[Fault]:
    low, high = action_limits(known, actions.shape[1])
    fault = find_bad_values("actions", actions, _outside((low, high)))
    if fault is None:
        return
    limits = units.shown((low, high))
    own = f"the environment's bounds {limits}" if known.limits is not None and limits != "[-1, 1]" else limits
    seen = f"actions in row {fault.rows[0]:,} reach {fault.values[0]:.6g}, outside {own}"
    other = "name the environment that the data came from" if own != limits else "scale them when writing the file"
    remedy = f"pass --clip-actions to clip them ({fault.count:,} values), or {other}"
    yield replace(fault, seen=seen, remedy=remedy, clippable=True)


def action_limits(known: Actions, action_dim: int) -> units.Bounds:
    """Return the range that a file's actions must lie in: [-1, 1], or the environment's bounds where these are finite.

    A component without finite bounds is not scaled, and must lie in [-1, 1].
    """
    one = units.unit(action_dim)
    if known.limits is None:
        return one
    if units.scalable(known.limits):
        return known.limits
    low, high = np.maximum(one[0], known.limits[0]), np.minimum(one[1], known.limits[1])
    return tuple(low.tolist()), tuple(high.tolist())


def _sizes(one: tuple[int, ...]) -> str:
    return f"have {one[0]} numbers" if len(one) == 1 else f"are images of {one}"


def find_bad_values(key: str, array: np.ndarray, is_bad: Callable[[np.ndarray], np.ndarray]) -> Fault | None:
    """Return the first rows with bad values, the first bad value of each, and the count of all; None if there are none.

    Args: is_bad marks the bad values in a block of rows. Blocks keep the masks small: a mask of the whole array would
    add to the run's peak of memory.
    """
    array, rows, values, count = np.atleast_1d(array), [], [], 0
    for start in range(0, len(array) if array.size else 0, BLOCK):
        block = array[start : start + BLOCK]
        flat = block.reshape(len(block), -1)
        mask = is_bad(flat)
        if mask.any():
            count += int(np.count_nonzero(mask))
            found = np.flatnonzero(mask.any(axis=1))[: ROWS_SHOWN - len(rows)]
            rows += [start + int(row) for row in found]
            values += [float(flat[row, mask[row].argmax()]) for row in found]
    return Fault(key, "", "", tuple(rows), tuple(values), count) if count else None


def row_warnings(columns: Columns) -> Iterator[Fault]:
    """Yield warnings about single rows of one file."""
    if set(ENDS) <= set(columns):
        both = columns["terminals"] & columns["timeouts"]
        yield from _warn_of_rows(
            "timeouts", both, "both terminals and timeouts are true", "such a row counts as terminal: unset one of them"
        )
    keys = [key for key in ("observations", "actions", "rewards") if key in columns and columns[key].ndim < 4]
    if len(keys) == 3:
        repeated = _repeated([columns[key] for key in keys])
        yield from _warn_of_rows(
            "observations",
            repeated,
            "observation, action and reward repeat an earlier row",
            "check whether rows were written twice",
        )
    if {"observations", "next_observations", *ENDS} <= set(columns):
        inner = ~(columns["terminals"] | columns["timeouts"])[:-1]
        differing = apart(columns["observations"], columns["next_observations"]) & inner
        yield from _warn_of_rows(
            "next_observations",
            differing,
            "next_observations inside an episode are not the next row's observations",
            "check for an unmarked episode end, or rows out of order",
        )


def dataset_warnings(columns: Columns) -> Iterator[Fault]:
    """Yield warnings about the data set as a whole."""
    yield from _unmarked_time_limits(columns)
    rewards = columns.get("rewards")
    if rewards is not None and (rewards == rewards[0]).all():
        seen = f"rewards are {rewards[0]:g} in all {len(rewards):,} rows"
        yield Fault("rewards", seen, "only the data's behaviour can be learned: train with --bc")
    for key in ("observations", "actions"):
        if key in columns and columns[key].ndim == 2:
            yield from _constant_columns(key, columns[key])
    actions, obs = columns.get("actions"), columns.get("observations")
    if actions is not None and 0 < (reach := np.abs(actions).max()) < SMALL_ACTION:
        yield Fault(
            "actions", f"actions reach {reach:.3g} at most", "a policy acts in [-1, 1]: scale the actions to that range"
        )
    if obs is not None and obs.ndim == 2 and (reach := np.abs(obs).max()) > LARGE_OBSERVATION:
        yield Fault(
            "observations", f"observations reach {reach:.3g}", "scale them to about 1, or train with --normalise-obs"
        )


def episode_lengths(columns: Columns) -> np.ndarray:
    """Return the length of each complete episode in rows, int64 (E,)."""
    last = np.flatnonzero(columns["terminals"] | columns["timeouts"])
    return np.diff(last, prepend=-1)


def _unmarked_time_limits(columns: Columns) -> Iterator[Fault]:
    if not set(ENDS) <= set(columns) or columns["timeouts"].any():
        return
    found = episode_lengths(columns)
    if len(found) >= EPISODES_TO_GUESS and (found == found[0]).all():
        yield Fault(
            "timeouts",
            f"all {len(found):,} episodes are {found[0]:,} rows long and end as terminal",
            "write time limits into timeouts: a terminal tells the critic that no reward follows",
        )


def _constant_columns(key: str, array: np.ndarray) -> Iterator[Fault]:
    same = np.flatnonzero((array == array[0]).all(axis=0))
    if len(same):
        named = ", ".join(map(str, same[:ROWS_SHOWN])) + (" ..." if len(same) > ROWS_SHOWN else "")
        seen = f"{key} never change in {len(same)} of {array.shape[1]} numbers ({named})"
        yield Fault(key, seen, "check that they were recorded", count=len(same))


def _warn_of_rows(key: str, mask: np.ndarray, seen: str, remedy: str) -> Iterator[Fault]:
    rows = np.flatnonzero(mask)
    if len(rows):
        shown = tuple(map(int, rows[:ROWS_SHOWN]))
        count = f"{len(rows):,} row{'s' * (len(rows) > 1)}"
        yield Fault(key, f"{seen}: {count}, first row {rows[0]:,}", remedy, shown, (), len(rows))


def _repeated(arrays: list[np.ndarray]) -> np.ndarray:
    """Return whether each row repeats an earlier one, bool (N,); rows are compared by a 64-bit hash."""
    hashed = np.zeros(len(arrays[0]), dtype=np.uint64)
    for array in arrays:
        for column in array.reshape(len(array), -1).T:
            hashed = (hashed ^ np.ascontiguousarray(column).view(np.uint32)) * np.uint64(0x9E3779B97F4A7C15)
            hashed ^= hashed >> np.uint64(29)
    _, first = np.unique(hashed, return_index=True)
    repeated = np.ones(len(hashed), dtype=bool)
    repeated[first] = False
    return repeated
