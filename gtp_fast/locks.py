"""Who holds a file's lock: by flock, and by a heartbeat in the file where flock does not reach.

A file system may have no flock, or one that holds on each node alone (docs/clusters.md). So a lock file names its
holder, and the holder counts on in it. Where flock says nothing about that holder, who wants the lock watches the count
for a while: if it moves, the holder lives. No clocks of two machines are compared.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from gtp_fast.errors import BusyError
from gtp_fast.files import descriptor_of, make_folder, parse_json, read_bytes

BYTES = 2_048  # of a lock file: always as many, so that a reader finds no half of a mark
SENTENCE = 400  # letters of what a lock file says for people, at most
NO_FLOCK = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Times:
    """Seconds between heartbeats, between looks at another's, and without one until its process counts as dead."""

    beat: float = 10.0
    look: float = 0.5
    watch: float = 25.0


TIMES = Times()


@dataclass(frozen=True)
class Mark:
    """What a lock file says of its holder. `text` is for people; a host may boot again and a number be given again."""

    text: str
    host: str
    boot: str
    pid: int
    started: int | None
    beat: int = 0

    def to_bytes(self) -> bytes:
        values = {name: value for name, value in asdict(self).items() if name != "text"}
        return f"{self.text}\n{json.dumps(values)}".encode().ljust(BYTES - 1) + b"\n"

    @property
    def owner(self) -> Mark:
        return replace(self, text="", beat=0)


def boot_id() -> str:
    """Return what names this machine from its start on; its host name where the system has no such id."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _started(pid: int) -> int | None:
    """Return when a process of this machine started, in ticks since boot; None where it does not run."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def _own_mark() -> Mark:
    host, pid = socket.gethostname(), os.getpid()
    text = f"process {pid} on {host} since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
    return Mark(text, host, boot_id(), pid, _started(pid))


def _read(path: Path) -> tuple[str, Mark | None]:
    """Return the sentence of a lock file, "" where nobody is named, and the mark, None where it cannot be read."""
    content = read_bytes(path, BYTES).decode(errors="replace")
    text, _, rest = content.partition("\n")
    text = "".join(letter for letter in text if letter.isprintable())[:SENTENCE].strip()  # it may be anybody's
    try:
        mark = Mark(text, **parse_json(rest.encode()))
        known = isinstance(mark.host, str) and isinstance(mark.boot, str) and isinstance(mark.pid, int)
    except (ValueError, TypeError):  # of an earlier version, which wrote only the sentence
        return text, None
    return text, mark if known else None


