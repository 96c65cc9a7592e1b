"""Where the files of each source are published, where they are kept here, and which variables say otherwise."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from gtp_fast.data.d4rl_names import D4RL_BASE
from gtp_fast.data.ogbench_names import OGBENCH_BASE
from gtp_fast.data.spec import DataSpec


class Place(NamedTuple):
    """A source's published base address and cache below the home directory, and the variables that replace them."""

    base: str
    base_variable: str
    folder: str
    folder_variable: str


# The folders are those of the d4rl and ogbench packages, which find what was fetched here and the other way round.
PLACES = {
    "d4rl": Place(D4RL_BASE, "GTP_FAST_D4RL_URL", ".d4rl/datasets", "D4RL_DATASET_DIR"),
    "ogbench": Place(OGBENCH_BASE, "GTP_FAST_OGBENCH_URL", ".ogbench/data", "OGBENCH_DATASET_DIR"),
}


def folder(source: str) -> Path:
    """Return where a source's files are kept here: the folder of its variable, else of its package."""
    place = PLACES[source]
    named = os.environ.get(place.folder_variable)
    return Path(named) if named else Path.home() / place.folder


def cache_path(spec: DataSpec) -> Path:
    """Return where a published file lies, by its base name."""
    return folder(spec.source) / str(spec.filename)


def addresses(spec: DataSpec) -> list[str]:
    """Return where to ask for a file, in turn.

    The source's variable takes the place of the published base; below it the file may lie as published, or flat.
    """
    place = PLACES[spec.source]
    base = os.environ.get(place.base_variable, "").rstrip("/")
    if not base:
        return [str(spec.url)]
    return list(dict.fromkeys([str(spec.url).replace(place.base, base), f"{base}/{spec.filename}"]))
