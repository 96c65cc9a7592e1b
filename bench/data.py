"""Loading data and saving checkpoints: `python -m bench.data loading`, `minari` or `saves`.

Loading takes 1M transitions of 17/6 from D4RL's HDF5, minari as many from sets that Minari itself writes; saves are
what checkpoints cost a run of default size. Each file is read by a fresh process, from the page cache. `bench_data.py`
times the parts of loading.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from bench.clock import Taken, apart, taken
from bench.tables import Found, Kind, Row, command, page, result, table
from bench.training import DEVICE, write_rows
from gtp_fast import device, files
from gtp_fast.config import TrainConfig
from gtp_fast.data import dataset, hdf5
from gtp_fast.data.catalog import run_settings
from gtp_fast.data.replay import ReplayBuffer
from gtp_fast.data.spec import DataSpec
from gtp_fast.data.transitions import build_transitions, validate
from gtp_fast.data.units import Actions
from gtp_fast.runs import checkpoint
from gtp_fast.runs.checkpoint import Saving
from gtp_fast.runs.directory import RunDir
from gtp_fast.training import train

ROWS = 1_000_000
LAYOUTS = tuple((compression, successors) for compression in (None, "gzip") for successors in (False, True))
PHASES = ("read and hash", "hash", "validate", "successors", "pack")
SETS = ((1_000, 1_000, False), (10_000, 100, False), (13_333, 75, True))  # episodes, steps of each, goals
SAVES, SIGNALS = 40, 5


def loading() -> Found:
    """Load a file of each layout: plain or gzip, with next_observations or without."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.hdf5"
        for compression, successors in LAYOUTS:
            arrays = write_rows(path, ROWS, compression, successors)
            row = {"layout": compression or "plain", "next_observations": successors, "file_bytes": path.stat().st_size}
            found = apart("bench.data", "load_hdf5", str(path))
            rows.append(row | found | {"array_bytes": arrays, "peak": found["peak_bytes"] / arrays})
    return result(rows)


def load_hdf5(path: str) -> Row:
    """Load a file in this fresh process; return seconds by phase, and how much its peak memory grew."""
    torch.zeros(1, device=DEVICE)
    spec, cfg, memory = DataSpec("own", "file"), TrainConfig(env="own"), _largest_bytes()
    times: dict[str, Taken] = {}

    def phase(name: str, run: Callable[[], Any]) -> Any:
        times[name] = taken(run)
        return times[name].result

    arrays = phase("read and hash", lambda: hdf5.read_hdf5(Path(path)))
    clipped = phase("validate", lambda: validate(arrays, spec, False, Actions("scaled")))
    data = phase("successors", lambda: build_transitions(arrays, spec.name, path, clipped))
    phase("pack", lambda: ReplayBuffer.from_transitions(data, cfg, DEVICE).rows[0].cpu())
    whole = {name: sum(getattr(t, name) for t in times.values()) for name in ("seconds", "cpu_seconds")}
    phase("hash", lambda: files.sha256_of(Path(path)))  # once more, alone: a part of the first phase
    return {**whole, **{name: t.seconds for name, t in times.items()}, "peak_bytes": _largest_bytes() - memory}


def _largest_bytes() -> int:
    """Return the most memory that this process has had."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def loading_table(found: Found) -> str:
    """Return the table: seconds, and peak memory divided by the size of the arrays."""
    m = found["machine"]
    heading = f"device: {m['device']} ({m['processor']}), commit {m['commit']}; {ROWS:,} transitions 17/6, seconds"
    columns = {"file": "{layout}", "next_observations": lambda row: "yes" if row["next_observations"] else "no"}
    columns |= {"all": "{seconds:.2f}", "CPU": "{cpu_seconds:.2f}"} | {name: f"{{{name}:.2f}}" for name in PHASES}
    return table(heading, columns | {"peak memory / arrays": "{peak:.2f}"}, found["rows"])


def minari() -> Found:
    """Read long episodes, short ones, and short ones with goals: observations that are dictionaries, and infos."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MINARI_DATASETS_PATH"] = folder
        for number, (episodes, steps, goals) in enumerate(SETS):
            name = f"bench/set{number}-v0"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of metadata that these sets leave out
                write_minari(name, episodes, steps, goals)
            found = apart("bench.data", "load_minari", str(Path(folder) / name))
            rows.append({"episodes": episodes, "steps": steps, "goals": goals} | found)
    return result(rows)


def load_minari(path: str) -> Row:
    """Read a set; return its transitions, and seconds by the clock and of CPU."""
    data, seconds, cpu_seconds = taken(lambda: dataset.load(DataSpec("own", "file"), Path(path)))
    return {"transitions": len(data.reward_N), "seconds": seconds, "cpu_seconds": cpu_seconds}


def write_minari(name: str, episodes: int, steps: int, goals: bool) -> None:
    """Write a set with Minari into Minari's folder."""
    import minari
    from gymnasium.spaces import Box, Dict
    from minari.data_collector import EpisodeBuffer

    rng = np.random.default_rng(0)
    box = {size: Box(-10, 10, (size,), np.float32) for size in (2, 10, 17)}
    space = Dict({"achieved_goal": box[2], "desired_goal": box[2], "observation": box[10]}) if goals else box[17]

    def rows(size: int) -> np.ndarray:
        return rng.normal(size=(steps + 1, size)).astype(np.float32).clip(-10, 10)

    last = [False] * (steps - 1) + [True]
    buffers = [
        EpisodeBuffer(
            id=number,
            observations={key: rows(part.shape[0]) for key, part in space.items()} if goals else rows(17),  # pyright: ignore
            actions=rng.uniform(-1, 1, size=(steps, 6)).astype(np.float32),  # pyright: ignore[reportArgumentType]
            rewards=[1.0] * steps,
            terminations=[False] * steps,
            truncations=last,
            infos={"success": np.zeros(steps + 1, bool)} if goals else {},
        )
        for number in range(episodes)
    ]
    minari.create_dataset_from_buffers(
        name, buffers, observation_space=space, action_space=Box(-1, 1, (6,), np.float32)
    )


