"""From D4RL's HDF5 to the device, 1M transitions of 17/6: `python -m bench.loading` writes <device>-loading.json, .md.

Each layout (plain or gzip, with next_observations or without) is loaded by a fresh process, from the page cache: its
seconds by phase, its CPU seconds, and its largest memory beyond what it had before, over the bytes of the arrays.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from bench.gpu import machine as described
from bench.gpu.results import commit, rounded
from bench.table import keep, slug
from gtp_fast import files
from gtp_fast.config import TrainConfig
from gtp_fast.data import hdf5
from gtp_fast.data.replay import ReplayBuffer
from gtp_fast.data.spec import DataSpec
from gtp_fast.data.transitions import build_transitions, validate

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROWS, EPISODE = 1_000_000, 1_000
LAYOUTS = tuple((compression, successors) for compression in (None, "gzip") for successors in (False, True))


def write(path: Path, compression: str | None, successors: bool) -> int:
    """Write a file of D4RL's layout and return the bytes of its arrays."""
    rng, size = np.random.default_rng(0), 0
    with h5py.File(path, "w") as out:
        for name, width in {"observations": 17, "next_observations": 17, "actions": 6, "rewards": 0}.items():
            if name != "next_observations" or successors:
                values = rng.uniform(-1, 1, size=(ROWS, width) if width else ROWS).astype(np.float32)
                size += out.create_dataset(name, data=values, compression=compression).nbytes
        for name, flags in {
            "terminals": np.zeros(ROWS, bool),
            "timeouts": np.arange(1, ROWS + 1) % EPISODE == 0,
        }.items():
            size += out.create_dataset(name, data=flags, compression=compression).nbytes
    return size


def largest_bytes() -> int:
    """Return the most memory that this process has had."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def load(path: Path) -> dict[str, float]:
    """Load a file phase by phase, in a fresh process; its arrays are held all the while."""
    torch.zeros(1, device=DEVICE)
    spec, cfg = DataSpec("own", "file"), TrainConfig(env="own")
    memory, cpu, seconds = largest_bytes(), time.process_time(), {}

    def phase(name: str, run: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        found = run()
        seconds[name] = time.perf_counter() - started
        return found

    arrays = phase("read and hash", lambda: hdf5.read_hdf5(path))
    clipped = phase("validate", lambda: validate(arrays, spec, False))
    data = phase("successors", lambda: build_transitions(arrays, spec.name, str(path), clipped))
    phase("pack", lambda: ReplayBuffer.from_transitions(data, cfg, DEVICE).rows[0].cpu())
    whole = {"seconds": sum(seconds.values()), "cpu_seconds": time.process_time() - cpu}
    phase("hash", lambda: files.sha256_of(path))  # once more, alone: a part of the first phase
    return {**whole, **seconds, "peak_bytes": largest_bytes() - memory}


def measure() -> dict[str, Any]:
    """Write and load every layout."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for compression, successors in LAYOUTS:
            path = Path(folder) / "rows.hdf5"
            arrays = write(path, compression, successors)
            code = [sys.executable, "-m", "bench.loading", "--load", str(path)]
            found = json.loads(subprocess.run(code, capture_output=True, text=True, check=True).stdout)
            row = {"layout": compression or "plain", "next_observations": successors, "file_bytes": path.stat().st_size}
            rows.append(row | found | {"array_bytes": arrays, "peak": found["peak_bytes"] / arrays})
    return rounded({"machine": described.measure({}, False) | {"commit": commit()}, "rows": rows})


def markdown(found: dict[str, Any]) -> str:
    """Return the table: seconds, and the peak in times of the arrays."""
    m, phases = found["machine"], ("read and hash", "hash", "validate", "successors", "pack")
    lines = [f"device: {m['device']} ({m['processor']}), commit {m['commit']}; {ROWS:,} transitions 17/6, seconds", ""]
    lines.append(f"| file | next_observations | all | CPU | {' | '.join(phases)} | peak memory / arrays |")
    lines.append("|---" * (5 + len(phases)) + "|")
    for row in found["rows"]:
        cells = " | ".join(f"{row[name]:.2f}" for name in ("seconds", "cpu_seconds", *phases))
        held = "yes" if row["next_observations"] else "no"
        lines.append(f"| {row['layout']} | {held} | {cells} | {row['peak']:.2f} |")
    return "\n".join(lines) + "\n"


def command(
    name: str,
    load: Callable[[Path], dict[str, Any]],
    measure: Callable[[], dict[str, Any]],
    markdown: Callable[[dict[str, Any]], str],
) -> None:
    """Measure, write <device>-NAME.json and .md, print the table; with --load, read one path and print what it took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--load", type=Path, help="read one path and print what it took")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    asked = parser.parse_args()
    if asked.load:
        print(json.dumps(load(asked.load)))
        return
    found = measure()
    keep(found, asked.out / f"{slug(found)}-{name}.json", markdown(found))
    print(markdown(found))


if __name__ == "__main__":
    command("loading", load, measure, markdown)
