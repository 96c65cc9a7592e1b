"""Run NVIDIA's tools on a few fused steps: ncu counts, compute-sanitizer finds faults.

Each tool watches its own process, `python -m bench.gpu.instruments PRECISION`, which makes the steps and nothing else.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

from bench.clock import taken
from bench.tables import ROOT
from bench.training import DEVICE, config, training
from gtp_fast import device

LAUNCHES = 13  # the second step's; the first compiles
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
SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:error|hazard)s?")


def counters(row: dict[str, Any], dry: bool) -> dict[str, Any]:
    """Return `launches`, a dictionary of figures for each in the order of the step, with the clocks left as they are.

    Raises: RuntimeError where ncu is absent or may not read the counters.
    """
    watched = ["--kernel-name", "regex:gtp_.*", "--launch-skip", str(LAUNCHES), "--launch-count", str(LAUNCHES)]
    shown = ["--csv", "--clock-control", "none", "--metrics", ",".join(METRICS.values())]
    tool = [] if dry else ["ncu", *watched, *shown]
    output = _watched(tool, [row["precision"], "--steps", "2", *["--small"] * dry])
    launches = read(output)
    if not (launches or dry):
        raise RuntimeError(f"ncu counted nothing; the last line: {_last(output)}")
    return {"launches": launches, "us": sum(launch.get("us", 0.0) for launch in launches)}


def sanitizer(row: dict[str, Any], dry: bool) -> dict[str, Any]:
    """Return how many reads and writes out of bounds, or races in shared memory, the tool counted, and seconds.

    Raises: RuntimeError where the tool is absent, refuses, or the step did not end.
    """
    # Torch's own kernels are not watched: that would take minutes.
    tool = ["compute-sanitizer", "--tool", row.get("tool"), "--kernel-name", "kernel_substring=gtp_"]
    words = [row["precision"], "--steps", "1", "--small"]
    # Without torch's cache each tensor is an allocation of its own, and what lies beyond it is out of bounds.
    output, seconds, _ = taken(lambda: _watched([] if dry else tool, words, PYTORCH_NO_CUDA_MEMORY_CACHING="1"))
    summary = SUMMARY.search(output)
    if not (summary or dry):
        raise RuntimeError(f"no summary; the last line: {_last(output)}")
    return {"errors": int(summary[1]) if summary else 0, "seconds": seconds}


def _watched(tool: list[str], words: list[str], **environment: str) -> str:
    """Return what a tool and the steps below it printed, which goes to the log, too.

    Raises: RuntimeError where the steps did not end, or ended with a bad state.
    """
    command = [*tool, sys.executable, "-m", "bench.gpu.instruments", *words]
    there = os.environ | environment
    done = subprocess.run(command, cwd=ROOT, env=there, text=True, capture_output=True, check=False)
    output = done.stdout + done.stderr
    print(output, flush=True)
    if ", first bad -1" not in output:
        raise RuntimeError(f"exit code {done.returncode}, no step; the last line: {_last(output)}")
    return output


def _last(output: str) -> str:
    return (output.rstrip() or "nothing").splitlines()[-1][:200]


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


def main() -> None:
    """Make the steps on the GPU, or interpreted without one."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.instruments", description=__doc__)
    parser.add_argument("precision", choices=["fp32", "tf32", "bf16"])
    parser.add_argument("--small", action="store_true", help="width 64, batch 40: for tools that slow a kernel down")
    parser.add_argument("--steps", type=int, default=2)
    asked = parser.parse_args()
    size = {"hidden": 64, "batch_size": 40, "seeds": 2} if asked.small else {}
    cfg = config(backend="fused", precision=asked.precision, device=DEVICE, **size)
    device.prepare(replace(cfg, threads=1))
    state, run = training(replace(cfg, graph=False), rows=1_000)
    run(asked.steps)
    print(f"step {int(state.step)}, first bad {int(state.first_bad_SQ.max())}")


if __name__ == "__main__":
    main()
