"""Fetch a published data set: streamed, resumed where it was cut off, checked, then moved into place whole.

In: an entry of the catalogue. Out: the path of its file. Environment variables can replace the published address and
the folder. NAME.part holds the bytes that have arrived, and NAME.part.json their origin. A second process that wants
the same file waits for the first. No port is opened, and nothing that was fetched is run. What a server says is not
believed: it is held to the published size or to its own, to HTTPS where that was typed, and to the part that was asked.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from gtp_fast.data import foreign
from gtp_fast.data.catalog import D4RL_BASE, OGBENCH_BASE
from gtp_fast.data.spec import DataSpec
from gtp_fast.errors import DataError, DiskError, ForeignFileError
from gtp_fast.files import open_file, publish_file, publish_json, read_json, sha256_of
from gtp_fast.locks import locked

Progress = Callable[[int, int | None], None]  # bytes so far, and the total if the server gives it

STALL_SECONDS = 6.0  # a server that sends nothing for this long counts as gone
# An answer must begin within this time. It includes the name look-up, which the socket's own timeout does not cover.
ANSWER_SECONDS = 8.0
CUTS = 10  # broken connections after which one call gives up; a later call continues from there
BLOCK = 1 << 20  # bytes per read
SPARE = 1 << 30  # bytes that a download leaves free on the disk
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
    try:
        if _is_there(path):
            return path
        with locked(path.with_name(path.name + ".lock"), str(path), wait=True):
            if not _is_there(path):  # another process may have fetched it while this one waited
                _download(spec, path, progress)
    except ForeignFileError as error:
        raise DataError(f"{error}; or set {variable} to another folder, or name your file with --dataset") from None
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
    published = _published(spec, url)
    expected, size = published.size or total, _length(part)
    if expected not in (None, size):
        raise _not_kept(url, part, f"{size:,} bytes, expected {expected:,}")
    if published.sha256 and (found := sha256_of(part)) != published.sha256:
        raise _not_kept(url, part, f"SHA-256 {found}, expected {published.sha256}")
    publish_file(part, path)
    _forget(part)


class _Published(NamedTuple):
    """What is known of the file at an address."""

    size: int | None = None
    sha256: str | None = None


def _published(spec: DataSpec, url: str) -> _Published:
    """Return what the published address must give.

    A mirror may hold other data under the name: then loading notes that it is not the published file.
    """
    return _Published(spec.size, spec.sha256) if url == spec.url else _Published()


def _not_kept(url: str, part: Path, seen: str) -> DataError:
    _forget(part)
    path = part.with_name(part.name.removesuffix(".part"))
    return DataError(f"{url} gave {seen}; nothing was kept: run again, or put the right file at {path}")


def _fetch_part(spec: DataSpec, part: Path, progress: Progress | None) -> tuple[str, int | None]:
    """Fetch from the first address that has the file, resuming after each break; return the address and the size."""
    urls = addresses(spec)
    for url in urls:
        for _ in range(CUTS):
            try:
                return url, _continue(url, part, _published(spec, url), progress)
            except urllib.error.HTTPError as error:
                if error.code == 404 and url != urls[-1]:
                    break
                raise DataError(
                    _out_of_reach(url, spec, part, f"HTTP {error.code} {foreign.plain(str(error.reason), 200)}")
                ) from None
            except _CutError:
                continue
            except _BROKEN as error:  # nothing arrived: another attempt would only cost time
                raise DataError(_out_of_reach(url, spec, part, getattr(error, "reason", error))) from None
            except ValueError as error:  # the mirror's variable is not an address
                raise DataError(_out_of_reach(url, spec, part, error)) from None
        else:
            raise DataError(_out_of_reach(url, spec, part, f"the connection broke {CUTS} times"))
    raise AssertionError("the last address returns or raises")


def _continue(url: str, part: Path, published: _Published, progress: Progress | None) -> int | None:
    """Append to the part file; return the size of the whole file, if it is known.

    Raises: _CutError when the server ends early; the part file stays for the next attempt.
    """
    origin = _origin(part)
    version = origin.get("version")
    # Without a version and a checksum nobody would see that two versions of a file were joined.
    have = _length(part) if origin.get("url") == url and (version or published.sha256) else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    if have and version:
        headers["If-Range"] = version  # the server sends a changed file from the start
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
        if getattr(response, "status", None) == 206:
            total = _size_of_whole(response, part, have, origin)
        else:  # the server ignores ranges and sends the whole file
            have, length = 0, response.headers.get("Content-Length")
            total = int(length) if length is not None else None
            # Killed between any two of these lines, no bytes of another version can be taken for this one's.
            part.unlink(missing_ok=True)
            publish_json(_record(part), {"url": url, "version": _version(response), "size": total})
        _append(response, part, have, _limit(url, part, published.size, total, have), progress)
    have = _length(part)
    if total is not None and have < total:
        raise _CutError
    return total


def _version(response: Any) -> str | None:
    return response.headers.get("ETag") or response.headers.get("Last-Modified")


def _size_of_whole(response: Any, part: Path, have: int, origin: dict[str, Any]) -> int | None:
    """Return the size of the whole that a part belongs to, None if it is not said.

    Raises: _CutError where the part begins elsewhere than it was asked to, or is one of another file: begin again.
    """
    said = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range") or "")
    total = int(said[2]) if said and said[2] != "*" else None
    same = _version(response) in (None, origin.get("version")) and total in (None, origin.get("size"))
    if not said or int(said[1]) != have or not same:
        _forget(part)
        raise _CutError
    return origin.get("size") if total is None else total


class _Limit(NamedTuple):
    """The bytes that a file may have, the error about one that has more, and its size if it is known."""

    most: int
    error: Callable[[], Exception]
    size: int | None = None


def _limit(url: str, part: Path, published: int | None, total: int | None, have: int) -> _Limit:
    """Return how much of a file is taken. Raises: DataError or DiskError for a size that cannot be right or fit."""
    if published and total not in (None, published):
        raise _not_kept(url, part, f"{total:,} bytes, expected {published:,}")
    if published:
        return _Limit(
            published, lambda: _not_kept(url, part, f"more than the published {published:,} bytes"), published
        )
    room = have + max(0, shutil.disk_usage(part.parent).free - SPARE)
    if total is not None and total > room:
        raise DiskError(
            f"{url} has {total:,} bytes, and the disk of {part.parent} can spare {room:,}; free some, or choose "
            "another folder"
        )
    if total is not None:
        return _Limit(total, lambda: _not_kept(url, part, f"more than the {total:,} bytes that it promised"), total)

    def filled() -> DiskError:
        _forget(part)
        return DiskError(
            f"{url} gives no size and has sent more than the {room:,} bytes that the disk of {part.parent} can spare; "
            "nothing was kept: free some, or choose another folder"
        )

    return _Limit(room, filled)


def _append(response: Any, part: Path, have: int, limit: _Limit, progress: Progress | None) -> None:
    """Write the bytes after the first `have`; what exceeds the limit is not written."""
    read = getattr(response, "read1", response.read)  # read1 returns what has arrived: a kill loses little
    with open_file(part, "ab") as file:
        try:
            while block := read(BLOCK):
                if have + len(block) > limit.most:
                    raise limit.error()
                file.write(block)
                have += len(block)
                if progress is not None:
                    progress(have, limit.size)
        except (HTTPException, TimeoutError, ConnectionError):
            raise _CutError from None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a server to another address, but never from HTTPS to anything else, nor to other than HTTP."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        before, after = urlsplit(req.full_url).scheme.lower(), urlsplit(newurl).scheme.lower()
        if after != "https" and not (before == after == "http"):
            needed = "HTTPS" if before == "https" else "HTTP or HTTPS"
            raise urllib.error.URLError(
                f"{req.full_url} leads on to {newurl}, which is not {needed}; it was not followed"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(request: urllib.request.Request) -> Any:
    """Open an address, or raise TimeoutError after ANSWER_SECONDS, even during the name look-up."""
    outcome: list[Any] = []

    def ask() -> None:
        try:
            # Built anew, because proxies and certificates come from the environment.
            outcome.append(urllib.request.build_opener(_Redirects).open(request, timeout=STALL_SECONDS))
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
    """Return the origin of the part file: url, version, size; empty if unknown, and then the download starts again."""
    try:
        found = read_json(_record(part))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_there(path: Path) -> bool:
    """Return whether there is a file. Raises: ForeignFileError for a link, a pipe, a device or a directory."""
    try:
        open_file(path).close()
    except FileNotFoundError:
        return False
    return True


def _length(part: Path) -> int:
    try:
        with open_file(part) as file:
            return os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        return 0


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
