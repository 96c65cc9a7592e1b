"""What a report reads of run directories, finished or not."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gtp_fast.config import TrainConfig, shown, validate
from gtp_fast.errors import UsageError
from gtp_fast.presets import read_settings
from gtp_fast.runs.directory import RunDir

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
