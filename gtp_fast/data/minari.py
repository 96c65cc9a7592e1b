"""Minari data sets in any of its formats, found in Minari's cache or downloaded.

In: an id or a directory. Out: `Arrays`: an episode of n steps and n + 1 observations becomes n rows with successors.
metadata.json contributes only the spaces (how observations are laid out and actions scaled), the number of episodes,
the format and the reference scores; it never decides what is run. HDF5, the usual format, is read here: Minari's own
iteration also reads every `infos` array, which can be most of a file. Minari reads the other formats with pyarrow.

Legend: N rows, D observation, A action.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import math
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from h5py import h5d, h5g, h5s  # pyright: ignore[reportAttributeAccessIssue]  # compiled modules

from gtp_fast.data import catalog, download, foreign, nodes, units
from gtp_fast.data.rules import machine_memory
from gtp_fast.data.transitions import Arrays
from gtp_fast.errors import DataError

if TYPE_CHECKING:
    from gymnasium.spaces import Box, Space

# gymnasium and minari are imported where they are used: data sets of other sources need neither.

STEP_ARRAYS = ("actions", "rewards", "terminations")  # one row per step
MEMORY = machine_memory()
LARGEST_METADATA = 1 << 24  # bytes; Minari's own have a few thousand
LARGEST_BOX = 10_000_000  # numbers of a space; building one takes the memory of its bounds
# Minari's writers before 0.5 kept added episodes in files beside the main one, to which a link of each episode leads.
_ADDED, _EPISODE = re.compile(rb"additional_data_\d+\.hdf5"), re.compile(rb"/?episode_\d+")


def read_id(name: str) -> Arrays:
    """Read a data set by id from Minari's own cache, downloading it first if necessary.

    Raises: DataError when it can neither be found nor fetched, or when its spaces are not supported.
    """
    folder = _cache() / name / "data"
    if not folder.exists():
        _fetch(name)
    return _read(folder, name)


def read_directory(path: Path) -> Arrays:
    """Read a Minari data set from its directory (the one that holds data/).

    Raises: DataError when it is not a Minari data set, or when its spaces are not supported.
    """
    folder = path if (path / "metadata.json").exists() else path / "data"
    if not (folder / "metadata.json").exists():
        raise DataError(
            f"{path} is not a Minari data set (it has no data/metadata.json); name its directory, or an .hdf5 file"
        )
    return _read(folder, str(path))


def _cache() -> Path:
    folder = os.environ.get("MINARI_DATASETS_PATH")
    return Path(folder) if folder else Path.home() / ".minari" / "datasets"


def _fetch(name: str) -> None:
    """Let Minari's client download a data set, after checking that its server answers."""
    near = [
        known for known in difflib.get_close_matches(name, catalog.minari_names(), n=2, cutoff=0.8) if known != name
    ]
    hint = f"did you mean {' or '.join(near)}? Otherwise " if near else ""
    try:
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
            raise OSError("HF_HUB_OFFLINE is set")
        # Without a network the client retries for 26 s before it fails; this check is faster.
        download.reach(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
        import minari

        with contextlib.redirect_stdout(sys.stderr):  # the client prints, and standard output is for --json
            minari.download_dataset(name)
    except Exception as error:  # the hub's client raises the exceptions of its transport
        reason = getattr(error, "reason", None) or error
        raise DataError(
            f"the Minari data set {name} is not in {_cache()} and could not be fetched ({reason}); {hint}run `minari "
            f"download {name}` where there is a network and copy it to {_cache() / name}, or pass --dataset DIRECTORY"
        ) from None


def _read(folder: Path, where: str) -> Arrays:
    try:
        from gymnasium.spaces import flatdim

        from gtp_fast.data import spaces

        metadata = _metadata(folder / "metadata.json")
        obs, action = _spaces(metadata, where)
        columns = episode_columns(folder, where, metadata, obs, action)
    except DataError:
        raise
    except ImportError as error:
        if error.name in ("gymnasium", "minari"):
            raise DataError(
                f"{where} is read by the package {error.name}, which is not installed; pip install 'minari[hdf5]', or "
                "write the data in D4RL's layout (docs/data.md)"
            ) from None
        raise DataError(f"{where} is in a format that needs another package ({error}); pip install pyarrow") from None
    except Exception as error:  # damaged files raise h5py's, JSON's or Minari's exceptions
        raise DataError(
            f"{where} cannot be read as a Minari data set ({type(error).__name__}: {error}); delete it and download it "
            "again"
        ) from None
    notes, bounds = (), spaces.bounds(action)
    wide = units.wide(bounds)
    if len(parts := spaces.parts(obs)) > 1:
        notes += (f"observations are laid out as {', '.join(parts)}: {flatdim(obs)} numbers",)
    if wide:  # before the hash: it is of what is trained on
        units.scale_(columns["action"], bounds)
    return Arrays(
        where=where,
        **columns,
        last_obs=None,
        sha256=_sha256(columns.values()),
        notes=notes,
        action_units="scaled" if wide else "environment",
        action_bounds=bounds,
        references=_references(metadata),
    )


def _metadata(path: Path) -> dict[str, Any]:
    if said := foreign.special(path):
        raise DataError(said)
    with path.open("rb") as file:
        content = file.read(LARGEST_METADATA + 1)
    if len(content) > LARGEST_METADATA:
        raise DataError(
            f"{path} has {path.stat().st_size:,} bytes, expected at most {LARGEST_METADATA:,}; download the data set "
            "again"
        )
    return json.loads(content)


def _check_size(key: str, space: Any, where: str) -> None:
    """Refuse a space before it is built whose bounds would take more memory than its description."""
    described = json.loads(space) if isinstance(space, str) else space
    if described["type"] == "Box" and math.prod(map(abs, described["shape"])) > LARGEST_BOX:
        raise DataError(
            f"{where}: {key} in metadata.json declares a Box of more than {LARGEST_BOX:,} numbers; download the data "
            "set again"
        )
    inner = described.get("subspaces", ())
    for part in inner.values() if isinstance(inner, dict) else inner:
        _check_size(key, part, where)


def _spaces(metadata: dict[str, Any], where: str) -> tuple[Any, Any]:
    """Return the spaces of observations and actions that metadata.json declares.

    Raises: DataError when they are not declared, when observations cannot become vectors, or when actions are not
    continuous vectors.
    """
    from gymnasium.spaces import Box
    from minari.serialization import deserialize_space

    from gtp_fast.data.spaces import no_vector, ordered

    missing = [key for key in ("observation_space", "action_space") if key not in metadata]
    if missing:  # Minari would build the environment that the file names to find its spaces
        raise DataError(
            f"{where}: metadata.json declares no {' and no '.join(missing)}, and no environment is built from a file's "
            "metadata; write the data set again with its spaces"
        )
    for key in ("observation_space", "action_space"):
        _check_size(key, metadata[key], where)
    obs, action = ordered(deserialize_space(metadata["observation_space"])), deserialize_space(metadata["action_space"])
    if not isinstance(action, Box) or len(action.shape) != 1:
        seen = f"a {type(action).__name__} space" + (f" of shape {action.shape}" if isinstance(action, Box) else "")
        raise DataError(
            f"{where}: actions are in {seen}, expected a Box of one axis; policies here act with continuous vectors: "
            "choose a data set with such actions, or write this one with each action as a vector of numbers"
        )
    if refused := no_vector(obs):
        raise DataError(
            f"{where}: observations hold {refused}; expected numbers: Box, Discrete, MultiDiscrete or MultiBinary, in "
            "Dict and Tuple; leave that part out when writing the data set, or choose another data set"
        )
    return obs, action


def episode_columns(
    folder: Path, where: str, metadata: dict[str, Any], obs: Space[Any], action: Box
) -> dict[str, np.ndarray]:
    """Read the episodes of a folder data/ into columns, under the names of the fields of `Arrays`.

    Args: where names the data set in errors; metadata is metadata.json's content; obs and action are its spaces.
    Raises: DataError when arrays do not match or do not fit into memory; h5py's or Minari's errors on damaged files.
    """
    from gymnasium.spaces import flatdim

    row_bytes, rows, found = 4 * (2 * flatdim(obs) + action.shape[0]), 0, []
    for name, episode in _episodes(folder, metadata, obs, where):
        rows += len(episode["rewards"])
        if rows * row_bytes > MEMORY:
            raise DataError(
                f"{where}: {rows:,} rows or more of {row_bytes:,} bytes do not fit into this machine's "
                f"{MEMORY / 1e9:,.0f} GB; use a smaller data set"
            )
        found.append(_rows(episode, f"{where}: {name}", obs, action))
    if not found:
        raise DataError(f"{where}: the Minari data set holds no episodes; collect or download at least one")
    return {key: np.concatenate([episode[key] for episode in found]) for key in found[0]}


def _episodes(
    folder: Path, metadata: dict[str, Any], obs: Space[Any], where: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the arrays of every episode; observations are nested as their space is."""
    count = int(metadata["total_episodes"])
    if metadata.get("data_format", "hdf5") != "hdf5":
        from minari.dataset.minari_storage import MinariStorage

        for path in folder.rglob("*"):
            if said := foreign.special(path):
                raise DataError(said)
        for i, episode in enumerate(MinariStorage.read(folder).get_episodes(range(count))):
            yield f"episode_{i}", {key: episode[key] for key in ("observations", *STEP_ARRAYS)}
        return
    if said := foreign.special(folder / "main_data.hdf5"):
        raise DataError(said)
    with contextlib.ExitStack() as files:
        main = files.enter_context(nodes.opened(folder / "main_data.hdf5"))
        added: dict[bytes, nodes.Group] = {}
        for name in (f"episode_{i}" for i in range(count)):
            group = nodes.find(main.id, name)
            if isinstance(group, nodes.Refused) and _is_added(folder, group):
                if group.file not in added:
                    added[group.file] = files.enter_context(nodes.opened(folder / group.file.decode()))
                group = nodes.find(added[group.file].id, group.path.decode())
            _check_found(group, h5g.GroupID, f"{where}: {name}")
            room = [MEMORY]
            observations = _read_part(group, f"{where}: {name}", "observations", room, obs)
            steps = {key: _read_part(group, f"{where}: {name}", key, room) for key in STEP_ARRAYS}
            yield name, {"observations": observations} | steps


def _is_added(folder: Path, link: nodes.Refused) -> bool:
    """Return whether a link leads to an episode in a file that Minari wrote beside the main one."""
    if not _ADDED.fullmatch(link.file) or not _EPISODE.fullmatch(link.path):
        return False
    path = folder / link.file.decode()
    return path.exists() and stat.S_ISREG(path.lstat().st_mode)


def _check_found(node: Any, kind: type, name: str) -> None:
    if isinstance(node, nodes.Refused):
        raise DataError(
            f"{name} is {node.seen}, and only what lies in this data set's own files is read; download it again"
        )
    if not isinstance(node, kind):
        raise KeyError(f"{name} is not there, or of another kind")


def _read_part(group: Any, episode: str, name: str, room: list[int], space: Space[Any] | None = None) -> Any:
    """Read an array of an episode, or a nested group: named parts for a Dict, _index_0, _index_1 ... for a Tuple.

    Args: room, the bytes that the episode may still take: a damaged header can declare anything.
    h5py's low-level calls take 40 us per array, and `nodes` a third as much again; `group[name][()]` takes 95 (10,000
    episodes, 2026-11).
    """
    from gymnasium import spaces

    data, path = nodes.find(group, name), f"{episode}/{name}"
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        _check_found(data, h5g.GroupID, path)
        if isinstance(space, spaces.Dict):
            return {key: _read_part(data, path, key, room, space[key]) for key in space}
        return tuple(_read_part(data, path, f"_index_{i}", room, part) for i, part in enumerate(space))
    _check_found(data, h5d.DatasetID, path)
    if data.dtype.kind not in "biuf":
        raise ValueError(f"{name} holds {data.dtype}, expected numbers")
    packed = nodes.chunk_bytes(data)
    room[0] -= math.prod(data.shape) * data.dtype.itemsize + packed
    if room[0] < 0 or (packed and nodes.inflates_beyond(data, MEMORY) is not None):
        raise ValueError(f"the arrays up to {name} declare, or unpack to, more than this machine's memory")
    array = np.empty(data.shape, data.dtype)
    data.read(h5s.ALL, h5s.ALL, array)
    return array


def _rows(episode: dict[str, Any], name: str, obs: Space[Any], action: Box) -> dict[str, np.ndarray]:
    """Turn an episode of n steps and n + 1 observations into n rows with successors; the last row ends the episode."""
    from gtp_fast.data.spaces import flatten_rows

    seen, rows = flatten_rows(obs, episode["observations"]), len(episode["rewards"])
    if len(seen) != rows + 1 or len(episode["actions"]) != rows:
        raise DataError(
            f"{name} has {len(seen):,} observations and {len(episode['actions']):,} actions for {rows:,} rewards, "
            f"expected {rows + 1:,} and {rows:,}; download it again"
        )
    timeout = np.zeros(rows, dtype=bool)
    timeout[rows - 1 :] = True
    with np.errstate(over="ignore"):  # a value too large for float32 becomes Inf, which `rules` refuses by its row
        reward = np.asarray(episode["rewards"], np.float32)
    return {
        "obs": seen[:-1],
        "action": flatten_rows(action, episode["actions"], "actions"),
        "reward": reward,
        "terminal": np.asarray(episode["terminations"], bool),
        "timeout": timeout,
        "next_obs": seen[1:],
    }


def _references(metadata: dict[str, Any]) -> tuple[float, float] | None:
    """Return ref_min_score and ref_max_score if the metadata has both, finite and in ascending order."""
    found = [metadata.get(key) for key in ("ref_min_score", "ref_max_score")]
    low, high = (float(x) if isinstance(x, (int, float)) and not isinstance(x, bool) else math.nan for x in found)
    return (low, high) if math.isfinite(low) and math.isfinite(high) and low < high else None


def _sha256(arrays: Iterable[np.ndarray]) -> str:
    """Hash the columns, not the files: the same rows can be stored in many files."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()
