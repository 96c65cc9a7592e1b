"""D4RL-layout HDF5 files: one file, or a directory of shards that make up one data set.

In: the path of a file or a directory. Out: `Arrays`, or the file's columns beside the faults that the reader found.
Each shard is validated alone, so that a fault names the shard and the row in it. No transition crosses from one shard
into the next: the rows after a shard's last episode end are left out, and a note says so.

Legend: N rows.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

import h5py
import numpy as np

from gtp_fast.config import shown
from gtp_fast.data import foreign, nodes
from gtp_fast.data.layout import missing_keys, other_names
from gtp_fast.data.remedies import elsewhere, missing_timeouts
from gtp_fast.data.rules import ENDS, FINAL_OBS, FLOATS, Columns, Fault, find_bad_values, machine_memory
from gtp_fast.data.spec import Bounds, Units, are_frames
from gtp_fast.data.transitions import FIELDS, Arrays, d4rl_columns
from gtp_fast.data.units import Actions, scalable
from gtp_fast.errors import DataError
from gtp_fast.files import sha256_of

LARGEST_ATTRIBUTE = 10_000  # numbers or bytes
KEYS = (*FLOATS, "next_observations", FINAL_OBS, *ENDS)
_DAMAGED = (OSError, RuntimeError, KeyError, ValueError, TypeError)  # h5py's, on damaged structures


def read_hdf5(path: Path) -> Arrays:
    """Read a file: observations, actions, rewards, terminals, timeouts, and the optional next_observations and
    infos/final_observations.

    Raises: DataError when the file is absent, empty, truncated or not HDF5, lacks a key, or holds a wrong type.
    """

    def stop(fault: Fault) -> None:
        raise fault.error(str(path))

    notes: list[str] = []
    columns, stated = read_columns(path, stop, notes.append)
    arrays: dict[str, Any] = {field: columns.get(key) for key, field in FIELDS.items()}
    arrays |= {"action_units": stated.units, "action_bounds": stated.bounds}
    return Arrays(where=str(path), **arrays, sha256=sha256_of(path), notes=tuple(notes))


def read_columns(
    path: Path, on_fault: Callable[[Fault], object], on_note: Callable[[str], object] = lambda note: None
) -> tuple[Columns, Actions]:
    """Read the columns of a file: bool for terminals and timeouts, float32 or uint8 images for the others.

    Returns: the columns, and what the file's attributes state of its actions: action_units, action_low and action_high.
    Without timeouts, where terminals end every episode, timeouts are false in every row.

    Args: on_fault receives a fault for each column that is missing or unreadable. If it does not raise, that column is
    left out. on_note receives what the user should know of how the file was read.
    Raises: DataError when the path is not an HDF5 file that can be read to its end.
    """
    if said := foreign.special(path):
        raise DataError(said)
    if not path.is_file():
        raise DataError(f"{path} does not exist; check the path, or leave --dataset out to use the named data set")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes); delete it and fetch or write it again")
    try:
        with nodes.opened(path) as file:
            return _read_layout(file, on_fault, on_note), _read_units(path, file)
    except _DAMAGED as error:
        raise DataError(_unreadable(path, error)) from None


def _read_units(path: Path, file: nodes.Group) -> Actions:
    """Return what a file states of its actions. Raises: DataError for a value that has no meaning."""
    found, low, high = (_attribute(file.attrs, name) for name in ("action_units", "action_low", "action_high"))
    stated = None if found is None else str(found)
    if stated is not None and stated not in get_args(Units):
        raise DataError(
            f"{path}: the attribute action_units is {shown(stated)}, expected {' or '.join(get_args(Units))}; "
            "write it again"
        )
    if (low is None) != (high is None):
        raise DataError(f"{path}: action_low and action_high go together; write both attributes, or neither")
    return Actions(cast("Units | None", stated), None if low is None else _bounds(path, low, high))


def _attribute(attributes: h5py.AttributeManager, name: str) -> Any:
    """Return an attribute's value, None without one."""
    if name not in attributes:
        return None
    held = attributes.get_id(name)
    if max(1, math.prod(held.shape or ())) * (held.dtype.itemsize if held.dtype.kind == "S" else 1) > LARGEST_ATTRIBUTE:
        raise ValueError(f"the attribute {name} declares {held.shape} values of {held.dtype}")
    value = attributes[name]
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _bounds(path: Path, low: Any, high: Any) -> Bounds:
    try:
        each = [np.atleast_1d(np.asarray(side, np.float64)) for side in (low, high)]
    except (TypeError, ValueError):
        each = [np.empty(0), np.empty(0)]
    found = tuple(each[0].tolist()), tuple(each[1].tolist())
    if each[0].ndim != 1 or each[0].shape != each[1].shape or not scalable(found):
        raise DataError(
            f"{path}: the attributes action_low and action_high are {shown(low)} and {shown(high)}, expected a finite "
            "number for each action, low below high; write them again"
        )
    return found


