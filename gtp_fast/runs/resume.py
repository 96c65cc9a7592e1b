"""Where a run writes and from which checkpoint it starts.

`finished_run` finds a run that needs nothing more, `open_run` chooses and locks the run directory, `starting_point`
finds the newest valid checkpoint, `describe` writes config.yaml and environment.json. A killed run never restarts from
zero in silence (docs/reliability.md, promise 1).
"""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gtp_fast.config import RUN_ONLY_FIELDS, TrainConfig, hash6
from gtp_fast.data.dataset import Transitions
from gtp_fast.device import processor
from gtp_fast.errors import BusyError, CheckpointError, UsageError
from gtp_fast.files import publish, publish_json, read_json
from gtp_fast.locks import holder, locked
from gtp_fast.presets import dump_yaml, read_yaml, settings_file
from gtp_fast.runs import checkpoint, extend
from gtp_fast.runs.directory import RunDir, new_run_path
from gtp_fast.runs.disk import disk_errors
from gtp_fast.runs.records import finished, read_environment
from gtp_fast.version import __version__

RUNS = Path("runs")
POLL_SECONDS = 0.5  # between looks at a run that another process trains
TURN_SECONDS = 0.05  # between tries to choose a run, while another process chooses
FORMER_STABLE = {"ema_every": 1, "ema_decay": 0.995}  # the EMA of the preset `stable` until 2026-11-27


@dataclass(frozen=True)
class Start:
    """Where a run starts: its checkpoint or None, the best policy so far, and notes for the user."""

    checkpoint: checkpoint.Checkpoint | None
    best: dict[str, Any]
    notes: tuple[str, ...]
    goes_back: bool = False  # to a named checkpoint that is not the last one
    extends: bool = False  # a run of fewer steps


@dataclass(frozen=True)
class Opened:
    """A run that a command has: its directory, its settings, whether it is finished already, and notes for the user.

    Where the settings leave the backend open, an existing run's is the one that it began with.
    """

    run: RunDir
    cfg: TrainConfig
    finished: bool
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Command:
    """What decides which run a command has: its settings, their data, and the settings by number of steps.

    `begun` resolves `auto` for a run that began with so many steps, as the backend on a CPU depends on them.
    """

    cfg: TrainConfig
    data: Transitions
    begun: Callable[[int], TrainConfig] | None = None

    def at(self, former: tuple[int, ...]) -> TrainConfig:
        """Return the settings with which this command continues a run that has had these numbers of steps."""
        if self.begun is None or not former:
            return self.cfg
        return replace(self.begun(former[0]), steps=self.cfg.steps)


def finished_run(command: Command) -> Opened | None:
    """Return the command's run where it is finished and nobody holds it: there is nothing to do. It writes nothing."""
    path = _named(command.cfg)
    if path is None and command.cfg.resume == "auto":
        path = _find(command)
    if path is None:
        return None
    run = RunDir(path)
    with disk_errors(path):
        return _settled(run, command)


@contextmanager
def open_run(command: Command, say: Callable[[str], None] = lambda line: None) -> Iterator[Opened]:
    """Choose the run directory, claim it, and yield it with notes for the user.

    `--resume auto` continues `--run-dir` when it holds a run. Without `--run-dir` it continues a run of the same
    settings, or else of fewer steps; while another process trains that run, it waits for it, and says so once.
    `never` takes a new directory; a path continues that run. A finished run is yielded without claiming it.
    Raises: UsageError for a run of other settings; BusyError when another process holds the directory that was named.
    """
    path = _named(command.cfg)
    with ExitStack() as claims:
        if path is None:
            yield _first_free(command, claims, say)
            return
        run = RunDir(path)
        claims.enter_context(disk_errors(path))
        done = _settled(run, command)
        if done is None:
            claims.enter_context(run.claim())
        yield done or _opened(run, command)


def _named(cfg: TrainConfig) -> Path | None:
    """Return the directory that --run-dir or --resume names, None where neither does."""
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
    return path


def _settled(run: RunDir, command: Command) -> Opened | None:
    """Return the run where it is finished, nobody holds it, and no kill left anything to clear. It writes nothing."""
    if holder(run.lock) or not run.swept() or len(checkpoint.steps(run)) > command.cfg.keep:
        return None
    return _if_finished(run, command)


def _opened(run: RunDir, command: Command) -> Opened:
    """Return a run that this process holds; it may have been finished just before."""
    done = _if_finished(run, command)
    if done is not None:
        checkpoint.prune(run, command.cfg.keep, command.cfg.steps)  # a kill may have come before it
        return done
    cfg = command.at(extend.steps_of(run))
    return Opened(run, cfg, False, _check_same_run(run, cfg, command.data))


