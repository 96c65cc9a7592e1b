"""What a report reads of run directories, finished or not."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gtp_fast.config_files import read_settings
from gtp_fast.errors import UsageError
from gtp_fast.rundir import RunDir


@dataclass(frozen=True)
class Run:
    """What a report reads of one run; arrays by step, figures (steps, members)."""

    path: Path
    settings: dict[str, Any]
    environment: dict[str, Any]
    eval_steps: np.ndarray
    figures: np.ndarray
    returns: np.ndarray
    scored: bool
    losses: dict[str, np.ndarray]


def read_run(path: Path) -> Run:
    """Read a run directory, finished or not. Raises: UsageError when it is none."""
    settings = read_settings(path)
    run = RunDir(path)
    evals = [_read(file, "step", "returns", "scores") for file in sorted(run.evaluations.glob("step-*.json"))]
    scored = bool(evals) and evals[0]["scores"] is not None
    members = settings["seeds"]
    returns = np.array([np.mean(e["returns"], axis=1) for e in evals]).reshape(len(evals), members)
    figures = np.array([np.mean(e["scores"], axis=1) for e in evals]) if scored else returns
    environment = path / "environment.json"
    return Run(
        path=path,
        settings=settings,
        environment=_read(environment) if environment.exists() else {},
        eval_steps=np.array([e["step"] for e in evals], dtype=np.int64),
        figures=figures.reshape(len(evals), members),
        returns=returns,
        scored=scored,
        losses=_losses(run.metrics),
    )


def members_apart(run: Run) -> list[Run]:
    """Return one run for each member where they differ by --etas or --lrs: they are not seeds of each other."""
    s = run.settings
    swept = [name for name in ("eta", "lr") if s.get(f"{name}s") is not None]
    if not swept:
        return [run]
    values = {name: [float(value) for value in s[f"{name}s"].split(",")] for name in swept}
    return [
        replace(
            run,
            settings=s
            | {"seed": s["seed"] + i, "seeds": 1}
            | {f"{name}s": None for name in swept}
            | {name: values[name][i] for name in swept},
            figures=run.figures[:, i : i + 1],
            returns=run.returns[:, i : i + 1],
        )
        for i in range(s["seeds"])
    ]


def _read(file: Path, *names: str) -> dict[str, Any]:
    """Read a JSON object that has the names. Raises: UsageError naming a file that is damaged."""
    try:
        values = dict(json.loads(file.read_bytes()))
        missing = [name for name in names if name not in values]
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"{file} cannot be read ({error}); restore it, or remove it to leave it out") from None
    if missing:
        raise UsageError(f"{file} lacks {', '.join(missing)}; restore it, or remove it to leave it out")
    return values


def _losses(path: Path) -> dict[str, np.ndarray]:
    """Return step and the mean over members of each metric; a line that was cut off is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    if not rows:
        return {}
    names = [name for name in rows[0] if name != "step"]
    columns = {name: np.array([np.mean([float(x) for x in row[name]]) for row in rows]) for name in names}
    return {"step": np.array([row["step"] for row in rows]), **columns}
