"""Minari data sets: episodes of boxes of floats, flattened into rows. Its metadata decides nothing that is run.

A data set of 1M transitions takes 9 to 21 s here, which is the cost of its many small episodes, not of its bytes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from gtp_fast import download
from gtp_fast.episodes import Arrays
from gtp_fast.errors import DataError


def read_id(name: str) -> Arrays:
    """Read a data set by id from Minari's own cache, downloading it first if it is not there.

    Raises: DataError when it can neither be found nor fetched, or its spaces are not boxes.
    """
    folder = _cache() / name / "data"
    if not folder.exists():
        _fetch(name)
    return _read(folder, name)


def read_directory(path: Path) -> Arrays:
    """Read a Minari data set from its directory (the one that holds data/).

    Raises: DataError when there is none, or its spaces are not boxes.
    """
    folder = path if (path / "main_data.hdf5").exists() else path / "data"
    if not (folder / "main_data.hdf5").exists():
        raise DataError(f"{path} is no Minari data set (no data/main_data.hdf5); name its directory, or an .hdf5 file")
    return _read(folder, str(path))


def _cache() -> Path:
    folder = os.environ.get("MINARI_DATASETS_PATH")
    return Path(folder) if folder else Path.home() / ".minari" / "datasets"


def _fetch(name: str) -> None:
    """Let Minari's client download a data set, if its server answers at all."""
    advice = (
        f"run `minari download {name}` where there is a network and copy it to {_cache() / name}, or pass "
        "--dataset DIRECTORY"
    )
    try:
        # Without a network the client tries for 26 s before it gives up; ask once first.
        download.reach(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
        import minari

        minari.download_dataset(name)
    except Exception as error:  # the hub's client raises its transport's own exceptions
        reason = getattr(error, "reason", None) or error
        raise DataError(
            f"the Minari data set {name} is not in {_cache()} and could not be fetched ({reason}); {advice}"
        ) from None


def _read(folder: Path, where: str) -> Arrays:
    import minari

    try:
        data = minari.MinariDataset(folder)
        spaces = {"observations": data.observation_space, "actions": data.action_space}
        _check_spaces(spaces, where)
        episodes = [_columns(episode, where) for episode in data.iterate_episodes()]
    except DataError:
        raise
    except Exception as error:  # damaged files surface as h5py's, JSON's or Minari's own exceptions
        raise DataError(
            f"{where} cannot be read as a Minari data set ({type(error).__name__}: {error}); delete it and download it "
            "again"
        ) from None
    if not episodes:
        raise DataError(f"{where}: the Minari data set holds no episodes; collect or download at least one")
    columns = {key: np.concatenate([episode[key] for episode in episodes]) for key in episodes[0]}
    return Arrays(where=where, **columns, last_obs=None, sha256=_sha256(columns.values()), notes=())


def _check_spaces(spaces: dict[str, Any], where: str) -> None:
    from gymnasium.spaces import Box

    for key, space in spaces.items():
        if not isinstance(space, Box) or len(space.shape) != 1:
            seen = f"a {type(space).__name__} space" + (f" of shape {space.shape}" if isinstance(space, Box) else "")
            raise DataError(
                f"{where}: {key} are in {seen}, expected a Box of one axis; this version trains on vectors of numbers "
                "only: flatten them when writing the data set, or choose another"
            )


def _columns(episode: Any, where: str) -> dict[str, np.ndarray]:
    """Turn an episode of n steps and n + 1 observations into n rows with successors; its last row ends it."""
    rows, obs = len(episode.rewards), np.asarray(episode.observations, np.float32)
    if len(obs) != rows + 1 or len(episode.actions) != rows:
        raise DataError(
            f"{where}: episode {episode.id} has {len(obs):,} observations and {len(episode.actions):,} actions for "
            f"{rows:,} rewards, expected {rows + 1:,} and {rows:,}; download it again"
        )
    timeout = np.zeros(rows, dtype=bool)
    timeout[rows - 1 :] = True
    return {
        "obs": obs[:-1],
        "action": np.asarray(episode.actions, np.float32),
        "reward": np.asarray(episode.rewards, np.float32),
        "terminal": np.asarray(episode.terminations, bool),
        "timeout": timeout,
        "next_obs": obs[1:],
    }


def _sha256(arrays: Iterable[np.ndarray]) -> str:
    """Hash the content: a collection is many files, whose bytes say less than their rows."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()