def _if_finished(run: RunDir, command: Command) -> Opened | None:
    """Return the run where its last step and evaluations are made, and no earlier checkpoint was named."""
    former, named = extend.steps_of(run), Path(command.cfg.resume)
    if not former or former[-1] != command.cfg.steps or not finished(run, command.cfg.steps):
        return None
    if named.parent.name == "ckpt" and named.name != run.checkpoint(command.cfg.steps).name:
        return None
    cfg, last = command.at(former), run.checkpoint(command.cfg.steps)
    _check_same_run(run, cfg, command.data)
    _check_checkpoint(last, checkpoint.read_meta(last), run, cfg, command.data)
    said = f"{run.path} is finished, with {cfg.steps:,} steps: nothing is left to train"
    return Opened(run, cfg, True, (said, "a larger --steps extends it; for a new run, pass --resume never"))


def _first_free(command: Command, claims: ExitStack, say: Callable[[str], None]) -> Opened:
    """Return the command's run, or a new one, once no other process holds it; `claims` holds it from then on.

    Processes choose one after another: of those that start together one makes the directory, and the others find it.
    """
    folder, told = _folder(command.cfg), False
    while True:
        with disk_errors(folder), _turn(folder):
            path = None if command.cfg.resume == "never" else _find(command)
            opened = _claimed(path, command, claims)
        if opened is not None:
            return opened
        # Until environment.json names its data, nobody knows whether that run is this command's.
        if path is not None and not told and _trained_on(RunDir(path)) and (other := holder(RunDir(path).lock)):
            say(f"waiting for {path}, which {other} trains; for a run of its own, pass --resume never")
            told = True
        time.sleep(POLL_SECONDS)


def _claimed(path: Path | None, command: Command, claims: ExitStack) -> Opened | None:
    """Claim the run at `path`, or a new one; return it, or None where another process holds it."""
    cfg = command.cfg
    run = RunDir(path or new_run_path(RUNS, cfg.env, cfg.algo, cfg.seed, hash6(cfg)))
    if path is not None and (done := _settled(run, command)) is not None:
        return done
    try:
        with disk_errors(run.path):
            claims.enter_context(run.claim())
    except BusyError:
        return None
    claims.enter_context(disk_errors(run.path))
    opened = _opened(run, command)
    return opened if path else replace(opened, notes=(*opened.notes, *_of_former_stable(command)))


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Hold the lock under which processes choose among the runs of a folder; each does so for a moment."""
    with ExitStack() as turn:
        while True:
            try:
                turn.enter_context(locked(folder / ".LOCK", f"the choice among {folder}"))
                break
            except BusyError:
                time.sleep(TURN_SECONDS)
        yield


def _folder(cfg: TrainConfig) -> Path:
    return new_run_path(RUNS, cfg.env, cfg.algo, cfg.seed, hash6(cfg)).parent


def _find(command: Command) -> Path | None:
    """Return the command's run: the newest unfinished one, else the newest finished, else the newest of fewer steps.

    A run that another process holds counts as unfinished.
    """
    runs = list(_runs_of(command))
    same = [run for steps, run in runs if steps == command.cfg.steps]
    for run in same:
        if holder(run.lock) or not finished(run, command.cfg.steps):
            return run.path
    found = same or [run for _, run in runs]
    return found[0].path if found else None


def _runs_of(command: Command) -> Iterator[tuple[int, RunDir]]:
    """Yield the runs of the command's settings and data, and their numbers of steps, at most its own; newest first.

    A run's name has the hash of the settings that it began with.
    """
    cfg = command.cfg
    for path in sorted(_folder(cfg).glob(f"{cfg.algo}-s{cfg.seed}-*"), reverse=True):
        run = RunDir(path)
        former = extend.steps_of(run) or (cfg.steps,)
        began = replace(command.at(former), steps=former[0])
        if former[-1] > cfg.steps or not path.name.endswith(f"-{hash6(began)}"):
            continue
        if _trained_on(run).get("data_sha256", command.data.sha256) == command.data.sha256:
            yield former[-1], run


def _of_former_stable(command: Command) -> tuple[str, ...]:
    """Return a note about an unfinished run that an earlier version began with the same command."""
    cfg = command.cfg
    if (cfg.algo, cfg.preset, cfg.resume) != ("gtp", "stable", "auto"):
        return ()
    runs = _runs_of(Command(replace(cfg, **FORMER_STABLE), command.data))
    path = next((run.path for steps, run in runs if steps == cfg.steps and not finished(run, steps)), None)
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
    if not run.config.exists():
        return ()
    saved = read_yaml(run.config, follow=False)
    names = [field.name for field in fields(TrainConfig) if field.name not in RUN_ONLY_FIELDS]
    other = [name for name in names if name in saved and saved[name] != getattr(cfg, name)]
    if other == ["steps"] and saved["steps"] < cfg.steps:
        other = []  # the run is extended
    if other == ["steps"]:
        raise UsageError(
            f"{run.path} is a run of {saved['steps']:,} steps, more than --steps {cfg.steps}; a run can be extended, "
            f"not shortened: pass --steps {saved['steps']}, or another --run-dir for a run of {cfg.steps:,}"
        )
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


def _check_checkpoint(path: Path, meta: dict[str, Any], run: RunDir, cfg: TrainConfig, data: Transitions) -> None:
    """Refuse a checkpoint of other data or other settings; those of the run's former numbers of steps are its own."""
    if meta.get("data_sha256") != data.sha256:
        raise CheckpointError(
            f"{path} was trained on other data than {data.source}; pass its data set, or another --run-dir"
        )
    own = [hash6(replace(cfg, steps=steps)) for steps in (cfg.steps, *extend.steps_of(run))]
    if meta.get("settings", own[0]) not in own:
        raise CheckpointError(
            f"{path} is of a run with other settings than {run.path}; remove it, or name its own run with --resume"
        )


