"""A run that goes on beyond its last step: which schedules that changes, and what the user reads about it.

From its checkpoint on, an extended run follows the schedules of a run of the larger number of steps. config.yaml holds
that number; environment.json lists the former ones, of which older checkpoints are.
"""

from __future__ import annotations

import re

import torch

from gtp_fast.algorithms.equations import grid_points
from gtp_fast.algorithms.optimizer import learning_rate
from gtp_fast.config import TrainConfig, grid_steps, member_values
from gtp_fast.files import read_bytes, read_json
from gtp_fast.presets import YAML_BYTES
from gtp_fast.runs.directory import RunDir, step_of

FORMER = "extended_from"  # in environment.json: the numbers of steps that the run had before, first to last
_STEPS = re.compile(r"^steps: ([0-9]{1,13})\s*$", re.MULTILINE)  # 10^12 is the most


def steps_of(run: RunDir) -> tuple[int, ...]:
    """Return the numbers of steps that a run has had, first to last; none where config.yaml names none yet.

    It parses no YAML, as it reads every run of a data set: a damaged file is told when its run is opened.
    """
    try:
        found = _STEPS.search(read_bytes(run.config, YAML_BYTES).decode())
    except (OSError, ValueError):
        return ()
    if found is None:
        return ()
    try:
        former = read_json(run.environment).get(FORMER, [])
        former = [step for step in former if type(step) is int and 0 < step <= 10**12]
    except (OSError, ValueError, TypeError, AttributeError):
        former = []
    return tuple(dict.fromkeys([*former, int(found[1])]))  # a kill between the two writes leaves a number twice


def schedules_change(cfg: TrainConfig) -> bool:
    """Return whether a schedule of these settings stretches over the run."""
    low, high = _grid_ends(cfg)
    return low != high or cfg.lr_schedule != "constant"


def later_evaluations(run: RunDir, step: int) -> list[int]:
    """Return the steps after `step` that have an evaluation's file, ascending."""
    found = (step_of(path.stem) for path in run.evaluations.glob("step-*.json"))
    return sorted(later for later in found if later is not None and later > step)


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
