"""What a sweep asks for: from the words of the command, from a YAML file, or both; flags stand above the file."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gtp_fast.config import check_range, shown
from gtp_fast.errors import UsageError
from gtp_fast.presets import read_mapping, setting

KEYS = {"envs": list, "seeds": int, "seeds_per_trial": int, "grid": dict, "set": dict}
# Settings that a sweep decides itself, and what to write in their place.
DECIDED = {
    "env": "name data sets with --env (envs in a file)",
    "seeds": "their number is --seeds",
    "run_dir": "the folder of all runs is --out",
    "resume": "every trial goes on where it was",
}
SEED = "give --seeds N, and --set seed=FIRST for another first one"


@dataclass(frozen=True)
class SweepConfig:
    """What is asked. `grid` holds the values of each setting that is varied, `set` one value for every run.

    jobs: trials at a time, None for 1, or with Ray for as many as there is room for. gpus_per_trial: with Ray, None
    for one each where there are GPUs.
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


def read(file: Path | None, typed: Mapping[str, Any]) -> SweepConfig:
    """Return what is asked by a file and by flags above it.

    Args: typed holds fields of SweepConfig; its grid and set are sequences of NAME=VALUE words, its None are not typed.
    Raises: UsageError for unknown keys and settings, with the nearest match, and for values of another type.
    """
    given: dict[str, Any] = {name: value for name, value in typed.items() if value not in (None, [], ())}
    below = _read_file(file) if file else {}
    grid, fixed = _level(below.pop("grid", {}), below.pop("set", {}), f"{file}, grid", f"{file}, set")
    words = [_words(given.pop(name, ()), f"--{name}") for name in ("grid", "set")]
    own_grid, own_fixed = _level(words[0], words[1], "--grid", "--set")
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


def _level(
    grid: Mapping[Any, Any], fixed: Mapping[Any, Any], grid_place: str, fixed_place: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the grid and the fixed settings of the file, or of the flags; none stands in both."""
    found = _settings(grid, grid_place, listed=True), _settings(fixed, fixed_place)
    for name in found[0]:
        if name in found[1]:
            raise UsageError(f"{name} stands in {grid_place} and in {fixed_place}; leave it out of one of them")
    return found


def _words(words: Sequence[str], where: str) -> dict[str, str]:
    """Return NAME=VALUE words as a mapping."""
    found: dict[str, str] = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not sign or not name or not value:
            values = "VALUE,VALUE,..." if where == "--grid" else "VALUE"
            raise UsageError(f"{where} {word}: write {where} NAME={values} with a setting of train")
        if name in found:
            raise UsageError(f"{where} {name} stands twice; write it once")
        found[name] = value
    return found


def _settings(values: Mapping[Any, Any], where: str, listed: bool = False) -> dict[str, Any]:
    """Return settings of train under their own names; where listed, a tuple of values each, none of them twice."""
    found: dict[str, Any] = {}
    for typed, value in values.items():
        if not listed:
            name, found_value = setting(typed, value, where)
        else:
            several = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
            if not several:
                raise UsageError(f"{where}: {shown(typed)} has no values; list some, or leave it out")
            named = [setting(typed, one, where) for one in several]
            name, found_value = named[0][0], tuple(dict.fromkeys(one for _, one in named))
        instead = DECIDED | ({"seed": SEED} if listed else {})
        if name in instead:
            raise UsageError(f"{where}: {name} is the sweep's to decide; {instead[name]}")
        if name in found:
            raise UsageError(f"{where}: {name} stands twice; write it once")
        found[name] = found_value
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
