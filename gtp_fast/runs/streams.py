"""Standard output and standard error that cannot be written, and do not end a training.

A reader went away, as in `2>&1 | head -1`; the terminal was closed; the disk behind a file is full; the shell closed
the stream (`2>&-`). What cannot be written then is lost, and the run's exit code stays its own.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


class Lasting:
    """A text stream that cannot fail: after its first error nothing more is written, and `lost` is that error."""

    def __init__(self, stream: TextIO | None):
        """Take a stream, or None for one that was closed before the process began."""
        self._stream = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w") if stream is None else stream
        self.lost = OSError(errno.EBADF, "it was closed from the start") if stream is None else None

    def write(self, text: str) -> int:
        self._try(lambda stream: stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(lambda stream: stream.flush())

    def isatty(self) -> bool:
        return self.lost is None and self._stream.isatty()

    def _try(self, action: Callable[[TextIO], object]) -> None:
        if self.lost is not None:
            return
        try:
            action(self._stream)
        except BlockingIOError:
            pass  # a terminal that another program made non-blocking is busy: this text is lost, not the next
        except (OSError, ValueError) as error:
            self.lost = error if isinstance(error, OSError) else OSError(errno.EBADF, str(error))
            with suppress(OSError, ValueError):
                # Also what C code and child processes write now goes nowhere, and so does what the stream still holds:
                # the interpreter flushes that at its end, and an error there makes the exit code 120.
                _to_nowhere(self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _to_nowhere(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != descriptor:
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


def open_standard_streams() -> None:
    """Open descriptors 0 to 2 where they are closed: else the next file opened is where errors are written to."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            _to_nowhere(descriptor)


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Make standard output and standard error streams that cannot fail, for all that this process prints."""
    old = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = lasting = Lasting(sys.stdout), Lasting(sys.stderr)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        for stream in lasting:
            stream.flush()
        sys.stdout, sys.stderr = old


def settle_streams() -> None:
    """Write what standard output and standard error still hold, or drop it: the interpreter's own try must succeed."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        Lasting(stream).flush()
