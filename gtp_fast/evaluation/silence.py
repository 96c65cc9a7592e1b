"""Environments that hang: how many calls environments have answered, and for how long none did.

`Checked` counts every building, reset and step in memory that processes share. An environment that keeps Python's lock
can tell nothing, so another process reads the number and judges; `ended_when_silent` judges where there is none.
"""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from gtp_fast.evaluation.failures import RolloutError

SILENT_SECONDS = 600.0  # without an answered call an environment hangs, however long its episodes are
# A look adds at most so much: after a suspended job goes on, its environments have not been silent for a night.
LOOK_SECONDS = 5.0
PR_SET_PDEATHSIG = 1  # of Linux's prctl
_SIZE = ctypes.sizeof(ctypes.c_uint64)

_calls = ctypes.c_uint64.from_buffer(mmap.mmap(-1, _SIZE))  # forked processes share it


def count_call() -> None:
    """Count a reset or a step that an environment has answered, or that it was built."""
    _calls.value += 1


@contextmanager
def calls_file() -> Iterator[BinaryIO]:
    """Yield a new file to count in. Raises: OSError."""
    with tempfile.TemporaryFile(buffering=0) as file:
        file.write(bytes(_SIZE))  # room that a full disk has not refused
        yield file


def count_in(descriptor: int) -> None:
    """Count in a file from now on, as do processes that are forked later."""
    global _calls
    _calls = ctypes.c_uint64.from_buffer(mmap.mmap(descriptor, _SIZE))


def end_with_parent() -> None:
    """Have the kernel end this process with the thread that started it, also while C code keeps Python's lock."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Silence:
    """Says for how long no call was answered, by looks at the number of calls."""

    def __init__(self, calls: Callable[[], int]):
        self._calls, self.count = calls, 0
        self.start()

    def start(self) -> None:
        """Begin to listen."""
        self.count, self.seconds, self._looked = self._calls(), 0.0, time.monotonic()
        self.first = self.count

    def look(self) -> float:
        """Return the seconds without an answered call, as far as looks have seen them."""
        now, count = time.monotonic(), self._calls()
        self.seconds = 0.0 if count != self.count else self.seconds + min(now - self._looked, LOOK_SECONDS)
        self.count, self._looked = count, now
        return self.seconds


def calls_in(file: BinaryIO) -> Callable[[], int]:
    """Return a function that reads the number of calls in a file, also when the file is closed."""
    memory = mmap.mmap(file.fileno(), _SIZE)
    return lambda: int.from_bytes(memory[:], sys.byteorder)


def told(env_id: str, seconds: float) -> str:
    """Say for how long an environment has not answered."""
    return f"{env_id} has answered no reset or step for {seconds:,.0f} s"


class _SilentError(BaseException):
    """Not an Exception: environments catch those."""


@contextmanager
def ended_when_silent(env_id: str) -> Iterator[None]:
    """End what steps an environment in this process, or in forks of it, when no call was answered for SILENT_SECONDS.

    Only in the main thread, which a signal reaches. Where C code keeps Python's lock no handler runs: then
    faulthandler shows each thread's place in the program, and ends the process with code 1.
    Raises: RolloutError.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    over, silence, owner = threading.Event(), Silence(lambda: _calls.value), os.getpid()

    def ring(number: int, frame: object) -> None:
        if not over.is_set():
            raise _SilentError

    def end_later() -> None:
        with suppress(ValueError, OSError, RuntimeError):  # no standard error to write to
            faulthandler.dump_traceback_later(SILENT_SECONDS + 2 * LOOK_SECONDS, exit=True)

    def stop(number: int, frame: object) -> None:
        """Stop, as SIGTSTP asks, while no time runs: it would end a job that goes on after a night."""
        faulthandler.cancel_dump_traceback_later()
        os.kill(os.getpid(), signal.SIGSTOP)
        if os.getpid() == owner:  # a fork has this handler too
            end_later()

    def watch() -> None:
        while not over.wait(min(LOOK_SECONDS, SILENT_SECONDS)):
            if silence.look() >= SILENT_SECONDS:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)
            else:
                end_later()

    before = {number: signal.signal(number, act) for number, act in ((signal.SIGALRM, ring), (signal.SIGTSTP, stop))}
    watcher = threading.Thread(target=watch, daemon=True)
    end_later()  # not first in the thread: an environment may keep the lock before that has its turn
    watcher.start()
    try:
        yield
    except _SilentError:
        raise RolloutError(f"{told(env_id, silence.seconds)}; mend the environment") from None
    finally:
        over.set()
        watcher.join()
        faulthandler.cancel_dump_traceback_later()
        for number, act in before.items():
            signal.signal(number, act)
