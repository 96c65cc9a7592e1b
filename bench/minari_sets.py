"""Minari data sets of a million transitions, read and validated: `python -m bench.minari_sets`.

The sets are written by Minari itself: long and short episodes of 17/6, and episodes of goals, whose observations are
dictionaries, with infos. Each is read by a fresh process, from the page cache; writes <device>-minari.json and .md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import minari
import numpy as np
from gymnasium.spaces import Box, Dict
from minari.data_collector import EpisodeBuffer

from bench import loading
from bench.gpu import machine as described
from bench.gpu.results import commit, rounded
from gtp_fast.data import dataset
from gtp_fast.data.spec import DataSpec

SETS = ((1_000, 1_000, False), (10_000, 100, False), (13_333, 75, True))  # episodes, steps of each, goals


def write(name: str, episodes: int, steps: int, goals: bool) -> None:
    """Have Minari write a set into its folder."""
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


def load(path: Path) -> dict[str, Any]:
    """Read a set; return its transitions, and seconds by the clock and of CPU."""
    started, used = time.perf_counter(), time.process_time()
    data = dataset.load(DataSpec("own", "file"), path)
    return {
        "transitions": len(data.reward_N),
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - used,
    }


def measure() -> dict[str, Any]:
    """Write and read every set."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MINARI_DATASETS_PATH"] = folder
        for number, (episodes, steps, goals) in enumerate(SETS):
            name = f"bench/set{number}-v0"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of metadata that these sets leave out
                write(name, episodes, steps, goals)
            code = [sys.executable, "-m", "bench.minari_sets", "--load", str(Path(folder) / name)]
            found = json.loads(subprocess.run(code, capture_output=True, text=True, check=True).stdout)
            rows.append({"episodes": episodes, "steps": steps, "goals": goals} | found)
    return rounded({"machine": described.measure({}, False) | {"commit": commit()}, "rows": rows})


def markdown(found: dict[str, Any]) -> str:
    """Return the table."""
    m = found["machine"]
    lines = [f"device: cpu ({m['processor']}), commit {m['commit']}", ""]
    lines += ["| set | transitions | seconds | CPU seconds |", "|---|---|---|---|"]
    for row in found["rows"]:
        kind = "of goals, with infos" if row["goals"] else "of 17/6"
        what = f"{row['episodes']:,} episodes of {row['steps']:,} steps, {kind}"
        lines.append(f"| {what} | {row['transitions']:,} | {row['seconds']:.1f} | {row['cpu_seconds']:.1f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    loading.command("minari", load, measure, markdown)