def _read_layout(file: nodes.Group, on_fault: Callable[[Fault], object], on_note: Callable[[str], object]) -> Columns:
    found = {key: file.get(key) for key in KEYS}
    away = {key: node.seen for key, node in found.items() if isinstance(node, nodes.Refused)}
    for key, seen in away.items():
        on_fault(elsewhere(key, seen))
    arrays = {key: node for key, node in found.items() if isinstance(node, h5py.Dataset)}
    missing = [key for key in (*FLOATS, *ENDS) if key not in arrays and key not in away]
    other = other_names(file)
    limits_unsaid = "timeouts" in missing and "terminals" not in missing and "timeouts" not in other
    if limits_unsaid:  # the only way to a data set without timeouts: judged below, by its terminals
        missing.remove("timeouts")
    if missing:
        on_fault(missing_keys(file, missing, other))
    elif other:
        renamed = ", ".join(f"{name} (rename it to {key})" for key, name in other.items())
        on_note(f"not read, though it seems to be meant: {renamed}")
    columns = _read_arrays(arrays, on_fault)
    if limits_unsaid and "terminals" in columns:
        fault = missing_timeouts(columns)
        if fault is not None:
            on_fault(fault)
        else:
            columns["timeouts"] = np.zeros_like(columns["terminals"])
            on_note("the file has no timeouts: every episode ends as terminal, none by a time limit")
    return columns


def _read_arrays(arrays: dict[str, h5py.Dataset], on_fault: Callable[[Fault], object]) -> Columns:
    """Read the columns; what is too large, alone or together with the others, is a fault before any is read."""
    too_large = {key: fault for key, data in arrays.items() if (fault := _too_large(key, data))}
    for fault in too_large.values():
        on_fault(fault)
    rest = {key: data for key, data in arrays.items() if key not in too_large}
    if fault := _too_large_together(rest):
        on_fault(fault)
        return {}
    columns: Columns = {}
    for key, data in rest.items():
        read = _read_flags(key, data) if key in ENDS else _read_floats(key, data)
        if isinstance(read, Fault):
            on_fault(read)
        else:
            columns[key] = _flat(read) if key in ("rewards", *ENDS) else read
    return columns


def _needed(key: str, data: h5py.Dataset) -> int:
    """Return the bytes that a column takes in memory, as it is read and as it is kept."""
    each = data.dtype.itemsize + 1 if key in ENDS else 1 if are_frames(data) else 4
    return each * (data.size or 0)


def _too_large(key: str, data: h5py.Dataset) -> Fault | None:
    """Return a fault for a column that declares or unpacks to more than this machine's memory: a file can."""
    memory, needed, chunk = machine_memory(), _needed(key, data), nodes.chunk_bytes(data.id)
    if needed > memory:
        seen = f"{key} declares shape {data.shape}, {_gb(needed)} in memory, and this machine has {_gb(memory)}"
        return Fault(key, seen, "fetch the file again, or split it")
    if chunk > memory:
        seen = f"{key} is packed in chunks of {_gb(chunk)}, and this machine has {_gb(memory)} of memory"
        return Fault(key, seen, "write it in smaller chunks")
    if (declared := nodes.inflates_beyond(data.id, memory)) is not None:
        seen = f"a chunk of {key} declares {declared:,} bytes and unpacks to more, which can fill the memory"
        return Fault(key, seen, "fetch the file again, or write it without compression")
    return None


