"""A sweep of eight short trials, two at a time, beside the ideal time of two workers that lose nothing.

    python -m bench.sweep [--trials 8] [--jobs 2] [--steps 500]

The ideal is the sum of the trials' own times divided by the jobs. A trial's own time is the wall time of its command
typed alone, one after another on this machine, with the same flags and thread: start, imports and report count as its
own. The sweep's time is that of `gtp-fast sweep` from start to exit: its imports, plan, watching and one report are
what it adds, beside what two trials at once take from each other (caches, memory, clock). Nothing is evaluated: that
runs beside training, on the other core. CPU seconds of both stand beside: where others are at work they say more.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.gpu import machine as described
from bench.gpu.results import commit, rounded
from bench.table import keep, slug

ENV = "hopper-demo-v0"


def timed(words: list[str]) -> tuple[float, float, str]:
    """Return the wall seconds of a command, the CPU seconds of it and its children, and its output."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "gtp_fast", *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
    )
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout.decode()


def measure(trials: int, jobs: int, steps: int) -> dict[str, Any]:
    """Type every trial alone, then the sweep of them all; both in fresh folders."""
    fixed = {"steps": steps, "backend": "eager", "device": "cpu", "threads": 1, "eval_every": 0}
    rates = [f"{1e-4 * (1 + i):.4g}" for i in range(trials)]
    with tempfile.TemporaryDirectory() as folder:
        flags = [word for name, value in fixed.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        alone = [
            timed(["train", "--env", ENV, *flags, "--lr", rate, "--run-dir", f"{folder}/alone-{rate}"])[:2]
            for rate in rates
        ]
        settings = [word for name, value in fixed.items() for word in ("--set", f"{name}={value}")]
        grid = ["--grid", f"lr={','.join(rates)}", "--jobs", str(jobs), "--out", f"{folder}/sweep", "--json"]
        seconds, cpu, out = timed(["sweep", "--env", ENV, *settings, *grid])
    if json.loads(out)["complete"] != trials:
        raise RuntimeError(f"the sweep did not complete: {out}")
    ideal = sum(wall for wall, _ in alone) / jobs
    row = {
        "name": f"{trials} trials of {steps} steps, {jobs} at a time",
        "alone_s": [wall for wall, _ in alone],
        "ideal_s": ideal,
        "sweep_s": seconds,
        "ratio": seconds / ideal,
        "alone_cpu_s": sum(used for _, used in alone),
        "sweep_cpu_s": cpu,
        "load_after": os.getloadavg()[0],
    }
    return rounded({"machine": described.measure({}, False) | {"commit": commit()}, "rows": [row]})


def markdown(found: dict[str, Any]) -> str:
    """Return the table."""
    m, row = found["machine"], found["rows"][0]
    own = row["alone_s"]
    return "\n".join(
        [
            f"device: {m['device']} ({m['processor']}, {m['cores']} cores), torch {m['torch']}, commit {m['commit']}; "
            f"load {row['load_after']:.1f}",
            "",
            "| sweep | a trial alone, s | ideal, s | sweep, s | ratio | CPU alone, s | CPU of the sweep, s |",
            "|---|---|---|---|---|---|---|",
            f"| {row['name']} | {min(own):.1f} to {max(own):.1f} | {row['ideal_s']:.1f} | {row['sweep_s']:.1f} "
            f"| {row['ratio']:.2f} | {row['alone_cpu_s']:.1f} | {row['sweep_cpu_s']:.1f} |",
            "",
        ]
    )


def main() -> None:
    """Measure, write <device>-sweep.json and .md, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.sweep", description=__doc__)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    asked = parser.parse_args()
    found = measure(asked.trials, asked.jobs, asked.steps)
    print(keep(found, asked.out / f"{slug(found)}-sweep.json", markdown(found)).read_text())


if __name__ == "__main__":
    main()
