"""`gtp-fast data check`: everything that would stop training on a data set, and warnings about what would not.

In: a path or a name, and optionally an environment. Out: one dictionary of plain values. The rules are those of
training (`rules`), and data that passes them is also loaded as in training. Nothing is written.
"""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gtp_fast import config
from gtp_fast.data import catalog, dataset, hdf5, rules, units
from gtp_fast.data.rules import AXES, ENDS, FLOATS, Columns, Fault, dataset_warnings, episode_lengths, row_warnings
from gtp_fast.data.spec import DataSpec, Units
from gtp_fast.data.transitions import d4rl_columns
from gtp_fast.data.units import Actions
from gtp_fast.errors import DataError

FILES = (".hdf5", ".h5", ".npz")


@dataclass
class _File:
    """One file: its columns, what it states of its actions, and its faults."""

    where: str
    columns: Columns = field(default_factory=dict)
    stated: Actions = field(default_factory=Actions)
    faults: list[Fault] = field(default_factory=list)

    def sound(self) -> Columns:
        faulty = {key for fault in self.faults for key in fault.key.split(", ") if not fault.clippable}
        return {key: array for key, array in self.columns.items() if key not in faulty}


def check(name_or_path: str | Path, spec: DataSpec | None = None, action_units: Units | None = None) -> dict[str, Any]:
    """Find every fault of a file, of a directory of files or of a named data set, and describe the data.

    Args: spec gives the environment's sizes and bounds to compare with; without it only the layout is checked.
    action_units, as of `dataset.load`.
    Returns: "ready", "verdict", "command", "faults" and "warnings" (each with file, key, rows, values, count, seen,
    remedy, message), and as many entries of `dataset.info` as the data allow.
    Raises: UsageError when it is neither a path nor a name.
    """
    path = Path(name_or_path)
    own = path.exists() or path.suffix in FILES or spec is not None
    if not own:
        named = catalog.resolve(str(name_or_path))
        # the first fault ends it
        found, faults = _loaded({"name": named.name, "source": named.source}, named, None, action_units)
        return _verdict(found, faults, [], f"gtp-fast train --env {named.name}")
    expected = spec or DataSpec(path.name, "file")
    found = {"name": expected.name, "source": str(path)}
    try:
        parts = hdf5.shard_paths(path)
        hdf5.check_together(parts, str(path))
        files = [_read(part, expected) for part in parts]
        known = dataset.known_actions([file.stated for file in files], str(path), expected, action_units)
    except DataError as error:
        return _verdict(found, [_unreadable(path, error)], [], None)
    known = units.decide([file.columns["actions"] for file in files if "actions" in file.columns], known)
    for file in files:
        file.faults += rules.faults(file.columns, expected, known)
    for number, fault in hdf5.shard_faults([file.columns for file in files]):
        files[number].faults.append(fault)
    faults = [_as_dict(fault, file.where) for file in files for fault in file.faults]
    warnings = [_as_dict(warning, file.where) for file in files for warning in row_warnings(file.sound())]
    whole = _joined([file.sound() for file in files])
    found |= _sizes(files[0].columns) | (_statistics(whole) if whole else {})
    if whole:
        warnings += [_as_dict(warning, str(path)) for warning in dataset_warnings(whole)]
    if all(fault.clippable for file in files for fault in file.faults):
        found, refused = _loaded(found, expected, path, action_units, clip_actions=True)
        faults += refused
    fitting = [spec.name] if spec else _fitting(found)
    environment = fitting[0] if fitting else "MODULE:ENVIRONMENT-v0"
    command = f"gtp-fast train --env {environment}{_arguments(spec)} --dataset {path}"
    command += f" --action-units {action_units}" if action_units else ""
    return _verdict(found | {"environments": fitting}, faults, warnings, command)


def _arguments(spec: DataSpec | None) -> str:
    """Return --env-kwargs with the arguments that are not the entry's own, "" without any."""
    if spec is None or spec.eval_env is None or not spec.eval_env.kwargs:
        return ""
    own = catalog.of_run({"env": spec.name}).eval_env
    given = {name: value for name, value in spec.eval_env.kwargs if own is None or (name, value) not in own.kwargs}
    text = config.canonical_arguments(given)
    return f" --env-kwargs {shlex.quote(text)}" if text else ""


def _read(path: Path, spec: DataSpec) -> _File:
    file = _File(str(path))
    if path.is_dir() or path.suffix == ".npz":
        arrays = dataset.read(path, spec)
        file.columns, file.stated = d4rl_columns(arrays), Actions(arrays.action_units, arrays.action_bounds)
        file.columns["timeouts"] &= ~file.columns["terminals"]  # the reader set both, not the file's author
    else:
        file.columns, file.stated = hdf5.read_columns(path, file.faults.append)
    return file


