"""A sweep from its plan to its report: OUT/sweep.json (the plan, then the results) and OUT/report."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from gtp_fast.experiments.sweep import ray
from gtp_fast.experiments.sweep.plan import Plan, SweepConfig, plan, points, rows
from gtp_fast.experiments.sweep.table import Table
from gtp_fast.experiments.trials import DIVERGED, Outcome, run_trials, start
from gtp_fast.files import make_folder, publish_json
from gtp_fast.runs.records import read_progress


def prepare(asked: SweepConfig) -> tuple[Plan, float]:
    """Return the validated plan, and with Ray the share of a GPU that each trial takes.

    Raises: UsageError before anything runs.
    """
    if not asked.ray:
        return plan(asked, asked.jobs or 1), 0.0
    found = points(asked)  # refuses a wrong setting before Ray starts
    places, share = ray.room(asked.gpus_per_trial, any(cfg.device != "cpu" for _, cfg in found))
    return plan(asked, asked.jobs or places), share


def sweep(planned: Plan, gpus_per_trial: float, table: Table) -> dict[str, Any]:
    """Run what is not complete, and return the summary that OUT/sweep.json holds.

    Raises: InterruptedRunError after SIGINT or SIGTERM, once every trial that ran has saved.
    """
    asked, found = planned.asked, rows(planned)
    make_folder(asked.out)
    about = {"seeds_per_trial": planned.seeds_per_trial, "jobs": planned.jobs, "ray": asked.ray}
    publish_json(asked.out / "sweep.json", about | {"trials": found, "report": None})
    trials = [one.trial for one in planned.trials]
    on_ray = asked.ray and any(one.before is None for one in planned.trials)
    try:
        with ray.starter(planned.jobs, gpus_per_trial) if on_ray else nullcontext(start) as begin:
            outcomes = run_trials(trials, planned.jobs, table.say, table.watch, begin)
    finally:
        table.close()
    for row, trial, outcome in zip(found, trials, outcomes, strict=True):
        row["state"], row["text"], row["figure"] = outcome.state, outcome.text, read_progress(trial.run).figure
    summary = about | {
        "trials": found,
        "complete": sum(outcome.kind == "done" for outcome in outcomes),
        "report": _report(planned, outcomes),
        "exit_code": exit_code(outcomes),
    }
    publish_json(asked.out / "sweep.json", summary)
    return summary


def _report(planned: Plan, outcomes: list[Outcome]) -> str | None:
    """Draw one report over the complete trials; it names the others."""
    trials = [one.trial for one in planned.trials]
    whole = [trial.path for trial, outcome in zip(trials, outcomes, strict=True) if outcome.kind == "done"]
    if not whole:
        return None
    from gtp_fast.experiments.report import draw_report

    notes = [f"Left out: {t.name} ({o.text})." for t, o in zip(trials, outcomes, strict=True) if o.kind != "done"]
    return str(draw_report(whole, planned.asked.out / "report", notes))


def exit_code(outcomes: list[Outcome]) -> int:
    """Return the largest code of the trials that failed, or 4 where others diverged, or 0."""
    failed = [outcome.exit_code for outcome in outcomes if outcome.kind == "failed"]
    return max(failed) if failed else DIVERGED if any(outcome.kind == "diverged" for outcome in outcomes) else 0
