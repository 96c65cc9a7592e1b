"""Fetch a published data set: streamed, resumed where it was cut off, checked, then moved into place whole.

In: an entry of the catalogue. Out: the path of its file. Environment variables can replace the published address and
the folder. NAME.part holds the bytes that have arrived, and NAME.part.json their origin. A second process that wants
the same file waits for the first. No port is opened, and nothing that was fetched is run.
"""

from __future__ import annotations

import errno
import json
import os
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

from gtp_fast.data.catalog import D4RL_BASE, OGBENCH_BASE
from gtp_fast.data.spec import DataSpec
from gtp_fast.errors import DataError, DiskError
from gtp_fast.files import locked, publish_file, sha256_of

Progress = Callable[[int, int | None], None]  # bytes so far, and the total if the server gives it

STALL_SECONDS = 6.0  # a server that sends nothing for this long counts as gone
# An answer must begin within this time. It includes the name look-up, which the socket's own timeout does not cover.
ANSWER_SECONDS = 8.0
CUTS = 10  # broken connections after which one call gives up; a later call continues from there
BLOCK = 1 << 20  # bytes per read
_BROKEN = (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError)


class Place(NamedTuple):
    """A source's published base address, its cache below the home directory, and the variables that replace each."""

    base: str
    base_variable: str
    folder: str
    folder_variable: str


# The folders are those of the d4rl and ogbench packages, so that each finds what the other has fetched.
PLACES = {
    "d4rl": Place(D4RL_BASE, "GTP_FAST_D4RL_URL", ".d4rl/datasets", "D4RL_DATASET_DIR"),
    "ogbench": Place(OGBENCH_BASE, "GTP_FAST_OGBENCH_URL", ".ogbench/data", "OGBENCH_DATASET_DIR"),
}


class _CutError(ConnectionError):
    """The transfer broke after some bytes, or must start again from zero: try again at once."""


def fetch(spec: DataSpec, progress: Progress | None = None) -> Path:
    """Return the path of an entry's file, downloading it first if necessary.

    Args: progress is called with the bytes that have arrived and the total.
    Raises: DataError when the file can neither be found nor fetched, with the path to put it at; DiskError when it does
    not fit.
    """
    path, variable = cache_path(spec), PLACES[spec.source].folder_variable
    if path.exists():
        return path
    try:
        with locked(path.with_name(path.name + ".lock"), str(path), wait=True):
            if not path.exists():  # another process may have fetched it while this one waited
                _download(spec, path, progress)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskError(f"no space left for {path}; free some, or set {variable} to a larger disk") from None
        raise DataError(
            f"{path.parent} cannot be written ({error}); set {variable} to a folder that you can write to"
        ) from None
    return path


def _download(spec: DataSpec, path: Path, progress: Progress | None) -> None:
    """Fetch into the part file, check it and move it into place."""
    part = path.with_name(path.name + ".part")
    url, total = _fetch_part(spec, part, progress)
    # The published address must give the published file. A mirror may hold other data under the name: then loading
    # notes that it is not the published file.
    published = url == spec.url
    expected = spec.size if published and spec.size else total
    size = part.stat().st_size
    wrong = None if expected in (None, size) else f"{size:,} bytes, expected {expected:,}"
    if not wrong and published and spec.sha256:
        found = sha256_of(part)
        wrong = None if found == spec.sha256 else f"SHA-256 {found}, expected {spec.sha256}"
    if wrong:
        _forget(part)
        raise DataError(f"{url} gave {wrong}; nothing was kept: run again, or put the right file at {path}")
    publish_file(part, path)
    _forget(part)


def _fetch_part(spec: DataSpec, part: Path, progress: Progress | None) -> tuple[str, int | None]:
    """Fetch from the first address that has the file, resuming after each break; return the address and the size."""
    urls = addresses(spec)
    for url in urls:
        for _ in range(CUTS):
            try:
                return url, _continue(url, part, progress)
            except urllib.error.HTTPError as error:
                if error.code == 404 and url != urls[-1]:
                    break
                raise DataError(_out_of_reach(url, spec, part, f"HTTP {error.code} {error.reason}")) from None
            except _CutError:
                continue
            except _BROKEN as error:  # nothing arrived: another attempt would only cost time
                raise DataError(_out_of_reach(url, spec, part, getattr(error, "reason", error))) from None
            except ValueError as error:  # the mirror's variable is not an address
                raise DataError(_out_of_reach(url, spec, part, error)) from None
        else:
            raise DataError(_out_of_reach(url, spec, part, f"the connection broke {CUTS} times"))
    raise AssertionError("the last address returns or raises")


