"""`gtp-fast sweep`: its flags, and what it prints: the plan, the table of trials, and where the report lies."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields
from pathlib import Path


def add_allow_import(parser: argparse.ArgumentParser) -> None:
    """Add the flag, of every command that may build an environment which a file names."""
    parser.add_argument(
        "--allow-import",
        action="append",
        default=[],
        metavar="MODULE",
        help="a module that an environment named in a file may import; repeatable",
    )


def add_sweep(parser: argparse.ArgumentParser) -> None:
    """Add the flags of sweep."""
    parser.add_argument(
        "file", type=Path, nargs="?", metavar="FILE.yaml", help="envs, seeds, grid and set, below flags"
    )
    parser.add_argument("--env", dest="envs", nargs="+", default=[], metavar="NAME", help="data sets")
    parser.add_argument("--seeds", type=int, help="of every combination (default: 1)")
    parser.add_argument(
        "--grid", action="append", default=[], metavar="NAME=A,B,...", help="values of a setting of train; repeatable"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of train, for every run; repeatable"
    )
    parser.add_argument(
        "--jobs", type=int, help="trials at a time (default: 1; with --ray as many as there is room for)"
    )
    parser.add_argument(
        "--seeds-per-trial", type=int, help="members of one process (default: all; fewer where jobs would stay idle)"
    )
    parser.add_argument("--ray", action="store_true", help="run trials on Ray: of RAY_ADDRESS, or else started here")
    parser.add_argument(
        "--gpus-per-trial", type=float, help="share of a GPU (default: with --ray 1 where there are any)"
    )
    parser.add_argument("--out", type=Path, help="where runs and report lie (default: runs/sweep)")
    add_allow_import(parser)
    parser.add_argument("--plan", action="store_true", help="print the plan and stop")
    parser.add_argument("--json", action="store_true", help="print the plan, or the summary, as one JSON object")


def run_sweep(arguments: argparse.Namespace) -> None:
    """Print the plan, run it, and exit with the code of the sweep."""
    from gtp_fast.experiments.sweep import plan, run
    from gtp_fast.experiments.sweep.table import Table

    names = {field.name for field in fields(plan.SweepConfig)}
    typed = {name: value for name, value in vars(arguments).items() if name in names}
    planned, gpus_per_trial = run.prepare(plan.read(arguments.file, typed))
    if arguments.plan:
        found = {"jobs": planned.jobs, "seeds_per_trial": planned.seeds_per_trial, "trials": plan.rows(planned)}
        print(json.dumps(found) if arguments.json else plan.text(planned))
        return
    print(plan.text(planned), file=sys.stderr, flush=True)
    summary = run.sweep(planned, gpus_per_trial, Table(sys.stderr))
    if arguments.json:
        print(json.dumps(summary))
    else:
        _show(summary, planned.asked.out)
    if summary["exit_code"]:
        sys.exit(summary["exit_code"])


def _show(summary: dict, out: Path) -> None:
    width = max(len(row["name"]) for row in summary["trials"])
    for row in summary["trials"]:
        figure = "" if row["figure"] is None else f"  {row['figure']:8.1f}"
        print(f"{row['name']:{width}}  {row['text'] or row['state']}{figure}")
    report = (
        f"wrote {summary['report']}/README.md and " if summary["report"] else "no report: no trial is complete; wrote "
    )
    print(f"{summary['complete']} of {len(summary['trials'])} complete; {report}{out / 'sweep.json'}")
