"""Gymnasium's registry: which environments this process knows, and what a name that it does not know is answered with.

In: a name that the user typed. Out: whether it is registered, or the ids that are nearest to it. Gymnasium is imported
when the first function is called. No module is imported for a name: Gymnasium does that, when it builds `module:Name`.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Sequence

_VERSION = re.compile(r"-v(\d+)$")
NEAR = 0.6  # of difflib's ratio: Hopper is not near Humanoid


def ids() -> list[str]:
    """Return every registered id; none where Gymnasium is not installed."""
    try:
        import gymnasium
    except ImportError:
        return []
    return list(gymnasium.registry)


def nearest(name: str, otherwise: Sequence[str] = ()) -> list[str]:
    """Return the ids whose names without a version are nearest to the typed one: two versions each, newest first.

    Args: otherwise, the ids that are known where Gymnasium is not installed.
    """
    stems: dict[str, list[str]] = {}
    for known in (one for one in ids() or otherwise if ("/" in one) == ("/" in name)):
        stems.setdefault(_VERSION.sub("", known).lower(), []).append(known)
    typed = _VERSION.sub("", name).lower()
    near = [typed] if typed in stems else difflib.get_close_matches(typed, stems, n=2, cutoff=NEAR)
    return [known for stem in near for known in sorted(stems[stem], key=_version, reverse=True)[:2]]


def _version(name: str) -> int:
    found = _VERSION.search(name)
    return int(found[1]) if found else -1


def unknown(env_id: str, error: Exception) -> str | None:
    """Say why Gymnasium, which failed with `error` at building it, knows no environment of this id; None if it does."""
    module, _, name = env_id.rpartition(":")
    if module and module not in sys.modules:
        return f"the module {module} cannot be imported: {error.__cause__ or error}"
    known = ids()
    if name in known or any(_VERSION.sub("", one) == name for one in known):
        return None
    near = nearest(name)
    hint = f" (did you mean {' or '.join(f'{module}:{one}' if module else one for one in near)}?)" if near else ""
    return f"the module {module} registers no {name}{hint}" if module else f"no {name} is registered here{hint}"
