"""`make gpu` and `make gpu-dry`: run the parts, the most important first, and write the results after every row."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from bench.gpu import plan
from bench.gpu.results import Results
from bench.gpu.supervise import NO_TIME, REASON, STOPPED, Row, keep_log, measured
from bench.gpu.tables import text
from bench.tables import RESULTS, commit

MACHINE_S = 60.0  # a fresh machine reads torch from a cold disk; asked twice
END_S = 3.0  # for writing and for ending processes


def main() -> int:
    """Return 0 when every test that ran passed and each was able to run; 1 otherwise."""
    args = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the process that measures is ended too
    started = time.monotonic()
    seconds = plan.DRY_CALL_S if args.dry else args.seconds - END_S
    folder = Path(tempfile.mkdtemp(prefix="gtp-gpu-dry-")) if args.dry else args.results.absolute()
    _set_environment(args, folder, seconds)
    machine = _machine(args.dry)
    if REASON in machine:
        sys.exit(f"torch cannot be asked about this machine: {machine[REASON]}")
    if args.dry:
        print(f"device: {machine['device']} (dry run)", flush=True)
    elif machine["device"] == "cpu":
        sys.exit(
            f"torch {machine['torch']} sees no NVIDIA GPU, so nothing would be measured; try: "
            "make gpu PYTHON=/path/to/python, or make gpu-dry"
        )
    results = Results(folder, machine, args.commit or commit())
    rows = [row for part in _chosen(args) for row in _run(part, results, args.dry, started + seconds)]
    print(text({"machine": results.machine, "parts": results.parts}))
    print(
        f"{time.monotonic() - started:.0f} s; written: {results.path} and {results.path.with_suffix('.md').name}",
        flush=True,
    )
    return 1 if tests_failed(rows) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu")
    parser.add_argument("--call", choices=["first", "second"], default="first", help="which parts; see docs/gpu.md")
    parser.add_argument("--dry", action="store_true", help="go through everything on the CPU at toy sizes")
    parser.add_argument("--seconds", type=float, default=plan.CALL_S, help="what the call may take")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--commit", default="", help="what is measured, where there is no git checkout")
    parser.add_argument("--data", default="", help="the training's data set, a D4RL-layout file")
    parser.add_argument("--env", default="", help="its environment, a name of gtp-fast train --env")
    parser.add_argument("--parts", nargs="*", default=[], choices=[part.name for part in plan.PARTS])
    return parser.parse_args()


def _set_environment(args: argparse.Namespace, folder: Path, seconds: float) -> None:
    """Set what the measuring processes read, before the first of them starts."""
    if args.dry:
        os.environ |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    # Torch then asks the driver's library, not CUDA, whether there is a GPU: CUDA, once asked, survives no fork.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    # Named, so that torch's compiler, which would name another, leaves all processes one cache of kernels.
    os.environ.setdefault("TRITON_CACHE_DIR", str(Path.home() / ".triton" / "cache"))
    values = {"results": str(folder), "until": str(time.time() + seconds)}
    values |= {name: value for name, value in {"data": args.data, "env": args.env}.items() if value}
    os.environ |= {plan.VARIABLES[name]: value for name, value in values.items()}


def _machine(dry: bool) -> Row:
    """Describe the machine; ask a second time where the first took too long, for then its disk is warm."""
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            until = time.monotonic() + MACHINE_S
            found = next(measured("bench.tables.described", [{}], dry, MACHINE_S, until, Path(folder) / "log"))
            if not found.get(REASON, "").startswith((STOPPED, NO_TIME)):
                break
    return found


def _chosen(args: argparse.Namespace) -> list[plan.Part]:
    """Return the parts that were named, or those of the call; a dry run goes through both calls."""
    if args.parts:
        return [part for part in plan.PARTS if part.name in args.parts]
    return [part for part in plan.PARTS if args.dry or part.call == args.call]


def _run(part: plan.Part, results: Results, dry: bool, until: float) -> list[Row]:
    """Measure one part within its own limit and the call's; return its rows."""
    rows, started = part.rows(dry), time.monotonic()
    if started >= until:
        return results.skip(part.name, rows, NO_TIME)
    log, done = results.begin(part.name), []
    limit_s = part.limit_s * (plan.DRY_CALL_S / plan.CALL_S if dry else 1.0)
    for row in measured(f"bench.gpu.{part.measure}", rows, dry, part.row_limit_s, min(until, started + limit_s), log):
        results.add(part.name, row, time.monotonic() - started)
        done.append(row)
    keep_log(log)
    figures = sum(REASON not in row for row in done)
    print(f"{part.name}: {figures} of {len(rows)} rows, {time.monotonic() - started:.0f} s", file=sys.stderr)
    return done


def tests_failed(rows: list[Row]) -> bool:
    """Say whether a file of tests failed or could not be run."""
    return any(REASON in row or row["failed"] for row in rows if "file" in row)


if __name__ == "__main__":
    sys.exit(main())
