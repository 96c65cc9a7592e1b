"""What a save costs a run, and how soon a signal is answered: `python -m bench.saves` writes table and JSON.

The state is the default one: GTP, width 256, observations 17, actions 6, one seed. A stall is the time in which the
loop does nothing else, summed over a save; a signal's time runs until the checkpoint stands under its name.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from bench.gpu import machine as described
from bench.gpu.results import commit, rounded
from bench.table import keep
from gtp_fast import device
from gtp_fast.data.catalog import run_settings
from gtp_fast.runs import checkpoint
from gtp_fast.runs.checkpoint import Saving
from gtp_fast.runs.directory import RunDir
from gtp_fast.training import train

ROWS, SAVES, SIGNALS = 10_000, 40, 5
RESULTS = Path(__file__).parent / "results"


def settings(folder: Path, name: str, **changes: Any) -> dict[str, Any]:
    """Return a run of default size on generated rows."""
    file = folder / "data.hdf5"
    if not file.exists():
        rng, ends = np.random.default_rng(0), np.arange(1, ROWS + 1) % 1_000 == 0
        with h5py.File(file, "w") as out:
            out["observations"] = rng.normal(size=(ROWS, 17)).astype(np.float32)
            out["actions"] = rng.uniform(-1, 1, (ROWS, 6)).astype(np.float32)
            out["rewards"] = rng.normal(size=ROWS).astype(np.float32)
            out["terminals"], out["timeouts"] = np.zeros(ROWS, bool), ends
    same = {"env": "HalfCheetah-v5", "dataset": str(file), "run_dir": str(folder / name), "backend": "eager"}
    return {**same, "threads": 1, "eval_every": 0, "steps": 5 * SAVES, "save_every": 5, "log_every": 5, **changes}


def stalls(folder: Path) -> dict[str, list[float]]:
    """Return the milliseconds of each save: what the loop waited for, then and until the next, and what it took."""
    spent: dict[str, list[float]] = {"save": [], "settle": [0.0], "write": []}

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any) -> Any:
            waited, started = sum(spent["settle"]), time.perf_counter()
            done = call(*args)
            milliseconds = 1e3 * (time.perf_counter() - started)
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
    original = {(owner, name): getattr(owner, name) for owner, name in parts}
    for (owner, name), part in parts.items():
        setattr(owner, name, timed(part, getattr(owner, name)))
    try:
        train.train(run_settings(settings(folder, "stalls")))
    finally:
        for (owner, name), call in original.items():
            setattr(owner, name, call)
    waits = zip(spent["save"], spent["settle"][1:], strict=True)
    return {
        "stall": [save + settle for save, settle in waits][:-1],
        "write": spent["write"],
    }  # the last one is waited for


def answered(folder: Path, number: signal.Signals) -> list[float]:
    """Return the seconds from a signal to the committed checkpoint, of several runs."""
    found = []
    for repeat in range(SIGNALS):
        typed = settings(folder, f"{number.name}-{repeat}", steps=1_000_000, save_every=0, log_every=3)
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


def markdown(found: dict[str, Any]) -> str:
    """Return the table."""
    m = found["machine"]
    lines = [f"{m['processor']}, {m['cores']} cores, commit {m['commit'][:7]}", ""]
    lines += ["| figure | median | largest | of | bar |", "|---|---|---|---|---|"]
    for row in found["rows"]:
        bar = f"{row['bar']} {row['unit']}" if row["bar"] else "-"
        lines.append(
            f"| {row['what']} | {row['median']} {row['unit']} | {row['largest']} {row['unit']} | {row['of']} | {bar} |"
        )
    return "\n".join(lines) + "\n"


def _row(what: str, unit: str, values: list[float], bar: float | None) -> dict[str, Any]:
    return {
        "what": what,
        "unit": unit,
        "median": float(np.median(values)),
        "largest": max(values),
        "of": len(values),
        "bar": bar,
    }


def main() -> None:
    """Measure, write both and print the table."""
    version = commit()
    device.prepare(run_settings({"env": "hopper-demo-v0", "threads": 1, "backend": "eager"}))
    with tempfile.TemporaryDirectory() as folder:
        saves = stalls(Path(folder))
        rows = [
            _row("a save stalls training", "ms", saves["stall"], 20),
            _row("a save is written within", "ms", saves["write"], None),
        ]
        for number in (signal.SIGTERM, signal.SIGINT):
            rows.append(_row(f"{number.name} to a committed checkpoint", "s", answered(Path(folder), number), 2))
    found = rounded({"machine": described.measure({}, False) | {"commit": version}, "rows": rows})
    print(keep(found, RESULTS / "cpu-saves.json", markdown(found)).read_text())


if __name__ == "__main__":
    main()
