"""Where a step's time goes, by phase and backend: `python -m bench.phases` writes <device>-phases.json and .md.

What `gtp-fast profile` says of hopper-demo-v0 (obs 11, action 3, batch 256, width 256). A phase's time is the host's:
on a CPU that is where the work is done, on a GPU where it is asked for.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

from bench.gpu import machine as described
from bench.gpu.results import commit, rounded
from bench.table import keep, slug
from gtp_fast.data.catalog import run_settings
from gtp_fast.profiling import PHASES
from gtp_fast.training.profile import profile_run

GPU = torch.cuda.is_available()
ENV = "hopper-demo-v0"
STEPS = 20
# A compiled or captured step is one range: its phases cannot be seen apart.
BACKENDS = ("eager", "fused") if GPU else ("eager",)
SETTINGS: tuple[dict[str, Any], ...] = tuple({"backend": b, "sampling_steps": k} for k in (5, 2) for b in BACKENDS)


def measure() -> dict[str, Any]:
    """Profile each setting on one thread, uncaptured."""
    version, rows = commit(), []
    for setting in SETTINGS:
        cfg = run_settings({"env": ENV, "steps": 2_000_000, "graph": False, "threads": 1, "eta": 5.0} | setting)
        with tempfile.TemporaryDirectory() as folder:
            found = profile_run(cfg, Path(folder), STEPS)
        times = {name.removesuffix(" us"): value for name, value in found.items() if name.endswith(" us")}
        rows.append({**setting, "us": times})
    return rounded({"machine": described.measure({}, False) | {"commit": version}, "rows": rows})


def markdown(found: dict[str, Any]) -> str:
    """Return the table: the share of each phase in their sum, which a busy machine changes less than their times."""
    m = found["machine"]
    lines = [f"device: {m['device']} ({m['processor']}), torch {m['torch']}, commit {m['commit']}; {ENV}", ""]
    lines.append("| backend | K | " + " | ".join(PHASES) + " |")
    lines.append("|---" * (2 + len(PHASES)) + "|")
    for row in found["rows"]:
        own = {name: row["us"].get(name, 0.0) for name in PHASES}
        cells = [f"{100 * value / sum(own.values()):.0f} %" for value in own.values()]
        lines.append(f"| {row['backend']} | {row['sampling_steps']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, write both files and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.phases", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    asked = parser.parse_args()
    found = measure()
    keep(found, asked.out / f"{slug(found)}-phases.json", markdown(found))
    print(markdown(found))


if __name__ == "__main__":
    main()
