"""One training run as a process: the public command, what it says kept in its directory, and how far it has come.

Training runs in processes of their own, each the public command; what was cut off is resumed, what is whole skipped.

A trial that diverges is a result. One that died is tried again; one that another process holds is waited for, never
started twice. Nothing here knows what the runs are for, or on which machine a process is started.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from gtp_fast.config import flag
from gtp_fast.files import holder
from gtp_fast.runs import records
from gtp_fast.runs.directory import RunDir
from gtp_fast.training.signals import Interrupt, InterruptedRunError, listen

DIVERGED, BUSY = 4, 6  # exit codes


@dataclass(frozen=True)
class Trial:
    """One run: its name for people, the settings that are typed, its directory, and the last step."""

    name: str
    settings: Mapping[str, Any]
    path: Path
    steps: int

    @property
    def run(self) -> RunDir:
        return RunDir(self.path)

    @property
    def typed(self) -> list[str]:
        """The command as it would be typed, after the program's name."""
        words = ["train"]
        for name, value in self.settings.items():
            if isinstance(value, bool):
                words.append(flag(name) if value else flag(name).replace("--", "--no-", 1))
            elif value is not None:
                words += [flag(name), str(value)]
        return [*words, "--run-dir", str(self.path), "--resume", "auto"]

    @property
    def console(self) -> Path:
        """Where a trial's own words go; of this process alone: two parents may find it free in one moment."""
        return self.path / f"console-{os.getpid()}.log"


@dataclass(frozen=True)
class Outcome:
    """How a trial ended; text says what a table prints in place of figures."""

    kind: Literal["done", "diverged", "failed"]
    text: str = ""
    exit_code: int = 0

    @property
    def state(self) -> str:
        return "complete" if self.kind == "done" else self.kind


class Process(Protocol):
    """A command at work, on this machine or another; subprocess.Popen is one."""

    def poll(self) -> int | None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...
    def wait(self, timeout: float | None = None) -> int: ...


def start(trial: Trial) -> Process:
    """Start a trial's command on this machine."""
    trial.path.mkdir(parents=True, exist_ok=True)
    return launch(trial.typed, trial.console)


def launch(words: list[str], console: Path, folder: str | None = None) -> subprocess.Popen[bytes]:
    """Start a command; a session of its own keeps a terminal's Ctrl-C from reaching it beside our SIGTERM."""
    with console.open("wb") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "gtp_fast", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,
            cwd=folder,
        )


def outcome_of(trial: Trial) -> Outcome | None:
    """Return how a trial ended, from its directory; None where it has not, or is still running."""
    if records.finished(trial.run, trial.steps):
        return Outcome("done")
    text = records.read_failure(trial.run)
    return None if text is None else Outcome("diverged", text, DIVERGED)


def last_words(trial: Trial) -> str:
    """Return the error that a trial ended with, or else its last line."""
    try:
        lines = trial.console.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    errors = [line for line in lines if line.startswith("error: ")] or lines or ["it said nothing"]
    return errors[-1].removeprefix("error: ")


TRIES = 3  # of a trial that dies: the first and two more
POLL_SECONDS = 0.1
BUSY_SECONDS = 2.0  # between looks at a run that another process holds
TELL_SECONDS = 30.0  # between lines of a trial that is running
PATIENCE_SECONDS = 120.0  # for a child that was asked to stop: it commits a checkpoint first
SAID = (2, 3, 5, 7, 8)  # exit codes whose error says what to do; a second try would end alike

Say = Callable[[str], None]


@dataclass(frozen=True)
class Standing:
    """How a trial stands at a moment; held: by another process, which it waits for."""

    trial: Trial
    state: Literal["waiting", "held", "running", "done", "diverged", "failed"]
    tries: int
    text: str = ""


Watch = Callable[[list[Standing]], None]


@dataclass
class _Child:
    """A trial in progress."""

    trial: Trial
    process: Process
    started: float
    told: float


@dataclass
class _Work:
    """What is left, what runs, and what came of the rest; `rests` holds when a trial may be looked at again."""

    waiting: list[Trial]
    say: Say
    start: Callable[[Trial], Process]
    running: list[_Child] = field(default_factory=list)
    outcomes: dict[Path, Outcome] = field(default_factory=dict)
    rests: dict[Path, float] = field(default_factory=dict)
    tries: Counter[Path] = field(default_factory=Counter)


