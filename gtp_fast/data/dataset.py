"""Data sets at the door: files and collections become validated transitions, or an error that names file, key and row.

In: a catalogue entry and perhaps a path. Out: `Transitions`, host arrays in float32. Nothing is repaired in silence and
no transition crosses an episode end. Legend: N transitions, D observation, A action.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gtp_fast.data import catalog, download, hdf5, minari, ogbench
from gtp_fast.data.rules import ENDS, FLOATS, LAST, Columns, Fault, rowwise
from gtp_fast.data.spec import DataSpec, with_references
from gtp_fast.data.transitions import Arrays, Transitions, build_transitions, split_jumps_, validate
from gtp_fast.errors import DataError, UsageError
from gtp_fast.files import sha256_of

LAYOUT = "D4RL's layout needs observations, actions, rewards, terminals and timeouts"

__all__ = ["Transitions", "info", "load"]


def load(
    spec: DataSpec, dataset: Path | None = None, clip_actions: bool = False, progress: download.Progress | None = None
) -> Transitions:
    """Read the data set of an entry, or the file, shards or Minari directory that take its place.

    Args: dataset overrides where the data come from: a path, or where none exists, a Minari id; spec then only names
    the environment. clip_actions clips actions outside [-1, 1] and counts them. progress is told of a download's bytes.
    Raises: DataError with file, key, row and remedy; UsageError when the name has no data of its own.
    """
    if dataset is None:
        named, source = _read_named(spec, progress)
        parts = [named]
    else:
        parts, source = _read_own(dataset, spec)
    clipped = sum(validate(part, spec, clip_actions) for part in parts)
    arrays, notes = hdf5.join(parts, source)
    notes += split_jumps_(arrays, spec)
    if arrays.references is not None and with_references(spec, arrays.references) != spec:
        low, high = arrays.references
        notes += (f"scores are by the data set's own references: 0 for a return of {low:g}, 100 for {high:g}",)
    if dataset is None and spec.sha256 and arrays.sha256 != spec.sha256:
        notes += (f"{source} is not the published {spec.name}: SHA-256 {arrays.sha256}, published {spec.sha256}",)
    return build_transitions(arrays, spec.name, source, clipped, notes)


def _read_own(path: Path, spec: DataSpec) -> tuple[list[Arrays], str]:
    name = None if path.exists() else catalog.dataset_id(str(path))
    if name is not None:
        return [minari.read_id(name)], f"minari:{name}"
    return [read(part, spec) for part in hdf5.parts(path)], str(path)


def read(path: Path, spec: DataSpec) -> Arrays:
    """Read one file or Minari directory; spec says which task an OGBench file is rewarded for."""
    if path.suffix == ".npz":
        return ogbench.read(path, spec)
    return minari.read_directory(path) if path.is_dir() else read_hdf5(path)


def _read_named(spec: DataSpec, progress: download.Progress | None) -> tuple[Arrays, str]:
    """Read what a name stands for, and say where it came from."""
    if spec.name == "multigoal-v0":
        from gtp_fast.data.embedded import multigoal_arrays

        return multigoal_arrays(), "embedded, generated"
    if spec.source == "embedded":
        with as_file(files("gtp_fast") / "data" / str(spec.filename)) as path:
            return read_hdf5(path), "embedded"
    if spec.source == "d4rl":
        path = download.fetch(spec, progress)
        return read_hdf5(path), str(path)
    if spec.source == "minari":
        return minari.read_id(spec.name), f"minari:{spec.name}"
    if spec.source == "ogbench":
        path = download.fetch(spec, progress)
        return ogbench.read(path, spec), str(path)
    raise UsageError(f"--env {spec.name} names an environment, not a data set; pass its data with --dataset PATH")


def read_hdf5(path: Path) -> Arrays:
    """Read a D4RL-layout file: observations, actions, rewards, terminals, timeouts, and where present
    next_observations and infos/final_observations.

    Raises: DataError when the file is absent, empty, truncated, no HDF5, lacks a key or holds other than numbers.
    """
    columns = read_columns(path, lambda fault: fault.refuse(str(path)))
    return Arrays(
        where=str(path),
        obs=columns["observations"],
        action=columns["actions"],
        reward=columns["rewards"],
        terminal=columns["terminals"],
        timeout=columns["timeouts"],
        next_obs=columns.get("next_observations"),
        last_obs=columns.get(LAST),
        sha256=sha256_of(path),
    )


def read_columns(path: Path, tell: Callable[[Fault], object]) -> Columns:
    """Read what a D4RL-layout file holds of its columns: float32, and bool for the two that mark ends.

    Args: tell is told of every column that is missing or cannot be taken; it is then left out, unless tell raises.
    Raises: DataError when there is no HDF5 file that can be read to its end.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist; check the path, or leave --dataset out to use the named data set")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes); delete it and fetch or write it again")
    try:
        with h5py.File(path, "r", rdcc_nbytes=0) as file:  # every chunk is read once: none is kept
            return _read_layout(file, tell)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:  # h5py's, on damaged structures
        raise DataError(_unreadable(path, error)) from None


