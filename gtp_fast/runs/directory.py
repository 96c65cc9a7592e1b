"""A run's directory: the paths of its files, its lock against other processes, and the name of a new one.

`claim` also clears what a killed process left half-written. docs/run-directory.md shows the layout.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from gtp_fast.files import PARTIAL, REPLACED, file_name, make_folder, own_folder, remove
from gtp_fast.locks import Claim, locked

_STEP = re.compile(r"step-([0-9]{8,13})")  # 10^12 is the last step of all


class RunDir:
    """The paths of a run's files and folders, all below `path`.

    `path` may be a link, the folders in it may not: naming one that is raises ForeignFileError.
    """

    def __init__(self, path: Path):
        self.path, self.metrics, self.log = path, path / "metrics.jsonl", path / "train.log"
        self.config, self.environment = path / "config.yaml", path / "environment.json"
        self.lock, self.failure = path / "LOCK", path / "failure.json"
        self.wandb_id = path / "wandb-id"
        self._claim: Claim | None = None

    @property
    def checkpoints(self) -> Path:
        return own_folder(self.path / "ckpt")

    @property
    def evaluations(self) -> Path:
        return own_folder(self.path / "eval")

    @property
    def report(self) -> Path:
        return own_folder(self.path / "report")

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:08d}"

    def evaluation(self, step: int) -> Path:
        return self.evaluations / f"step-{step:08d}.json"

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Create the directory, lock it against other processes, and remove what a killed process left half-written.

        Raises: BusyError naming the process that holds it.
        """
        with locked(self.lock, f"run directory {self.path}") as self._claim:
            try:
                for directory in (self.path, self.checkpoints, self.evaluations):
                    make_folder(directory)
                    _sweep(directory)
                yield
            finally:
                self._claim = None

    def check_claim(self) -> None:
        """Raise BusyError where another process took the run that this one had claimed: it must write nothing more."""
        if self._claim is not None:
            self._claim.check()

    def swept(self) -> bool:
        """Return whether nothing half-written lies in the directory."""
        return not any(any(d.glob(PARTIAL + "*")) for d in (self.path, self.checkpoints, self.evaluations))


def _sweep(directory: Path) -> None:
    """Restore a file that was moved aside for a replacement that never came; remove other half-written files."""
    for leftover in directory.glob(PARTIAL + "*"):
        place = directory / leftover.name.removeprefix(REPLACED)
        if leftover.name.startswith(REPLACED) and not os.path.lexists(place):
            os.replace(leftover, place)
        else:
            remove(leftover)


def step_of(name: str) -> int | None:
    """Return the step of a name `step-00050000`, None for a name that no run writes."""
    found = _STEP.fullmatch(name)
    step = int(found[1]) if found else 0
    return step if name == f"step-{step:08d}" else None


def new_run_path(root: Path, env: str, algo: str, seed: int, hash6: str) -> Path:
    """Return a path that does not exist yet: root/<env>/<algo>-s<seed>-<UTC>-<hash6>, <env> safe as a file name."""
    start, now, tries = f"{algo}-s{seed}", f"{datetime.now(UTC):%Y%m%dT%H%M%S}", 0
    path = root / file_name(env) / f"{start}-{now}-{hash6}"
    while path.exists():  # two runs started in the same second
        tries += 1
        path = root / file_name(env) / f"{start}-{now}.{tries}-{hash6}"
    return path
