"""A run's metrics and log: metrics.jsonl for programs, train.log for people, TensorBoard and W&B on request.

metrics.jsonl holds no times: its lines are the same, bit for bit, for a run that was killed and resumed.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from gtp_fast.config import TrainConfig
from gtp_fast.errors import UsageError
from gtp_fast.files import open_file, own_folder, parse_json, publish, read_bytes, read_lines, sync
from gtp_fast.runs.directory import RunDir
from gtp_fast.runs.events import Evaluated, Event, Started, Stopped, Warned

WANDB_ID_BYTES = 1_000  # the most of an id
WANDB_SECONDS = 30  # for W&B to answer; it tries again and again until then


def means(sums_SQ: list[list[float]], names: tuple[str, ...], steps: int) -> dict[str, list[float]]:
    """Return each metric's mean over `steps` train steps, one value for each member."""
    return {name: [row[i] / steps for row in sums_SQ] for i, name in enumerate(names)}


def truncate_after(path: Path, step: int) -> None:
    """Remove the lines of steps after `step` and a line that was cut off: each step has one line."""
    if path.exists():
        publish(path, _lines_to(path, step))


def _lines_to(path: Path, step: int) -> Iterator[bytes]:
    """Yield the lines of steps up to `step`."""
    for line in read_lines(path):
        try:
            if parse_json(line)["step"] <= step:
                yield line.rstrip(b"\r\n") + b"\n"
        except (ValueError, KeyError, TypeError):
            break  # the line that a killed process was writing


def truncate_log_after(path: Path, step: int) -> None:
    """Remove train.log's lines of intervals after `step` and a line that was cut off; other lines stay."""
    if path.exists():
        publish(path, (line for line in read_lines(path) if line.endswith(b"\n") and _interval(line) <= step))


def _interval(line: bytes) -> int:
    """Return the step of an interval's line, `step 1,000 52.3 steps/s ...`; 0 for any other line."""
    words = line.split()
    digits = words[1].replace(b",", b"") if len(words) > 1 and words[0] == b"step" else b""
    return int(digits) if digits.isdigit() and len(digits) <= 13 else 0


def lines_of(event: Event) -> list[str]:
    """Return train.log's lines for an event; `MetricsWriter.write` logs intervals.

    That the run is alive stands only on the screen: the log keeps what happened.
    """
    match event:
        case Started():
            first = (
                f"start  at step {event.step:,} on {event.source}, {event.transitions:,} transitions; {event.chosen}"
            )
            return [first, *(f"note   {note}" for note in event.notes)]
        case Evaluated():
            kind, figures = "score" if event.scored else "return", " ".join(f"{x:.4g}" for x in event.figures)
            return [f"evaluated step {event.step:,} {kind} {figures}"]
        case Warned():
            return [f"warning: {event.message}"]
        case Stopped():
            return [f"stopped: {event.message}"]
        case _:
            return []


