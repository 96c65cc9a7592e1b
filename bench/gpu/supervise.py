"""Measure rows in another process, so that a crash, a hang or a lost device costs one row and not the rest.

The process answers row by row through a pipe. One that dies or takes too long is ended with all its children, its row
gets the reason, and a fresh process goes on with the next row.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

Row = dict[str, Any]
REASON = "n/a"  # a row holds figures, or this key with the reason why there are none
START_S = 20.0  # more for the first row of a process, which imports torch


def measured(module: str, rows: list[Row], dry: bool, row_limit_s: float, until: float) -> Iterator[Row]:
    """Yield each row with its figures, or with the reason why there are none; every row exactly once.

    Args: module has `measure(row, dry)`; row_limit_s, seconds a row may take; until, time.monotonic() at which to stop.
    """
    left = list(rows)
    while left:
        if time.monotonic() >= until:
            yield from (row | {REASON: "no time was left for it"} for row in left)
            return
        answers = _answers(module, left, dry, row_limit_s, until)
        done = 0
        for done, answer in enumerate(answers, start=1):
            yield left[done - 1] | answer
        left = left[done:]


def _answers(module: str, rows: list[Row], dry: bool, row_limit_s: float, until: float) -> Iterator[Row]:
    """Yield at least one answer, in the order of the rows; fewer than rows when the process had to be given up."""
    # CUDA does not survive a fork; without it, a process that has torch already may be copied.
    context: Any = multiprocessing.get_context("forkserver" if dry else "spawn")
    ours, theirs = context.Pipe()
    with tempfile.NamedTemporaryFile(prefix="gtp-gpu-", suffix=".log") as log:
        process = context.Process(target=_serve, args=(module, rows, dry, theirs, log.name))
        process.start()
        theirs.close()
        try:
            for i in range(len(rows)):
                limit = min(row_limit_s + START_S * (i == 0), until - time.monotonic())
                answer, healthy = _receive(ours, limit, lambda: process.join(5) or process.exitcode, log.name)
                yield answer
                if not healthy:
                    return
        finally:
            _end(process)


def _receive(pipe: Any, limit_s: float, exit_code: Callable[[], object], log: str) -> tuple[Row, bool]:
    """Wait for one answer; the second value says whether the process can go on."""
    try:
        if pipe.poll(max(limit_s, 0.0)):
            return pipe.recv()
        return {REASON: f"stopped after {limit_s:.0f} s{_last_line(log)}"}, False
    except (EOFError, ConnectionError):
        code = exit_code()
        how = signal.Signals(-code).name if isinstance(code, int) and code < 0 else f"exit code {code}"
        return {REASON: f"the process ended with {how}{_last_line(log)}"}, False


def _last_line(log: str) -> str:
    """Return the last thing that the process printed, to say where it was."""
    with open(log, encoding="utf-8", errors="replace") as file:
        lines = [line.strip() for line in file if line.strip()]
    return f"; its last line: {lines[-1][:200]}" if lines else ""


def _end(process: Any) -> None:
    """End the process and whatever it started: its process group is its own."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # it has ended, or has not yet made its group
        process.kill()
    process.join()


def _serve(module: str, rows: list[Row], dry: bool, pipe: Any, log: str) -> None:
    """Answer every row, in the process of its own."""
    os.setsid()
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    for row in rows:
        try:
            answer, healthy = importlib.import_module(module).measure(row, dry), True
        except Exception as error:  # whatever goes wrong in a row is its answer
            answer, healthy = {REASON: first_line(error)}, _refused(error) or not _on_gpu()
        pipe.send((answer, healthy))
        if not healthy:
            return


def first_line(error: BaseException) -> str:
    """Return the kind and the first line of an error."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


def _refused(error: Exception) -> bool:
    """Say whether the product refused the row before it touched the device."""
    errors = sys.modules.get("gtp_fast.errors")
    return isinstance(error, ImportError) or (errors is not None and isinstance(error, errors.GtpError))


def _on_gpu() -> bool:
    """Say whether a CUDA context exists, which an error may have left unusable."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.cuda.is_initialized()
