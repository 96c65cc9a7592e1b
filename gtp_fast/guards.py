"""Divergence: from the counters on the device to an error that says what went wrong, where, and what to do."""

from __future__ import annotations

from pathlib import Path

from gtp_fast.errors import DivergedError
from gtp_fast.rundir import publish_json


def check_finite(
    first_bad_SQ: list[list[int]], names: tuple[str, ...], seeds: list[int], run_path: Path, last_good: Path | None
) -> None:
    """Stop the run when a metric was not finite.

    Args: first_bad_SQ holds, a member and a metric each, the step of the first bad value, -1 for never.
    Raises: DivergedError naming the earliest one; failure.json in the run directory says the same.
    """
    found = [
        (step, order, name, seed)
        for seed, row in zip(seeds, first_bad_SQ, strict=True)
        for order, (name, step) in enumerate(zip(names, row, strict=True))
        if step >= 0
    ]
    if not found:
        return
    step, _, name, seed = min(found)
    advice = "lower --lr or --eta, raise the clipping (--grad-norm), or keep --weight-cap above 0"
    failure = {
        "step": step,
        "quantity": name,
        "seed": seed,
        "last_good_checkpoint": None if last_good is None else str(last_good),
        "advice": advice,
    }
    publish_json(run_path / "failure.json", failure)
    resume = "no checkpoint was written before" if last_good is None else f"the last good checkpoint is {last_good}"
    raise DivergedError(f"{name} of seed {seed} was not finite at step {step:,}; {resume}; {advice}")
