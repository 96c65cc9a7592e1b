"""From a sweep's flags and YAML file to its trials: every combination is validated before any of them starts.

A directory is named by the run's settings: the same sweep finds its runs again, and a larger sweep those of a smaller
one. Seeds are members of one process. They are spread over several where jobs would have nothing to do, but a sweep
that has begun keeps its split.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gtp_fast.config import TrainConfig, check_range, hash6, member_seeds, shown, validate
from gtp_fast.data.catalog import run_settings
from gtp_fast.data.trust import module_of, refuse_imports
from gtp_fast.device import cores
from gtp_fast.errors import UsageError
from gtp_fast.experiments.trials import Outcome, Trial, outcome_of
from gtp_fast.files import file_name
from gtp_fast.locks import holder
from gtp_fast.presets import read_mapping, setting
from gtp_fast.runs.directory import RunDir

KEYS = {"envs": list, "seeds": int, "seeds_per_trial": int, "grid": dict, "set": dict}
# Settings that a sweep decides itself, and what to write instead.
DECIDED = {
    "env": "name data sets with --env (envs in a file)",
    "seeds": "their number is --seeds",
    "run_dir": "the folder of all runs is --out",
    "resume": "every trial continues its own run",
}
Pairs = Iterable[tuple[Any, Any]]  # of a setting and its value
SEED = "give --seeds N, and --set seed=FIRST for another first one"


@dataclass(frozen=True)
class SweepConfig:
    """The flags of a sweep. `grid` holds the values of each setting that is varied, `set` one value for every run.

    jobs: trials at a time, None for 1, or with Ray for as many as there is room for. gpus_per_trial: with Ray, None
    for one each where there are GPUs. allow_import: modules that environments which the file names may import.
    """

    envs: tuple[str, ...]
    seeds: int = 1
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    set: Mapping[str, Any] = field(default_factory=dict)
    seeds_per_trial: int | None = None
    jobs: int | None = None
    ray: bool = False
    gpus_per_trial: float | None = None
    out: Path = Path("runs/sweep")
    allow_import: Sequence[str] = ()


def read(file: Path | None, typed: Mapping[str, Any]) -> SweepConfig:
    """Return the sweep of a file and of flags, which stand above the file.

    Args: typed holds fields of SweepConfig, None for what was not typed; grid and set are words NAME=VALUE.
    Raises: UsageError for unknown keys and settings, with the nearest match, for values of another type, and for a file
    that names a module.
    """
    given: dict[str, Any] = {name: value for name, value in typed.items() if value not in (None, [], ())}
    below = _read_file(file) if file else {}
    grid, fixed = _level(below.pop("grid", {}).items(), below.pop("set", {}).items(), f"{file}, ")
    words = (_words(given.pop(name, ()), f"--{name}") for name in ("grid", "set"))
    own_grid, own_fixed = _level(next(words), next(words), "--")
    if file:
        _refuse_imports(file, below | grid | fixed, given | own_grid | own_fixed)
    grid = {name: values for name, values in grid.items() if name not in own_fixed} | own_grid
    fixed = {name: value for name, value in fixed.items() if name not in own_grid} | own_fixed
    both = below | given
    both["envs"] = tuple(dict.fromkeys(both.get("envs", ())))
    asked = SweepConfig(grid=grid, set=fixed, **both)
    if not asked.envs:
        raise UsageError("a sweep needs data sets: --env hopper-demo-v0 ..., or envs in a YAML file")
    for name in ("seeds", "seeds_per_trial"):
        if getattr(asked, name) is not None:
            check_range("seeds", getattr(asked, name), f"--{name.replace('_', '-')}")
    if asked.jobs is not None and not 1 <= asked.jobs <= 4096:
        raise UsageError(f"--jobs {asked.jobs} is outside [1, 4096]")
    if asked.gpus_per_trial is not None and not asked.ray:
        raise UsageError("--gpus-per-trial is for --ray: without it trials share what GPU they find")
    if asked.gpus_per_trial is not None and not 0 <= asked.gpus_per_trial <= 1:
        raise UsageError(f"--gpus-per-trial {asked.gpus_per_trial} is outside [0, 1]: a trial trains on one GPU")
    return asked


def _refuse_imports(file: Path, below: Mapping[str, Any], typed: Mapping[str, Any]) -> None:
    """Refuse environments and their arguments that the file names, where they would import what nobody typed.

    Args: below, the keys and settings of the file; typed, those of flags.
    """
    allowed = [*typed.get("allow_import", ()), *(module for env in typed.get("envs", ()) for module in module_of(env))]
    for env in () if "envs" in typed else below.get("envs", ()):
        refuse_imports(env, None, file, allowed)
    kwargs = None if "env_kwargs" in typed else below.get("env_kwargs")
    for one in kwargs if isinstance(kwargs, tuple) else (kwargs,):  # a tuple: of the grid
        refuse_imports(None, one, file, allowed)


def _level(grid: Pairs, fixed: Pairs, where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the grid and the fixed settings of the file, or of the flags. Raises: UsageError for one in both."""
    varied = _settings(grid, f"{where}grid", DECIDED | {"seed": SEED}, listed=True)
    same = _settings(fixed, f"{where}set", DECIDED)
    for name in varied.keys() & same.keys():
        raise UsageError(f"{name} stands in {where}grid and in {where}set; leave it out of one of them")
    return varied, same


