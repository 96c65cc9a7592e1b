"""`make gpu` and `make gpu-dry`: run the parts in the order of their worth, write after every row, print one table."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from bench.gpu import plan
from bench.gpu.results import Results, commit
from bench.gpu.supervise import REASON, Row, measured
from bench.gpu.tables import text

MACHINE_S = 90.0  # a fresh machine reads torch from a cold disk


def main() -> int:
    """Return 0 when every test that ran passed and each was able to run; 1 otherwise."""
    args = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the process that measures is ended too
    started = time.monotonic()
    if args.dry:
        os.environ |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        multiprocessing.set_forkserver_preload(["torch", "bench.training"])
    machine = next(measured("bench.gpu.machine", [{}], args.dry, MACHINE_S, started + MACHINE_S))
    if REASON in machine:
        return _fail(f"torch cannot be asked about this machine: {machine[REASON]}")
    if args.dry:
        _say(f"device: {machine['device']} (dry run)")
    elif machine["device"] == "cpu":
        return _fail(
            f"torch {machine['torch']} sees no NVIDIA GPU, so nothing would be measured; try: "
            "make gpu PYTHON=/path/to/python, or make gpu-dry"
        )
    folder = Path(tempfile.mkdtemp(prefix="gtp-gpu-dry-")) if args.dry else args.results
    results = Results(folder, machine, args.commit or commit())
    until = started + (plan.DRY_CALL_S if args.dry else plan.CALL_S)
    chosen = [part for part in plan.PARTS if not args.parts or part.name in args.parts]
    rows = [row for part in chosen for row in _run(part, results, args.dry, until)]
    _say(text({"machine": results.machine, "parts": results.parts}))
    _say(f"{time.monotonic() - started:.0f} s; written: {results.path} and {results.path.with_suffix('.md').name}")
    return 1 if tests_failed(rows) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu")
    parser.add_argument("--dry", action="store_true", help="go through everything on the CPU at toy sizes")
    parser.add_argument("--results", type=Path, default=Path("bench/results"), help="folder of the results")
    parser.add_argument("--commit", default="", help="what is measured, where there is no git checkout")
    parser.add_argument("--parts", nargs="*", default=[], choices=[part.name for part in plan.PARTS])
    return parser.parse_args()


def _run(part: plan.Part, results: Results, dry: bool, until: float) -> list[Row]:
    """Measure one part within its own limit and the call's; return its rows."""
    rows, started = part.rows(dry), time.monotonic()
    if not rows:
        return results.skip(part.name, [{}], "there is nothing of it in this version")
    if started >= until:
        return results.skip(part.name, rows, "no time was left for it")
    results.begin(part.name)
    done, limit_s = [], part.limit_s * (plan.DRY_CALL_S / plan.CALL_S if dry else 1.0)
    for row in measured(f"bench.gpu.{part.module}", rows, dry, part.row_limit_s, min(until, started + limit_s)):
        results.add(part.name, row, time.monotonic() - started)
        done.append(row)
    figures = sum(REASON not in row for row in done)
    _say(f"{part.name}: {figures} of {len(rows)} rows, {time.monotonic() - started:.0f} s", sys.stderr)
    return done


def tests_failed(rows: list[Row]) -> bool:
    """Say whether a file of tests failed or could not be run."""
    return any(REASON in row or row["failed"] for row in rows if "file" in row)


def _fail(message: str) -> int:
    _say(message, sys.stderr)
    return 1


def _say(line: str, stream=sys.stdout) -> None:
    stream.write(line + "\n")
    stream.flush()


if __name__ == "__main__":
    sys.exit(main())
