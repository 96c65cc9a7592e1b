"""Show a running sweep: on a terminal a table, drawn again each second; elsewhere a line for each change."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from gtp_fast.experiments.trials import Standing
from gtp_fast.runs.records import Progress, read_progress

REDRAW_SECONDS = 1.0
ORDER = ("running", "failed", "diverged", "held", "done", "waiting")  # which trials a small screen shows first
HEAD = ("trial", "state", "step", "steps/s", "score", "tries")


class Table:
    """Shows a sweep on a stream that the caller owns."""

    def __init__(self, stream: TextIO):
        self._stream, self._terminal = stream, stream.isatty()
        self._drawn, self._next = 0, 0.0  # lines on the screen, and when to draw again
        self._ended: dict[Path, Progress] = {}
        self._last: list[Standing] = []

    def say(self, line: str) -> None:
        """Write a line about a change; on a terminal the table shows it instead."""
        if not self._terminal:
            self._stream.write(line + "\n")
            self._stream.flush()

    def watch(self, standings: list[Standing]) -> None:
        """Draw the table once a second."""
        self._last = standings
        if self._terminal and time.monotonic() >= self._next:
            self._draw()
            self._next = time.monotonic() + REDRAW_SECONDS

    def close(self) -> None:
        """Draw the table for the last time."""
        if self._terminal and self._last:
            self._draw()

    def _draw(self) -> None:
        width, height = shutil.get_terminal_size()
        shown = lines(self._last, [self._far(standing) for standing in self._last], max(4, height - 2))
        up = f"\x1b[{self._drawn}F\x1b[J" if self._drawn else ""  # back to the table's first line, all below wiped
        self._stream.write(up + "".join(line[: width - 1] + "\n" for line in shown))
        self._stream.flush()
        self._drawn = len(shown)

    def _far(self, standing: Standing) -> Progress:
        run = standing.trial.run
        if standing.state == "waiting":
            return Progress()
        if standing.state in ("running", "held"):
            return read_progress(run)
        if run.path not in self._ended:
            self._ended[run.path] = read_progress(run)
        return self._ended[run.path]


def lines(standings: Sequence[Standing], far: Sequence[Progress], room: int) -> list[str]:
    """Return the table's lines: a head, the trials that `room` lines hold, and how many are in each state."""
    places = sorted(range(len(standings)), key=lambda i: ORDER.index(standings[i].state))[: room - 2]
    rows = [HEAD, *(_cells(standings[i], far[i]) for i in sorted(places))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    table = [
        "  ".join(
            cell.ljust(w) if column < 2 else cell.rjust(w)
            for column, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    count = Counter(standing.state for standing in standings)
    states = ", ".join(f"{count[state]} {state}" for state in ORDER if count[state])
    hidden = len(standings) - len(places)
    return [*table, states + (f" ({hidden} not shown)" if hidden else "")]


def _cells(standing: Standing, far: Progress) -> tuple[str, ...]:
    trial = standing.trial
    step = trial.steps if standing.state == "done" else far.step
    speed = far.steps_per_second if standing.state == "running" else None
    return (
        trial.name,
        standing.state,
        f"{step:,}/{trial.steps:,}",
        "-" if speed is None else f"{speed:.1f}",
        "-" if far.figure is None else f"{far.figure:.1f}",
        str(standing.tries),
    )
