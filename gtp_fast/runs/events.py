"""What a run tells its caller while it goes on, and what it returns. No torch here: the screen loads quickly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Downloading:
    """Bytes of the data set so far, and in all where the server says so."""

    done: int
    total: int | None


@dataclass(frozen=True)
class Started:
    """What the run is: shown before the first step."""

    run_dir: Path
    source: str
    transitions: int
    parameters: int
    chosen: str
    step: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Progress:
    """One log interval: means a member, and the speed since the last one."""

    step: int
    steps: int
    steps_per_second: float
    means: Mapping[str, list[float]]


@dataclass(frozen=True)
class Warned:
    """Something that the user should know and that does not stop the run."""

    message: str


@dataclass(frozen=True)
class Evaluated:
    """A finished evaluation: one figure a member, a normalised score or else a return."""

    step: int
    figures: list[float]
    scored: bool


Event = Downloading | Started | Progress | Evaluated | Warned


@dataclass(frozen=True)
class Result:
    """What `train --json` prints; scores are one entry a seed, None where no reference return is known."""

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
