"""NVIDIA's ncu over one fused step: what the hardware counts while each launch runs, clocks left as they are."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LAUNCHES = 10  # the second step's; the first compiles
METRICS = {
    "us": "gpu__time_duration.sum",
    "sm_percent": "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "l2_percent": "lts__throughput.avg.pct_of_peak_sustained_elapsed",
    "tensor_percent": "sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active",
    "shared_percent": "l1tex__data_pipe_lsu_wavefronts_mem_shared.avg.pct_of_peak_sustained_elapsed",
    "warps_active": "sm__warps_active.avg.per_cycle_active",
    "registers": "launch__registers_per_thread",
    "stall_long": "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio",
    "stall_barrier": "smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio",
    "stall_mio": "smsp__average_warps_issue_stalled_mio_throttle_per_issue_active.ratio",
    "stall_short": "smsp__average_warps_issue_stalled_short_scoreboard_per_issue_active.ratio",
    "stall_math": "smsp__average_warps_issue_stalled_math_pipe_throttle_per_issue_active.ratio",
    "stall_wait": "smsp__average_warps_issue_stalled_wait_per_issue_active.ratio",
}
UNITS = {"nsecond": 1e-3, "ns": 1e-3, "usecond": 1.0, "us": 1.0, "msecond": 1e3, "ms": 1e3}


def measure(row: dict[str, Any], dry: bool) -> dict[str, Any]:
    """Return `launches`, a dictionary of figures for each in the order of the step; ncu's own table is in the log.

    Raises: RuntimeError where ncu is absent or may not read the counters.
    """
    command = [sys.executable, "-m", "bench.gpu.one_step", row["precision"], "--steps", "2"]
    if not dry:
        watched = ["--kernel-name", "regex:gtp_.*", "--launch-skip", str(LAUNCHES), "--launch-count", str(LAUNCHES)]
        shown = ["--csv", "--clock-control", "none", "--metrics", ",".join(METRICS.values())]
        command = ["ncu", *watched, *shown, *command]
    else:
        command.append("--small")
    done = subprocess.run(command, cwd=ROOT, env=os.environ, text=True, capture_output=True, check=False)
    print(done.stdout, done.stderr, flush=True)
    launches = [] if dry else read(done.stdout)
    if done.returncode or not (launches or dry):
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()] or ["nothing"]
        raise RuntimeError(f"exit code {done.returncode}; the last line: {lines[-1][:200]}")
    return {"launches": launches, "us": sum(launch.get("us", 0.0) for launch in launches)}


def read(text: str) -> list[dict[str, Any]]:
    """Return ncu's long table as one dictionary a launch; a metric that this card lacks is left out."""
    lines = text.splitlines()
    head = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if head is None:
        return []
    names, found = {metric: name for name, metric in METRICS.items()}, {}
    for cell in csv.DictReader(io.StringIO("\n".join(lines[head:]))):
        launch = found.setdefault(cell["ID"], {"kernel": cell["Kernel Name"]})
        name, value = names.get(cell["Metric Name"]), cell["Metric Value"].replace(",", "")
        if name is None or not value.replace(".", "").isdigit():
            continue
        launch[name] = float(value) * (UNITS.get(cell["Metric Unit"], 1.0) if name == "us" else 1.0)
    return list(found.values())
