"""Where a run writes and from which checkpoint it starts.

`open_run` chooses and locks the run directory, `starting_point` finds the newest valid checkpoint, `describe` writes
config.yaml and environment.json. A killed run never restarts from zero in silence (docs/reliability.md, promise 1).
"""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gtp_fast.config import RUN_ONLY_FIELDS, TrainConfig, hash6
from gtp_fast.data.dataset import Transitions
from gtp_fast.device import processor
from gtp_fast.errors import CheckpointError, UsageError
from gtp_fast.files import publish, publish_json
from gtp_fast.presets import dump_yaml, read_yaml, settings_file
from gtp_fast.runs import checkpoint
from gtp_fast.runs.directory import RunDir, new_run_path
from gtp_fast.runs.disk import disk_errors
from gtp_fast.runs.records import finished, read_environment
from gtp_fast.version import __version__

RUNS = Path("runs")
FORMER_STABLE = {"ema_every": 1, "ema_decay": 0.995}  # the EMA of the preset `stable` until 2026-11-27


@dataclass(frozen=True)
class Start:
    """Where a run starts: its checkpoint or None, the best policy so far, and notes for the user."""

    checkpoint: checkpoint.Checkpoint | None
    best: dict[str, Any]
    notes: tuple[str, ...]
    goes_back: bool = False  # to a named checkpoint that is not the last one


@contextmanager
def open_run(cfg: TrainConfig, data: Transitions) -> Iterator[tuple[RunDir, tuple[str, ...]]]:
    """Choose the run directory, claim it, and yield it with notes for the user.

    `--resume auto` continues `--run-dir` when it holds a run, else the newest unfinished run with the same settings.
    `never` takes a new directory; a path continues that run.
    Raises: UsageError for a run of other settings; BusyError when another process holds the directory.
    """
    path = Path(cfg.run_dir) if cfg.run_dir else None
    if cfg.resume == "never" and path is not None and path.is_dir() and any(path.iterdir()):
        raise UsageError(f"--resume never: {path} is not empty; choose another --run-dir, or remove it")
    if cfg.resume not in ("auto", "never"):
        file = settings_file(Path(cfg.resume))
        if file is None:
            raise UsageError(f"--resume {cfg.resume} is neither a run directory nor a checkpoint of one")
        named = file.parent
        if path is not None and path.resolve() != named.resolve():
            raise UsageError(f"--resume {named} continues that run, but --run-dir is {path}; leave out --run-dir")
        path = named
    if path is None and cfg.resume == "auto":
        path = _unfinished(cfg, data)
    run = RunDir(path or new_run_path(RUNS, cfg.env, cfg.algo, cfg.seed, hash6(cfg)))
    with disk_errors(run.path), run.claim():
        notes = _check_same_run(run, cfg, data)
        yield run, notes if path else (*notes, *_of_former_stable(cfg, data))


def _unfinished(cfg: TrainConfig, data: Transitions) -> Path | None:
    """Return the newest run of the same settings on the same data that is not finished."""
    folder = new_run_path(RUNS, cfg.env, cfg.algo, cfg.seed, hash6(cfg)).parent
    for path in sorted(folder.glob(f"{cfg.algo}-s{cfg.seed}-*-{hash6(cfg)}"), reverse=True):
        run = RunDir(path)
        if _trained_on(run).get("data_sha256", data.sha256) == data.sha256 and not finished(run, cfg.steps):
            return path
    return None


def _of_former_stable(cfg: TrainConfig, data: Transitions) -> tuple[str, ...]:
    """Return a note about an unfinished run that an earlier version began with the same command."""
    if (cfg.algo, cfg.preset, cfg.resume) != ("gtp", "stable", "auto"):
        return ()
    path = _unfinished(replace(cfg, **FORMER_STABLE), data)
    if path is None:
        return ()
    return (
        f"this run is new: {path} is unfinished, but has the EMA that the preset stable had before (every step, by "
        f"0.995); continue it with --resume {path}",
    )


def _trained_on(run: RunDir) -> dict[str, Any]:
    return read_environment(run, "choose another --run-dir")


