"""Where the files of each source are published, where they are kept here, and which variables say otherwise.

Fetch a published data set: streamed, resumed where it was cut off, checked, and moved into place whole.

A second process that wants the same file waits for the first. Nothing listens; nothing is run. What has arrived of a
file lies beside it in NAME.part, and NAME.part.json says what it is a part of.
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


Progress = Callable[[int, int | None], None]  # bytes so far, bytes in all where the server says so

STALL_SECONDS = 6.0  # a server that sends nothing for so long counts as gone
# An answer must begin within this, name look-up included, which the socket's own timeout does not cover.
ANSWER_SECONDS = 8.0
CUTS = 10  # times that one call goes on after the connection broke; a later call goes on from there
BLOCK = 1 << 20
_BROKEN = (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError)


class _CutError(ConnectionError):
    """The transfer broke after bytes had come, or must begin anew: worth another attempt at once."""


def fetch(spec: DataSpec, progress: Progress | None = None) -> Path:
    """Return the path of an entry's file, downloading it first if it is not there.

    Args: progress is called with the bytes that have arrived and the bytes in all.
    Raises: DataError when it can neither be found nor fetched, saying where to put it; DiskError when it does not fit.
    """
    path, folder = cache_path(spec), PLACES[spec.source].folder_variable
    if path.exists():
        return path
    try:
        with locked(path.with_name(path.name + ".lock"), str(path), wait=True):
            if not path.exists():  # another process may have fetched it while this one waited
                _download(spec, path, progress)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskError(f"no space left for {path}; free some, or set {folder} to a larger disk") from None
        raise DataError(f"{path.parent} cannot be written ({error}); set {folder} to a folder of yours") from None
    return path


def _download(spec: DataSpec, path: Path, progress: Progress | None) -> None:
    """Fetch into the part, check it and move it into place."""
    part = path.with_name(path.name + ".part")
    url, total = _fetch_part(spec, part, progress)
    # A mirror that the user named may hold other data under the name; loading then tells that it is not the published
    # file. What comes from the published address must be the published file.
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
    """Fetch from the first address that has the file, going on where it breaks; return the address and the size."""
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
            except _BROKEN as error:  # nothing came: asking again would only cost time
                raise DataError(_out_of_reach(url, spec, part, getattr(error, "reason", error))) from None
            except ValueError as error:  # the mirror's variable holds no address
                raise DataError(_out_of_reach(url, spec, part, error)) from None
        else:
            raise DataError(_out_of_reach(url, spec, part, f"the connection broke {CUTS} times"))
    raise AssertionError("the last address returns or raises")


def _continue(url: str, part: Path, progress: Progress | None) -> int | None:
    """Append to the part from where it ends; return the size of the whole, where the server says it.

    Raises: _CutError when the server ends early; the part stays for the next attempt.
    """
    origin = _origin(part)
    have = _length(part) if origin.get("url") == url else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    if have and origin.get("version"):
        headers["If-Range"] = origin["version"]  # a file that has changed since is sent whole
    try:
        response = _open(urllib.request.Request(url, headers=headers))
    except urllib.error.HTTPError as error:
        whole = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
        if error.code == 416 and whole and int(whole[1]) == have:
            return have  # the part is the whole
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
            have = 0  # a server that ignores ranges sends all of it again
            version = response.headers.get("ETag") or response.headers.get("Last-Modified")
            _record(part).write_text(json.dumps({"url": url, "version": version}))
        return _append(response, part, have, progress)


def _append(response: Any, part: Path, have: int, progress: Progress | None) -> int | None:
    """Write what the server sends after the first `have` bytes; return the size of the whole, where it says so."""
    length = response.headers.get("Content-Length")
    total = have + int(length) if length is not None else None
    read = getattr(response, "read1", response.read)  # what has come is written at once, so that a kill loses little
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
    """Open an address, or raise TimeoutError after ANSWER_SECONDS, however long the name look-up would take."""
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
    """Return once a server answers, with whatever status; raise an error of the network within ANSWER_SECONDS."""
    try:
        _open(urllib.request.Request(url, method="HEAD")).close()
    except urllib.error.HTTPError:
        return


def _record(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _origin(part: Path) -> dict[str, Any]:
    """Return what the part is a part of; empty when that is not known, and then the part is not continued."""
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
        f"{cache_path(spec)}; --dataset FILE takes any other place"
    )
