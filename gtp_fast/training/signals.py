"""Signals that end a run: after the first it saves a checkpoint and stops; the second ends the process at once.

Before the first step there is nothing to save, and the handler raises an exception in the main thread. That may be
lost: Python drops what is raised in a callback of a weak reference, where a signal arrives that came during a garbage
collection, and torch.compile collects for half a second at a time. Or the main thread may be in a C function. So a
thread hears every signal too, and ends the process when the main thread has not ended the run within a second.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gtp_fast.errors import GtpError

# SIGXCPU: the limit on CPU time is reached. Schedulers send SIGUSR1 or SIGUSR2 some time before they kill.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
# A shell starts background jobs with SIGINT ignored, and they must still save. nohup means what it says of SIGHUP.
HEARD_IF_IGNORED = (signal.SIGINT, signal.SIGTERM)
REACT_SECONDS = 1.0  # for the main thread to end a run that has nothing to save
# Later signals are the second. `timeout`, systemd and a terminal that closes send two at the same moment.
SAME_SECONDS = 0.25
LAST_WORDS_SECONDS = 0.3


class InterruptedRunError(GtpError):
    """A signal stopped the run after it saved its state; exit code 128 + signal."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


class Interrupt:
    """The signal that arrived, or 0. Before `started` is set there is nothing to save, and a signal ends at once."""

    def __init__(self, unsaved: Callable[[], str], last_words: Callable[[str], None]) -> None:
        self.signal, self.started = 0, False
        self._unsaved, self._last_words = unsaved, last_words

    def error(self, saved: Path | None) -> InterruptedRunError:
        """Return the error that ends the run."""
        return InterruptedRunError(self._message(self.signal, saved), 128 + self.signal)

    def _message(self, number: int, saved: Path | None) -> str:
        name = signal.Signals(number).name
        if saved is None:
            return f"stopped by {name} while {self._unsaved()}"
        return f"stopped by {name}: the checkpoint {saved} is saved; run the same command again to continue"

    @contextmanager
    def answered(self) -> Iterator[None]:
        """Raise InterruptedRunError in place of what the handler raised, also where that was wrapped on its way."""
        try:
            yield
        except InterruptedRunError:
            raise
        except BaseException:
            if self.signal and not self.started:
                raise self.error(None) from None
            raise

    def handle(self, number: int, frame: object) -> None:
        """Record the first signal. `watch` hears the second."""
        if self.signal:
            return
        self.signal = number
        if not self.started:
            # Not an Exception: torch.compile would wrap that in an error of its own.
            raise SystemExit(128 + number)

    def watch(self, pipe: int) -> None:
        """Read the numbers of signals until the pipe's end; end the process where the main thread does not."""
        first, heard = 0, 0.0
        while True:
            left = max(0.0, heard + REACT_SECONDS - time.monotonic()) if first and not self.started else None
            if not select.select([pipe], [], [], left)[0]:
                if not self.started:
                    self._end(first)
                continue
            arrived = os.read(pipe, 1)
            if not arrived:
                return
            if arrived[0] in SIGNALS and not first:
                first, heard = arrived[0], time.monotonic()
            elif arrived[0] in SIGNALS and _is_second(arrived[0], time.monotonic() - heard):
                os._exit(128 + arrived[0])

    def _end(self, number: int) -> None:
        """Say why, in a thread because the main thread may hold a lock, and end the process and its children."""
        speaker = threading.Thread(target=self._last_words, args=(self._message(number, None),), daemon=True)
        speaker.start()
        speaker.join(LAST_WORDS_SECONDS)
        end_process(128 + number)


def _is_second(number: int, seconds: float) -> bool:
    """Say whether a signal asks for more than the first did. The kernel repeats SIGXCPU each second by itself."""
    return seconds > SAME_SECONDS and number != signal.SIGXCPU


@contextmanager
def listen(
    unsaved: Callable[[], str] = lambda: "nothing was begun", last_words: Callable[[str], None] = lambda message: None
) -> Iterator[Interrupt]:
    """Install the handlers and restore the old ones at the end. Only the main thread can; others run without them.

    Args: unsaved says what a run without a new checkpoint does, and how to go on; last_words takes the message where
    the process ends without the main thread.
    Raises: InterruptedRunError where a signal came before `started` was set.

    A handler that ignores is not restored after a signal: the process must still react to a second one while it ends.
    """
    interrupt = Interrupt(unsaved, last_words)
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)  # as set_wakeup_fd wants it
    watcher = threading.Thread(target=interrupt.watch, args=(reading,), name="signals", daemon=True)
    watcher.start()
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    old = {number: signal.signal(number, interrupt.handle) for number in SIGNALS if _is_heard(number)}
    try:
        with interrupt.answered():
            yield interrupt
    finally:
        signal.set_wakeup_fd(before)
        for number, handler in old.items():
            ignores = interrupt.signal and handler is signal.SIG_IGN
            signal.signal(number, signal.SIG_DFL if ignores or handler is None else handler)
        os.close(writing)
        watcher.join()
        os.close(reading)


def _is_heard(number: signal.Signals) -> bool:
    return number in HEARD_IF_IGNORED or signal.getsignal(number) is not signal.SIG_IGN


def end_process(code: int) -> None:
    """End this process and its children, such as compilers, without the interpreter's own end.

    That takes two seconds when torch.compile has been at work.
    """
    for child in _descendants(os.getpid()):
        with suppress(OSError):
            os.kill(child, signal.SIGKILL)
    os._exit(code)


def _descendants(process: int) -> list[int]:
    """Return the processes below a process; none where the system does not list them."""
    found = []
    for file in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):  # it may have ended just now
            for child in map(int, file.read_text().split()):
                found += [child, *_descendants(child)]
    return found
