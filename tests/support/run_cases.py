"""Tiny runs that train in seconds, a disk that fills up, and commands in processes of their own."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_cases import columns, write

from gtp_fast.config import TrainConfig
from gtp_fast.data.catalog import run_settings
from gtp_fast.runs import checkpoint
from gtp_fast.runs.directory import RunDir


def tiny_settings(folder: Path, **changes: Any) -> dict[str, Any]:
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
    return settings | changes


def tiny(folder: Path, **changes: Any) -> TrainConfig:
    """Return those settings whole and checked, for `train`."""
    return run_settings(tiny_settings(folder, **changes))


def multigoal(folder: Path, **changes: Any) -> dict[str, Any]:
    """Return settings of a 6-step run on the embedded multigoal data, in `folder`, for `gtp_fast.train`."""
    settings = {"env": "multigoal-v0", "run_dir": str(folder), "steps": 6, "batch_size": 32, "hidden": 32}
    settings |= {"log_every": 2, "eval_every": 0, "eval_episodes": 2}
    return settings | {"device": "cpu", "backend": "eager", "threads": 1} | changes


SMALLER_THAN_A_STATE = 20_000


@contextmanager
def files_up_to(limit_bytes: int) -> Iterator[None]:
    """Let the kernel refuse every larger file (EFBIG), as a full disk refuses with ENOSPC."""
    handler, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def words(settings: dict[str, Any]) -> list[str]:
    """Return settings as the flags of train."""
    return [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def started(typed: list[str], program: str = "", **options: Any) -> subprocess.Popen[str]:
    """Start a command of gtp-fast, or a program in its place."""
    command = [sys.executable, *(["-c", program] if program else ["-m", "gtp_fast"]), *typed]
    return subprocess.Popen(command, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options)


def gtp_fast(*typed: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Type a command of gtp-fast, and wait for its end."""
    command = [sys.executable, "-m", "gtp_fast", *typed]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, **options)


def python(code: str, *words: str, ends_with: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a program to its end in a process of its own, which imports what this one can."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == ends_with, done.stderr
    return done


def wait_for(true: Any, seconds: float = 90.0) -> Any:
    """Return what `true` returns, once it is true."""
    until = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.02)
    return found


def back_to(run: Path, step: int) -> RunDir:
    """Remove the checkpoints of later steps, as if the run had been cut off before them."""
    found = RunDir(run)
    for later in checkpoint.steps(found):
        if later > step:
            shutil.rmtree(found.checkpoint(later))
    return found


def logged_steps(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