class Claim:
    """A lock that this process holds. A thread beats until `release`, or until another process is named."""

    def __init__(self, path: Path, descriptor: int, what: str, times: Times):
        self._path, self._descriptor, self._what, self._times = path, descriptor, what, times
        self._mark, self._lost, self._ended = _own_mark(), "", threading.Event()
        os.pwrite(descriptor, self._mark.to_bytes(), 0)
        os.ftruncate(descriptor, BYTES)
        self._thread = threading.Thread(target=self._beat, name="lock", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise BusyError where another process has taken the lock: it thought this one dead."""
        with suppress(OSError):  # a file that was removed, or cannot be read now, names nobody else
            text, mark = _read(self._path)
            if not text or (mark is not None and mark.owner != self._mark.owner):
                self._lost = self._lost or text or "a process that has ended"
        if self._lost:
            raise BusyError(
                f"{self._what} was taken over by {self._lost}, because this process did not answer for a while; it "
                "writes nothing more there"
            )

    def _beat(self) -> None:
        while not self._ended.wait(self._times.beat):
            try:
                self.check()
                self._mark = replace(self._mark, beat=self._mark.beat + 1)
                os.pwrite(self._descriptor, self._mark.to_bytes(), 0)
            except BusyError:
                return
            except OSError:
                continue  # a disk that is full or away: the next beat may be written

    def release(self) -> None:
        """Leave the file empty, so that nobody need watch it, unless it names another."""
        self._ended.set()
        self._thread.join()
        with suppress(BusyError, OSError):
            self.check()
            os.ftruncate(self._descriptor, 0)


@contextmanager
def locked(path: Path, what: str, wait: bool = False, times: Times = TIMES) -> Iterator[Claim]:
    """Hold an exclusive lock on a file. The kernel releases it when the process ends, however it ends.

    The file stays: removing it would let two holders in. It says who holds the lock. With `wait` another holder is
    named in a warning and waited for. Raises: BusyError naming another holder, without `wait`.
    """
    make_folder(path.parent)
    # O_SYNC: on a network file system a heartbeat would else stay in this machine's memory.
    descriptor, told = descriptor_of(path, os.O_RDWR | os.O_CREAT | os.O_SYNC), False
    try:
        while other := _other(path, descriptor, what, times):
            if not wait:
                raise BusyError(f"{what} is in use by {other}; wait for it to end, or choose another")
            if not told:
                _log.warning("%s is in use by %s; waiting for it", what, other)
            told = True
            time.sleep(times.look)
        claim = Claim(path, descriptor, what, times)
        try:
            if _flock(descriptor, fcntl.LOCK_EX) is None:
                time.sleep(times.look)  # of two that saw the file empty, the later one is named
                claim.check()
            yield claim
        finally:
            claim.release()
    finally:
        os.close(descriptor)


def holder(path: Path, times: Times = TIMES) -> str | None:
    """Return who holds the lock of a file that `locked` takes, None where nobody does. It does not wait.

    It asks with a shared lock, so that two that ask at the same time do not take each other for a holder. A holder
    elsewhere counts as alive until this process has seen it for so long without a heartbeat.
    """
    with suppress(FileNotFoundError):
        descriptor = descriptor_of(path, os.O_RDONLY)
        try:
            granted = _flock(descriptor, fcntl.LOCK_SH)  # given back as the file closes
        finally:
            os.close(descriptor)
        text, mark = _read(path)
        if granted is False:
            return text or "an unknown process"
        if mark is not None and _alive(path, mark, granted, times) is not False:
            return text
    return None


def _other(path: Path, descriptor: int, what: str, times: Times) -> str | None:
    """Return who else holds the lock, None where nobody does and this process may take it. It may watch a while."""
    granted, told = _flock(descriptor, fcntl.LOCK_EX), False
    while True:
        text, mark = _read(path)
        if granted is False:
            return text or "an unknown process"
        if mark is None:
            return None
        alive = _alive(path, mark, granted, times)
        if alive is not None:
            if told and not alive:
                _log.warning("%s: %s gives no sign of life; going on in its place", what, text)
            return text if alive else None
        if not told:
            _log.warning("%s is held by %s; watching %.0f s whether that lives", what, text, times.watch)
        told = True
        time.sleep(times.look)


def _flock(descriptor: int, how: int) -> bool | None:
    """Lock a file without waiting: return whether it is granted; None where the file system has no such locks."""
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in NO_FLOCK:
            return None
        raise
    return True


# The heartbeat of each lock file's holder as this process saw it last, and when it saw it first.
_seen: dict[Path, tuple[Mark, float]] = {}


def _alive(path: Path, mark: Mark, granted: bool | None, times: Times) -> bool | None:
    """Return whether the process that a lock file names lives; None where that is not known yet."""
    if mark.boot == boot_id():
        if granted:  # flock is true among the processes of one kernel
            return False
        if mark.host == socket.gethostname():
            return mark.started == _started(mark.pid)
    before, since = _seen.get(path, (None, 0.0))
    if before is not None and before.owner == mark.owner and before.beat == mark.beat:
        return False if time.monotonic() - since >= times.watch else None
    _seen[path] = mark, time.monotonic()
    return True if before is not None and before.owner == mark.owner else None
