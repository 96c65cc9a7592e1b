"""Fetch a published data set: streamed, resumed where it was cut off, checked, and moved into place whole.

A second process that wants the same file waits for the first. Nothing listens; nothing is run.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from gtp_fast.catalog import D4RL_BASE, DataSpec
from gtp_fast.errors import DataError
from gtp_fast.rundir import publish_file

Progress = Callable[[int, int | None], None]  # bytes so far, bytes in all where the server says so

TIMEOUT_SECONDS = 6.0  # without an answer for so long, the server counts as out of reach
ATTEMPTS = 3  # in one call; a later call continues where the last attempt ended
BLOCK = 1 << 20


def cache_path(spec: DataSpec) -> Path:
    """Return where a D4RL file lies: $D4RL_DATASET_DIR, else ~/.d4rl/datasets, by its published base name."""
    folder = os.environ.get("D4RL_DATASET_DIR")
    return (Path(folder) if folder else Path.home() / ".d4rl" / "datasets") / str(spec.filename)


def address(spec: DataSpec) -> str:
    """Return the file's address; GTP_FAST_D4RL_URL takes the place of the published base."""
    base = os.environ.get("GTP_FAST_D4RL_URL")
    return str(spec.url).replace(D4RL_BASE, base.rstrip("/")) if base else str(spec.url)


def fetch(spec: DataSpec, progress: Progress | None = None) -> Path:
    """Return the path of an entry's file, downloading it first if it is not there.

    Raises: DataError when it can neither be found nor fetched, saying where to put it.
    """
    path = cache_path(spec)
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _sole(path.with_name(path.name + ".lock")):
            if not path.exists():  # another process may have fetched it while this one waited
                _download(spec, path, progress)
    except PermissionError as error:
        raise DataError(
            f"{path.parent} cannot be written ({error}); set D4RL_DATASET_DIR to a folder of yours"
        ) from None
    return path


@contextmanager
def _sole(lock: Path) -> Iterator[None]:
    """Wait for, then hold, the lock of one file."""
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
        lock.unlink(missing_ok=True)


def _download(spec: DataSpec, path: Path, progress: Progress | None) -> None:
    url, part = address(spec), path.with_name(path.name + ".part")
    published = url == spec.url
    for attempt in range(ATTEMPTS):
        try:
            total = _continue(url, part, progress)
            break
        except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
            if isinstance(error, urllib.error.HTTPError) or attempt == ATTEMPTS - 1 or not part.exists():
                raise DataError(_out_of_reach(url, path, part, error)) from None
    expected = spec.size if published and spec.size else total
    if expected is not None and part.stat().st_size != expected:
        size = part.stat().st_size
        part.unlink()
        raise DataError(
            f"{url} gave {size:,} bytes, expected {expected:,}; nothing was kept: run again, or fetch by hand"
        )
    if spec.sha256 and published:
        with part.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != spec.sha256:
            part.unlink()
            raise DataError(f"{url} has SHA-256 {found}, expected {spec.sha256}; nothing was kept: run again")
    publish_file(part, path)


def _continue(url: str, part: Path, progress: Progress | None) -> int | None:
    """Append to the part file from where it ends; return the size of the whole, where the server says it.

    Raises: ConnectionError when the server ends early; the part stays for the next attempt.
    """
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response: HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)  # noqa: S310
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing after the end: the part is the whole
            return have
        raise
    with response, part.open("ab" if response.status == 206 else "wb") as file:
        if response.status != 206:
            have = 0  # a server that ignores ranges sends all of it again
        length = response.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        while block := response.read(BLOCK):
            file.write(block)
            have += len(block)
            if progress is not None:
                progress(have, total)
    if total is not None and have < total:
        raise ConnectionError(f"the connection ended after {have:,} of {total:,} bytes")
    return total


def _out_of_reach(url: str, path: Path, part: Path, error: Exception) -> str:
    kept = f" {part.stat().st_size:,} bytes are kept and will be continued." if part.exists() else ""
    return (
        f"{url} could not be fetched ({getattr(error, 'reason', None) or error}).{kept} Run again, set "
        f"GTP_FAST_D4RL_URL to a mirror, or put the file at {path}; --dataset FILE takes any other place"
    )
