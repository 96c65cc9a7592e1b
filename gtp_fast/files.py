"""Files that survive a crash: after a kill at any moment, a path holds the old file or the complete new one.

In: a path and its content. Out: a durable file or directory. All durable writes of the project go through the
`publish` functions.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from gtp_fast.errors import BusyError

PARTIAL = ".partial-"  # prefix of files being written; the next claim of the run deletes those of a killed process
# Prefix of a directory being replaced; the next claim restores it if the new one is missing.
REPLACED = PARTIAL + "old-"
_log = logging.getLogger(__name__)


def publish(path: Path, data: bytes) -> None:
    """Write a file durably: write a partial file beside it, fsync, rename, fsync the directory.

    Raises: OSError from the file system; `path` is then unchanged.
    """
    partial = path.with_name(f"{PARTIAL}{os.getpid()}-{path.name}")
    try:
        partial.write_bytes(data)
        publish_file(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def publish_json(path: Path, value: object) -> None:
    """Publish a value as indented JSON with sorted keys."""
    publish(path, (json.dumps(value, indent=2, sort_keys=True, default=str) + "\n").encode())


def publish_file(part: Path, path: Path) -> None:
    """Rename a finished file to another name in its directory, durably."""
    sync(part)
    os.replace(part, path)
    sync(path.parent)


def publish_directory(path: Path, fill: Callable[[Path], None]) -> None:
    """Write a directory durably: fill a partial one beside it, fsync every file, rename, fsync the parent.

    An existing directory is replaced. That takes two renames, and a kill between them leaves the old directory under
    another name; the next claim of the run directory restores it.
    """
    partial = path.with_name(f"{PARTIAL}{os.getpid()}-{path.name}")
    old = path.with_name(REPLACED + path.name)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        fill(partial)
        for file in sorted(partial.iterdir()):
            sync(file)
        sync(partial)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(path, old)
        os.replace(partial, path)
        sync(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        if old.exists() and not path.exists():
            os.replace(old, path)
        shutil.rmtree(partial, ignore_errors=True)
        raise


def sync(path: Path) -> None:
    """Fsync a file or a directory: return when its content or its names are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, what: str, wait: bool = False) -> Iterator[None]:
    """Hold an exclusive lock on a file; the kernel releases it when the process ends, however it ends.

    The file stays: removing it would let two holders in. It says who holds the lock. With `wait` another holder is
    named in a warning and waited for. Raises: BusyError naming another holder, without `wait`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = _named(file)
            if not wait:
                raise BusyError(f"{what} is in use by {other}; wait for it to end, or choose another") from None
            _log.warning("%s is in use by %s; waiting for it", what, other)
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC")
        file.flush()
        yield


def _named(file: TextIO) -> str:
    file.seek(0)
    return file.read().strip() or "an unknown process"


def holder(path: Path) -> str | None:
    """Return who holds the lock of a file that `locked` takes, None where nobody does.

    It asks with a shared lock, so that two that ask at the same time do not take each other for a holder.
    """
    with suppress(FileNotFoundError), path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # given back as the file closes
        except BlockingIOError:
            return _named(file)
    return None


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_name(text: str, filler: str = "_") -> str:
    """Return a text as a file name: characters other than letters, digits and `-_.` become the filler."""
    return "".join(c if c.isalnum() or c in "-_." else filler for c in text).lstrip(".") or "_"
