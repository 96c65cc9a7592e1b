"""A disk that refuses: which errors mean that, how long a run lives with them, and what the user is told."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from gtp_fast.errors import DiskError, UsageError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space, no quota, no larger file: the same to a user
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
PATIENCE = 3  # refusals in a row


@contextmanager
def told_of(path: Path) -> Iterator[None]:
    """Turn the file system's refusals into errors that say what to do.

    Raises: DiskError where there is no space; UsageError where nobody may write below `path`.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise DiskError(
                f"no space for {path} ({error}); free some and run the same command again: it continues from the last "
                "checkpoint"
            ) from error
        refused = Path(str(error.filename))
        if error.errno in CLOSED and (refused.is_relative_to(path) or path.is_relative_to(refused)):
            raise UsageError(f"{path} cannot be a run directory ({error}); choose another --run-dir") from error
        raise


@dataclass
class Disk:
    """Where a run writes, and how often it was refused in a row: a kind of write each.

    Kinds are counted apart because a metric line may fit where a checkpoint does not: it must not excuse it.
    """

    path: Path
    warn: Callable[[str], None]
    refused: dict[str, int] = field(default_factory=dict)

    def write(self, kind: str, what: str, action: Callable[[], None]) -> None:
        """Write, and live with a refusal: warn and go on.

        Raises: DiskError at the third refusal in a row of this kind.
        """
        try:
            action()
        except OSError as error:
            self.refused[kind] = self.refused.get(kind, 0) + 1
            self.warn(f"{what} could not be written ({error}); earlier checkpoints stand")
            if self.refused[kind] >= PATIENCE:
                raise DiskError(
                    f"{PATIENCE} writes of {kind} to {self.path} failed in a row, the last with: {error}; free space "
                    "and run the same command again: it continues from the last checkpoint"
                ) from error
        else:
            self.refused[kind] = 0
