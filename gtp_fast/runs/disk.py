"""Writes that the disk refuses: which errors count, how many a run tolerates, and what the user reads.

`disk_errors` turns errors of the file system into typed ones. `Disk` runs a write, warns when it fails, and counts.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from gtp_fast.errors import DiskError, UsageError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space, no quota, file size limit: the same to a user
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)
PATIENCE = 3  # failed writes in a row that end a run


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn errors of the file system into errors that say what to do.

    Raises: DiskError where there is no space; UsageError where the process may not write below `path`.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise DiskError(
                f"no space for {path} ({error}); free some space and run the same command again: it continues from the "
                "last checkpoint"
            ) from error
        refused = Path(str(error.filename))
        if error.errno in CLOSED and (refused.is_relative_to(path) or path.is_relative_to(refused)):
            raise UsageError(f"{path} cannot be a run directory ({error}); choose another --run-dir") from error
        raise


@contextmanager
def writing(path: Path, remedy: str) -> Iterator[None]:
    """Turn errors of the file system about a file or a folder that the user named into one line with the remedy.

    Raises: DiskError where there is no space; UsageError for other errors.
    """
    try:
        yield
    except OSError as error:
        kind = DiskError if error.errno in FULL else UsageError
        raise kind(f"{path} cannot be written ({error}); {remedy}") from error


@dataclass
class Disk:
    """Runs a run's writes and counts, for each kind of write, how many failed in a row.

    Kinds are counted separately: a metric line that still fits must not reset the count of failed checkpoints.
    """

    path: Path
    warn: Callable[[str], None]
    refused: dict[str, int] = field(default_factory=dict)

    def write(self, kind: str, what: str, action: Callable[[], None]) -> None:
        """Run a write; where the disk refuses it, warn and go on.

        Raises: DiskError at the third failure in a row of this kind.
        """
        try:
            action()
        except OSError as error:
            self.refused[kind] = self.refused.get(kind, 0) + 1
            self.warn(f"{what} could not be written ({error}); earlier checkpoints stay valid")
            if self.refused[kind] >= PATIENCE:
                raise DiskError(
                    f"{PATIENCE} writes of {kind} to {self.path} failed in a row, the last with: {error}; free space "
                    "and run the same command again: it continues from the last checkpoint"
                ) from error
        else:
            self.refused[kind] = 0
