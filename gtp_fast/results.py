"""What a run came to: its evaluations, read back from their files, and the `Result` that `train` returns."""

from __future__ import annotations

import json

from gtp_fast.config import TrainConfig, member_seeds
from gtp_fast.errors import GtpError
from gtp_fast.evaluate import EvalResult
from gtp_fast.events import Result
from gtp_fast.rundir import RunDir


def of_run(cfg: TrainConfig, source: str, run: RunDir, seconds: float, steps_done: int) -> Result:
    """Gather what `train --json` prints of a run that has ended.

    Args: source of the data; seconds and steps_done of this part of the run, for its speed.
    """
    evaluations = read_evaluations(run)
    scores = [r for r in evaluations if r.scores_SE is not None]
    best = [max(column) for column in zip(*(r.figures for r in scores), strict=True)] if scores else None
    return Result(
        run_dir=str(run.path),
        env=cfg.env,
        dataset=source,
        algo=cfg.algo,
        bc=cfg.bc,
        preset=cfg.preset,
        seeds=member_seeds(cfg),
        steps=cfg.steps,
        steps_per_second=steps_done / seconds if seconds else 0.0,
        seconds=seconds,
        device=cfg.device,
        backend=cfg.backend,
        graph=cfg.graph,
        precision=cfg.precision,
        sampling_steps=cfg.sampling_steps,
        candidates=cfg.candidates,
        select=cfg.select,
        score_last=scores[-1].figures if scores else None,
        score_best=best,
        return_last=evaluations[-1].returns_SE.mean(axis=1).tolist() if evaluations else None,
        checkpoint=str(run.checkpoint(cfg.steps)),
    )


def read_evaluations(run: RunDir) -> list[EvalResult]:
    """Return the evaluations of a run in the order of their steps. Raises: GtpError naming a file that is none."""
    results = []
    for file in sorted(run.evaluations.glob("step-*.json")):
        try:
            results.append(EvalResult.from_json(json.loads(file.read_text())))
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise GtpError(f"{file} is not an evaluation ({error!r}); remove it and evaluate again") from None
    return results
