"""SIGINT and SIGTERM: after the first the run saves a checkpoint and stops; the second ends the process at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gtp_fast.errors import GtpError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class InterruptedRunError(GtpError):
    """A signal stopped the run after it saved its state; exit code 128 + signal."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


class Interrupt:
    """The signal that arrived, or 0. Before `started` is set there is nothing to save, and a signal ends at once."""

    def __init__(self) -> None:
        self.signal, self.started = 0, False

    def error(self, saved: Path | None) -> InterruptedRunError:
        """Return the error that ends the run."""
        what = (
            f"the checkpoint {saved} is saved; run the same command again to continue" if saved else "nothing to save"
        )
        return InterruptedRunError(f"stopped by {signal.Signals(self.signal).name}: {what}", 128 + self.signal)

    def handle(self, number: int, frame: object) -> None:
        """Record the first signal; end the process at the second."""
        if self.signal:
            os._exit(128 + number)
        self.signal = number
        if not self.started:
            # Not an Exception: torch.compile, which may run for a minute, would wrap that in an error of its own.
            raise SystemExit(128 + number)


@contextmanager
def listen() -> Iterator[Interrupt]:
    """Install the handlers and restore the old ones at the end. Only the main thread can; others run without them.

    A shell starts background jobs with SIGINT ignored. That handler is not restored after a signal: the process must
    still react to a second one while it ends.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    old = {number: signal.signal(number, interrupt.handle) for number in SIGNALS}
    try:
        yield interrupt
    finally:
        for number, handler in old.items():
            ignores = interrupt.signal and handler is signal.SIG_IGN
            signal.signal(number, signal.SIG_DFL if ignores else handler)
