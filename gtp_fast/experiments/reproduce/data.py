"""The data that an item runs on: what was asked for, else the paper's tasks; looked at before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gtp_fast.data import catalog, dataset
from gtp_fast.errors import DataError, UsageError
from gtp_fast.experiments.reproduce.items import ABLATED, Budget, Item
from gtp_fast.files import file_name

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Source:
    """One data set that is there: the flags that name it, its folder's name, and whether it is the paper's."""

    flags: dict[str, Any]
    folder: str
    name: str
    sha256: str
    paper_row: str | None  # the paper's row, where the data are the paper's
    absent: str | None  # else why its figures may not stand beside these

    @property
    def environment(self) -> str:
        return self.flags["env"]


def choose(item: Item, budget: Budget, env: str | None, file: Path | None, progress: Progress | None) -> list[Source]:
    """Return the data of an item, read once so that what is missing or damaged is known before anything is trained.

    Raises: UsageError for data that the item is not about; DataError naming the data that need no network.
    """
    if item.kind == "goals" and (env not in (None, *item.tasks) or file is not None):
        raise UsageError(f"{item.name} is about {item.tasks[0]}, which is generated; leave out --env and --dataset")
    if file is not None and env is None:
        raise UsageError(f"--dataset {file} needs --env to score policies, for example --env HalfCheetah-v5")
    if env is not None:
        return [_looked_at(item, env, file, progress)]
    names = item.tasks if budget == "paper" or ABLATED not in item.tasks else (ABLATED,)
    return [_looked_at(item, name, None, progress) for name in names]


def _looked_at(item: Item, env: str, file: Path | None, progress: Progress | None) -> Source:
    spec = catalog.resolve(env)
    try:
        data = dataset.load(spec, file, progress=progress)
    except DataError as error:
        if file is not None or spec.source == "embedded":
            raise
        raise DataError(
            f"{error}\nTo run on other data: gtp-fast reproduce {item.name} --env hopper-demo-v0 (embedded, needs no "
            "network), or --dataset FILE --env HalfCheetah-v5; the paper's figures stand only beside the paper's data"
        ) from None
    name = file.stem if file is not None else spec.name
    known = file is None and spec.sha256 in (None, data.sha256)
    folder = file_name(name)
    absent = _absent(spec, name, data.sha256)
    return Source(
        flags={"env": env} | ({} if file is None else {"dataset": str(file)}),
        folder=folder if known else f"{folder}-{data.sha256[:8]}",
        name=name,
        sha256=data.sha256,
        paper_row=None if absent else spec.paper_row,
        absent=absent,
    )


def _absent(spec: catalog.DataSpec, name: str, sha256: str) -> str | None:
    """Return why the paper's figures may not stand beside these data, None where they may."""
    if spec.paper_row is None:
        return "the data are not the paper's"
    if spec.sha256 is None:
        return f"no checksum of the published {spec.name} is known to compare the data with"
    return None if sha256 == spec.sha256 else f"trained on {name} (SHA-256 {sha256[:8]}), not D4RL's {spec.name}"
