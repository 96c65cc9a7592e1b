"""A run that goes on beyond its last step: which schedules that changes, and what the user reads about it.

From its checkpoint on, an extended run follows the schedules of a run of the larger number of steps. config.yaml holds
that number; environment.json lists the former ones, of which older checkpoints are.
"""

from __future__ import annotations

import json
import re

import torch

from gtp_fast.algorithms.equations import grid_points
from gtp_fast.algorithms.optimizer import learning_rate
from gtp_fast.config import TrainConfig, grid_steps, member_values
from gtp_fast.runs.directory import RunDir

FORMER = "extended_from"  # in environment.json: the numbers of steps that the run had before, first to last
_STEPS = re.compile(r"^steps: (\d+)\s*$", re.MULTILINE)


def steps_of(run: RunDir) -> tuple[int, ...]:
    """Return the numbers of steps that a run has had, first to last; none where config.yaml names none yet.

    It parses no YAML, as it reads every run of a data set: a damaged file is told when its run is opened.
    """
    try:
        found = _STEPS.search((run.path / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ()
    if found is None or len(found[1]) > 13:  # 10^12 is the most
        return ()
    try:
        former = json.loads((run.path / "environment.json").read_bytes()).get(FORMER, [])
        former = [step for step in former if type(step) is int]
    except (OSError, ValueError, TypeError, AttributeError):
        former = []
    return tuple(dict.fromkeys([*former, int(found[1])]))  # a kill between the two writes leaves a number twice


def schedules_change(cfg: TrainConfig) -> bool:
    """Return whether a schedule of these settings stretches over the run."""
    low, high = _grid_ends(cfg)
    return low != high or cfg.lr_schedule != "constant"


def later_evaluations(run: RunDir, step: int) -> list[int]:
    """Return the steps after `step` that have an evaluation's file, ascending."""
    names = (path.stem.removeprefix("step-") for path in run.evaluations.glob("step-*.json"))
    return sorted(int(name) for name in names if name.isdigit() and int(name) > step)


def drop_evaluations_after(run: RunDir, cfg: TrainConfig, step: int) -> None:
    """Remove the evaluations after `step`, where an extended run goes on: other schedules give other policies."""
    for later in later_evaluations(run, step) if schedules_change(cfg) else ():
        run.evaluation(later).unlink()


def notes(run: RunDir, cfg: TrainConfig, before: int, step: int) -> list[str]:
    """Say what changes for a run of `before` steps that goes on from `step` to cfg.steps."""
    extended = f"extending this run of {before:,} steps: it goes on from step {step:,} to {cfg.steps:,}"
    if not schedules_change(cfg):
        return [f"{extended}; no schedule of its settings depends on --steps, so a fresh run would end alike"]
    values = "; ".join(_changes(cfg, before, step))
    said = [
        f"{extended}. From here on its schedules are those of a run of {cfg.steps:,} steps: {values}",
        f"a fresh run of {cfg.steps:,} steps would follow these schedules from its first step; for one, pass "
        "--resume never",
    ]
    if dropped := later_evaluations(run, step):
        said.append(
            f"removing the evaluations of steps {', '.join(f'{one:,}' for one in dropped)}: they came after this "
            "checkpoint, by the former schedules"
        )
    return said


def _changes(cfg: TrainConfig, before: int, step: int) -> list[str]:
    """Return each schedule's value at `step` before and after."""
    found, ends = [], _grid_ends(cfg)
    if ends[0] != ends[1]:
        pair = [grid_points(step, total, *ends) - 1 for total in (before, cfg.steps)]
        found.append(_change("grid steps", *(f"{count:,}" for count in pair)))
    if cfg.lr_schedule != "constant":
        base_S = torch.tensor(list(dict.fromkeys(member_values(cfg, "lr"))))
        pair = [learning_rate(base_S, torch.tensor(step), total, cfg.lr_schedule) for total in (before, cfg.steps)]
        found.append(_change("learning rate", *(", ".join(f"{lr:.3g}" for lr in row.tolist()) for row in pair)))
    return found


def _change(name: str, before: str, after: str) -> str:
    return f"{name} {before} as before" if before == after else f"{name} {before} -> {after}"


def _grid_ends(cfg: TrainConfig) -> tuple[int, int]:
    """Return the grid's steps at first and at last; (0, 0) for an algorithm without such a grid."""
    if cfg.algo == "cac":
        return cfg.s0, cfg.s1
    return grid_steps(cfg) if cfg.algo == "gtp" else (0, 0)