def minari_table(found: Found) -> str:
    """Return the table, one row for each set."""
    m, rows = found["machine"], []
    for row in found["rows"]:
        kind = "of goals, with infos" if row["goals"] else "of 17/6"
        what = f"{row['episodes']:,} episodes of {row['steps']:,} steps, {kind}"
        rows.append([what, f"{row['transitions']:,}", f"{row['seconds']:.1f}", f"{row['cpu_seconds']:.1f}"])
    heads = ("set", "transitions", "seconds", "CPU seconds")
    return page(f"device: cpu ({m['processor']}), commit {m['commit']}", heads, rows)


def saves() -> Found:
    """Measure how long a save stalls training, and how soon a checkpoint follows a signal.

    The state is GTP of width 256, observations 17, actions 6, one seed. A stall is the time in which the loop does
    nothing else, summed over a save; a signal's time runs until the checkpoint stands under its name.
    """
    device.prepare(run_settings({"env": "hopper-demo-v0", "threads": 1, "backend": "eager"}))
    with tempfile.TemporaryDirectory() as folder:
        spent = stalls(Path(folder))
        rows = [
            _figure("a save stalls training", "ms", spent["stall"], 20),
            _figure("a save is written within", "ms", spent["write"], None),
        ]
        for number in (signal.SIGTERM, signal.SIGINT):
            rows.append(_figure(f"{number.name} to a committed checkpoint", "s", answered(Path(folder), number), 2))
    return result(rows)


def _figure(what: str, unit: str, values: list[float], bar: float | None) -> Row:
    found = {"median": float(np.median(values)), "largest": max(values), "of": len(values)}
    return {"what": what, "unit": unit, **found, "bar": bar}


def run_of(folder: Path, name: str, **changes: Any) -> dict[str, Any]:
    """Return a run of default size on generated rows."""
    file = folder / "data.hdf5"
    if not file.exists():
        write_rows(file)
    same = {"env": "HalfCheetah-v5", "dataset": str(file), "run_dir": str(folder / name), "backend": "eager"}
    return {**same, "threads": 1, "eval_every": 0, "steps": 5 * SAVES, "save_every": 5, "log_every": 5, **changes}


def stalls(folder: Path) -> dict[str, list[float]]:
    """Return for each save how long the loop waited for it, until the next save, and how long writing took, in ms."""
    spent: dict[str, list[float]] = {"save": [], "settle": [0.0], "write": []}

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any) -> Any:
            waited = sum(spent["settle"])
            done, seconds, _ = taken(lambda: call(*args))
            milliseconds = 1e3 * seconds
            if name == "save":  # what it waited for the save before it is that one's
                milliseconds -= sum(spent["settle"]) - waited
                spent["settle"].append(0.0)
            if name == "settle":
                spent["settle"][-1] += milliseconds
            else:
                spent[name].append(milliseconds)
            return done

        return wrapped

    parts = {(train._Loop, "save"): "save", (Saving, "settle"): "settle", (checkpoint, "save"): "write"}
    with ExitStack() as patched:
        for (owner, name), part in parts.items():
            patched.enter_context(mock.patch.object(owner, name, timed(part, getattr(owner, name))))
        train.train(run_settings(run_of(folder, "stalls")))
    waits = zip(spent["save"], spent["settle"][1:], strict=True)
    # The last save is waited for.
    return {"stall": [save + settle for save, settle in waits][:-1], "write": spent["write"]}


def answered(folder: Path, number: signal.Signals) -> list[float]:
    """Return the seconds from a signal to the committed checkpoint, for several runs."""
    found = []
    for repeat in range(SIGNALS):
        typed = run_of(folder, f"{number.name}-{repeat}", steps=1_000_000, save_every=0, log_every=3)
        words = [word for name, value in typed.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        process = subprocess.Popen([sys.executable, "-m", "gtp_fast", "train", *words], stderr=subprocess.DEVNULL)
        run = RunDir(Path(typed["run_dir"]))
        while not run.metrics.exists() or not run.metrics.stat().st_size:
            time.sleep(0.01)
        time.sleep(0.37 * repeat)  # somewhere within a chunk of steps
        started = time.perf_counter()
        process.send_signal(number)
        while not checkpoint.steps(run):
            time.sleep(0.001)
        found.append(time.perf_counter() - started)
        if process.wait() != 128 + number:
            raise RuntimeError(f"the run left with {process.returncode}, expected {128 + number}")
    return found


def saves_table(found: Found) -> str:
    """Return the table, one row for each figure."""
    m = found["machine"]
    columns = {"figure": "{what}", "median": "{median} {unit}", "largest": "{largest} {unit}", "of": "{of}"}
    columns |= {"bar": lambda row: f"{row['bar']} {row['unit']}" if row["bar"] else "-"}
    return table(f"{m['processor']}, {m['cores']} cores, commit {m['commit'][:7]}", columns, found["rows"])


if __name__ == "__main__":
    kinds = {"loading": Kind(loading, loading_table), "minari": Kind(minari, minari_table)}
    command("data", kinds | {"saves": Kind(saves, saves_table)})
