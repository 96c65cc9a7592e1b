"""What a run keeps of its evaluations: each member's best policy, then the result or the mark in its own file.

What the disk refuses is held and written again with the next result, at the next save and at the end. Until it is
written, a checkpoint lists its evaluation as pending, so that the same command makes it again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from gtp_fast.errors import DiskError
from gtp_fast.evaluation.worker import Evaluator, Failed
from gtp_fast.files import publish_json
from gtp_fast.runs import checkpoint, metrics, records
from gtp_fast.runs.directory import RunDir
from gtp_fast.runs.disk import Disk
from gtp_fast.runs.events import Evaluated, Warned
from gtp_fast.runs.records import EvalResult
from gtp_fast.training.reports import Reports

WAIT_SECONDS = 0.2  # for a result, between looks whether a signal came


@dataclass
class Evaluations:
    """The evaluations of a run in progress; `best` holds the best policies so far, {} before the first evaluation."""

    run: RunDir
    evaluator: Evaluator
    writer: metrics.MetricsWriter
    report: Reports
    disk: Disk
    meta: Mapping[str, Any]
    best: dict[str, Any]
    unwritten: dict[int, tuple[EvalResult | dict[str, Any], dict[str, Tensor]]] = field(default_factory=dict)

    def pending(self) -> dict[int, dict[str, Tensor]]:
        """Return the policies whose evaluation is not written yet; a checkpoint saves them."""
        return {step: policy for step, (_, policy) in self.unwritten.items()} | self.evaluator.pending()

    def collect(self, wait: float | None = None) -> None:
        """Write and report the evaluations that have ended, after at most `wait` seconds for the first."""
        ended = self.evaluator.poll(wait)
        for result, policy in ended:  # all of them first: what is reported may raise an error
            found = {"step": result.step, records.FAILED: result.reason} if isinstance(result, Failed) else result
            self.unwritten[result.step] = found, policy
        if ended:
            self.write()
        for result, _ in ended:
            if isinstance(result, Failed):
                self.writer.trace(result.trace)
                self._left_out(result.step, records.FAILED, result.reason)
            else:
                self._tell(result)

    def drop(self, step: int, reason: str, policy: dict[str, Tensor]) -> None:
        """Mark an evaluation that is not made any more."""
        self.unwritten[step] = {"step": step, records.DROPPED: reason}, policy
        self.write()
        self._left_out(step, records.DROPPED, reason)

    def write(self) -> None:
        """Write what is held, in the order in which it came, up to the first that the disk refuses."""
        for step in list(self.unwritten):
            self.disk.write("evaluations", f"the evaluation of step {step:,}", partial(self._write, step))
            if step in self.unwritten:
                return

    def wait(self, stopped: Callable[[], object]) -> None:
        """Wait until every evaluation has ended and is written, or until `stopped` says so.

        Raises: DiskError where the disk still refuses one.
        """
        told = None
        while self.evaluator.pending() and not stopped():
            step, known = self.evaluator.waiting()
            if step != told:
                self.report.begin(f"waiting for the evaluation of step {step:,}")
                told = step
            self.report.add(known)
            self.collect(WAIT_SECONDS)
        if stopped():
            return
        self.write()
        if self.unwritten:
            steps = ", ".join(f"{step:,}" for step in self.unwritten)
            raise DiskError(
                f"the evaluations of steps {steps} could not be written to {self.run.path}; free space and run the "
                "same command again: it makes these evaluations, and trains nothing"
            )

    def _left_out(self, step: int, how: str, reason: str) -> None:
        self.report(Warned(f"the evaluation of step {step:,} {how}: {reason}; training goes on"))

    def _tell(self, result: EvalResult) -> None:
        self.disk.write("metrics", "a score", partial(self.writer.score, result.step, result.figures))
        for note in result.notes:
            self.report(Warned(note))
        self.report(Evaluated(result.step, result.figures, result.scores_SE is not None))

    def _write(self, step: int) -> None:
        """Write one: the best policies first, as a result or a mark that has its file is not evaluated again."""
        self.run.check_claim()
        found, policy = self.unwritten[step]
        if isinstance(found, EvalResult):
            replace_best(self.run, self.best, found, policy, self.meta)
            found = found.to_json()
        publish_json(self.run.evaluation(step), found)
        del self.unwritten[step]


def replace_best(
    run: RunDir, best: dict[str, Any], result: EvalResult, policy: dict[str, Tensor], meta: Mapping[str, Any]
) -> None:
    """Replace the members of ckpt/best that an evaluation beats; ties keep the earlier step. Twice is as once.

    Args: best, the members' tensors, figures and steps so far, {} before the first evaluation, updated in place;
    policy, the tensors that were evaluated; meta, the description of the run. Raises: OSError from the file system.
    """
    if not best:
        tensors = {name: tensor.clone() for name, tensor in policy.items()}
        best.update(tensors=tensors, figures=list(result.figures), steps=[result.step] * len(result.seeds))
    tensors, figures, steps = best["tensors"], best["figures"], best["steps"]
    for i, figure in enumerate(result.figures):
        if (figure, -result.step) > (figures[i], -steps[i]):
            figures[i], steps[i] = figure, result.step
            for name, tensor in policy.items():
                rows = tensor.shape[0] // len(result.seeds)
                tensors[name][i * rows : (i + 1) * rows] = tensor[i * rows : (i + 1) * rows]
    checkpoint.save_best(run, tensors, {**meta, "step": max(steps), "figures": figures, "steps": steps})
