"""Scores of trained runs as a table: `python -m bench.returns NAME FILE...` writes bench/results/returns-NAME.*

A FILE is what `gtp-fast eval RUN --json` printed; settings, data and commit are read from the run that it names. The
table keeps the order of the files.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.gpu.results import rounded
from bench.table import keep
from gtp_fast.experiments.report import label
from gtp_fast.runs.records import read_run


def row(file: Path) -> dict[str, Any]:
    """Return the figures of one evaluation, with what the run was."""
    found = json.loads(file.read_text())
    run = read_run(Path(found["run"]))
    settings, environment = run.settings, run.environment
    shown = settings | {name: found[name] for name in ("sampling_steps", "candidates", "select")}
    return {
        "setting": label(replace(run, settings=shown)),
        "steps": settings["steps"],
        "episodes": found["episodes"],
        "eta": 0.0 if settings["bc"] else settings["eta"],
        "data": f"{environment['transitions']:,} transitions, SHA-256 {environment['data_sha256'][:8]}",
        "data_return": environment["data_return_mean"],
        "commit": str(environment["commit"])[:12],
        "each": [float(np.mean(scores)) for scores in found["scores"]],
    }


def gathered(files: list[Path]) -> dict[str, Any]:
    """Return {"machine", "rows"}; the machine's part holds what all runs share."""
    rows = [row(file) for file in files]
    shared = {name: rows[0][name] for name in ("steps", "episodes", "data") if len({r[name] for r in rows}) == 1}
    return rounded({"machine": shared, "rows": [{k: v for k, v in r.items() if k not in shared} for r in rows]})


def markdown(found: dict[str, Any]) -> str:
    """Return the table: each seed, mean and standard deviation over seeds."""
    m = found["machine"]
    lines = [f"{m['steps']:,} steps, {m['episodes']} episodes a seed; data: {m['data']}", ""]
    lines += ["| setting | eta | each seed | mean (std) | commit |", "|---|---|---|---|---|"]
    for line in found["rows"]:
        each = np.array(line["each"])
        seeds = ", ".join(f"{score:.1f}" for score in each)
        spread = f"{each.mean():.1f} ({each.std():.1f})" if len(each) > 1 else "one seed"
        lines.append(f"| {line['setting']} | {line['eta']:g} | {seeds} | {spread} | {line['commit'][:7]} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Gather the files, write both and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.returns", description=__doc__)
    parser.add_argument("name")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    asked = parser.parse_args()
    found = gathered(asked.files)
    print(keep(found, asked.out / f"returns-{asked.name}.json", markdown(found)).read_text())


if __name__ == "__main__":
    main()