def starting_point(run: RunDir, cfg: TrainConfig, data: Transitions) -> Start:
    """Find the newest valid checkpoint and the best policy of a run.

    Raises: CheckpointError when a run has checkpoints but none of them is usable.
    """
    wanted, later, former = Path(cfg.resume), [], extend.steps_of(run)
    if cfg.resume not in ("auto", "never") and wanted.parent.name == "ckpt":
        newest, refused = checkpoint.load(wanted), []
        later = [step for step in checkpoint.steps(run) if step > newest.step]
    else:
        newest, refused = checkpoint.load_newest(run)
    notes = [f"passed over a damaged checkpoint: {reason}" for reason in refused]
    if newest is not None:
        notes.append(f"continuing from {newest.path}")
        _check_checkpoint(newest.path, newest.meta, run, cfg, data)
        checkpoint.prune(run, cfg.keep, newest.step)  # a kill may have come before it
    if later:
        notes.append(f"removing later checkpoints, of steps {', '.join(f'{step:,}' for step in later)}")
    extends = bool(former) and former[-1] < cfg.steps
    if extends:
        notes += extend.notes(run, cfg, former[-1], newest.step if newest else 0)
    best: dict[str, Any] = {}
    if (run.checkpoints / checkpoint.BEST).exists():  # even before the first checkpoint
        try:
            tensors, meta = checkpoint.load_policy(run.checkpoints / checkpoint.BEST)
            best = {"tensors": tensors, "figures": meta["figures"], "steps": meta["steps"]}
        except (CheckpointError, KeyError) as error:
            notes.append(f"the best policy so far cannot be read; the search for the best starts again: {error}")
    return Start(newest, best, tuple(notes), bool(later), extends)


def describe(run: RunDir, cfg: TrainConfig, data: Transitions) -> None:
    """Write config.yaml and environment.json where they are missing: they describe the run's first part.

    Of a run that is extended, config.yaml gets the new number of steps and environment.json the former ones.
    """
    if not run.config.exists():
        publish_json(run.environment, _environment(cfg, data))
        publish(run.config, dump_yaml(cfg).encode())
        return
    former = extend.steps_of(run)
    if former and former[-1] < cfg.steps:
        # In this order: a kill between the writes leaves a run of its former number of steps.
        environment = _trained_on(run) or _environment(cfg, data)
        publish_json(run.environment, environment | {extend.FORMER: list(former)})
        settings: dict[str, Any] = read_yaml(run.config, follow=False) | {"steps": cfg.steps}
        publish(run.config, dump_yaml(TrainConfig(**settings)).encode())


def _environment(cfg: TrainConfig, data: Transitions) -> dict[str, Any]:
    """Return what environment.json holds: the machine, the versions and the data of the run's first part."""
    return {
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


def describe_policy(run: RunDir, policy: dict[str, Any]) -> None:
    """Write policy.json: what acting needs beside the parameters.

    Raises: UsageError where the run's first part had actions of other bounds, by its data or its environment.
    """
    file, names = run.path / "policy.json", ("action_units", "action_low", "action_high")
    with suppress(OSError, ValueError, KeyError, TypeError):  # absent, or damaged: it is only a description
        saved = read_json(file)
        changed = [name for name in names if saved[name] != policy[name]]
        if changed:
            seen = ", ".join(f"{name} {saved[name]} there, {policy[name]} here" for name in changed)
            raise UsageError(
                f"{run.path} acts in other units ({seen}); restore the environment, or choose another --run-dir"
            )
    publish_json(file, policy)


def _commit() -> str | None:
    """Return the commit of a source checkout; None for an installed package, and where git cannot say it."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    except OSError:  # no git in this container
        return None
    return done.stdout.strip() or None