def _loaded(
    found: dict[str, Any], spec: DataSpec, path: Path | None, action_units: Units | None, clip_actions: bool = False
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Load the data as training does and describe them; if that fails, return the refusal as a fault."""
    try:
        data = dataset.load(spec, path, clip_actions, None, action_units)
    except DataError as error:
        return found, [_unreadable(path or spec.name, error)]
    rows = found.get("rows", len(data.reward_N))
    described = {name: value for name, value in dataset.info(data).items() if name not in found or path is None}
    return found | described | {"left_out": rows - len(data.reward_N)}, []


def _joined(parts: list[Columns]) -> Columns:
    """Concatenate the columns that every file has in the same width, if they then have equally many rows."""
    keys = [key for key in parts[0] if key in AXES and all(key in part for part in parts)]
    whole = {
        key: np.concatenate([part[key] for part in parts]) if len(parts) > 1 else parts[0][key]
        for key in keys
        if len({part[key].shape[1:] for part in parts}) == 1
    }
    return {key: array for key, array in whole.items() if len(array) == len(next(iter(whole.values()))) > 0}


def _statistics(columns: Columns) -> dict[str, Any]:
    """Describe the columns without faults."""
    found: dict[str, Any] = {"rows": len(next(iter(columns.values())))}
    for key in FLOATS:
        if key in columns:
            found[f"{key[:-1]}_range"] = [float(columns[key].min()), float(columns[key].max())]
    if set(ENDS) <= set(columns) and len(length := episode_lengths(columns)):
        found["episodes"] = len(length)
        spread = {"min": int(length.min()), "median": float(np.median(length)), "max": int(length.max())}
        found |= {"episode_length": spread, "terminals": int(columns["terminals"].sum())}
        found["rows_after_last_end"] = found["rows"] - int(length.sum())
    return found


def _sizes(columns: Columns) -> dict[str, Any]:
    named = {"obs_dim": columns.get("observations"), "action_dim": columns.get("actions")}
    return {name: array.shape[1] for name, array in named.items() if array is not None and array.ndim == 2}


def _fitting(found: dict[str, Any]) -> list[str]:
    """Return the environments of the data's sizes, newest version first."""
    sizes = found.get("obs_dim"), found.get("action_dim")
    names = sorted(catalog.OWN_DATA_ENVS, key=lambda name: (name[-1] < "5", name))
    known = map(catalog.resolve, (*names, *catalog.POINT_MAZES))
    return [spec.name for spec in known if (spec.obs_dim, spec.action_dim) == sizes]


def _verdict(
    found: dict[str, Any], faults: list[dict[str, Any]], warnings: list[dict[str, Any]], command: str | None
) -> dict[str, Any]:
    count, others = len(faults), found.get("environments", [])[1:]
    if faults:
        said = f"not ready: {count} fault{'s' * (count > 1)}"
    else:
        said = f"ready to train: {found['transitions']:,} transitions, {command}"
        said += f" (or, of the same sizes, {', '.join(others)})" if others else ""
    return {
        "ready": not faults,
        "verdict": said,
        "command": None if faults else command,
        "faults": faults,
        "warnings": warnings,
        **found,
    }


def with_fault(found: dict[str, Any], error: DataError) -> dict[str, Any]:
    """Return what `check` found with a fault more, which only the environment itself shows."""
    own = ("ready", "verdict", "command", "faults", "warnings")
    rest = {name: value for name, value in found.items() if name not in own}
    return _verdict(rest, [*found["faults"], _unreadable(found["source"], error)], found["warnings"], None)


def _as_dict(fault: Fault, where: str) -> dict[str, Any]:
    values = asdict(fault)
    plain = {name: values[name] for name in ("key", "seen", "count")} | {"remedy": fault.remedy_of(where)}
    shown = [value if np.isfinite(value) else str(value) for value in fault.values]  # JSON has no NaN
    return {"file": where, **plain, "rows": list(fault.rows), "values": shown, "message": fault.message(where)}


def _unreadable(where: str | Path, error: DataError) -> dict[str, Any]:
    first, newline, lines = str(error).partition("\n")  # lines of Python hold semicolons, too
    seen, _, remedy = first.rpartition("; ")
    return _as_dict(Fault("", seen, remedy + newline + lines), str(where)) | {"message": str(error)}