def _too_large_together(arrays: dict[str, h5py.Dataset]) -> Fault | None:
    memory, needed = machine_memory(), {key: _needed(key, data) for key, data in arrays.items()}
    total = sum(needed.values()) + max((nodes.chunk_bytes(data.id) for data in arrays.values()), default=0)
    if total <= memory:
        return None
    each = ", ".join(f"{key} {size / 1e9:.1g}" for key, size in needed.items())
    seen = f"its columns declare {_gb(total)} together, and this machine has {_gb(memory)} of memory ({each})"
    return Fault(", ".join(arrays), seen, "write fewer rows, or use a larger machine")


def _gb(size: float) -> str:
    return f"{size / 1e9:,.0f} GB" if size >= 1e10 else f"{size / 1e9:.2g} GB"


def check_together(paths: Sequence[Path], where: str) -> None:
    """Refuse shards that together declare more than this machine's memory, before any is read.

    A file that cannot be read counts nothing here: reading it says what is wrong.
    """
    total, memory = sum(map(_declared, paths)) if len(paths) > 1 else 0, machine_memory()
    if total > memory:
        raise DataError(
            f"{where}: its {len(paths):,} shards declare {_gb(total)} together, and this machine has {_gb(memory)} of "
            "memory; name fewer of them, or use a larger machine"
        )


def _declared(path: Path) -> int:
    try:
        if not path.is_file():
            return 0
        with nodes.opened(path) as file:
            found = {key: file.get(key) for key in KEYS}
            return sum(_needed(key, node) for key, node in found.items() if isinstance(node, h5py.Dataset))
    except _DAMAGED:
        return 0


def _read_floats(key: str, data: h5py.Dataset) -> np.ndarray | Fault:
    """Read a column once, straight into float32; images stay uint8."""
    if data.dtype.kind not in "fiu" or data.shape is None:
        return Fault(key, f"{key} holds {data.dtype}, expected numbers", "write it as float32")
    if key == "actions" and data.dtype.kind in "iu" and data.ndim == 1:
        seen = f"actions holds one {data.dtype} a row, which looks like discrete choices"
        return Fault(key, seen, "policies here act with vectors of numbers, float32 (N, size): use such an environment")
    images = are_frames(data) or (data.dtype == np.uint8 and data.ndim == 3)
    array = np.empty(data.shape, dtype=np.uint8 if images else np.float32)
    if data.size:
        data.read_direct(array)
    return array


def _read_flags(key: str, data: h5py.Dataset) -> np.ndarray | Fault:
    """Read a column of booleans, or of numbers that are all 0 or 1."""
    if data.dtype.kind not in "biuf" or data.shape is None:
        return Fault(key, f"{key} holds {data.dtype}, expected booleans", "write it as bool")
    values = np.asarray(data[()])
    fault = find_bad_values(key, values, lambda block: block != block.astype(bool))
    if fault is not None:
        seen = f"{key} in row {fault.rows[0]:,} holds {fault.values[0]:g}, expected 0 or 1"
        return replace(fault, seen=seen, remedy="write it as bool")
    return values.astype(bool)


def _flat(array: np.ndarray) -> np.ndarray:
    """Return (N, 1), the shape in some of D4RL's files, as (N,)."""
    return np.ascontiguousarray(array[:, 0]) if array.ndim == 2 and array.shape[1] == 1 else array


def _unreadable(path: Path, error: Exception) -> str:
    try:
        with path.open("rb") as file:
            signature = file.read(len(foreign.SIGNATURE))
    except OSError as refused:
        return f"{path} cannot be opened ({refused.strerror}); check its permissions"
    if signature != foreign.SIGNATURE:
        unknown = f"{path} is not an HDF5 file (it begins with {signature!r}); name a D4RL-layout .hdf5 file"
        return foreign.refusal(path) or unknown
    size = path.stat().st_size
    return (
        f"{path} is truncated or damaged: it cannot be read to its end ({size:,} bytes; {error}); delete it and "
        "fetch or write it again"
    )