def _continue(url: str, part: Path, progress: Progress | None) -> int | None:
    """Append to the part file; return the size of the whole file, if the server gives it.

    Raises: _CutError when the server ends early; the part file stays for the next attempt.
    """
    origin = _origin(part)
    have = _length(part) if origin.get("url") == url else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    if have and origin.get("version"):
        headers["If-Range"] = origin["version"]  # the server sends a changed file from the start
    try:
        response = _open(urllib.request.Request(url, headers=headers))
    except urllib.error.HTTPError as error:
        whole = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
        if error.code == 416 and whole and int(whole[1]) == have:
            return have  # the part file is complete
        if error.code == 416:
            _forget(part)
            raise _CutError from None
        raise
    with response:
        status = getattr(response, "status", None)
        if status == 206 and not (response.headers.get("Content-Range") or "").startswith(f"bytes {have}-"):
            _forget(part)
            raise _CutError
        if status != 206:
            have = 0  # the server ignores ranges and sends the whole file
            version = response.headers.get("ETag") or response.headers.get("Last-Modified")
            _record(part).write_text(json.dumps({"url": url, "version": version}))
        return _append(response, part, have, progress)


def _append(response: Any, part: Path, have: int, progress: Progress | None) -> int | None:
    """Write the bytes after the first `have`; return the size of the whole file, if the server gives it."""
    length = response.headers.get("Content-Length")
    total = have + int(length) if length is not None else None
    read = getattr(response, "read1", response.read)  # read1 returns what has arrived: a kill loses little
    with part.open("ab" if have else "wb") as file:
        try:
            while block := read(BLOCK):
                file.write(block)
                have += len(block)
                if progress is not None:
                    progress(have, total)
        except (HTTPException, TimeoutError, ConnectionError):
            raise _CutError from None
    if total is not None and have < total:
        raise _CutError
    return total


def _open(request: urllib.request.Request) -> Any:
    """Open an address, or raise TimeoutError after ANSWER_SECONDS, even during the name look-up."""
    outcome: list[Any] = []

    def ask() -> None:
        try:
            outcome.append(urllib.request.urlopen(request, timeout=STALL_SECONDS))
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    if not outcome:
        raise TimeoutError(f"no answer in {ANSWER_SECONDS:g} seconds")
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


def reach(url: str) -> None:
    """Return once a server answers with any status; raise a network error within ANSWER_SECONDS."""
    try:
        _open(urllib.request.Request(url, method="HEAD")).close()
    except urllib.error.HTTPError:
        return


def cache_path(spec: DataSpec) -> Path:
    """Return the local path of a published file."""
    return folder(spec.source) / str(spec.filename)


def folder(source: str) -> Path:
    """Return the folder of a source's files: from its variable if set, otherwise that of its package."""
    place = PLACES[source]
    named = os.environ.get(place.folder_variable)
    return Path(named) if named else Path.home() / place.folder


def addresses(spec: DataSpec) -> list[str]:
    """Return the addresses to try for a file, in order.

    If the source's variable names a mirror, the file is tried there under its published path, then directly below it.
    """
    place = PLACES[spec.source]
    base = os.environ.get(place.base_variable, "").rstrip("/")
    if not base:
        return [str(spec.url)]
    return list(dict.fromkeys([str(spec.url).replace(place.base, base), f"{base}/{spec.filename}"]))


def _record(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _origin(part: Path) -> dict[str, Any]:
    """Return the origin of the part file, url and version; empty if unknown, and then the download starts again."""
    try:
        found = json.loads(_record(part).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _length(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _record(part).unlink(missing_ok=True)


def _out_of_reach(url: str, spec: DataSpec, part: Path, why: object) -> str:
    kept = f" {_length(part):,} bytes are kept and will be continued." if _length(part) else ""
    mirror = PLACES[spec.source].base_variable
    return (
        f"{url} could not be fetched ({why}).{kept} Run again, set {mirror} to a mirror, or put the file at "
        f"{cache_path(spec)}; --dataset FILE reads it from any other path"
    )
