"""The events that a run reports to its caller, and the result that it returns.

This module does not import torch, so that the command line starts quickly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SILENCE_SECONDS = 30.0  # without an event; then a run reports that it is alive


@dataclass(frozen=True)
class Downloading:
    """Bytes of the data set so far, and the total where the server gives it."""

    done: int
    total: int | None


@dataclass(frozen=True)
class Started:
    """The run's facts, reported before the first step; `chosen` is its device and backend, and why."""

    run_dir: Path
    source: str
    transitions: int
    parameters: int
    chosen: str
    step: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Progress:
    """One log interval: each metric's mean for each member, and the speed since the last interval."""

    step: int
    steps: int
    steps_per_second: float
    means: Mapping[str, list[float]]


@dataclass(frozen=True)
class Noted:
    """A note for the user before the first step, or in place of training."""

    message: str


@dataclass(frozen=True)
class Warned:
    """A warning for the user; the run goes on."""

    message: str


@dataclass(frozen=True)
class Alive:
    """What a run does that reported nothing for a while, and for how long it has; where it is, and how fast.

    The speed is None before the first step of this part of the run and while no steps are made.
    """

    doing: str
    seconds: float
    detail: str
    step: int
    steps: int
    steps_per_second: float | None


@dataclass(frozen=True)
class Stopped:
    """The last event of a run that a signal ended in the middle of what it could not leave, such as a compiler."""

    message: str


@dataclass(frozen=True)
class Evaluated:
    """A finished evaluation: one figure for each member, a normalised score (`scored`) or else a return."""

    step: int
    figures: list[float]
    scored: bool


Event = Downloading | Started | Progress | Alive | Evaluated | Noted | Warned | Stopped


@dataclass(frozen=True)
class Result:
    """What `train --json` prints. Scores have one entry for each seed; None where no reference return is known.

    Seconds and speed are of this part of the run; where it was `finished_before`, of all its parts, by its log.
    """

    run_dir: str
    env: str
    dataset: str
    algo: str
    bc: bool
    preset: str
    seeds: list[int]
    steps: int
    steps_per_second: float
    seconds: float
    device: str
    backend: str
    graph: bool
    precision: str
    sampling_steps: int
    candidates: int
    select: str
    score_last: list[float] | None
    score_best: list[float] | None
    return_last: list[float] | None
    checkpoint: str
    finished_before: bool = False  # nothing was left to do
    evaluations_failed: int = 0  # scores are those of the others
