"""A file's keys against D4RL's layout: columns under other names, and columns that are missing.

In: an open HDF5 file, of which only names are read. Out: a fault, with the lines that rename what was found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gtp_fast.data.foreign import RECIPES, plain, shown
from gtp_fast.data.remedies import Fault, repair

LAYOUT = "D4RL's layout needs observations, actions, rewards, terminals and timeouts"
# Names that other packages give to a column. "done" of the old Gym marks time limits, too.
OTHER_NAMES = {
    "observations": ("obs", "observation", "states", "state"),
    "actions": ("action", "acts", "act"),
    "rewards": ("reward", "rews", "rew"),
    "terminals": ("terminations", "terminated", "terminal", "termination", "dones", "done"),
    "timeouts": ("truncations", "truncated", "timeout", "truncation", "truncates"),
    "next_observations": ("next_obs", "next_observation", "next_states", "next_state", "observations_next"),
}
MAY_MARK_LIMITS = ("dones", "done")


def other_names(file: Mapping[str, Any]) -> dict[str, str]:
    """Return, for each key that a file lacks, the column that seems to be it: of another name, or inside a group."""
    found = {}
    held = {name.lower(): name for name in file if not _is_group(file.get(name))}
    for key, names in OTHER_NAMES.items():
        if key not in held.values():
            found[key] = next((held[name] for name in (key, *names) if name in held), None) or _in_group(file, key)
    return {key: name for key, name in found.items() if name}


def _in_group(file: Mapping[str, Any], key: str) -> str | None:
    """Return the path of a column inside the file's only group."""
    groups = [name for name in file if _is_group(file.get(name))]
    if len(groups) != 1:
        return None
    group = file[groups[0]]
    inner = {name.lower(): name for name in group if not _is_group(group.get(name))}
    return next((f"{groups[0]}/{inner[name]}" for name in (key, *OTHER_NAMES[key]) if name in inner), None)


def _is_group(node: Any) -> bool:
    return isinstance(node, Mapping)


def missing_keys(file: Mapping[str, Any], missing: Sequence[str], other: Mapping[str, str]) -> Fault:
    """Return the fault of a file without some keys. Args: other, the columns that seem to be them."""
    names = sorted(name + "/" * _is_group(file.get(name)) for name in file)
    seen = f"has no {', '.join(missing)}; it holds {shown(names) or 'nothing'}"
    if not set(other) & set(missing):
        return Fault(", ".join(missing), seen, _remedy(names), separator=" ")
    remedy = ", ".join(f"rename {plain(name)} to {key}" for key, name in other.items())
    if (done := other.get("terminals", "").rpartition("/")[2].lower()) in MAY_MARK_LIMITS:
        remedy += f" (terminals are true ends alone: if {done} also marks time limits, move these into timeouts)"
    if absent := [key for key in missing if key not in other]:
        remedy += f", and add {', '.join(absent)}"
    moves = [f"file.move({name!r}, {key!r})" for key, name in other.items()]
    return Fault(", ".join(missing), seen, remedy, separator=" ", lines=repair(*moves))


def _remedy(names: Sequence[str]) -> str:
    if any(name.startswith("episode_") for name in names):
        return f"{LAYOUT}. It looks like Minari's main_data.hdf5: name the directory that holds its data/"
    if sum(name.endswith("/") for name in names) > 1:
        return f"{LAYOUT}, with the episodes behind one another, not in groups: {RECIPES}"
    return LAYOUT