def shard_paths(path: Path) -> list[Path]:
    """Return the *.hdf5 shards of a directory in the order of their names; for a file or a Minari directory, the path.

    Raises: DataError for a directory that is empty, or that holds shards beside other data.
    """
    if not path.is_dir():
        return [path]
    found = sorted(path.glob("*.hdf5"))
    other = sorted(p.name for p in path.iterdir() if p.suffix in (".h5", ".npz"))
    if (path / "main_data.hdf5").exists() or not found:
        if other:
            raise DataError(f"{path} holds {other[0]} and no *.hdf5 shard; name the file itself, or its shards .hdf5")
        if len(found) > len(list(path.glob("main_data*.hdf5"))):
            raise DataError(_mixed(path, "main_data.hdf5, which is Minari's"))
        if not found and not any((folder / "metadata.json").exists() for folder in (path, path / "data")):
            raise DataError(foreign.no_data(path))
        return [path]
    if (path / "data" / "main_data.hdf5").exists():
        raise DataError(_mixed(path, "data/main_data.hdf5, which is Minari's"))
    if other:
        raise DataError(_mixed(path, other[0]))
    return found


def _mixed(path: Path, other: str) -> str:
    return f"{path} holds *.hdf5 shards and {other}; move one of them to another directory"


def shard_faults(shards: Sequence[Columns]) -> Iterator[tuple[int, Fault]]:
    """Yield a fault for each shard whose keys or widths differ from the first shard's, with the shard's number."""
    first = shards[0]
    for number, shard in enumerate(shards[1:], start=1):
        for key in [key for key in first if key in shard and first[key].ndim == 2]:
            if shard[key].shape[1:] != first[key].shape[1:]:
                width, expected = shard[key].shape[-1], first[key].shape[-1]
                seen = f"{key} have {width} numbers, but {expected} in the first shard"
                yield number, Fault(key, seen, "remove this shard")
        for key in sorted(set(first) ^ set(shard)):
            has = "has" if key in shard else "has no"
            seen = f"{has} {key}, unlike the first shard"
            yield number, Fault(key, seen, "write every shard with the same keys", separator=" ")


def join_shards(shards: list[Arrays], where: str) -> tuple[Arrays, tuple[str, ...]]:
    """Concatenate validated shards; return the whole, with notes about rows that were left out.

    The shards lose their arrays one field at a time, so that at most one field is in memory twice. The SHA-256 of the
    whole is that of the shards' SHA-256 digits, in their order.
    Raises: DataError for shards whose widths or keys differ from the first shard's.
    """
    if len(shards) == 1:
        return shards[0], shards[0].notes
    for number, fault in shard_faults([d4rl_columns(shard) for shard in shards]):
        raise fault.error(shards[number].where)
    notes = [note for shard in shards for note in shard.notes]
    notes += [note for shard in shards[:-1] if (note := _cut_tail_(shard))]
    whole = {}
    for name in FIELDS.values():
        columns = [getattr(shard, name) for shard in shards]
        whole[name] = None if columns[0] is None else np.concatenate(columns)
        for shard in shards:
            setattr(shard, name, None)
    sha256 = hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest()
    return Arrays(where=where, **whole, sha256=sha256), (f"{len(shards):,} shards, in the order of their names", *notes)


def _cut_tail_(shard: Arrays) -> str | None:
    """Remove the rows after the last episode end, in place; return a note if there were any."""
    ends = np.flatnonzero(shard.terminal | shard.timeout)
    rows, whole = len(shard.obs), int(ends[-1]) + 1
    if shard.last_obs is not None:
        shard.last_obs = shard.last_obs[: len(ends)]
    if rows == whole:
        return None
    for key, array in d4rl_columns(shard).items():
        if key != FINAL_OBS:
            setattr(shard, FIELDS[key], array[:whole])
    return f"left out {rows - whole:,} of {rows:,} rows of {shard.where}, after its last episode end"
