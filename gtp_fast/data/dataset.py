"""Load a data set: find its files, read them, validate them and build transitions.

In: an entry of the catalogue, and the path that replaces its data if the user gave one. Out: `Transitions`, host arrays
in float32, or an error that names file, key, row and remedy. Every change to the data is reported in a note, and no
transition crosses an episode end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from gtp_fast.data import catalog, download, hdf5, minari, ogbench, units
from gtp_fast.data.rules import action_limits
from gtp_fast.data.spec import DataSpec, Units, with_references
from gtp_fast.data.transitions import Arrays, Transitions, build_transitions, split_jumps_, validate
from gtp_fast.data.units import Actions
from gtp_fast.errors import DataError, UsageError

__all__ = ["Transitions", "info", "load"]


def load(
    spec: DataSpec,
    dataset: Path | None = None,
    clip_actions: bool = False,
    progress: download.Progress | None = None,
    action_units: Units | None = None,
) -> Transitions:
    """Read the data of a catalogue entry, or those at `dataset` instead.

    Args: dataset replaces the entry's data: the path of a file, of a directory of shards or of a Minari directory, or a
    Minari id if no such path exists; spec then only names the environment. clip_actions clips actions outside their
    bounds and counts them. progress receives the number of downloaded bytes. action_units are those of the file's
    actions; None: as the file states, or as only one reading fits.
    Raises: DataError with file, key, row and remedy; UsageError when the entry has no data of its own.
    """
    if dataset is None:
        arrays, source = _read_named(spec, progress)
        parts = [arrays]
    else:
        parts, source = _read_path(dataset, spec)
    known = known_actions(
        [Actions(part.action_units, part.action_bounds) for part in parts], source, spec, action_units
    )
    known = units.decide([part.action for part in parts], known)
    clipped = sum(validate(part, spec, clip_actions, known) for part in parts)
    arrays, notes = hdf5.join_shards(parts, source)
    notes += split_jumps_(arrays, spec)
    _to_unit_(arrays, known)
    if clipped:
        limits = units.shown(action_limits(known, arrays.action.shape[1]))
        notes += (f"clipped {clipped:,} action values into {limits}",)
    if arrays.references is not None and with_references(spec, arrays.references) != spec:
        low, high = arrays.references
        notes += (f"scores use the data set's own references: 0 for a return of {low:g}, 100 for {high:g}",)
    if dataset is None and spec.sha256 and arrays.sha256 != spec.sha256:
        notes += (f"{source} is not the published {spec.name}: SHA-256 {arrays.sha256}, published {spec.sha256}",)
    return replace(build_transitions(arrays, spec.name, source, clipped, notes), acting=_reaching(known))


def known_actions(stated: Sequence[Actions], where: str, spec: DataSpec, asked: Units | None) -> Actions:
    """Return what is known of the actions before they are looked at: from the files, the environment and the user.

    Args: stated, by each file. Raises: DataError where two of them contradict each other.
    """
    first = stated[0]
    if any(other != first for other in stated):
        raise DataError(f"{where}: the shards state different units or bounds of actions; write them alike")
    if asked is not None and first.units not in (None, asked):
        raise DataError(
            f"{where} has {first.units} actions, by its own statement, and --action-units says {asked}; leave the flag "
            "out, or correct the file"
        )
    bounds = first.bounds or spec.action_bounds
    own = spec.source == "file" and spec.eval_env is not None  # nothing is open where the catalogue or Minari tells
    return Actions(asked or first.units, bounds, named=own)


def _to_unit_(arrays: Arrays, known: Actions) -> None:
    """Map actions in place to the [-1, 1] of policies."""
    if known.units == "environment" and known.scales and known.bounds is not None:
        units.scale_(arrays.action, known.bounds)
    unknown = known.bounds is None and known.units == "scaled"
    arrays.action_units = "scaled" if known.scales or unknown else "environment"
    arrays.action_bounds = known.bounds


def _reaching(known: Actions) -> str:
    """Say what the file's actions are, and what reaches the environment."""
    if known.bounds is None:
        return "actions lie in [-1, 1], which evaluations map to the environment's bounds; these are not known here"
    limits = units.shown(known.bounds)
    if known.scales and known.units == "scaled":
        return f"actions are scaled: evaluations map [-1, 1] to the environment's {limits}"
    if known.scales:
        return f"actions are in the environment's units: trained as [-1, 1], and mapped back to {limits} in evaluations"
    if units.is_unit(known.bounds):
        return "actions lie in [-1, 1], as the environment's do"
    if units.scalable(known.bounds):
        return f"actions are in the environment's units, and evaluations hold them to its bounds {limits}"
    return f"actions reach the environment as they are: its bounds {limits} are not finite"


def _read_named(spec: DataSpec, progress: download.Progress | None) -> tuple[Arrays, str]:
    """Read the data of a catalogue entry; return them with their source."""
    if spec.name == "multigoal-v0":
        from gtp_fast.data.embedded import multigoal_arrays

        return multigoal_arrays(), "embedded, generated"
    if spec.source == "embedded":
        with as_file(files("gtp_fast") / "data" / str(spec.filename)) as path:
            return hdf5.read_hdf5(path), "embedded"
    if spec.source == "d4rl":
        path = download.fetch(spec, progress)
        return hdf5.read_hdf5(path), str(path)
    if spec.source == "minari":
        return minari.read_id(spec.name), f"minari:{spec.name}"
    if spec.source == "ogbench":
        path = download.fetch(spec, progress)
        return ogbench.read(path, spec), str(path)
    raise UsageError(f"--env {spec.name} names an environment, not a data set; pass its data with --dataset PATH")


def _read_path(path: Path, spec: DataSpec) -> tuple[list[Arrays], str]:
    """Read the data that --dataset names: each shard of a directory alone; return them with their source."""
    name = None if path.exists() else catalog.minari_id(str(path))
    if name is not None:
        return [minari.read_id(name)], f"minari:{name}"
    parts = hdf5.shard_paths(path)
    hdf5.check_together(parts, str(path))
    return [read(part, spec) for part in parts], str(path)


def read(path: Path, spec: DataSpec) -> Arrays:
    """Read one file or Minari directory; spec names the task whose rewards an OGBench file receives."""
    if path.suffix == ".npz":
        return ogbench.read(path, spec)
    return minari.read_directory(path) if path.is_dir() else hdf5.read_hdf5(path)


def info(data: Transitions) -> dict[str, Any]:
    """Describe a data set: shapes, returns and ranges, as plain values."""
    return {
        "name": data.name,
        "source": data.source,
        "sha256": data.sha256,
        "transitions": len(data.reward_N),
        "episodes": data.episodes,
        "obs_dim": shape[0] if len(shape := data.observations.shape[1:]) == 1 else list(shape),
        "action_dim": data.action_NA.shape[1],
        "return_mean": data.return_mean,
        "return_std": data.return_std,
        "terminals": int(data.terminal_N.sum()),
        "observation_range": [float(data.observations.min()), float(data.observations.max())],
        "action_range": [float(data.action_NA.min()), float(data.action_NA.max())],
        "reward_range": [float(data.reward_N.min()), float(data.reward_N.max())],
        "clipped_actions": data.clipped,
        "acting": data.acting,
        "notes": list(data.notes),
    }
