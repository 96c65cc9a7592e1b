"""NVIDIA's compute-sanitizer over a small fused step: reads and writes out of bounds, and races in shared memory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:error|hazard)s?")
STEP_DONE = "step 1, first bad -1"


def measure(row: dict[str, Any], dry: bool) -> dict[str, Any]:
    """Return how many errors or hazards the tool counted, and seconds; its report is in the log.

    Raises: RuntimeError where the tool is absent, refuses, or the step did not end.
    """
    started = time.monotonic()
    command = [sys.executable, "-m", "bench.gpu.one_step", row["precision"], "--small", "--steps", "1"]
    if not dry:
        # Torch's own kernels are not watched: that would take minutes.
        command = ["compute-sanitizer", "--tool", row["tool"], "--kernel-name", "kernel_substring=gtp_", *command]
    # Without torch's cache each tensor is an allocation of its own, and what lies beyond it is out of bounds.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    print(done.stdout, flush=True)
    counted = SUMMARY.search(done.stdout)
    if STEP_DONE not in done.stdout or (not dry and not counted):
        lines = [line for line in done.stdout.splitlines() if line.strip()] or ["nothing"]
        raise RuntimeError(f"exit code {done.returncode}, no step or no summary; the last line: {lines[-1][:200]}")
    return {"errors": int(counted[1]) if counted else 0, "seconds": time.monotonic() - started}
