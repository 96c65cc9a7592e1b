"""Trials: training runs, each the public command in a process of its own, so many at a time.

A trial that was cut off continues, a complete one is skipped. One that dies is tried again; one that another process
holds is waited for, never started twice. A trial that diverges is a result.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from gtp_fast.config import flag
from gtp_fast.files import make_folder, open_file, read_lines
from gtp_fast.locks import holder
from gtp_fast.runs import records
from gtp_fast.runs.directory import RunDir
from gtp_fast.training.signals import Interrupt, InterruptedRunError, listen

DIVERGED, BUSY = 4, 6  # exit codes


@dataclass(frozen=True)
class Trial:
    """One run: its name for people, the flags of its command, its directory, and its last step."""

    name: str
    settings: Mapping[str, Any]
    path: Path
    steps: int

    @property
    def run(self) -> RunDir:
        return RunDir(self.path)

    @property
    def typed(self) -> list[str]:
        """The words of the command, after the program's name."""
        words = ["train"]
        for name, value in self.settings.items():
            if isinstance(value, bool):
                words.append(flag(name) if value else flag(name).replace("--", "--no-", 1))
            elif value is not None:
                words += [flag(name), str(value)]
        return [*words, "--run-dir", str(self.path), "--resume", "auto"]

    @property
    def console(self) -> Path:
        """Where the command's stderr goes; a file for each parent, as two may start the trial at the same moment."""
        return self.path / f"console-{os.getpid()}.log"


@dataclass(frozen=True)
class Outcome:
    """How a trial ended; a table prints the text in place of figures."""

    kind: Literal["done", "diverged", "failed"]
    text: str = ""
    exit_code: int = 0

    @property
    def state(self) -> str:
        return "complete" if self.kind == "done" else self.kind


class Process(Protocol):
    """A running command, on this machine or another; subprocess.Popen is one."""

    def poll(self) -> int | None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...
    def wait(self, timeout: float | None = None) -> int: ...


def start(trial: Trial) -> Process:
    """Start a trial's command on this machine."""
    make_folder(trial.path)
    return launch(trial.typed, trial.console)


# -m would put the working directory first, where a file json.py may lie: a command gets exactly its parent's sys.path.
COMMAND = "import sys; sys.path[:] = sys.argv.pop(1).split('\\n'); from gtp_fast.cli.main import main; main()"


def search_path() -> list[str]:
    """Return where this process looks for modules, for a process that runs in another folder."""
    return [os.path.abspath(place) for place in sys.path]