def _read_layout(file: h5py.File, tell: Callable[[Fault], object]) -> Columns:
    missing = [key for key in (*FLOATS, *ENDS) if not isinstance(file.get(key), h5py.Dataset)]
    if missing:
        held = ", ".join(sorted(file)) or "nothing"
        tell(Fault(", ".join(missing), f"has no {', '.join(missing)}; it holds {held}", LAYOUT, joint=" "))
    columns: Columns = {}
    for key in (*FLOATS, "next_observations", LAST, *ENDS):
        data = file.get(key)
        if isinstance(data, h5py.Dataset):
            fault = _too_large(key, data)
            read = fault or (_read_flags(key, data) if key in ENDS else _read_floats(key, data))
            if isinstance(read, Fault):
                tell(read)
            else:
                columns[key] = _flat(read) if key in ("rewards", *ENDS) else read
    return columns


def _too_large(key: str, data: h5py.Dataset) -> Fault | None:
    """Refuse a column that declares more than the memory of this machine: a damaged header can declare anything."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    needed = (1 if _are_frames(data) else 4) * (data.size or 0)
    if needed <= memory:
        return None
    return Fault(
        key,
        f"{key} declares shape {data.shape}, {needed / 1e9:,.0f} GB in memory, and this machine has "
        f"{memory / 1e9:,.0f} GB",
        "fetch the file again, or split it",
    )


def _are_frames(data: h5py.Dataset) -> bool:
    return data.dtype == np.uint8 and data.ndim == 4


def _read_floats(key: str, data: h5py.Dataset) -> np.ndarray | Fault:
    """Read a column once, straight into float32; pictures stay uint8."""
    if data.dtype.kind not in "fiu" or data.shape is None:
        return Fault(key, f"{key} holds {data.dtype}, expected numbers", "write it as float32")
    array = np.empty(data.shape, dtype=np.uint8 if _are_frames(data) else np.float32)
    if data.size:
        data.read_direct(array)
    return array


def _read_flags(key: str, data: h5py.Dataset) -> np.ndarray | Fault:
    """Read a column of booleans, or of numbers that are all 0 or 1."""
    if data.dtype.kind not in "biuf" or data.shape is None:
        return Fault(key, f"{key} holds {data.dtype}, expected booleans", "write it as bool")
    values = np.asarray(data[()])
    fault = rowwise(key, values, lambda block: block != block.astype(bool))
    if fault is not None:
        seen = f"{key} in row {fault.rows[0]:,} holds {fault.values[0]:g}, expected 0 or 1"
        return replace(fault, seen=seen, remedy="write it as bool")
    return values.astype(bool)


def _flat(array: np.ndarray) -> np.ndarray:
    """Take (N, 1), which some of D4RL's files hold, as (N,)."""
    return np.ascontiguousarray(array[:, 0]) if array.ndim == 2 and array.shape[1] == 1 else array


def _unreadable(path: Path, error: Exception) -> str:
    try:
        with path.open("rb") as file:
            signature = file.read(8)
    except OSError as refused:
        return f"{path} cannot be opened ({refused.strerror}); check its permissions"
    if signature != b"\x89HDF\r\n\x1a\n":
        return f"{path} is not an HDF5 file (it begins with {signature!r}); name a D4RL-layout .hdf5 file"
    size = path.stat().st_size
    return (
        f"{path} is truncated or damaged: it cannot be read to its end ({size:,} bytes; {error}); delete it and "
        "fetch or write it again"
    )


def info(data: Transitions) -> dict[str, Any]:
    """Describe a data set: shapes, returns and ranges, as plain values."""
    return {
        "name": data.name,
        "source": data.source,
        "sha256": data.sha256,
        "transitions": len(data.reward_N),
        "episodes": data.episodes,
        "obs_dim": shape[0] if len(shape := data.observations.shape[1:]) == 1 else list(shape),
        "action_dim": data.action_NA.shape[1],
        "return_mean": data.return_mean,
        "return_std": data.return_std,
        "terminals": int(data.terminal_N.sum()),
        "observation_range": [float(data.observations.min()), float(data.observations.max())],
        "action_range": [float(data.action_NA.min()), float(data.action_NA.max())],
        "reward_range": [float(data.reward_N.min()), float(data.reward_N.max())],
        "clipped_actions": data.clipped,
        "notes": list(data.notes),
    }
