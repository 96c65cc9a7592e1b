"""One training run as a process: the public command, what it says kept in its directory, and how far it has come."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from gtp_fast.config import flag
from gtp_fast.runs.directory import RunDir

DIVERGED, BUSY = 4, 6  # exit codes
TAIL_BYTES = 4_096  # of a log: a few of its lines


@dataclass(frozen=True)
class Trial:
    """One run: its name for people, the settings that are typed, its directory, and the last step."""

    name: str
    settings: Mapping[str, Any]
    path: Path
    steps: int

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


@dataclass(frozen=True)
class HowFar:
    """Where a run is: its last logged step and speed, and the mean figure of its last evaluation."""

    step: int = 0
    steps_per_second: float | None = None
    figure: float | None = None


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
    """Return what a directory says of a trial that nobody is running: whole, diverged, or None: there is work left."""
    run = RunDir(trial.path)
    if run.checkpoints.is_dir():
        from gtp_fast.runs.resume import finished  # loads torch: not before there is something to read

        if finished(run, trial.steps):
            return Outcome("done")
    return Outcome("diverged", divergence(run), DIVERGED) if run.failure.exists() else None


def divergence(run: RunDir) -> str:
    """Say where a run diverged."""
    try:
        failure = json.loads(run.failure.read_bytes())
        return f"diverged at step {failure['step']:,} ({failure['quantity']} of seed {failure['seed']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "diverged"


def last_words(trial: Trial) -> str:
    """Return the error that a trial ended with, or else its last line."""
    try:
        lines = trial.console.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    errors = [line for line in lines if line.startswith("error: ")] or lines or ["it said nothing"]
    return errors[-1].removeprefix("error: ")


def how_far(path: Path) -> HowFar:
    """Read where a run is from its log and its last evaluation; nothing where it has just begun."""
    step, speed = 0, None
    for line in _tail(RunDir(path).log):
        words = line.split()  # step 1,000 52.3 steps/s actor_loss ...
        if len(words) > 3 and words[0] == "step" and words[3] == "steps/s":
            with suppress(ValueError):  # a damaged line says nothing
                step, speed = int(words[1].replace(",", "")), float(words[2])
    return HowFar(step, speed, _figure(RunDir(path)))


def _tail(path: Path) -> list[str]:
    """Return the whole lines among a file's last bytes."""
    try:
        with path.open("rb") as file:
            skipped = max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES)
            file.seek(skipped)
            lines = file.read().decode(errors="replace").splitlines(keepends=True)
    except OSError:
        return []
    return [line for line in lines[1 if skipped else 0 :] if line.endswith("\n")]


def _figure(run: RunDir) -> float | None:
    """Return the mean score of the last evaluation, or its mean return where no score is known."""
    try:
        found = json.loads(max(run.evaluations.glob("step-*.json")).read_bytes())
        episodes = [float(x) for row in found["scores"] or found["returns"] for x in row]
        return sum(episodes) / len(episodes)
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError):
        return None
