"""The run, from settings to a trained policy: prepare, open, build, loop. It prints nothing and does no mathematics.

It reports events to its caller. Only the loop knows what is due every N steps. Steps run in chunks of at most half a
second, so that a checkpoint is committed within two seconds of a signal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gtp_fast import algorithms, device, profiling
from gtp_fast.algorithms import policy_config, updates
from gtp_fast.algorithms.state import TrainState
from gtp_fast.config import TrainConfig, hash6, member_seeds
from gtp_fast.data import catalog, dataset, streaming
from gtp_fast.data.buffers import Buffer, buffer_of, bytes_on_device, check_settings, obs_shape
from gtp_fast.data.dataset import Transitions
from gtp_fast.data.spec import DataSpec, ObsShape, with_references
from gtp_fast.data.units import Actions
from gtp_fast.errors import DiskError, DivergedError, UsageError
from gtp_fast.evaluation.environments import check_environment, with_bounds, with_limit
from gtp_fast.evaluation.worker import Evaluator, Worker, workers_beside
from gtp_fast.runs import checkpoint, extend, metrics, records
from gtp_fast.runs.checkpoint import Checkpoint, Saving
from gtp_fast.runs.directory import RunDir
from gtp_fast.runs.disk import Disk
from gtp_fast.runs.events import (
    SILENCE_SECONDS,
    Downloading,
    Event,
    Noted,
    Progress,
    Result,
    Started,
    Stopped,
    Warned,
)
from gtp_fast.runs.resume import (
    Command,
    Opened,
    Start,
    describe,
    describe_policy,
    finished_run,
    open_run,
    starting_point,
)
from gtp_fast.training import guards, memory
from gtp_fast.training.evaluations import Evaluations
from gtp_fast.training.memory import memory_errors
from gtp_fast.training.patience import patient_stepper
from gtp_fast.training.reports import COMPILING, Reports
from gtp_fast.training.signals import Interrupt, InterruptedRunError, listen

CHUNK_SECONDS = 0.5
# What a run does until its first step is made.
FIRST_STEP = {"eager": "making the first step", "compiled": COMPILING, "fused": COMPILING}


@memory_errors
def train(
    cfg: TrainConfig,
    report: Callable[[Event], None] = lambda event: None,
    silence_seconds: float = SILENCE_SECONDS,
) -> Result:
    """Train, evaluate and save a run, or continue one from its last checkpoint.

    Args: cfg, the run's settings, where `auto` is resolved here; report, called with every event, one at a time;
    silence_seconds without an event after which `Alive` is one. Where report raises OSError the run goes on without it.
    Raises: a GtpError with an exit code of docs/run-directory.md; after one of `signals.SIGNALS`, InterruptedRunError
    once the checkpoint is saved.
    """
    with Reports(report, silence_seconds) as tell, listen(tell.unsaved, lambda said: tell(Stopped(said))) as interrupt:
        job = prepare(cfg, tell)
        with closing(job.worker) if job.worker else nullcontext():
            command = Command(job.cfg, job.data, job.begun)
            done = finished_run(command)
            if done is not None:
                return _of_finished(done, job.data.source, tell)
            notes = _try_environment(job, tell)
            tell.begin("opening the run")
            with open_run(command, lambda line: tell(Noted(line))) as opened:
                if opened.finished:  # by the process that this one waited for
                    return _of_finished(opened, job.data.source, tell)
                opened = replace(opened, notes=(*notes, *opened.notes))
                return _train_in(job.continuing(opened.cfg), opened, tell, interrupt)


def _train_in(job: Job, opened: Opened, tell: Reports, interrupt: Interrupt) -> Result:
    """Train the run in the directory that this process holds, from its last checkpoint to its end."""
    cfg, data, run = job.cfg, job.data, opened.run
    start = starting_point(run, cfg, data)
    state, buffer = build(job, start.checkpoint)
    step = int(state.step)
    # In this order: after a kill in between, a command of either number of steps makes again what was removed.
    if start.goes_back:
        checkpoint.drop_after(run, step)
    if start.extends:
        extend.drop_evaluations_after(run, cfg, step)
    describe(run, cfg, data)
    with metrics.MetricsWriter(cfg, run, step) as writer, interrupt.answered():
        tell.log_to(writer.note)
        notes = (*data.notes, data.acting, *opened.notes, *start.notes, *streaming.notes(buffer))
        tell(Started(run.path, data.source, buffer.size, job.parameters, job.chosen, step, notes))
        tell.begin(FIRST_STEP[cfg.backend], _kept(start))
        loop = _loop(job, run, start, state, buffer, writer, tell)
        try:
            steps = patient_stepper(cfg, run, state, buffer, job.by_auto, lambda said: tell(Warned(said)))
            seconds = loop.run_to_end(steps, step, interrupt)
        except Exception as error:
            loop.rescue(error)
            raise
        finally:
            loop.close()
    return _result(cfg, data.source, run, seconds, cfg.steps - step)


def _of_finished(opened: Opened, source: str, report: Callable[[Event], None]) -> Result:
    """Return the result of a run that was finished before, with notes that say so."""
    for note in opened.notes:
        report(Noted(note))
    seconds = records.read_seconds(opened.run)
    return replace(_result(opened.cfg, source, opened.run, seconds, opened.cfg.steps), finished_before=True)


def _kept(start: Start) -> str:
    """Say what a run has kept before its first step, for the message after a signal."""
    return f"no step was made since {start.checkpoint.path}" if start.checkpoint else "no step was made"


@dataclass(frozen=True)
class Job:
    """A run before it has a directory: its data, the number of parameters of one member, and its settings.

    `auto` is resolved in the settings; `chosen` says to what, and why. `begun` resolves it for another number of steps.
    """

    cfg: TrainConfig
    chosen: str
    spec: DataSpec
    data: Transitions
    sizes: tuple[ObsShape, int]  # the shape of an observation and the number of an action's components
    parameters: int
    begun: Callable[[int], TrainConfig]
    by_auto: bool  # whether `auto` chose the backend
    worker: Worker | None  # evaluates beside training; it runs already

    def continuing(self, cfg: TrainConfig) -> Job:
        """Return the job with the settings of the run that it continues, which began with its own backend."""
        if cfg.backend == self.cfg.backend:
            return replace(self, cfg=cfg)
        return replace(self, cfg=cfg, chosen=f"{cfg.device}, backend {cfg.backend} (as this run began)")


def prepare(cfg: TrainConfig, report: Callable[[Event], None]) -> Job:
    """Load the data, choose device, backend and buffer, and refuse settings that cannot run."""
    spec = with_limit(catalog.resolve(cfg.env, cfg.env_kwargs), cfg.eval_max_steps)
    device.check(cfg)  # before a download
    worker = _worker() if cfg.eval_every > 0 and spec.eval_env else None  # imports while the data are read
    try:
        return _prepared(cfg, report, spec, worker)
    except BaseException:
        if worker is not None:
            worker.close()
        raise


def _worker() -> Worker:
    try:
        return Worker()
    except OSError as error:
        raise UsageError(
            f"the process that evaluates cannot be started ({error}); is memory short, or the number of processes or "
            "files? To train without evaluations pass --eval-every 0"
        ) from None


def _prepared(cfg: TrainConfig, report: Callable[[Event], None], spec: DataSpec, worker: Worker | None) -> Job:
    where = Path(cfg.dataset) if cfg.dataset else None
    spec = with_bounds(spec, cfg.eval_every > 0)
    units = None if cfg.action_units == "auto" else cfg.action_units
    data = dataset.load(spec, where, cfg.clip_actions, lambda done, total: report(Downloading(done, total)), units)
    check_settings(data, cfg)
    obs, action_dim = obs_shape(data, cfg), data.action_NA.shape[1]
    parameters = updates.parameter_count(cfg, algorithms.of(cfg).layouts(cfg, obs, action_dim))
    images = data.frames_FHWC is not None
    if not images:
        cfg = memory.place(cfg, device.available(cfg), parameters, streaming.row_bytes(data))
    placed = cfg
    cfg, chosen = device.resolve(placed, images)
    device.prepare(cfg)

    def begun(steps: int) -> TrainConfig:
        return device.resolve(replace(placed, steps=steps), images)[0]

    spec = with_references(spec, data.references)
    return Job(cfg, chosen, spec, data, (obs, action_dim), parameters, begun, placed.backend == "auto", worker)


def _try_environment(job: Job, tell: Reports) -> tuple[str, ...]:
    """Build the environment, reset it and step it once in the worker that will evaluate; return notes for the user."""
    asked = job.spec, *job.sizes, job.cfg.frame_stack, job.data.action_bounds
    if job.worker is not None:
        tell.begin("trying the environment")
        return job.worker.check(*asked, tell.add)
    if job.cfg.eval_every > 0:
        check_environment(*asked)  # says that there is none
    return ()


def build(job: Job, saved: Checkpoint | None) -> tuple[TrainState, Buffer]:
    """Allocate state and buffer after checking that they fit, and load the checkpoint that the run starts from."""
    cfg = job.cfg
    memory.check_memory(cfg, job.parameters, bytes_on_device(job.data, cfg), job.sizes[0])
    state = algorithms.init_state(cfg, *job.sizes, cfg.device)
    buffer = buffer_of(job.data, cfg, state.step)
    if saved is not None:
        state.load_(saved.tensors)
    return state, buffer


def _loop(
    job: Job,
    run: RunDir,
    start: Start,
    state: TrainState,
    buffer: Buffer,
    writer: metrics.MetricsWriter,
    tell: Reports,
) -> _Loop:
    """Return the loop at the checkpoint's step, with the checkpoint's pending evaluations submitted again."""
    cfg, step = job.cfg, int(state.step)
    for result in records.read_evaluations(run):
        if result.step > step:  # finished after the last checkpoint, before a kill: it is not repeated
            writer.score(result.step, result.figures)
    acts = Actions(job.data.action_units, job.data.action_bounds)
    policy = policy_config.of_run(cfg, *job.sizes, buffer.obs_scale, acts)
    describe_policy(run, policy.to_json())
    evaluator = Evaluator(policy, job.spec, cfg.eval_episodes, cfg.seed, workers_beside(cfg), job.worker)
    disk = Disk(run.path, lambda message: tell(Warned(message)))
    meta: dict[str, Any] = {"env": cfg.env, "algo": cfg.algo, "settings": hash6(cfg), "policy": policy.to_json()}
    meta |= {"data_sha256": job.data.sha256, "references": job.data.references}
    evaluations = Evaluations(run, evaluator, writer, tell, disk, meta, start.best)
    loop = _Loop(cfg, run, state, evaluations, writer, tell, disk, Saving(disk), meta)
    if start.checkpoint is not None:
        loop.saved = run.checkpoint(step)
        loop.logged = start.checkpoint.meta.get("logged", step // cfg.log_every * cfg.log_every)
        for pending, tensors in start.checkpoint.pending_evals.items():
            if run.evaluation(pending).exists():
                continue
            if cfg.eval_every > 0:
                evaluator.submit(pending, tensors)
            else:
                evaluations.drop(pending, "--eval-every 0", tensors)
    profiling.record_phases(cfg.profile)
    run.failure.unlink(missing_ok=True)  # of an earlier attempt
    return loop


@dataclass
class _Loop:
    """The state of a run in progress, and what happens when something is due."""

    cfg: TrainConfig
    run: RunDir
    state: TrainState
    evaluations: Evaluations
    writer: metrics.MetricsWriter
    report: Reports
    disk: Disk
    saving: Saving
    meta: Mapping[str, Any]
    saved: Path | None = None  # the last checkpoint that this process has written, or has read at its start
    logged: int = 0  # the step of the last log line: the metric sums start after it
    whole: int | None = None  # the step of the state, where everything due at it is done; None in between

    def run_to_end(self, run_steps: Callable[[int], None], step: int, interrupt: Interrupt) -> float:
        """Run until the last step and the last evaluation end; return the seconds spent in train steps."""
        cfg, spent, logged, chunk = self.cfg, 0.0, (step, 0.0), 1
        while step < cfg.steps:
            count, self.whole = _steps_at_once(cfg, step, chunk), None
            started = time.perf_counter()
            run_steps(count)
            step += count
            int(self.state.step)  # waits for the device: the time is true, and no long queue delays a signal
            elapsed = time.perf_counter() - started
            spent += elapsed
            chunk = max(1, min(chunk * 2, int(CHUNK_SECONDS * count / elapsed)))
            interrupt.started, progress = True, None
            if _due(cfg, step, cfg.log_every):
                progress = self.log(step, (step - logged[0]) / (spent - logged[1]))
                logged = (step, spent)
            if _due(cfg, step, cfg.eval_every) and not self.run.evaluation(step).exists():
                self.check(step)
                self.evaluations.evaluator.submit(step, updates.policy_tensors(self.state))
            self.whole = step
            self.report.at(step, cfg.steps, count / elapsed)
            if progress is not None:
                self.report(progress)
            self.evaluations.collect()
            if interrupt.signal or _due(cfg, step, cfg.save_every) or step == cfg.steps:
                self.save(step)
            if interrupt.signal:
                self.saving.settle()
                raise interrupt.error(self.saved)
        self.saving.settle()
        if self.saved != self.run.checkpoint(step):
            raise DiskError(f"the last checkpoint could not be written to {self.run.path}; free space and run again")
        self.evaluations.wait(lambda: interrupt.signal)
        if interrupt.signal:
            raise interrupt.error(self.saved)
        return spent

    def rescue(self, error: Exception) -> None:
        """Save the steps since the last checkpoint where an error ends the run that did not come from a train step.

        A state in the middle of a step, or before what is due at it, is not saved: the resumed run would differ. Tried
        once and in silence, so that the error itself is what the user reads.
        """
        self.saving.close()
        unfit = isinstance(error, (DivergedError, InterruptedRunError))
        if self.whole is None or unfit or self.saved == self.run.checkpoint(self.whole):
            return
        with suppress(Exception):
            self.commit(self.whole)()
            error.add_note(f"the checkpoint {self.saved} is saved; run the same command again to continue")
            self.writer.say(f"saved {self.saved} after an error")

    def close(self) -> None:
        """End the evaluation worker at once, and wait until the checkpoint that is being written is finished."""
        self.evaluations.evaluator.close()
        self.saving.close()

    def log(self, step: int, steps_per_second: float) -> Progress:
        """Read the metrics from the device, write them, and start the next interval."""
        self.check(step)
        names = algorithms.of(self.cfg).metric_names(self.cfg)
        values = metrics.means(self.state.metric_sums_SQ.tolist(), names, step - self.logged)
        self.state.metric_sums_SQ.zero_()
        self.logged = step
        self.disk.write("metrics", "metrics", lambda: self.writer.write(step, values, steps_per_second))
        return Progress(step, self.cfg.steps, steps_per_second, values)

    def check(self, step: int) -> None:
        """Stop the run when a value is not finite or another process has it, before anything is written."""
        self.run.check_claim()
        self.saving.settle()  # the error names the last good checkpoint
        names, seeds = algorithms.of(self.cfg).metric_names(self.cfg), member_seeds(self.cfg)
        guards.check_finite(self.state.first_bad_SQ.tolist(), names, seeds, self.run.path, self.saved)
        guards.check_tensors(self.state.tensors(), step, seeds, self.run.path, self.saved)

    def save(self, step: int) -> None:
        """Start writing a checkpoint, and write what the disk refused of evaluations; keep the newest ones."""
        self.evaluations.write()
        self.saving.start(f"checkpoint at step {step:,}", self.commit(step))

    def commit(self, step: int) -> Callable[[], None]:
        """Check the state and copy it; return what writes the copy."""
        self.check(step)
        tensors = {name: tensor.detach().to("cpu", copy=True) for name, tensor in self.state.tensors().items()}
        policy, pending = updates.policy_tensors(self.state), self.evaluations.pending()
        meta = {**self.meta, "logged": self.logged}

        def commit() -> None:
            self.writer.settle()
            self.saved = checkpoint.save(self.run, step, tensors, policy, meta, pending)
            checkpoint.prune(self.run, self.cfg.keep, step)

        return commit


def _due(cfg: TrainConfig, step: int, every: int) -> bool:
    return every > 0 and (step % every == 0 or step == cfg.steps)


def _steps_at_once(cfg: TrainConfig, step: int, most: int) -> int:
    """Return how many steps to make before the next that something is due after, at most `most`.

    They end at a multiple of cfg.unroll where they pass one: graphs of so many steps begin there.
    """
    nexts = [(step // every + 1) * every for every in (cfg.log_every, cfg.eval_every, cfg.save_every) if every > 0]
    due, end = min([*nexts, cfg.steps]), step + most
    if due <= end:
        return due - step
    whole = end // cfg.unroll * cfg.unroll
    return (whole if whole > step else end) - step


# Settings that a result repeats, under their own names.
_SHOWN = ("env", "algo", "bc", "preset", "steps", "device", "backend", "graph", "precision", "sampling_steps")
_SHOWN += ("candidates", "select")


def _result(cfg: TrainConfig, source: str, run: RunDir, seconds: float, steps_done: int) -> Result:
    """Gather what `train --json` prints of a run that has ended.

    Args: source of the data; seconds and steps_done of this part of the run, for its speed.
    """
    evaluations = records.read_evaluations(run)
    scores = [r for r in evaluations if r.scores_SE is not None]
    best = [max(column) for column in zip(*(r.figures for r in scores), strict=True)] if scores else None
    return Result(
        **{name: getattr(cfg, name) for name in _SHOWN},
        run_dir=str(run.path),
        dataset=source,
        seeds=member_seeds(cfg),
        steps_per_second=steps_done / seconds if seconds else 0.0,
        seconds=seconds,
        score_last=scores[-1].figures if scores else None,
        score_best=best,
        return_last=evaluations[-1].returns_SE.mean(axis=1).tolist() if evaluations else None,
        checkpoint=str(run.checkpoint(cfg.steps)),
        evaluations_failed=records.read_absent(run)[1],
    )