def run_trials(
    trials: Sequence[Trial],
    jobs: int,
    say: Say,
    watch: Watch = lambda _: None,
    start: Callable[[Trial], Process] = start,
) -> list[Outcome]:
    """Run what is not whole yet, `jobs` at a time, and return the outcome of each trial in order.

    Args: say is told a line at each change, and one every half minute of each that runs; watch is given how every
    trial stands, some ten times a second; start starts a trial's command, and has made its directory.
    Raises: InterruptedRunError after SIGINT or SIGTERM, once every child has saved its checkpoint and ended.
    """
    unique = list({trial.path: trial for trial in trials}.values())
    work = _Work(list(unique), say, start)
    with listen() as interrupt:
        interrupt.started = True
        try:
            while work.waiting or work.running:
                _stop_if_asked(interrupt)
                _start(work, jobs)
                _collect(work, len(unique))
                watch(_standings(work, unique))
                time.sleep(POLL_SECONDS)
        finally:
            _end(work.running)
    return [work.outcomes[trial.path] for trial in trials]


def _standings(work: _Work, trials: Sequence[Trial]) -> list[Standing]:
    running = {child.trial.path for child in work.running}
    found = []
    for trial in trials:
        outcome, died = work.outcomes.get(trial.path), work.tries[trial.path]
        if outcome is not None:
            found.append(Standing(trial, outcome.kind, died, outcome.text))
        elif trial.path in running:
            found.append(Standing(trial, "running", died + 1))
        else:
            found.append(Standing(trial, "held" if trial.path in work.rests else "waiting", died))
    return found


def _stop_if_asked(interrupt: Interrupt) -> None:
    if interrupt.signal:
        text = "stopped: trials that were running have saved what they had; run the same command again to continue"
        raise InterruptedRunError(text, 128 + interrupt.signal)


def _start(work: _Work, jobs: int) -> None:
    """Start what may be started: neither whole, nor held by another process, nor resting."""
    for trial in list(work.waiting):
        if len(work.running) >= jobs:
            return
        if work.rests.get(trial.path, 0.0) > time.monotonic():
            continue
        held = holder(trial.run.lock)
        if held is not None:
            _rest(work, trial, held)
            continue
        work.waiting.remove(trial)
        outcome = outcome_of(trial)
        if outcome is None:
            now = time.monotonic()
            work.rests.pop(trial.path, None)
            work.running.append(_Child(trial, work.start(trial), now, now))
            work.say(f"{trial.name}: started" if not work.tries[trial.path] else f"{trial.name}: started again")
        else:
            work.outcomes[trial.path] = outcome
            work.say(f"{trial.name}: {outcome.text or 'whole already'}")


def _rest(work: _Work, trial: Trial, held: str) -> None:
    if trial.path not in work.rests:
        work.say(f"{trial.name}: {trial.path} is held by {held}; waiting for it")
    work.rests[trial.path] = time.monotonic() + BUSY_SECONDS


def _collect(work: _Work, count: int) -> None:
    """Take note of the children that have ended, and tell of those that go on."""
    for child in list(work.running):
        code, trial, now = child.process.poll(), child.trial, time.monotonic()
        if code is None:
            if now - child.told > TELL_SECONDS:
                child.told = now
                work.say(f"{trial.name}: {_progress(trial)}, {(now - child.started) / 60:.1f} min")
            continue
        work.running.remove(child)
        if code == BUSY:
            work.waiting.append(trial)
            _rest(work, trial, holder(trial.run.lock) or "another process")
            continue
        work.tries[trial.path] += 1
        outcome = _judge(trial, code)
        if outcome is None and work.tries[trial.path] < TRIES:
            work.waiting.append(trial)
            work.say(f"{trial.name}: died with code {code}; trying again")
            continue
        work.outcomes[trial.path] = outcome or Outcome("failed", f"died {TRIES} times: {last_words(trial)}", 1)
        text = work.outcomes[trial.path].text or f"done in {(now - child.started) / 60:.1f} min"
        work.say(f"{trial.name}: {text} ({len(work.outcomes)} of {count})")


def _judge(trial: Trial, code: int) -> Outcome | None:
    """Return what an exit code means, None for a death that another try may mend."""
    if code == 0:
        trial.console.unlink(missing_ok=True)
        return Outcome("done")
    if code == DIVERGED:
        return Outcome("diverged", records.read_failure(trial.run) or "diverged", DIVERGED)
    return Outcome("failed", f"failed: {last_words(trial)}", code) if code in SAID else None


def _progress(trial: Trial) -> str:
    """Return how far a running trial is, in words."""
    step = records.read_progress(trial.run).step
    return f"step {step:,} of {trial.steps:,}" if step else f"starting, {trial.steps:,} steps to go"


def _end(running: Sequence[_Child]) -> None:
    """Ask every child to stop, and wait until it has saved its checkpoint."""
    for child in running:
        child.process.terminate()
    deadline = time.monotonic() + PATIENCE_SECONDS
    for child in running:
        try:
            child.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()
