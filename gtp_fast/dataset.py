"""Data sets at the door: files and collections become validated transitions, or an error that names file, key and row.

In: a catalogue entry and perhaps a path. Out: `Transitions`, host arrays in float32. Nothing is repaired in silence and
no transition crosses an episode end. Legend: N transitions, D observation, A action.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gtp_fast import download, minari_data
from gtp_fast.catalog import DataSpec
from gtp_fast.errors import DataError
from gtp_fast.episodes import Arrays, Transitions, build_transitions, validate

FLOATS = ("observations", "actions", "rewards")
REQUIRED = (*FLOATS, "terminals")
CHUNK_BYTES = 1 << 20

__all__ = ["Transitions", "check", "info", "load"]


def load(
    spec: DataSpec, dataset: Path | None = None, clip_actions: bool = False, progress: download.Progress | None = None
) -> Transitions:
    """Read the data set of an entry, or the file or Minari directory that takes its place.

    Args: dataset overrides where the data come from; spec then only names the environment. clip_actions clips actions
    outside [-1, 1] and counts them. progress is told of a download's bytes.
    Raises: DataError with file, key, row and remedy.
    """
    if dataset is not None:
        source = str(dataset)
        arrays = minari_data.read_directory(dataset) if dataset.is_dir() else read_hdf5(dataset)
    elif spec.name == "multigoal-v0":
        from gtp_fast.embedded import multigoal_arrays

        arrays, source = multigoal_arrays(), "embedded, generated"
    elif spec.source == "embedded":
        with as_file(files("gtp_fast") / "data" / str(spec.filename)) as path:
            arrays, source = read_hdf5(path), "embedded"
    elif spec.source == "d4rl":
        path = download.fetch(spec, progress)
        arrays, source = read_hdf5(path), str(path)
    elif spec.source == "minari":
        arrays, source = minari_data.read_id(spec.name), f"minari:{spec.name}"
    elif spec.source == "ogbench":
        raise DataError(
            f"{spec.name}: this version does not read OGBench files; convert to D4RL's layout, --dataset FILE"
        )
    else:
        raise DataError(f"--env {spec.name} names an environment, not a data set; pass its data with --dataset PATH")
    clipped = validate(arrays, spec, clip_actions)
    return build_transitions(arrays, spec.name, source, clipped)


def read_hdf5(path: Path) -> Arrays:
    """Read a D4RL-layout file: observations, actions, rewards, terminals, and where present timeouts,
    next_observations and infos/final_observations.

    Raises: DataError when the file is absent, empty, truncated, no HDF5, or lacks a key.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist; check the path, or leave --dataset out to use the named data set")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes); delete it and fetch or write it again")
    try:
        with h5py.File(path, "r") as file:
            missing = [key for key in REQUIRED if not isinstance(file.get(key), h5py.Dataset)]
            if missing:
                raise DataError(
                    f"{path} has no {', '.join(missing)}; it holds {', '.join(sorted(file)) or 'nothing'}; D4RL's "
                    "layout needs observations, actions, rewards, terminals and timeouts"
                )
            values = {key: _read(path, file, key, np.float32) for key in FLOATS}
            ends = {key: _read(path, file, key, np.bool_) for key in ("terminals", "timeouts") if key in file}
            following = _read(path, file, "next_observations", np.float32) if "next_observations" in file else None
            last = _last_observations(file)
    except OSError as error:
        raise DataError(_unreadable(path, error)) from None
    return Arrays(
        where=str(path),
        obs=values["observations"],
        action=values["actions"],
        reward=values["rewards"],
        terminal=ends["terminals"],
        timeout=ends.get("timeouts"),
        next_obs=following,
        last_obs=last,
        sha256=_sha256(path),
    )


def _read(path: Path, file: h5py.File, key: str, dtype: Any) -> np.ndarray:
    """Read a data set once, straight into its own type; (N, 1) is taken as (N,)."""
    data = file[key]
    assert isinstance(data, h5py.Dataset)
    if data.dtype.kind not in "fiub":
        raise DataError(f"{path}: {key} holds {data.dtype}, expected numbers; write it as float32")
    array = np.empty(data.shape, dtype=dtype)
    if data.size:
        data.read_direct(array) if data.dtype.kind != "b" and dtype is np.float32 else np.copyto(array, data[()] != 0)
    rank_one = key in ("rewards", "terminals", "timeouts")
    return array[:, 0] if rank_one and array.ndim == 2 and array.shape[1] == 1 else array


def _last_observations(file: h5py.File) -> np.ndarray | None:
    """Return the observation after each episode's last action, (episodes, D), where the file keeps them."""
    found = file.get("infos/final_observations")
    return np.asarray(found[()], dtype=np.float32) if isinstance(found, h5py.Dataset) else None


def _unreadable(path: Path, error: OSError) -> str:
    with path.open("rb") as file:
        signature = file.read(8)
    size = path.stat().st_size
    if signature != b"\x89HDF\r\n\x1a\n":
        return f"{path} is not an HDF5 file (it begins with {signature!r}); name a D4RL-layout .hdf5 file"
    return f"{path} cannot be read to its end ({size:,} bytes: {error}); it is truncated or damaged: fetch it again"


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
        "obs_dim": data.obs_ND.shape[1],
        "action_dim": data.action_NA.shape[1],
        "return_mean": data.return_mean,
        "return_std": data.return_std,
        "terminals": int(data.terminal_N.sum()),
        "observation_range": [float(data.obs_ND.min()), float(data.obs_ND.max())],
        "action_range": [float(data.action_NA.min()), float(data.action_NA.max())],
        "reward_range": [float(data.reward_N.min()), float(data.reward_N.max())],
        "clipped_actions": data.clipped,
    }


def check(path: Path, spec: DataSpec) -> dict[str, Any]:
    """Validate a file of one's own and describe it; raises DataError with what is wrong."""
    return info(load(spec, path))