class MetricsWriter:
    """Appends to metrics.jsonl and train.log, and to the trackers that the settings name."""

    def __init__(self, cfg: TrainConfig, run: RunDir, step: int):
        """Remove lines of steps after `step`, then open the files.

        Raises: UsageError when a tracker's package is not installed.
        """
        truncate_after(run.metrics, step)
        truncate_log_after(run.log, step)
        self._path, self._lines = run.metrics, threading.Lock()  # the saving thread settles while the loop writes
        self._jsonl = open_file(run.metrics, "a", buffering=1)
        self._log = open_file(run.log, "a", buffering=1)
        self._board = _tensorboard(run.path, step) if cfg.tensorboard else None
        self._wandb = _wandb(cfg, run) if cfg.wandb else None

    def write(self, step: int, values: dict[str, list[float]], steps_per_second: float) -> None:
        """Write one interval: each member's means, and in train.log also the speed."""
        finite = {name: [x if math.isfinite(x) else str(x) for x in row] for name, row in values.items()}
        with self._lines:
            self._jsonl.write(json.dumps({"step": step, **finite}) + "\n")
        shown = " ".join(f"{name} {sum(row) / len(row):.4g}" for name, row in values.items())
        self.say(f"step {step:,} {steps_per_second:.1f} steps/s {shown}")
        self._track(step, {name: dict(enumerate(row)) for name, row in values.items()})

    def settle(self) -> None:
        """Return when every line so far is on the disk: no checkpoint may exist without the lines before it."""
        with self._lines:
            self._jsonl.flush()
        sync(self._path)
        if self._board is not None:
            self._board.flush()

    def say(self, line: str) -> None:
        """Write one line to train.log."""
        self._log.write(line + "\n")

    def note(self, event: Event) -> None:
        """Write an event to train.log. Errors of the disk are ignored: checkpoints and metrics report them.

        So is a log that was closed: the last event of a run may come after it.
        """
        with suppress(OSError, ValueError):
            for line in lines_of(event):
                self.say(line)

    def trace(self, text: str) -> None:
        """Write a traceback to train.log, and nothing where there is none. Errors of the disk are ignored."""
        with suppress(OSError):
            self._log.write(text)

    def score(self, step: int, figures: list[float]) -> None:
        """Write each member's figure of an evaluation to the trackers."""
        self._track(step, {"score": dict(enumerate(figures))})

    def _track(self, step: int, values: dict[str, dict[int, float]]) -> None:
        flat = {f"{name}/member{member}": x for name, row in values.items() for member, x in row.items()}
        if self._board is not None:
            for name, x in flat.items():
                self._board.add_scalar(name, x, step)
        if self._wandb is not None:
            self._wandb.log({**flat, "step": step})

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            with suppress(OSError):
                self.say(f"stopped: {type(error).__name__}: {error}")
        for file in (self._jsonl, self._log):
            try:
                file.close()
            except OSError:
                if error is None:
                    raise  # after another error, that one says more
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if error is None else 1)


def _tensorboard(path: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UsageError("--tensorboard needs the package tensorboard: pip install 'gtp-fast[track]'") from None
    # The run repeats the steps after `step`: purge_step makes TensorBoard hide their earlier points.
    return SummaryWriter(str(own_folder(path / "tensorboard")), purge_step=step + 1)


def _wandb(cfg: TrainConfig, run: RunDir) -> Any:
    """Open the run's own W&B run, which every part of the run continues.

    A part repeats the steps after its checkpoint. So steps are a metric that the others are drawn over: W&B refuses a
    step of its own counter that is not the next.
    """
    try:
        import wandb
    except ImportError:
        raise UsageError("--wandb needs the package wandb: pip install 'gtp-fast[track]'") from None
    own_folder(run.path / "wandb")
    settings = wandb.Settings(init_timeout=WANDB_SECONDS)
    try:
        with _nobody_to_ask():
            tracked = wandb.init(
                project="gtp-fast",
                name=run.path.name,
                id=_wandb_id(run),
                resume="allow",
                dir=str(run.path),
                config=vars(cfg),
                settings=settings,
            )
    except wandb.Error as error:
        raise UsageError(
            f"--wandb: W&B cannot be reached ({error}); run wandb login, or set WANDB_MODE=offline and upload "
            f"{run.path}/wandb later with wandb sync, or leave out --wandb. If that W&B run was deleted, remove "
            f"{run.wandb_id} for another"
        ) from None
    tracked.define_metric("step")
    tracked.define_metric("*", step_metric="step")
    return tracked


def _wandb_id(run: RunDir) -> str:
    """Return the id of the run's W&B run: the one in its directory, else WANDB_RUN_ID, else a new one, and keep it."""
    if run.wandb_id.exists():
        return read_bytes(run.wandb_id, WANDB_ID_BYTES).decode(errors="replace").strip()
    fresh = os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
    publish(run.wandb_id, f"{fresh}\n".encode())
    return fresh


@contextmanager
def _nobody_to_ask() -> Iterator[None]:
    """Let W&B find no terminal: it would wait for a key to be typed, perhaps all night. It raises an error instead."""
    terminal = sys.stdin
    with open(os.devnull) as nothing:
        sys.stdin = nothing
        try:
            yield
        finally:
            sys.stdin = terminal
