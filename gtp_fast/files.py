"""Files that survive a crash, and files that are not trusted.

After a kill at any moment, a path holds the old file or the complete new one: all durable writes of the project go
through the `publish` functions. A run directory may come from somebody else: whatever lies in one is opened with
`open_file`, which follows no link and opens nothing but regular files.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from gtp_fast.errors import ForeignFileError

PARTIAL = ".partial-"  # prefix of files being written; the next claim of the run deletes those of a killed process
# Prefix of a directory being replaced; the next claim restores it if the new one is missing.
REPLACED = PARTIAL + "old-"
JSON_BYTES = 256 << 20  # the most of a JSON file: the evaluation of 4,096 seeds in 100 episodes has a fifth of it
LINE_BYTES = 16 << 20  # the most of a line: one of metrics of 4,096 seeds has a tenth of it
# With these, opening a pipe does not wait for its other end, and a terminal does not become the process's own.
_AT_ONCE = os.O_NONBLOCK | os.O_NOCTTY
_FLAGS = {  # "w" truncates once the file is known to be a run's own
    "r": os.O_RDONLY,
    "r+": os.O_RDWR,
    "w": os.O_WRONLY | os.O_CREAT,
    "x": os.O_WRONLY | os.O_CREAT | os.O_EXCL,
    "a": os.O_WRONLY | os.O_CREAT | os.O_APPEND,
}
_REFUSED = {errno.ELOOP: "a link", errno.ENXIO: "a pipe, a socket or a device", errno.EISDIR: "a directory"}


def open_file(path: Path, mode: str = "rb", buffering: int = -1, follow: bool = False) -> IO[Any]:
    """Open a regular file, of a run directory for example, that is not to be trusted; modes are those of `open`.

    Args: follow, also through a link at the path's end: of a file that the user named. Folders above it may be links.
    Raises: ForeignFileError for a link, a pipe, a device or a directory, and for writing into a file that has a second
    name; other errors of the file system.
    """
    descriptor = descriptor_of(path, _FLAGS[mode.replace("b", "")], follow)
    if "w" in mode:
        os.ftruncate(descriptor, 0)
    return os.fdopen(descriptor, mode, buffering, encoding=None if "b" in mode else "utf-8")


def descriptor_of(path: Path, flags: int, follow: bool = False) -> int:
    """Return the descriptor of a regular file, opened as `open_file` opens it, which see."""
    try:
        descriptor = os.open(path, flags | _AT_ONCE | (0 if follow else os.O_NOFOLLOW), 0o666)
    except OSError as error:
        if error.errno in _REFUSED and not (follow and error.errno == errno.ELOOP):
            raise _foreign(path, _REFUSED[error.errno]) from None
        raise
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and (found.st_nlink < 2 or flags & os.O_ACCMODE == os.O_RDONLY):
        return descriptor
    os.close(descriptor)
    if stat.S_ISREG(found.st_mode):
        raise _foreign(path, "a file with a second name, which would change too")
    raise _foreign(path, "a directory" if stat.S_ISDIR(found.st_mode) else "a pipe, a socket or a device")


def _foreign(path: Path, what: str) -> ForeignFileError:
    return ForeignFileError(f"{path} is {what}, expected a file of its own; put the file itself there, or remove it")


def read_bytes(path: Path, most: int, follow: bool = False) -> bytes:
    """Return the content of a file of at most so many bytes, opened by `open_file`, which see."""
    with open_file(path, follow=follow) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise ForeignFileError(f"{path} has {size:,} bytes, expected at most {most:,}; restore it, or remove it")
        return file.read(size)


def read_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file, opened by `open_file`, with their ends; a line of more than LINE_BYTES in pieces."""
    with open_file(path) as file:
        while line := file.readline(LINE_BYTES):
            yield line


def read_json(path: Path) -> Any:
    """Return what a JSON file holds. Raises: OSError as `open_file` does; ValueError where it is no JSON."""
    return parse_json(read_bytes(path, JSON_BYTES))


def parse_json(content: bytes) -> Any:
    """Return what JSON says. Raises: ValueError, also where it is nested too deep to be read."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def write_file(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Write a new file. Raises: FileExistsError where there is one; other errors of the file system."""
    with open_file(path, "xb") as file:
        file.writelines([data] if isinstance(data, bytes) else data)


def own_folder(path: Path) -> Path:
    """Return the path of a folder inside a run. Raises: ForeignFileError where it is a link, which leads elsewhere."""
    if path.is_symlink():
        raise ForeignFileError(f"{path} is a link, expected a directory of its own; put that there, or remove the link")
    return path


def make_folder(path: Path) -> None:
    """Create a folder and those above it, durably: after a power cut none of them lacks its name."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync(path.parent)


def remove(path: Path) -> None:
    """Remove a file, a link, or a directory with what it holds; nothing that a link leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def publish(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Write a file durably: write a partial file beside it, fsync, rename, fsync the directory.

    Raises: OSError from the file system; `path` is then unchanged.
    """
    partial = path.with_name(f"{PARTIAL}{os.getpid()}-{path.name}")
    partial.unlink(missing_ok=True)  # of a killed process with the same number
    try:
        write_file(partial, data)
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
    _clear(partial)
    try:
        make_folder(path.parent)
        partial.mkdir()
        fill(partial)
        for file in sorted(partial.iterdir()):
            sync(file)
        sync(partial)
        if os.path.lexists(path):
            _clear(old)
            os.replace(path, old)
        os.replace(partial, path)
        sync(path.parent)
        _clear(old)
    except BaseException:
        if os.path.lexists(old) and not os.path.lexists(path):
            os.replace(old, path)
        _clear(partial)
        raise


def _clear(path: Path) -> None:
    """Remove a directory that is needed no more, or leave it to the next claim where that fails."""
    if os.path.lexists(path):
        with suppress(OSError):
            remove(path)


def sync(path: Path) -> None:
    """Fsync a file or a directory: return when its content or its names are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def linked(there: Path, here: Path, content: bytes) -> bool:
    """Make `here` a second name of the file `there`, and return True, where that file has this content."""
    try:
        os.link(there, here, follow_symlinks=False)
    except OSError:  # there is none, or the file system knows no second names
        return False
    with suppress(OSError):
        if read_bytes(here, len(content)) == content:
            return True
    here.unlink()  # it was damaged, or is not the run's own
    return False


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_name(text: str, filler: str = "_") -> str:
    """Return a text as a file name: characters other than letters, digits and `-_.` become the filler."""
    return "".join(c if c.isalnum() or c in "-_." else filler for c in text).lstrip(".") or "_"
