"""A tiny run that trains in seconds, for the tests of the rooms that start one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_cases import columns, write

from gtp_fast.config import TrainConfig
from gtp_fast.data.catalog import run_settings


def tiny(folder: Path, **changes: Any) -> TrainConfig:
    """Return settings of a 30-step run of two members on generated HalfCheetah rows, in `folder`/run."""
    data = folder / "data.hdf5"
    if not data.exists():
        write(data, columns(episodes=3, length=20))
    settings = {
        "env": "HalfCheetah-v5",
        "dataset": str(data),
        "run_dir": str(folder / "run"),
        "steps": 30,
        "hidden": 16,
        "batch_size": 8,
        "seeds": 2,
        "sampling_steps": 2,
        "eta": 2.0,
        "log_every": 10,
        "save_every": 10,
        "eval_every": 0,
        "eval_episodes": 1,
        "device": "cpu",
        "backend": "eager",
        "threads": 1,
    }
    return run_settings(settings | changes)
