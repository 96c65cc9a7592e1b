"""What a run came to: its evaluations, read back from their files, and the `Result` that `train` returns.

What a report reads of run directories, finished or not.
"""

from __future__ import annotations

import json
import operator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from gtp_fast.config import TrainConfig, member_seeds, shown, validate
from gtp_fast.errors import GtpError, UsageError
from gtp_fast.presets import read_settings
from gtp_fast.runs.directory import RunDir
from gtp_fast.runs.events import Result


@dataclass(frozen=True)
class EvalResult:
    """What a policy scored: returns and lengths (S, E), scores (S, E) or None where no reference is known.

    `diverged_SE` marks episodes that ended because an observation or reward was not finite, after as many steps as
    `lengths_SE` says; they count with their return up to there. `success_SE` marks those of which a step reported
    success; it is None where the environment reports none.
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

    @property
    def figures(self) -> list[float]:
        """One figure a member, to rank by: the mean score, or the mean return where there is no reference."""
        return np.asarray(self.returns_SE if self.scores_SE is None else self.scores_SE).mean(axis=1).tolist()

    @property
    def notes(self) -> list[str]:
        """What a user should know of these figures: a sentence for each episode that diverged."""
        return [
            f"{self.env_id}, seed {self.seeds[member]}, episode {episode}: an observation or reward was not finite "
            f"after {self.lengths_SE[member, episode]} steps; the episode counts with its return up to there"
            for member, episode in np.argwhere(self.diverged_SE)
        ]

    def to_json(self) -> dict[str, Any]:
        """Return plain values; arrays as nested lists."""
        values = asdict(self)
        for name in ("returns_SE", "lengths_SE", "scores_SE", "diverged_SE", "success_SE"):
            array = values.pop(name)
            values[name[:-3]] = None if array is None else array.tolist()
        return values | {"seeds": list(self.seeds), "episodes": int(self.returns_SE.shape[1])}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> EvalResult:
        """Read `to_json`'s values. Raises: ValueError, KeyError or TypeError for what is none of them."""
        arrays = ("returns", "lengths", "scores", "diverged", "success", "seeds", "episodes")
        values = {"diverged": None, "success": None} | values  # older files lack them
        known = {k: v for k, v in values.items() if k not in arrays}
        known["step"] = operator.index(values["step"])
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
            seeds=seeds,
            **known,
        )


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


LARGEST = 1e100  # of a return or a score: a sum of squares stays within float64


@dataclass(frozen=True)
class Run:
    """What a report reads of one run; arrays by step, figures (steps, members)."""

    path: Path
    settings: dict[str, Any]
    environment: dict[str, Any]
    eval_steps: np.ndarray
    figures: np.ndarray
    returns: np.ndarray
    scored: bool
    losses: dict[str, np.ndarray]


def read_run(path: Path) -> Run:
    """Read a run directory, finished or not. Raises: UsageError when it is none, or naming a file that is damaged."""
    settings = _settings(path)
    run, members = RunDir(path), settings["seeds"]
    files = sorted(run.evaluations.glob("step-*.json"))
    evals = [_read(file, "step", "returns", "scores") for file in files]
    scored = bool(evals) and all(e["scores"] is not None for e in evals)
    of_members = {
        name: np.array([_means(file, name, e[name], members) for file, e in zip(files, evals, strict=True)])
        for name in ("returns", *(["scores"] if scored else []))
    }
    returns = of_members["returns"].reshape(len(evals), members)
    environment = path / "environment.json"
    return Run(
        path=path,
        settings=settings,
        environment=_environment(environment) if environment.exists() else {},
        eval_steps=np.array([_step(file, e["step"]) for file, e in zip(files, evals, strict=True)], dtype=np.int64),
        figures=of_members["scores"] if scored else returns,
        returns=returns,
        scored=scored,
        losses=_losses(run.metrics),
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


def _read(file: Path, *names: str) -> dict[str, Any]:
    """Read a JSON object that has the names. Raises: UsageError naming a file that is damaged."""
    try:
        values = dict(json.loads(file.read_bytes()))
        missing = [name for name in names if name not in values]
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"{file} cannot be read ({error}); restore it, or remove it to leave it out") from None
    if missing:
        raise UsageError(f"{file} lacks {', '.join(missing)}; restore it, or remove it to leave it out")
    return values


def _settings(path: Path) -> dict[str, Any]:
    """Return the settings of a run. Raises: UsageError for those that no run can have."""
    settings = read_settings(path)
    try:
        validate(TrainConfig(**settings))
    except UsageError as error:
        raise UsageError(f"{path / 'config.yaml'}: {error}; restore the file") from None
    return settings


def _environment(file: Path) -> dict[str, Any]:
    """Read what the run was trained on, as far as a report tells it."""
    values = _read(file)
    kinds = {"data_sha256": str, "data_source": str, "data_return_mean": (int, float), "references": list}
    for name, kind in kinds.items():
        if values.get(name) is not None and not isinstance(values[name], kind):
            raise _no_value(file, name, values[name])
    references = values.get("references")
    if references is not None and not (len(references) == 2 and all(isinstance(x, (int, float)) for x in references)):
        raise _no_value(file, "references", references)
    return values


def _step(file: Path, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise _no_value(file, "step", value)
    return value


def _means(file: Path, name: str, value: Any, members: int) -> np.ndarray:
    """Return the mean of each member's episodes, float64 (members,)."""
    try:
        episodes = np.array(value, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        raise _no_value(file, name, value) from None
    if episodes.ndim != 2 or len(episodes) != members or not episodes.size or not np.abs(episodes).max() < LARGEST:
        raise _no_value(file, name, value)
    return episodes.mean(axis=1)


def _no_value(file: Path, name: str, value: Any) -> UsageError:
    return UsageError(
        f"{file}: {name} is {shown(value)}, which no run of these settings writes; restore the file, or remove it to "
        "leave it out"
    )


def _losses(path: Path) -> dict[str, np.ndarray]:
    """Return step and the mean over members of each metric; a last line that was cut off is left out."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(_loss(json.loads(line), rows[0] if rows else None))
        except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError):
            if number == len(lines):
                break
            raise UsageError(
                f"{path}:{number} is no line of metrics; restore the file, or remove it to leave it out"
            ) from None
    return {name: np.array([row[name] for row in rows]) for name in (rows[0] if rows else ())}


def _loss(row: dict[str, Any], first: dict[str, Any] | None) -> dict[str, Any]:
    found = {"step": np.int64(row.pop("step"))}
    found |= {name: sum(map(float, values)) / len(values) for name, values in row.items()}
    if first is not None and found.keys() != first.keys():
        raise KeyError(*found)
    return found
