"""Data sets at the door: files and collections become validated transitions, or an error that names file, key and row.

In: a catalogue entry and perhaps a path. Out: `Transitions`, host arrays in float32. Nothing is repaired in silence and
no transition crosses an episode end. Legend: N transitions, D observation, A action.
"""

from __future__ import annotations

import hashlib
import os
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gtp_fast import download, minari_data
from gtp_fast.catalog import resolve
from gtp_fast.data_spec import DataSpec
from gtp_fast.episodes import Arrays, Transitions, build_transitions, split_jumps_, validate
from gtp_fast.errors import DataError, UsageError

FLOATS = ("observations", "actions", "rewards")
ENDS = ("terminals", "timeouts")
LAYOUT = "D4RL's layout needs observations, actions, rewards, terminals and timeouts"

__all__ = ["Transitions", "check", "info", "load"]


def load(
    spec: DataSpec, dataset: Path | None = None, clip_actions: bool = False, progress: download.Progress | None = None
) -> Transitions:
    """Read the data set of an entry, or the file or Minari directory that takes its place.

    Args: dataset overrides where the data come from; spec then only names the environment. clip_actions clips actions
    outside [-1, 1] and counts them. progress is told of a download's bytes.
    Raises: DataError with file, key, row and remedy; UsageError when the name has no data of its own.
    """
    arrays, source = _read_named(spec, progress) if dataset is None else _read_own(dataset)
    clipped = validate(arrays, spec, clip_actions)
    notes = split_jumps_(arrays, spec)
    if dataset is None and spec.sha256 and arrays.sha256 != spec.sha256:
        notes += (f"{source} is not the published {spec.name}: SHA-256 {arrays.sha256}, published {spec.sha256}",)
    return build_transitions(arrays, spec.name, source, clipped, notes)


def _read_own(path: Path) -> tuple[Arrays, str]:
    return (minari_data.read_directory(path) if path.is_dir() else read_hdf5(path)), str(path)


def _read_named(spec: DataSpec, progress: download.Progress | None) -> tuple[Arrays, str]:
    """Read what a name stands for, and say where it came from."""
    if spec.name == "multigoal-v0":
        from gtp_fast.embedded import multigoal_arrays

        return multigoal_arrays(), "embedded, generated"
    if spec.source == "embedded":
        with as_file(files("gtp_fast") / "data" / str(spec.filename)) as path:
            return read_hdf5(path), "embedded"
    if spec.source == "d4rl":
        path = download.fetch(spec, progress)
        return read_hdf5(path), str(path)
    if spec.source == "minari":
        return minari_data.read_id(spec.name), f"minari:{spec.name}"
    if spec.source == "ogbench":
        raise DataError(
            f"{spec.name}: OGBench files ({spec.filename}) are not read in this version; convert them to D4RL's "
            "layout and pass the file with --dataset PATH"
        )
    raise UsageError(f"--env {spec.name} names an environment, not a data set; pass its data with --dataset PATH")


def read_hdf5(path: Path) -> Arrays:
    """Read a D4RL-layout file: observations, actions, rewards, terminals, timeouts, and where present
    next_observations and infos/final_observations.

    Raises: DataError when the file is absent, empty, truncated, no HDF5, lacks a key or holds other than numbers.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist; check the path, or leave --dataset out to use the named data set")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes); delete it and fetch or write it again")
    try:
        with h5py.File(path, "r") as file:
            return _read_layout(path, file)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:  # h5py's, on damaged structures
        raise DataError(_unreadable(path, error)) from None


def _read_layout(path: Path, file: h5py.File) -> Arrays:
    missing = [key for key in (*FLOATS, *ENDS) if not isinstance(file.get(key), h5py.Dataset)]
    if missing:
        held = ", ".join(sorted(file)) or "nothing"
        raise DataError(f"{path} has no {', '.join(missing)}; it holds {held}; {LAYOUT}")
    _check_fits(path, file)
    floats = {key: _read_floats(path, file, key) for key in (*FLOATS, "next_observations", "infos/final_observations")}
    obs, action, reward = (floats[key] for key in FLOATS)
    assert obs is not None and action is not None and reward is not None  # among the keys that are present
    return Arrays(
        where=str(path),
        obs=obs,
        action=action,
        reward=_flat(reward),
        terminal=_read_flags(path, file, "terminals"),
        timeout=_read_flags(path, file, "timeouts"),
        next_obs=floats["next_observations"],
        last_obs=floats["infos/final_observations"],
        sha256=_sha256(path),
    )


def _check_fits(path: Path, file: h5py.File) -> None:
    """Refuse a file that declares more than the memory of this machine: a damaged header can declare anything."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for key in (*FLOATS, *ENDS):
        data = file[key]
        if isinstance(data, h5py.Dataset) and (1 if _are_frames(data) else 4) * (data.size or 0) > memory:
            raise DataError(
                f"{path}: {key} declares shape {data.shape}, {4 * (data.size or 0) / 1e9:,.0f} GB as float32, and this "
                f"machine has {memory / 1e9:,.0f} GB; fetch the file again, or split it"
            )


def _read_floats(path: Path, file: h5py.File, key: str) -> np.ndarray | None:
    """Read a data set once, straight into float32, frames as they are; None where the file has none of that name."""
    data = file.get(key)
    if not isinstance(data, h5py.Dataset):
        return None
    if data.dtype.kind not in "fiu" or data.shape is None:
        raise DataError(f"{path}: {key} holds {data.dtype}, expected numbers; write it as float32")
    array = np.empty(data.shape, dtype=np.uint8 if _are_frames(data) else np.float32)
    if data.size:
        data.read_direct(array)
    return array


def _are_frames(data: h5py.Dataset) -> bool:
    return data.dtype == np.uint8 and data.ndim == 4


def _read_flags(path: Path, file: h5py.File, key: str) -> np.ndarray:
    """Read a data set of booleans, or of numbers that are all 0 or 1."""
    data = file[key]
    assert isinstance(data, h5py.Dataset)
    if data.dtype.kind not in "biuf" or data.shape is None:
        raise DataError(f"{path}: {key} holds {data.dtype}, expected booleans; write it as bool")
    values = np.asarray(data[()])
    flags = values.astype(bool)
    if (values != flags).any():
        row = int(np.argwhere(np.atleast_1d(values != flags))[0][0])
        raise DataError(f"{path}: {key} in row {row:,} holds {values[row]}, expected 0 or 1; write it as bool")
    return _flat(flags)


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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def check(name_or_path: str | Path, spec: DataSpec | None = None) -> dict[str, Any]:
    """Validate a named data set, or a file or directory of one's own, and describe it.

    Args: spec holds a file to an environment's sizes; without it a file is held to the layout alone.
    Raises: DataError with what is wrong; UsageError when it is neither a path nor a name.
    """
    path = Path(name_or_path)
    if path.exists() or path.suffix in (".hdf5", ".h5") or spec is not None:
        return info(load(spec or DataSpec(path.name, "file"), path))
    return info(load(resolve(str(name_or_path))))