def launch(
    words: list[str], console: Path, folder: str | None = None, path: Sequence[str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own: a terminal's Ctrl-C does not reach it, only our SIGTERM does.

    Args: path, where it looks for modules; None: where this process does.
    """
    places = "\n".join(search_path() if path is None else path)
    with open_file(console, "wb") as said:
        return subprocess.Popen(
            [sys.executable, "-P", "-c", COMMAND, places, *words],
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
    last, error = "it said nothing", ""
    with suppress(OSError):
        for line in read_lines(trial.console):
            last = line.decode(errors="replace").rstrip("\r\n")
            error = last if last.startswith("error: ") else error
    return (error or last).removeprefix("error: ")


TRIES = 3  # of a trial that dies: the first and two more
POLL_SECONDS = 0.1
BUSY_SECONDS = 2.0  # between looks at a run that another process holds
TELL_SECONDS = 30.0  # between lines about a trial that is running
PATIENCE_SECONDS = 120.0  # for a child to stop after SIGTERM: it saves a checkpoint first
SAID = (2, 3, 5, 7, 8)  # exit codes whose error says what to do; a second try would end alike

Say = Callable[[str], None]


@dataclass
class Standing:
    """How a trial stands. A held one waits for another process that runs it; `tries` counts its starts."""

    trial: Trial
    state: Literal["waiting", "held", "running", "done", "diverged", "failed"] = "waiting"
    tries: int = 0
    outcome: Outcome | None = None
    process: Process | None = None
    started: float = 0.0
    told: float = 0.0
    rests: float = 0.0  # until then it is not looked at again

    def end(self, outcome: Outcome) -> None:
        self.process, self.outcome, self.state = None, outcome, outcome.kind


Watch = Callable[[list[Standing]], None]


def run_trials(
    trials: Sequence[Trial],
    jobs: int,
    say: Say,
    watch: Watch = lambda _: None,
    start: Callable[[Trial], Process] = start,
) -> list[Outcome]:
    """Run the trials that are not complete, `jobs` at a time, and return the outcome of each in order.

    Args: say takes a line at each change, and one every half minute about each trial that runs; watch takes how every
    trial stands, some ten times a second; start makes a trial's directory and starts its command.
    Raises: InterruptedRunError after SIGINT or SIGTERM, once every child has saved its checkpoint and ended.
    """
    by_path = {trial.path: Standing(trial) for trial in trials}
    standings = list(by_path.values())
    with listen() as interrupt:
        interrupt.started = True
        try:
            while any(one.outcome is None for one in standings):
                _stop_if_interrupted(interrupt)
                _start(standings, jobs, say, start)
                _collect(standings, say)
                watch(standings)
                time.sleep(POLL_SECONDS)
        finally:
            stop([one.process for one in standings if one.process is not None])
    return [outcome for trial in trials if (outcome := by_path[trial.path].outcome) is not None]


def _stop_if_interrupted(interrupt: Interrupt) -> None:
    if interrupt.signal:
        text = "stopped: trials that were running have saved what they had; run the same command again to continue"
        raise InterruptedRunError(text, 128 + interrupt.signal)


def _start(standings: list[Standing], jobs: int, say: Say, start: Callable[[Trial], Process]) -> None:
    """Start trials while there are jobs: those that are not complete, and that no other process holds."""
    running = sum(one.process is not None for one in standings)
    for one in standings:
        now, trial = time.monotonic(), one.trial
        if running >= jobs:
            return
        if one.process is not None or one.outcome is not None or one.rests > now:
            continue
        held = holder(trial.run.lock)
        if held is not None:
            _rest(one, held, say)
        elif (outcome := outcome_of(trial)) is not None:
            one.end(outcome)
            say(f"{trial.name}: {outcome.text or 'complete already'}")
        else:
            one.process, one.state, one.started, one.told = start(trial), "running", now, now
            one.tries, running = one.tries + 1, running + 1
            say(f"{trial.name}: started{' again' if one.tries > 1 else ''}")


def _rest(one: Standing, held: str, say: Say) -> None:
    if one.state != "held":
        say(f"{one.trial.name}: {one.trial.path} is held by {held}; waiting for it")
    one.process, one.state, one.rests = None, "held", time.monotonic() + BUSY_SECONDS


def _collect(standings: list[Standing], say: Say) -> None:
    """Take note of the children that have ended, and tell about those that run."""
    for one in standings:
        if one.process is None:
            continue
        code, trial, now = one.process.poll(), one.trial, time.monotonic()
        minutes = f"{(now - one.started) / 60:.1f} min"
        if code is None:
            if now - one.told > TELL_SECONDS:
                one.told = now
                say(f"{trial.name}: {_progress(trial)}, {minutes}")
        elif code == BUSY:
            one.tries -= 1
            _rest(one, holder(trial.run.lock) or "another process", say)
        elif (outcome := _judge(trial, code, one.tries)) is None:
            one.process, one.state = None, "waiting"
            say(f"{trial.name}: died with code {code}; trying again")
        else:
            one.end(outcome)
            ended = sum(other.outcome is not None for other in standings)
            say(f"{trial.name}: {outcome.text or f'done in {minutes}'} ({ended} of {len(standings)})")


def _judge(trial: Trial, code: int, tries: int) -> Outcome | None:
    """Return the outcome of an exit code, None where another try may succeed."""
    if code == 0:
        trial.console.unlink(missing_ok=True)
        return Outcome("done")
    if code == DIVERGED:
        return Outcome("diverged", records.read_failure(trial.run) or "diverged", DIVERGED)
    if code in SAID:
        return Outcome("failed", f"failed: {last_words(trial)}", code)
    return Outcome("failed", f"died {TRIES} times: {last_words(trial)}", 1) if tries >= TRIES else None


def _progress(trial: Trial) -> str:
    """Return how far a running trial is, in words."""
    step = records.read_progress(trial.run).step
    return f"step {step:,} of {trial.steps:,}" if step else f"starting, {trial.steps:,} steps to go"


def stop(running: Sequence[Process]) -> None:
    """Send SIGTERM to every child, and wait until it has saved its checkpoint."""
    for process in running:
        process.terminate()
    deadline = time.monotonic() + PATIENCE_SECONDS
    for process in running:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
