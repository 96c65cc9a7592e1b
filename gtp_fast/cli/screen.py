"""Show a run while it trains: a progress bar on a terminal, elsewhere a line for each log interval.

Where a run has nothing else to say it still says what it does: on a terminal each second, elsewhere each half minute.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TextIO

from tqdm import tqdm

from gtp_fast.runs.events import (
    SILENCE_SECONDS,
    Alive,
    Downloading,
    Evaluated,
    Event,
    Noted,
    Progress,
    Result,
    Started,
    Stopped,
    Warned,
)
from gtp_fast.runs.streams import Lasting

Progressed = Callable[[int, int | None], None]  # takes bytes so far, and the total if known
BAR_SECONDS = 1.0  # a bar on a terminal moves at least so often


class Screen:
    """Shows events on a stream; the caller owns the stream. `alive_seconds` is how often it wants `Alive`."""

    def __init__(self, stream: TextIO | Lasting | None, steps: int):
        self._stream = stream if isinstance(stream, Lasting) else Lasting(stream)
        self._score, self._steps, self._said = "-", steps, time.monotonic()
        self._bars, self._bar = ExitStack(), None
        self._fetched: Progressed | None = None
        self.alive_seconds = BAR_SECONDS if self._stream.isatty() else SILENCE_SECONDS

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *exc: object) -> None:
        self._bars.close()

    def show(self, event: Event) -> None:
        """Show one event. Raises: OSError where nothing can be shown any more."""
        self._show(event)
        if self._stream.lost is not None:
            raise self._stream.lost

    def _show(self, event: Event) -> None:
        match event:
            case Started():
                self._say(f"run    {event.run_dir}")
                self._say(f"data   {event.source}: {event.transitions:,} transitions")
                self._say(f"device {event.chosen}; {event.parameters:,} parameters a seed")
                for note in event.notes:
                    self._say(f"note   {note}")
                if self._stream.isatty():
                    self._bar = self._bars.enter_context(
                        tqdm(total=self._steps, initial=event.step, unit="step", file=self._stream, dynamic_ncols=True)
                    )
            case Progress():
                self._progress(event)
            case Alive():
                self._alive(event)
            case Downloading():
                if self._fetched is None:
                    self._fetched = self._bars.enter_context(download_bar(self._stream, "fetching"))
                self._fetched(event.done, event.total)
            case Evaluated():
                kind = "score" if event.scored else "return"
                self._score = " ".join(f"{figure:.1f}" for figure in event.figures)
                self._say(f"step {event.step:>9,}  {kind} {self._score}")
            case Noted():
                self._say(f"note   {event.message}")
            case Warned():
                self._say(f"warning: {event.message}")
            case Stopped():
                self._say(f"error: {event.message}")

    def _progress(self, event: Progress) -> None:
        shown = {
            name: sum(row) / len(row) for name, row in event.means.items() if name in ("actor_loss", "critic_loss", "q")
        }
        if self._bar is not None:
            self._bar.set_description_str(refresh=False)
            self._bar.update(event.step - self._bar.n)
            self._bar.set_postfix({**{n: f"{v:.3g}" for n, v in shown.items()}, "score": self._score})
            return
        values = "".join(f"  {name} {value:.4g}" for name, value in shown.items())
        self._say(_line(event.step, event.steps, event.steps_per_second, values))

    def _alive(self, event: Alive) -> None:
        """Move the bar; without one, write a line where nothing was said for long."""
        speed = event.steps_per_second
        doing = ", ".join(part for part in (f"{event.doing}, {_clock(event.seconds)} so far", event.detail) if part)
        if self._bar is not None:
            self._bar.set_description_str(doing if speed is None else None, refresh=False)
            self._bar.update(max(0, event.step - self._bar.n))
            self._bar.refresh()
        elif time.monotonic() - self._said >= SILENCE_SECONDS:
            self._say(doing if speed is None else _line(event.step, event.steps, speed))

    def _say(self, line: str) -> None:
        self._said = time.monotonic()
        if self._bar is not None:
            self._bar.write(line, file=self._stream)
        else:
            self._stream.write(line + "\n")
            self._stream.flush()

    def summarise(self, result: Result) -> None:
        """Show the result: last and best score of each seed, and the paths."""
        for i, seed in enumerate(result.seeds):
            if result.score_last and result.score_best:
                self._stream.write(
                    f"seed {seed}: score {result.score_last[i]:.1f} last, {result.score_best[i]:.1f} best\n"
                )
        if failed := result.evaluations_failed:
            self._stream.write(f"{failed} evaluation{'s' * (failed != 1)} failed; report/README.md says why\n")
        spent = f"in {_clock(result.seconds)} ({result.steps_per_second:.1f} a second)"
        self._stream.write(
            f"{result.steps:,} steps {spent if result.steps_per_second else 'were done before'}"
            f"{'; finished before, nothing was trained' if result.finished_before else ''}\n"
            f"run directory  {result.run_dir}\nlearning curve {result.run_dir}/report/curve.png\n"
        )


def _line(step: int, steps: int, steps_per_second: float, values: str = "") -> str:
    left = (steps - step) / steps_per_second
    return f"step {step:>9,} of {steps:,}  {steps_per_second:7.1f} steps/s{values}  {_clock(left)} left"


def _clock(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


@contextmanager
def download_bar(stream: TextIO | Lasting, name: str | None = None) -> Iterator[Progressed]:
    """Yield a progress callback for a download; silent where the stream is no terminal."""
    with tqdm(desc=name, unit="B", unit_scale=True, file=stream, disable=not stream.isatty()) as bar:

        def progress(done: int, total: int | None) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress
