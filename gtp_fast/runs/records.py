"""The one reader of a run directory: settings, evaluations, metrics, progress, failure, and which policy to load.

A run may be unfinished, or running: what it has not written yet is absent. A damaged file is named with its remedy.
"""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gtp_fast.config import TrainConfig, shown, validate
from gtp_fast.errors import CheckpointError, GtpError, UsageError
from gtp_fast.files import open_file, parse_json, read_json, read_lines
from gtp_fast.presets import read_yaml, settings_file
from gtp_fast.runs.directory import RunDir

if TYPE_CHECKING:
    from torch import Tensor


LARGEST = 1e100  # of a return or a score: a sum of squares stays within float64
LEFT_OUT = "restore it, or remove it to leave it out"
TAIL_BYTES = 4_096  # of a log: a few of its lines
_LOGGED = re.compile(r"^step ([0-9][0-9,]{,16}) ([0-9]{1,16}(?:\.[0-9]+)?) steps/s", re.MULTILINE)


@dataclass(frozen=True)
class EvalResult:
    """What a policy scored: returns and lengths (S, E), scores (S, E) or None where no reference is known.

    `diverged_SE` marks episodes that ended because an observation or reward was not finite, after as many steps as
    `lengths_SE` says; they count with their return up to there. `success_SE` marks those of which a step reported
    success; it is None where the environment reports none. `cut_SE` marks episodes that had not ended after `limit`
    steps; limit is None where the environment's own holds.
    """

    step: int
    returns_SE: np.ndarray
    lengths_SE: np.ndarray
    scores_SE: np.ndarray | None
    diverged_SE: np.ndarray
    success_SE: np.ndarray | None
    env_id: str
    seeds: tuple[int, ...]
    sampling_steps: int
    candidates: int
    select: str
    seconds: float = field(compare=False)
    cut_SE: np.ndarray | None = None
    limit: int | None = None

    @property
    def figures(self) -> list[float]:
        """One figure a member, to rank by: the mean score, or the mean return where there is no reference."""
        return np.asarray(self.returns_SE if self.scores_SE is None else self.scores_SE).mean(axis=1).tolist()

    @property
    def notes(self) -> list[str]:
        """What a user should know of these figures: a sentence for each episode that diverged, one for those cut."""
        diverged = [
            f"{self.env_id}, seed {self.seeds[member]}, episode {episode}: an observation or reward was not finite "
            f"after {self.lengths_SE[member, episode]} steps; the episode counts with its return up to there"
            for member, episode in np.argwhere(self.diverged_SE)
        ]
        if self.cut_SE is None or not self.cut_SE.any():
            return diverged
        return [
            *diverged,
            f"{self.env_id}: {self.cut_SE.sum()} of {self.cut_SE.size} episodes had not ended after {self.limit:,} "
            "steps; they count with their return up to there. --eval-max-steps N sets another limit",
        ]

    def to_json(self) -> dict[str, Any]:
        """Return plain values; arrays as nested lists."""
        values = asdict(self)
        for name in ("returns_SE", "lengths_SE", "scores_SE", "diverged_SE", "success_SE", "cut_SE"):
            array = values.pop(name)
            values[name[:-3]] = None if array is None else array.tolist()
        return values | {"seeds": list(self.seeds), "episodes": int(self.returns_SE.shape[1])}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> EvalResult:
        """Read `to_json`'s values. Raises: ValueError, KeyError or TypeError for other values."""
        arrays = ("returns", "lengths", "scores", "diverged", "success", "cut", "seeds", "episodes")
        values = {"diverged": None, "success": None, "cut": None} | values  # older files lack them
        known = {k: v for k, v in values.items() if k not in arrays}
        known["step"] = operator.index(values["step"])
        if not 0 <= known["step"] < 2**63:
            raise ValueError(f"step is {known['step']}")
        shape, seeds = np.shape(values["returns"]), tuple(map(operator.index, values["seeds"]))
        if len(shape) != 2 or shape[0] != len(seeds) or not shape[1]:
            raise ValueError(f"returns have shape {shape}, expected one row of episodes for each of {len(seeds)} seeds")

        def read(name: str, kind: type) -> np.ndarray | None:
            return None if values[name] is None else np.array(values[name], dtype=kind).reshape(shape)

        diverged = read("diverged", bool)
        return cls(
            returns_SE=np.array(values["returns"], dtype=np.float64),
            lengths_SE=np.array(values["lengths"], dtype=np.int64).reshape(shape),
            scores_SE=read("scores", float),
            diverged_SE=np.zeros(shape, bool) if diverged is None else diverged,
            success_SE=read("success", bool),
            cut_SE=read("cut", bool),
            seeds=seeds,
            **known,
        )

    def check(self, members: int) -> None:
        """Raise ValueError where the figures cannot be drawn as those of a run of so many members."""
        for name in ("returns_SE", "scores_SE"):
            array = getattr(self, name)
            if array is not None and not (len(array) == members and np.abs(array).max() < LARGEST):
                raise ValueError(f"{name[:-3]} are {shown(array.tolist())}, expected finite ones of {members} seeds")


def run_of(path: Path) -> RunDir:
    """Return the run that `path` names: its directory, or one of its checkpoints. Raises: UsageError for neither."""
    file = settings_file(path)
    if file is None:
        raise UsageError(f"{path} is no run directory (it has no config.yaml); train one with gtp-fast train")
    return RunDir(file.parent)


def read_settings(path: Path) -> dict[str, Any]:
    """Return every setting of the run that `path` names.

    Raises: UsageError when it is no run, or its settings cannot be read or name no data set.
    """
    file = run_of(path).config
    settings = asdict(TrainConfig()) | read_yaml(file, follow=False)
    if not settings["env"]:
        raise UsageError(f"{file} names no env; restore the file, or train again with gtp-fast train")
    return settings


@dataclass(frozen=True)
class SavedPolicy:
    """A policy as it was read and verified: its checkpoint, tensors and description.

    notes: why newer checkpoints were passed over.
    """

    path: Path
    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def steps(self) -> dict[int, int]:
        """The step of each seed's member: those of ckpt/best had their best scores at different steps."""
        seeds = self.meta["policy"]["seeds"]
        return dict(zip(seeds, self.meta.get("steps", [self.meta["step"]] * len(seeds)), strict=True))


def find_policy(path: Path, best: bool = False) -> SavedPolicy:
    """Read the policy of a checkpoint, or of a run: of its newest valid checkpoint, or its best.

    A checkpoint whose training state is damaged is not valid either. Each file is read once.
    Raises: CheckpointError when there is no usable checkpoint.
    """
    from gtp_fast.runs import checkpoint  # loads torch: a sweep reads runs that have no checkpoint yet

    def read(place: Path) -> tuple[Path, dict[str, bytes]]:
        files = checkpoint.verified(place)
        checkpoint.load(place, files)
        return place, files

    run, best_path = RunDir(path), RunDir(path).checkpoints / checkpoint.BEST
    if (path / checkpoint.MANIFEST).is_file():
        return SavedPolicy(path, *checkpoint.load_policy(path))
    if not run.checkpoints.is_dir() and not run.config.is_file():
        raise CheckpointError(f"{path} is neither a run directory nor a checkpoint; train one with gtp-fast train")
    if best:
        if not best_path.is_dir():
            raise CheckpointError(f"{path} has no best policy, because it was never evaluated; leave out --best")
        return SavedPolicy(best_path, *checkpoint.load_policy(best_path))
    newest, refused = checkpoint.load_newest(run, read)
    if newest is None:
        raise CheckpointError(f"{path} has no checkpoint yet; wait for the first, or train longer")
    notes = tuple(f"passed over a damaged checkpoint: {reason}" for reason in refused)
    return SavedPolicy(newest[0], *checkpoint.load_policy(*newest), notes)


def finished(run: RunDir, last: int) -> bool:
    """Return whether the last step's checkpoint is whole, and each evaluation it was waiting for is made or marked."""
    if not run.checkpoints.is_dir():
        return False
    from gtp_fast.runs import checkpoint

    try:
        pending = checkpoint.load(run.checkpoint(last)).pending_evals if last in checkpoint.steps(run) else None
    except CheckpointError:
        return False
    return pending is not None and all(run.evaluation(step).exists() for step in pending)


def read_failure(run: RunDir) -> str | None:
    """Return where a run diverged, in words; None where it did not."""
    try:
        failure = read_json(run.failure)
        return f"diverged at step {failure['step']:,} ({failure['quantity']} of seed {failure['seed']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "diverged" if run.failure.exists() else None


@dataclass(frozen=True)
class Progress:
    """How far a run is: its last logged step and speed, and the mean figure of its last evaluation."""

    step: int = 0
    steps_per_second: float | None = None
    figure: float | None = None


def read_progress(run: RunDir) -> Progress:
    """Return how far a run is, from its log and its last evaluation. A damaged line or file says nothing."""
    logged = _LOGGED.findall(_tail(run.log))
    step, speed = (int(logged[-1][0].replace(",", "")), float(logged[-1][1])) if logged else (0, None)
    return Progress(step, speed, _last_figure(run))


def read_speeds(run: RunDir) -> list[float]:
    """Return the train steps a second of every log interval, without those too slow for a figure."""
    return [speed for _, speed in _intervals(run) if speed > 0]


def read_seconds(run: RunDir) -> float:
    """Return the seconds that a run's train steps took in all its parts, from the speeds in its log."""
    seconds, before = 0.0, 0
    for step, speed in _intervals(run):
        seconds += (step - before) / speed if speed > 0 else 0.0
        before = step
    return seconds


def _intervals(run: RunDir) -> Iterator[tuple[int, float]]:
    """Yield the step and the steps a second of every interval in train.log."""
    for line in read_lines(run.log) if run.log.exists() else ():
        for digits, speed in _LOGGED.findall(line.decode(errors="replace")):
            yield int(digits.replace(",", "")), float(speed)


def _tail(path: Path) -> str:
    """Return the whole lines among a file's last bytes."""
    try:
        with open_file(path) as file:
            skipped = max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES)
            file.seek(skipped)
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return text[text.find("\n") + 1 if skipped else 0 : text.rfind("\n") + 1]


def _last_figure(run: RunDir) -> float | None:
    """Return the mean score of the last evaluation that did not fail, or its mean return where no score is known."""
    try:
        for file in sorted(run.evaluations.glob("step-*.json"), reverse=True):
            found = read_json(file)
            if not _why_absent(found):
                episodes = [float(x) for row in found["scores"] or found["returns"] for x in row]
                return sum(episodes) / len(episodes)
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError):
        pass
    return None


FAILED, DROPPED = "failed", "dropped"  # keys of the mark that stands in the place of an evaluation without a result


def _why_absent(values: Any) -> str | None:
    """Return why an evaluation's file holds no result: it failed, or was dropped; None for a result."""
    marks = [values[name] for name in (FAILED, DROPPED) if isinstance(values, dict) and name in values]
    if marks and not isinstance(marks[0], str):
        raise ValueError(f"the reason is {shown(marks[0])}")
    return marks[0] if marks else None


def read_absent(run: RunDir) -> tuple[dict[int, str], int]:
    """Return by step why evaluations have no result, and how many of them failed; the others were dropped.

    A damaged file says nothing: `read_evaluations` names it.
    """
    reasons, failed = {}, 0
    for file in sorted(run.evaluations.glob("step-*.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            values = read_json(file)
            if reason := _why_absent(values):
                reasons[operator.index(values["step"])] = reason
                failed += FAILED in values
    return reasons, failed


def read_evaluations(run: RunDir, members: int | None = None) -> list[EvalResult]:
    """Return the evaluations of a run in the order of their steps, without those that failed.

    Args: members, for a report: each evaluation must be of so many seeds and have figures to draw.
    Raises: GtpError naming a file that is damaged; in a report it is a UsageError.
    """
    refusal, remedy = (GtpError, "remove it and evaluate again") if members is None else (UsageError, LEFT_OUT)
    results = []
    for file in sorted(run.evaluations.glob("step-*.json")):
        try:
            values = read_json(file)
            if _why_absent(values):
                continue
            result = EvalResult.from_json(values)
            if members is not None:
                result.check(members)
        except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise refusal(f"{file} is not an evaluation ({error!r}); {remedy}") from None
        results.append(result)
    return results


@dataclass(frozen=True)
class Run:
    """What a report reads of one run; arrays by step, figures (steps, members).

    absent: by step, why an evaluation has no result.
    """

    path: Path
    settings: dict[str, Any]
    environment: dict[str, Any]
    eval_steps: np.ndarray
    figures: np.ndarray
    returns: np.ndarray
    scored: bool
    losses: dict[str, np.ndarray]
    absent: dict[int, str] = field(default_factory=dict)


def read_run(path: Path) -> Run:
    """Read a run directory, finished or not. Raises: UsageError when it is none, or naming a file that is damaged."""
    run, settings = RunDir(path), read_settings(path)
    try:
        validate(TrainConfig(**settings))
    except UsageError as error:
        raise UsageError(f"{run.config}: {error}; restore the file") from None
    shape = -1, settings["seeds"]
    evals = read_evaluations(run, settings["seeds"])
    scored = bool(evals) and all(one.scores_SE is not None for one in evals)
    returns = np.array([one.returns_SE.mean(axis=1) for one in evals]).reshape(shape)
    return Run(
        path=path,
        settings=settings,
        environment=read_environment(run),
        eval_steps=np.array([one.step for one in evals], dtype=np.int64),
        figures=np.array([one.figures for one in evals]).reshape(shape) if scored else returns,
        returns=returns,
        scored=scored,
        losses=_losses(run.metrics),
        absent=read_absent(run)[0],
    )


def members_apart(run: Run) -> list[Run]:
    """Return one run for each member where they differ by --etas or --lrs: they are not seeds of each other."""
    s = run.settings
    swept = [name for name in ("eta", "lr") if s.get(f"{name}s") is not None]
    if not swept:
        return [run]
    values = {name: [float(value) for value in s[f"{name}s"].split(",")] for name in swept}
    return [
        replace(
            run,
            settings=s
            | {"seed": s["seed"] + i, "seeds": 1}
            | {f"{name}s": None for name in swept}
            | {name: values[name][i] for name in swept},
            figures=run.figures[:, i : i + 1],
            returns=run.returns[:, i : i + 1],
        )
        for i in range(s["seeds"])
    ]


def read_environment(run: RunDir, remedy: str = LEFT_OUT) -> dict[str, Any]:
    """Return environment.json: the data and the machine of the run; nothing where a kill came before it was written.

    Raises: UsageError where it is damaged, or has a value that no run writes.
    """
    file = run.environment
    if not file.exists():
        return {}
    try:
        values = dict(read_json(file))
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"{file} cannot be read ({error}); {remedy}") from None
    kinds = {"data_sha256": str, "data_source": str, "data_return_mean": (int, float), "references": list}
    wrong = [n for n, kind in kinds.items() if values.get(n) is not None and not isinstance(values[n], kind)]
    pair = values.get("references")
    if not wrong and pair is not None and not (len(pair) == 2 and all(isinstance(x, (int, float)) for x in pair)):
        wrong = ["references"]
    for name in wrong:
        found = f"{file}: {name} is {shown(values[name])}, which no run of these settings writes"
        raise UsageError(f"{found}; restore the file, or remove it to leave it out")
    return values


def _losses(path: Path) -> dict[str, np.ndarray]:
    """Return step and the mean over members of each metric; a last line that was cut off is left out."""
    rows: list[dict[str, Any]] = []
    damaged = 0  # the line that cannot be read, counted from 1
    for number, line in enumerate(read_lines(path) if path.exists() else (), start=1):
        if damaged:
            raise UsageError(
                f"{path}:{damaged} is no line of metrics; restore the file, or remove it to leave it out"
            ) from None
        try:
            rows.append(_loss(parse_json(line), rows[0] if rows else None))
        except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError):
            damaged = number
    return {name: np.array([row[name] for row in rows]) for name in (rows[0] if rows else ())}


def _loss(row: dict[str, Any], first: dict[str, Any] | None) -> dict[str, Any]:
    found = {"step": np.int64(row.pop("step"))}
    found |= {name: sum(map(float, values)) / len(values) for name, values in row.items()}
    if first is not None and found.keys() != first.keys():
        raise KeyError(*found)
    return found