def _check_same_run(run: RunDir, cfg: TrainConfig, data: Transitions) -> tuple[str, ...]:
    """Refuse to continue a run with other settings or on other data; return notes for the user."""
    if not (run.path / "config.yaml").exists():
        return ()
    saved = read_yaml(run.path / "config.yaml")
    names = [field.name for field in fields(TrainConfig) if field.name not in RUN_ONLY_FIELDS]
    other = [name for name in names if name in saved and saved[name] != getattr(cfg, name)]
    if other:
        changes = ", ".join(f"--{n.replace('_', '-')} {saved[n]} there, {getattr(cfg, n)} here" for n in other)
        raise UsageError(f"{run.path} is a run with other settings ({changes}); use its settings or another --run-dir")
    there = _trained_on(run)
    if there:
        if there.get("data_sha256") != data.sha256:
            raise UsageError(f"{run.path} was trained on other data than {data.source}; choose another --run-dir")
        if there.get("threads") != cfg.threads or there.get("torch") != torch.__version__:
            return ("threads or torch differ from the run's first part: results may not be equal bit for bit",)
    return ()


def starting_point(run: RunDir, cfg: TrainConfig, data: Transitions) -> Start:
    """Find the newest valid checkpoint and the best policy of a run.

    Raises: CheckpointError when a run has checkpoints but none of them is usable.
    """
    wanted, later = Path(cfg.resume), []
    if cfg.resume not in ("auto", "never") and wanted.parent.name == "ckpt":
        newest, refused = checkpoint.load(wanted), []
        later = [step for step in checkpoint.steps(run) if step > newest.step]
    else:
        newest, refused = checkpoint.load_newest(run)
    notes = [f"passed over a damaged checkpoint: {reason}" for reason in refused]
    if newest is not None:
        notes.append(f"continuing from {newest.path}")
        if newest.meta.get("data_sha256") != data.sha256:
            raise CheckpointError(
                f"{newest.path} was trained on other data than {data.source}; pass its data set, or another --run-dir"
            )
        if newest.meta.get("settings", hash6(cfg)) != hash6(cfg):
            raise CheckpointError(
                f"{newest.path} is of a run with other settings than {run.path}; remove it, or name its own run with "
                "--resume"
            )
        checkpoint.prune(run, cfg.keep, newest.step)  # a kill may have come before it
    if later:
        notes.append(f"removing later checkpoints, of steps {', '.join(f'{step:,}' for step in later)}")
    best: dict[str, Any] = {}
    if (run.checkpoints / checkpoint.BEST).exists():  # even before the first checkpoint
        try:
            tensors, meta = checkpoint.load_policy(run.checkpoints / checkpoint.BEST)
            best = {"tensors": tensors, "figures": meta["figures"], "steps": meta["steps"]}
        except (CheckpointError, KeyError) as error:
            notes.append(f"the best policy so far cannot be read; the search for the best starts again: {error}")
    return Start(newest, best, tuple(notes), bool(later))


def describe(run: RunDir, cfg: TrainConfig, data: Transitions) -> None:
    """Write config.yaml and environment.json where they are missing: they describe the run's first part."""
    if not (run.path / "config.yaml").exists():
        environment = {
            "gtp_fast": __version__,
            "commit": _commit(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "platform": platform.platform(),
            "cpu": processor(),
            "gpu": torch.cuda.get_device_name() if cfg.device == "cuda" else None,
            "threads": cfg.threads,
            "data_source": data.source,
            "data_sha256": data.sha256,
            "data_return_mean": data.return_mean,
            "data_return_std": data.return_std,
            "transitions": len(data.reward_N),
            "references": data.references,
        }
        publish_json(run.path / "environment.json", environment)
        publish(run.path / "config.yaml", dump_yaml(cfg).encode())


def describe_policy(run: RunDir, policy: dict[str, Any]) -> None:
    """Write policy.json: what acting needs beside the parameters.

    Raises: UsageError where the run's first part had actions of other bounds, by its data or its environment.
    """
    file, names = run.path / "policy.json", ("action_units", "action_low", "action_high")
    with suppress(OSError, ValueError):  # absent, or damaged: it is only a description
        saved = json.loads(file.read_bytes())
        changed = [name for name in names if saved[name] != policy[name]]
        if changed:
            seen = ", ".join(f"{name} {saved[name]} there, {policy[name]} here" for name in changed)
            raise UsageError(
                f"{run.path} acts in other units ({seen}); restore the environment, or choose another --run-dir"
            )
    publish_json(file, policy)


def _commit() -> str | None:
    """Return the commit of a source checkout; None for an installed package."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
