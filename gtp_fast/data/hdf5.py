"""One data set in several files: a directory of D4RL-layout `*.hdf5` shards, in the order of their names.

No transition and no episode crosses from one shard into the next: the rows after a shard's last episode end are left
out, and that is said. Each shard is validated alone, so that a fault names its file and its row there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from gtp_fast.data.rules import Columns, Fault
from gtp_fast.data.transitions import Arrays, columns_of
from gtp_fast.errors import DataError

ATTRIBUTES = ("obs", "action", "reward", "terminal", "timeout", "next_obs", "last_obs")


def parts(path: Path) -> list[Path]:
    """Return the shards of a directory by name; of a file or a Minari directory itself alone.

    Raises: DataError for a directory that is empty, or that holds shards beside other data.
    """
    if not path.is_dir():
        return [path]
    found = sorted(path.glob("*.hdf5"))
    other = sorted(p.name for p in path.iterdir() if p.suffix in (".h5", ".npz"))
    if (path / "main_data.hdf5").exists() or not found:
        if other:
            raise DataError(f"{path} holds {other[0]} and no *.hdf5 shard; name the file itself, or its shards .hdf5")
        minari = [path / "main_data.hdf5"] if (path / "main_data.hdf5").exists() else []
        if minari and len(found) > len(list(path.glob("main_data*.hdf5"))):
            raise DataError(_mixed(path, "main_data.hdf5, which is Minari's"))
        return [path]
    if (path / "data" / "main_data.hdf5").exists():
        raise DataError(_mixed(path, "data/main_data.hdf5, which is Minari's"))
    if other:
        raise DataError(_mixed(path, other[0]))
    return found


def _mixed(path: Path, other: str) -> str:
    return f"{path} holds *.hdf5 shards and {other}; move one of them to a directory of its own"


def faults(shards: Sequence[Columns]) -> Iterator[tuple[int, Fault]]:
    """Yield the number of each shard that is unlike the first one, with what differs."""
    first = shards[0]
    for number, shard in enumerate(shards[1:], start=1):
        for key in [key for key in first if key in shard and first[key].ndim == 2]:
            if shard[key].shape[1:] != first[key].shape[1:]:
                width, there = shard[key].shape[-1], first[key].shape[-1]
                yield number, Fault(key, f"{key} have {width} numbers, but {there} in the first shard", "leave it out")
        for key in sorted(set(first) ^ set(shard)):
            has = "has" if key in shard else "has no"
            seen = f"{has} {key}, unlike the first shard"
            yield number, Fault(key, seen, "write every shard with the same keys", joint=" ")


def join(shards: list[Arrays], where: str) -> tuple[Arrays, tuple[str, ...]]:
    """Put validated shards behind one another; return them with notes of what was left out.

    The arrays of the shards are taken over, so that no more than one column is held twice. The SHA-256 of the whole is
    that of the shards' own, in their order.
    Raises: DataError for shards of other widths or keys than the first.
    """
    if len(shards) == 1:
        return shards[0], shards[0].notes
    for number, fault in faults([columns_of(shard) for shard in shards]):
        fault.refuse(shards[number].where)
    notes = [note for shard in shards for note in shard.notes]
    notes += [note for shard in shards[:-1] if (note := _cut_tail_(shard))]
    whole = {}
    for name in ATTRIBUTES:
        columns = [getattr(shard, name) for shard in shards]
        whole[name] = None if columns[0] is None else np.concatenate(columns)
        for shard in shards:
            setattr(shard, name, None)
    sha256 = hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest()
    return Arrays(where=where, **whole, sha256=sha256), (f"{len(shards):,} shards, in the order of their names", *notes)


def _cut_tail_(shard: Arrays) -> str | None:
    """Leave out the rows after the last episode end, in place; say so."""
    ends = np.flatnonzero(shard.terminal | shard.timeout)
    rows, whole = len(shard.obs), int(ends[-1]) + 1
    if shard.last_obs is not None:
        shard.last_obs = shard.last_obs[: len(ends)]
    if rows == whole:
        return None
    for name in ATTRIBUTES[:-1]:
        array = getattr(shard, name)
        setattr(shard, name, None if array is None else array[:whole])
    return f"left out {rows - whole:,} of {rows:,} rows of {shard.where}, after its last episode end"
