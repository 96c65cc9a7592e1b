"""A run's directory: claimed, locked, described; and `publish`, the only durable write of the project.

What is published is either the old file or the whole new one, whatever is killed and whenever.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from gtp_fast.errors import BusyError

PARTIAL = ".partial-"  # prefix of what is being written; leftovers of a killed process are swept on the next claim
REPLACED = PARTIAL + "old-"  # prefix of a directory that steps aside for its successor; put back if none came


def publish(path: Path, data: bytes | Callable[[Path], None]) -> None:
    """Write a file durably: beside its place, fsync, rename, fsync of the directory.

    Args: data is the content, or a function that writes it to the path that it is given.
    Raises: OSError from the file system; then `path` is as it was.
    """
    partial = path.with_name(f"{PARTIAL}{os.getpid()}-{path.name}")
    try:
        if isinstance(data, bytes):
            partial.write_bytes(data)
        else:
            data(partial)
        publish_file(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def publish_json(path: Path, value: object) -> None:
    """Publish a value as indented JSON with sorted keys."""
    publish(path, (json.dumps(value, indent=2, sort_keys=True, default=str) + "\n").encode())


def publish_file(part: Path, path: Path) -> None:
    """Move a finished file of the same directory into place, durably."""
    sync(part)
    os.replace(part, path)
    sync(path.parent)


def publish_directory(path: Path, fill: Callable[[Path], None]) -> None:
    """Write a directory durably: filled beside its place, every file fsynced, renamed, parent fsynced.

    A directory that stands in the place already is replaced. That takes two renames, and a kill between them leaves the
    old one under another name: the next claim puts it back.
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
    """Return when the content of a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold an exclusive lock on a file; the kernel releases it when the process ends, however it ends.

    Raises: BusyError naming the holder when another process has it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "an unknown process"
            raise BusyError(f"{what} is in use by {holder}; wait for it to end, or choose another") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC")
        file.flush()
        yield


def holder(path: Path) -> str | None:
    """Return who holds the lock of a file that `locked` takes, None where nobody does."""
    try:
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # given back as the file closes
            except BlockingIOError:
                return file.read().strip() or "an unknown process"
    except FileNotFoundError:
        pass
    return None


@dataclass(frozen=True)
class RunDir:
    """The places of a run, all below `path`."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "ckpt"

    @property
    def evaluations(self) -> Path:
        return self.path / "eval"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def log(self) -> Path:
        return self.path / "train.log"

    @property
    def lock(self) -> Path:
        return self.path / "LOCK"

    @property
    def failure(self) -> Path:
        return self.path / "failure.json"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:08d}"

    def evaluation(self, step: int) -> Path:
        return self.evaluations / f"step-{step:08d}.json"

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Create the directory, lock it against other processes, and sweep what a killed process left half-written.

        Raises: BusyError naming the holder.
        """
        with locked(self.lock, f"run directory {self.path}"):
            for directory in (self.path, self.checkpoints, self.evaluations):
                directory.mkdir(parents=True, exist_ok=True)
                _sweep(directory)
            yield


def _sweep(directory: Path) -> None:
    """Put back what had stepped aside for a successor that never came; remove all else that is half-written."""
    for leftover in directory.glob(PARTIAL + "*"):
        place = directory / leftover.name.removeprefix(REPLACED)
        if leftover.name.startswith(REPLACED) and not place.exists():
            os.replace(leftover, place)
        elif leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def new_run_path(root: Path, env: str, algo: str, seed: int, hash6: str) -> Path:
    """Return runs/<env>/<algo>-s<seed>-<UTC>-<hash6>, made safe for a file system, of which nothing exists yet."""
    name = "".join(c if c.isalnum() or c in "-_." else "_" for c in env).lstrip(".") or "_"
    start, now, tries = f"{algo}-s{seed}", f"{datetime.now(UTC):%Y%m%dT%H%M%S}", 0
    path = root / name / f"{start}-{now}-{hash6}"
    while path.exists():  # two runs of one second
        tries += 1
        path = root / name / f"{start}-{now}.{tries}-{hash6}"
    return path
