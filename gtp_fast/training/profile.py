"""`gtp-fast profile`: from a run's settings to the time of each phase of a train step on this machine, and a trace."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from gtp_fast import profiling
from gtp_fast.algorithms.backends import stepper
from gtp_fast.config import TrainConfig
from gtp_fast.training.train import build, prepare

STEPS = 50


def profile_run(cfg: TrainConfig, out: Path, steps: int = STEPS) -> dict[str, Any]:
    """Time `steps` steps of a new run, write <out>/trace.json, and return microseconds per step for each phase.

    A compiled or captured step has no separate phases; pass --backend eager --no-graph to see them.
    """
    job = prepare(replace(cfg, eval_every=0), lambda event: None)  # nothing is evaluated
    state, buffer = build(job, None)
    out.mkdir(parents=True, exist_ok=True)
    phases = profiling.profile_steps(stepper(job.cfg, state, buffer), steps, out / "trace.json")
    return {
        "env": cfg.env,
        "ran on": job.chosen,
        **{f"{name} us": value for name, value in phases.items()},
        "trace": str(out / "trace.json"),
        "nsight systems": profiling.nsys_command(cfg.env, cfg.dataset),
    }
