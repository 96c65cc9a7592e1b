"""Minari's episodes in any of its formats, as rows: n transitions from n + 1 observations.

HDF5, the usual format, is read here: Minari's own iteration reads every `infos` array too, which can be most of a file.
The others are read by Minari, which needs pyarrow for them. Legend: N rows, D observation, A action.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from gymnasium import spaces
from h5py import h5d, h5g, h5s  # pyright: ignore[reportAttributeAccessIssue]  # compiled modules

from gtp_fast.data.spaces import flatten_rows, size
from gtp_fast.errors import DataError

FLAT = ("actions", "rewards", "terminations")
MEMORY = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def columns(
    folder: Path, where: str, about: dict[str, Any], obs: spaces.Space[Any], action: spaces.Box
) -> dict[str, np.ndarray]:
    """Read the episodes of a folder data/ into the columns of `episodes.Arrays`.

    Args: where names the data set in errors; about is its metadata.json; obs and action are its spaces.
    Raises: DataError where arrays do not fit together or into memory; on damaged files h5py's and Minari's errors.
    """
    row_bytes, rows, found = 4 * (2 * size(obs) + action.shape[0]), 0, []
    for name, episode in _episodes(folder, about, obs):
        rows += len(episode["rewards"])
        if rows * row_bytes > MEMORY:
            raise DataError(
                f"{where}: {rows:,} rows or more of {row_bytes:,} bytes do not fit into this machine's "
                f"{MEMORY / 1e9:,.0f} GB; use a smaller data set"
            )
        found.append(_rows(episode, f"{where}: {name}", obs, action))
    if not found:
        raise DataError(f"{where}: the Minari data set holds no episodes; collect or download at least one")
    return {key: np.concatenate([episode[key] for episode in found]) for key in found[0]}


def _episodes(folder: Path, about: dict[str, Any], obs: spaces.Space[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and arrays of every episode; observations in dictionaries and tuples as their space has them."""
    count = int(about["total_episodes"])
    if about.get("data_format", "hdf5") != "hdf5":
        from minari.dataset.minari_storage import MinariStorage

        for i, episode in enumerate(MinariStorage.read(folder).get_episodes(range(count))):
            yield f"episode_{i}", {key: episode[key] for key in ("observations", *FLAT)}
        return
    with h5py.File(folder / "main_data.hdf5", "r") as file:
        for name in (f"episode_{i}" for i in range(count)):
            group = h5g.open(file.id, name.encode())
            yield name, {"observations": _read(group, "observations", obs)} | {key: _read(group, key) for key in FLAT}


def _read(group: h5g.GroupID, name: str, space: spaces.Space[Any] | None = None) -> Any:
    """Read what an episode has of a space: groups for dictionaries, groups of _index_0, _index_1 ... for tuples.

    By h5py's low-level calls, which take 40 us an array where `group[name][()]` takes 95 (10,000 episodes, 2026-11).
    """
    if isinstance(space, spaces.Dict):
        inner = h5g.open(group, name.encode())
        return {key: _read(inner, key, space[key]) for key in space}
    if isinstance(space, spaces.Tuple):
        inner = h5g.open(group, name.encode())
        return tuple(_read(inner, f"_index_{i}", part) for i, part in enumerate(space))
    data = h5d.open(group, name.encode())
    if math.prod(data.shape) * data.dtype.itemsize > MEMORY:  # a damaged header can declare anything
        raise ValueError(f"{name} declares shape {data.shape}, which is more than this machine's memory")
    array = np.empty(data.shape, data.dtype)
    data.read(h5s.ALL, h5s.ALL, array)
    return array


def _rows(episode: dict[str, Any], name: str, obs: spaces.Space[Any], action: spaces.Box) -> dict[str, np.ndarray]:
    """Turn an episode of n steps and n + 1 observations into n rows with successors; its last row ends it."""
    seen, rows = flatten_rows(obs, episode["observations"]), len(episode["rewards"])
    if len(seen) != rows + 1 or len(episode["actions"]) != rows:
        raise DataError(
            f"{name} has {len(seen):,} observations and {len(episode['actions']):,} actions for {rows:,} rewards, "
            f"expected {rows + 1:,} and {rows:,}; download it again"
        )
    timeout = np.zeros(rows, dtype=bool)
    timeout[rows - 1 :] = True
    with np.errstate(over="ignore"):  # what is too large for float32 becomes Inf, which is refused by row
        reward = np.asarray(episode["rewards"], np.float32)
    return {
        "obs": seen[:-1],
        "action": flatten_rows(action, episode["actions"], "actions"),
        "reward": reward,
        "terminal": np.asarray(episode["terminations"], bool),
        "timeout": timeout,
        "next_obs": seen[1:],
    }