def read_set(words: Sequence[str], decided: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings of `--set NAME=VALUE` words.

    Args: decided holds the settings that have a flag of their own, and what to write instead.
    Raises: UsageError for those, for what is no setting of train, and for values of another type.
    """
    return _settings(_words(words, "--set"), "--set", decided)


def _words(words: Sequence[str], where: str) -> list[tuple[str, str]]:
    """Return NAME=VALUE words as pairs."""
    pairs = [(name, value) for name, _, value in (word.partition("=") for word in words)]
    for word, (name, value) in zip(words, pairs, strict=True):
        if not name or not value:
            values = "VALUE,VALUE,..." if where == "--grid" else "VALUE"
            raise UsageError(f"{where} {word}: write {where} NAME={values} with a setting of train")
    return pairs


def _settings(pairs: Pairs, where: str, decided: Mapping[str, str], listed: bool = False) -> dict[str, Any]:
    """Return settings of train under their own names; where listed, a tuple of values each, none of them twice."""
    found: dict[str, Any] = {}
    for typed, value in pairs:
        several = [value]
        if listed and isinstance(value, (str, list)):
            several = value.split(",") if isinstance(value, str) else value
        if not several:
            raise UsageError(f"{where}: {shown(typed)} has no values; list some, or leave it out")
        named = [setting(typed, one, where) for one in several]
        name = named[0][0]
        if name in decided:
            raise UsageError(f"{where}: {name} cannot be set here; {decided[name]}")
        if name in found:
            raise UsageError(f"{where}: {name} stands twice; write it once")
        found[name] = tuple(dict.fromkeys(one for _, one in named)) if listed else named[0][1]
    return found


def _read_file(path: Path) -> dict[str, Any]:
    """Return the keys of a sweep's file, each of its kind."""
    if not path.is_file():
        raise UsageError(f"{path} does not exist; name a YAML file with envs, seeds, grid and set")
    values, lines = read_mapping(path)
    for name, value in values.items():
        place = f"{path}:{lines.get(name, 1)}"
        if name not in KEYS:
            near = difflib.get_close_matches(str(name), KEYS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"a sweep has {', '.join(KEYS)}"
            raise UsageError(f"{place}: no key is called {shown(name)}; {hint}")
        if name == "envs" and isinstance(value, str):
            values[name] = value = [value]
        if not isinstance(value, KEYS[name]) or isinstance(value, bool):
            kinds = {list: "a list of names", int: "a whole number", dict: "lines of the form 'setting: value'"}
            raise UsageError(f"{place}: {name} is {shown(value)}, expected {kinds[KEYS[name]]}")
        if name == "envs" and not all(isinstance(one, str) for one in value):
            raise UsageError(f"{place}: envs is {shown(value)}, expected a list of names")
    return values


NAME_LENGTH = 120  # of a directory, before its digits; file systems end at 255


@dataclass(frozen=True)
class Planned:
    """One trial: its settings, its values of the grid, and how its directory stands before the sweep."""

    trial: Trial
    cfg: TrainConfig
    point: dict[str, Any]
    before: Outcome | None
    state: str


@dataclass(frozen=True)
class Plan:
    """The trials in order, how many run at once, and how many seeds a process trains."""

    asked: SweepConfig
    trials: list[Planned]
    jobs: int
    seeds_per_trial: int
    same: int  # combinations that mean the same run as another: eta under --bc


def points(asked: SweepConfig) -> list[tuple[dict[str, Any], TrainConfig]]:
    """Return every combination as typed settings and as merged ones, with all seeds; those that mean the same once.

    Raises: UsageError for a combination that cannot be run.
    """
    found: dict[str, tuple[dict[str, Any], TrainConfig]] = {}
    for env in asked.envs:
        for values in itertools.product(*asked.grid.values()):
            point = dict(zip(asked.grid, values, strict=True))
            settings = {"env": env, **asked.set, **point, "seeds": asked.seeds}
            try:
                cfg = run_settings(settings)
            except UsageError as error:
                words = [env, *(f"{name}={_text(value)}" for name, value in point.items())]
                raise UsageError(f"{' '.join(words)}: {error}" if point else str(error)) from None
            found.setdefault(repr(cfg), (settings, cfg))
    return list(found.values())


def plan(asked: SweepConfig, jobs: int) -> Plan:
    """Return the trials of a sweep that runs `jobs` at a time. Raises: UsageError as `points` does."""
    settings = points(asked)
    size = _seeds_per_trial(asked, [cfg for _, cfg in settings], jobs)
    parts = [(typed, part) for typed, cfg in settings for part in _parts(cfg, size)]
    jobs = max(1, min(jobs, len(parts)))
    threads = {"threads": max(1, cores() // jobs)} if jobs > 1 else {}
    trials = [
        _planned(asked, threads | typed | {"seed": part.seed, "seeds": part.seeds}, validate(part))
        for typed, part in parts
    ]
    combinations = len(asked.envs) * math.prod(map(len, asked.grid.values()))
    return Plan(asked, trials, jobs, size, combinations - len(settings))


def _planned(asked: SweepConfig, settings: dict[str, Any], cfg: TrainConfig) -> Planned:
    point = {name: getattr(cfg, name) for name in asked.grid}
    path = _path(asked, cfg)
    shown = [f"{name}={_text(value)}" for name, value in point.items()]
    seeds = f"seed {cfg.seed}" + (f"-{cfg.seed + cfg.seeds - 1}" if cfg.seeds > 1 else "")
    trial = Trial(" ".join([cfg.env, *shown, seeds]), settings, path, cfg.steps)
    before = outcome_of(trial)
    if before is not None:
        state = before.state
    else:
        state = "held" if holder(trial.run.lock) else "begun" if trial.run.checkpoints.is_dir() else "new"
    return Planned(trial, cfg, point, before, state)


def _path(asked: SweepConfig, cfg: TrainConfig) -> Path:
    """Name a run's directory by its values of the grid and its seeds; the digits hash every setting of its result.

    They also hash the grid's other settings (--grid log_every=...) and the data file, so that these runs lie apart.
    """
    point = sorted((name, getattr(cfg, name)) for name in asked.grid)
    digits = hashlib.sha256(repr((hash6(cfg), cfg.dataset, point)).encode()).hexdigest()[:8]
    parts = [cfg.algo, *(f"{name}-{_text(value)}" for name, value in point if name != "algo")]
    name = f"{file_name('-'.join(parts))[:NAME_LENGTH]}-s{cfg.seed}x{cfg.seeds}-{digits}"
    return asked.out / file_name(cfg.env) / name


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def _seeds_per_trial(asked: SweepConfig, configs: Sequence[TrainConfig], jobs: int) -> int:
    """Return how many seeds a process trains: all, unless there are more jobs than combinations."""
    if asked.seeds_per_trial is not None:
        return min(asked.seeds_per_trial, asked.seeds)
    if any(cfg.etas is not None or cfg.lrs is not None for cfg in configs):
        return asked.seeds  # --etas and --lrs have one value for each member of a run
    usual = math.ceil(asked.seeds / min(asked.seeds, math.ceil(jobs / len(configs))))
    if not asked.out.is_dir():
        return usual
    sizes = {math.ceil(asked.seeds / parts) for parts in range(1, asked.seeds + 1)}

    def begun(size: int) -> int:
        """Return how many seeds have a directory if a process trains `size` of them."""
        parts = [part for cfg in configs for part in _parts(cfg, size)]
        return sum(part.seeds for part in parts if RunDir(_path(asked, part)).checkpoints.is_dir())

    return max(sorted(sizes), key=lambda size: (begun(size), size == usual))


def _parts(cfg: TrainConfig, size: int) -> list[TrainConfig]:
    """Return the settings of processes that train up to `size` of a combination's seeds each."""
    firsts = range(0, cfg.seeds, size)
    return [replace(cfg, seed=cfg.seed + first, seeds=min(size, cfg.seeds - first)) for first in firsts]


def rows(planned: Plan) -> list[dict[str, Any]]:
    """Return the trials as sweep.json holds them before they run."""
    return [
        {
            "name": one.trial.name,
            "env": one.cfg.env,
            "settings": one.point,
            "seeds": member_seeds(one.cfg),
            "steps": one.cfg.steps,
            "run": str(one.trial.path),
            "state": one.state,
        }
        for one in planned.trials
    ]


def text(planned: Plan) -> str:
    """Return the plan for people, printed before anything runs."""
    asked, trials = planned.asked, planned.trials
    varied = [f"{name} in {', '.join(map(_text, values))}" for name, values in asked.grid.items()]
    width = max(len(one.trial.name) for one in trials)
    lines = [f"sweep  {' x '.join([_count(len(asked.envs), 'data set'), *varied, _count(asked.seeds, 'seed')])}"]
    for one in trials:
        lines.append(f"  {one.trial.name:{width}}  {one.cfg.steps:>11,} steps  {one.state:8}  {one.trial.path}")
    states = Counter(one.state for one in trials)
    threads = trials[0].trial.settings.get("threads")
    steps, left = (sum(one.cfg.steps for one in some) for some in (trials, [t for t in trials if t.before is None]))
    before = ", ".join(f"{count} {state}" for state, count in states.items())
    seeds = _count(planned.seeds_per_trial, "seed")
    lines.append(f"{_count(len(trials), 'trial')} ({before}), each of up to {seeds} in one process")
    place = f"{planned.jobs} at a time{' on Ray' if asked.ray else ''}"
    lines.append(f"{place}, {_count(threads, 'thread') if threads else 'all cores'} each")
    lines.append(f"{steps:,} train steps in all, {left:,} of them in trials that are not complete")
    if planned.same:
        lines.append(f"{_count(planned.same, 'combination')} left out: the same run as another that is listed")
    return "\n".join(lines)


def _count(number: int, name: str) -> str:
    return f"{number} {name}" + "s" * (number != 1)
