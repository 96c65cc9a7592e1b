"""Small data sets in D4RL's layout, whole or spoiled on purpose, and the words with which they are refused."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from gtp_fast.data import dataset
from gtp_fast.data.spec import DataSpec
from gtp_fast.errors import DataError

HALFCHEETAH = (17, 6)
FIELDS = ("obs_ND", "action_NA", "reward_N", "next_obs_ND", "terminal_N")


def columns(episodes: int = 3, length: int = 20, sizes: tuple[int, int] = HALFCHEETAH) -> dict[str, Any]:
    """Return whole episodes that end by their time limit: row i of the observations is filled with i."""
    rows, (obs_dim, action_dim) = episodes * length, sizes
    timeouts = np.zeros(rows, dtype=bool)
    timeouts[length - 1 :: length] = True
    return {
        "observations": np.repeat(np.arange(rows, dtype=np.float32)[:, None], obs_dim, axis=1),
        "actions": np.random.default_rng(0).uniform(-1, 1, (rows, action_dim)).astype(np.float32),
        "rewards": np.ones(rows, dtype=np.float32),
        "terminals": np.zeros(rows, dtype=bool),
        "timeouts": timeouts,
    }


def write(path: Path, values: dict[str, Any]) -> Path:
    """Write the columns as one HDF5 file; None leaves a key out."""
    with h5py.File(path, "w") as file:
        for key, value in values.items():
            if value is not None:
                file[key] = value
    return path


def changed(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Replace some columns; a function is given the column and changes it in place."""
    for key, change in changes.items():
        if callable(change):
            change(values[key])
        else:
            values[key] = change
    return values


def spoiled(path: Path, **changes: Any) -> Path:
    """Write a whole data set with some columns changed."""
    return write(path, changed(columns(), changes))


def put(row: Any, value: float) -> Callable[[np.ndarray], None]:
    """Return a change of some values of a column."""
    return lambda array: array.__setitem__(row, value)


def refusal(path: Path, spec: DataSpec) -> str:
    """Return the message with which a file or folder is refused, with FILE for its path."""
    with pytest.raises(DataError) as error:
        dataset.load(spec, path)
    assert error.value.exit_code == 3
    return str(error.value).replace(str(path), "FILE")


def paste(said: str, path: Path) -> None:
    """Run the two lines of Python that stand below a refusal."""
    _, *lines = said.replace("FILE", str(path)).split("\n")
    assert len(lines) == 2
    exec("\n".join(lines), {})  # noqa: S102  # as a user does who pastes them


def loads_within_three_times_its_arrays(load: Callable[[], Any]) -> bool:
    """Return whether the peak of memory while loading transitions is below three times that of their arrays."""
    tracemalloc.start()
    data = load()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak < 3 * sum(getattr(data, name).nbytes for name in FIELDS)
