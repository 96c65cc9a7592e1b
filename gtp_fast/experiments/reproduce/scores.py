"""From the run directory of a trial to the figures of a row; an evaluation is made once and kept in its folder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gtp_fast.evaluation.eval_run import EvalConfig, eval_run
from gtp_fast.experiments.aggregate import claim, interquartile_mean, stratified_interval
from gtp_fast.files import publish_json
from gtp_fast.runs.directory import RunDir
from gtp_fast.runs.records import read_run
from gtp_fast.runs.results import EvalResult

_SPEED = re.compile(r"step [\d,]+ ([\d.]+) steps/s")


def figures(path: Path, acting: Mapping[str, Any]) -> dict[str, Any]:
    """Return last and best of a whole run as it was trained to act, or last alone where it acts otherwise.

    Args: acting holds sampling_steps, candidates and select where they are not the run's.
    """
    run = read_run(path)
    s = run.settings
    found: dict[str, Any] = {
        "steps": s["steps"],
        "seeds": [s["seed"] + i for i in range(s["seeds"])],
        "episodes": s["eval_episodes"],
        "eta": s["eta"],
        "acting": {name: acting.get(name, s[name]) for name in ("sampling_steps", "candidates", "select")},
        "kind": "score" if run.scored else "return",
        **speed(path, s["steps"]),
    }
    if not any(acting[name] != s[name] for name in acting):
        best = claim(run.figures.max(axis=0)) if len(run.figures) > 1 else None
        return found | {"last": claim(run.figures[-1]), "best": best}
    result = evaluated(path, found["acting"], s["eval_episodes"], s["seed"])
    return found | {"last": claim(np.array(result.figures)), "best": None}


def evaluated(path: Path, acting: Mapping[str, Any], episodes: int, env_seed: int) -> EvalResult:
    """Return the evaluation of a run's last policy, made on the episodes that training was scored on, or read again."""
    step = max(int(file.name[5:]) for file in RunDir(path).checkpoints.glob("step-*"))
    k, candidates, select = acting["sampling_steps"], acting["candidates"], acting["select"]
    file = path / "acting" / f"step-{step:08d}-k{k}-c{candidates}-{select}-e{episodes}.json"
    if file.exists():
        return EvalResult.from_json(json.loads(file.read_text()))
    asked = EvalConfig(episodes, k, candidates, select, env_seed=env_seed)
    found = eval_run(path, asked)
    file.parent.mkdir(exist_ok=True)
    publish_json(file, found.result.to_json())
    return found.result


def speed(path: Path, steps: int) -> dict[str, float | None]:
    """Return the milliseconds of a train step of all seeds together, and the hours of all steps at that speed.

    It is the median of the log intervals: a pause, or the compiling of the first, has no part in it.
    """
    log = RunDir(path).log
    speeds = [float(found) for found in _SPEED.findall(log.read_text(errors="replace"))] if log.exists() else []
    speeds = [one for one in speeds if one > 0]
    if not speeds:
        return {"ms_per_step": None, "hours": None}
    each = 1.0 / float(np.median(speeds))
    return {"ms_per_step": each * 1e3, "hours": each * steps / 3600}


def over_tasks(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return what is claimed of one method over several tasks: means of tasks, IQM and interval stratified over them.

    The standard deviation is that of the average over seeds. None where a task has no figures.
    """
    each = [np.array(row["last"]["each"]) for row in rows if row.get("last")]
    if len(each) < len(rows) or len({len(one) for one in each}) != 1:
        return None
    average = np.mean(each, axis=0)
    return {
        "method": rows[0]["method"],
        "tasks": len(rows),
        "mean": float(average.mean()),
        "std": float(average.std()),
        "iqm": interquartile_mean(np.concatenate(each)),
        "iqm_95": stratified_interval(each),
    }
