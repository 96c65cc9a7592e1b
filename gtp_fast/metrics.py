"""What a run says of itself: metrics.jsonl always, train.log for people, TensorBoard and W&B on request.

metrics.jsonl holds no clock: its lines are the same, bit for bit, for a run that was killed and resumed.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import TracebackType
from typing import Any

from gtp_fast.config import TrainConfig
from gtp_fast.errors import UsageError
from gtp_fast.rundir import RunDir, publish, sync


def means(sums_SQ: list[list[float]], names: tuple[str, ...], steps: int) -> dict[str, list[float]]:
    """Return each metric's mean over `steps` train steps, one value a member."""
    return {name: [row[i] / steps for row in sums_SQ] for i, name in enumerate(names)}


def truncate_after(path: Path, step: int) -> None:
    """Drop the lines of steps after `step`, and a line that was cut off, so that each step is written once."""
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            break  # the line that a killed process was writing
    publish(path, b"".join(line + b"\n" for line in kept))


class MetricsWriter:
    """Appends to metrics.jsonl and train.log, and to the trackers that were asked for."""

    def __init__(self, cfg: TrainConfig, run: RunDir, step: int):
        """Open the files; lines of steps after `step` are dropped first. Raises: UsageError without the extra."""
        truncate_after(run.metrics, step)
        self._path = run.metrics
        self._jsonl = run.metrics.open("a", buffering=1)
        self._log = run.log.open("a", buffering=1)
        self._board = _tensorboard(run.path) if cfg.tensorboard else None
        self._wandb = _wandb(cfg, run.path) if cfg.wandb else None

    def write(self, step: int, values: dict[str, list[float]], steps_per_second: float) -> None:
        """Write one interval: means a member, and the speed where a clock is allowed."""
        finite = {name: [x if math.isfinite(x) else str(x) for x in row] for name, row in values.items()}
        self._jsonl.write(json.dumps({"step": step, **finite}) + "\n")
        shown = " ".join(f"{name} {sum(row) / len(row):.4g}" for name, row in values.items())
        self.say(f"step {step:,} {steps_per_second:.1f} steps/s {shown}")
        self._track(step, {name: dict(enumerate(row)) for name, row in values.items()})

    def settle(self) -> None:
        """Return when every line so far is on the disk: a checkpoint must not outlive the lines before it."""
        self._jsonl.flush()
        sync(self._path)

    def say(self, line: str) -> None:
        """Write one line to train.log."""
        self._log.write(line + "\n")

    def score(self, step: int, figures: list[float]) -> None:
        """Write an evaluation's figure of each member to the trackers."""
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
        for file in (self._jsonl, self._log):
            try:
                file.close()
            except OSError:
                if error is None:
                    raise  # else the disk has been told of: the first error says more
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def _tensorboard(path: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UsageError("--tensorboard needs the package tensorboard: pip install 'gtp-fast[track]'") from None
    return SummaryWriter(str(path / "tensorboard"))


def _wandb(cfg: TrainConfig, path: Path) -> Any:
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UsageError("--wandb needs the package wandb: pip install 'gtp-fast[track]'") from None
    return wandb.init(project="gtp-fast", name=path.name, dir=str(path), config=vars(cfg))
