"""Minari data sets: episodes of boxes of floats, flattened into rows. Its metadata decides nothing that is run."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from gtp_fast.episodes import Arrays
from gtp_fast.errors import DataError


def read_id(name: str) -> Arrays:
    """Read a data set by id from Minari's own cache, downloading it first if it is not there.

    Raises: DataError when it can neither be found nor fetched, or its spaces are not boxes.
    """
    import minari

    try:
        data = minari.load_dataset(name, download=True)
    except Exception as error:  # the hub's client raises its transport's own exceptions
        raise DataError(
            f"the Minari data set {name} is neither in {_cache()} nor can it be fetched ({type(error).__name__}: {error}); "
            f"run `minari download {name}` where there is a network, or pass --dataset DIRECTORY"
        ) from None
    return _flatten(data, name)


def read_directory(path: Path) -> Arrays:
    """Read a Minari data set from its directory (the one that holds data/).

    Raises: DataError when there is none, or its spaces are not boxes.
    """
    import minari

    folder = path if (path / "main_data.hdf5").exists() else path / "data"
    if not (folder / "main_data.hdf5").exists():
        raise DataError(f"{path} is no Minari data set (no data/main_data.hdf5); name its directory, or an .hdf5 file")
    try:
        data = minari.MinariDataset(folder)
    except Exception as error:  # damaged files surface as h5py's, JSON's or Minari's own exceptions
        raise DataError(f"{path} cannot be read as a Minari data set ({type(error).__name__}: {error})") from None
    return _flatten(data, str(path))


def _cache() -> str:
    import os

    return os.environ.get("MINARI_DATASETS_PATH", "~/.minari/datasets")


def _flatten(data: Any, where: str) -> Arrays:
    """Concatenate the episodes; an episode of n steps holds n + 1 observations."""
    from gymnasium.spaces import Box

    for key, space in (("observations", data.observation_space), ("actions", data.action_space)):
        if not isinstance(space, Box):
            raise DataError(
                f"{where}: {key} are {type(space).__name__}, expected a box of numbers; discrete and dictionary spaces "
                "cannot be trained on in this version"
            )
    episodes = list(data.iterate_episodes())
    if not episodes:
        raise DataError(f"{where} holds no episodes")
    obs = [np.asarray(e.observations, np.float32).reshape(len(e.rewards) + 1, -1) for e in episodes]
    sha = hashlib.sha256()
    arrays = Arrays(
        where=where,
        obs=np.concatenate([o[:-1] for o in obs]),
        action=np.concatenate([np.asarray(e.actions, np.float32).reshape(len(e.rewards), -1) for e in episodes]),
        reward=np.concatenate([np.asarray(e.rewards, np.float32) for e in episodes]),
        terminal=np.concatenate([np.asarray(e.terminations, bool) for e in episodes]),
        timeout=np.concatenate([_ends(len(e.rewards)) for e in episodes]),
        next_obs=np.concatenate([o[1:] for o in obs]),
        last_obs=None,
        sha256="",
    )
    for array in (arrays.obs, arrays.action, arrays.reward, arrays.terminal):
        sha.update(np.ascontiguousarray(array).data)
    arrays.sha256 = sha.hexdigest()
    return arrays


def _ends(length: int) -> np.ndarray:
    """Mark the last row: an episode of a collection ends there, by whatever cause."""
    ends = np.zeros(length, dtype=bool)
    ends[-1] = True
    return ends
