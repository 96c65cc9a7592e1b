"""What a run tells: each event goes to train.log and to the caller, one at a time, and none of them ends the run.

A thread reports `Alive` when nothing else was reported for a while. A caller that cannot show an event raises OSError:
train.log says so once, and the run goes on without it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

from gtp_fast.algorithms.backends import kernels_written
from gtp_fast.runs.events import Alive, Event, Warned

LOCK_SECONDS = 1.0  # an event waits so long for the one before; then the caller is stuck in it
COMPILING = "compiling the step"


class Reports:
    """Takes a run's events, and what it does meanwhile. Use it as a context: its thread ends with the run."""

    def __init__(self, report: Callable[[Event], None], silence_seconds: float):
        self._report, self._silence = report, silence_seconds
        self._log: Callable[[Event], None] | None = None
        self._one_at_a_time, self._over, self._lost = threading.Lock(), threading.Event(), ""
        self._doing, self._since, self._kept = "loading the data", time.monotonic(), "no step was made"
        self._step, self._steps, self._speed, self._detail = 0, 0, None, ""
        self._told = time.monotonic()

    def __call__(self, event: Event) -> None:
        """Write an event to train.log and report it."""
        if self._log is not None:
            self._log(event)
        self._pass_on(event)

    def log_to(self, log: Callable[[Event], None]) -> None:
        """Take train.log, once the run has a directory."""
        self._log = log
        if self._lost:
            log(Warned(self._lost))

    def begin(self, doing: str, kept: str = "") -> None:
        """Say what the run does from now on, and what it has kept if it is stopped meanwhile."""
        self._doing, self._since, self._speed = doing, time.monotonic(), None
        self._kept, self._detail = kept or self._kept, ""

    def add(self, detail: str) -> None:
        """Say more of what the run does, as it is now."""
        self._detail = detail

    def at(self, step: int, steps: int, speed: float) -> None:
        """Say where the run is, and how many steps a second it makes."""
        self._doing, self._kept = "training", "no checkpoint could be written"
        self._step, self._steps, self._speed = step, steps, speed

    def unsaved(self) -> str:
        """Say what a run does that has saved nothing new, and how it goes on after a signal."""
        return f"{self._doing}: {self._kept}; run the same command again to continue"

    def _pass_on(self, event: Event) -> None:
        if self._lost or not self._one_at_a_time.acquire(timeout=LOCK_SECONDS):
            return
        try:
            self._report(event)
        except OSError as error:
            self._lost = f"nothing more can be shown ({error}); the run goes on, and this file tells of it"
            if self._log is not None:
                self._log(Warned(self._lost))
        finally:
            self._told = time.monotonic()
            self._one_at_a_time.release()

    def _watch(self) -> None:
        """Report that the run is alive whenever nothing was reported for so long, as long as anybody can be told."""
        while not (self._over.wait(max(0.0, self._told + self._silence - time.monotonic())) or self._lost):
            if time.monotonic() - self._told >= self._silence:
                self._pass_on(self._alive())

    def _alive(self) -> Alive:
        seconds = time.monotonic() - self._since
        kernels = kernels_written()
        detail = f"{kernels} kernel{'s' * (kernels != 1)} written" if self._doing == COMPILING else self._detail
        return Alive(self._doing, seconds, detail, self._step, self._steps, self._speed)

    def __enter__(self) -> Reports:
        self._thread = threading.Thread(target=self._watch, name="alive", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(LOCK_SECONDS)  # no longer: it may be stuck in the caller's report
