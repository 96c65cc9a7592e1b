"""SIGINT and SIGTERM: the first asks for a checkpoint and an orderly end, the second ends at once."""

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
    """The run was asked to stop and has saved what it had; exit code 128 + signal."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


class Interrupt:
    """Whether a signal has come. Until `started` is set there is nothing new to save, and a signal leaves at once."""

    def __init__(self) -> None:
        self.signal, self.started = 0, False

    def error(self, saved: Path | None) -> InterruptedRunError:
        """Return the error to end with."""
        what = (
            f"the checkpoint {saved} is saved; run the same command again to continue" if saved else "nothing to save"
        )
        return InterruptedRunError(f"stopped by {signal.Signals(self.signal).name}: {what}", 128 + self.signal)

    def handle(self, number: int, frame: object) -> None:
        """Take note of the first signal; end the process with the second."""
        if self.signal:
            os._exit(128 + number)
        self.signal = number
        if not self.started:
            # Not an Exception: torch.compile, which may be at work for a minute, would wrap one in its own.
            raise SystemExit(128 + number)


@contextmanager
def listen() -> Iterator[Interrupt]:
    """Install the handlers and give the old ones back at the end; only the main thread may, others run without.

    After a signal nothing ignores the next: a shell's background job starts with SIGINT ignored, and the process that
    was asked to stop would be deaf while it ends.
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
            deaf = interrupt.signal and handler is signal.SIG_IGN
            signal.signal(number, signal.SIG_DFL if deaf else handler)
