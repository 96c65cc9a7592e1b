"""Measure rows in another process, so that a crash, a hang or a lost device costs one row and not the rest.

The process answers row by row through a pipe. One that dies or takes too long is ended with all its children, its row
gets the reason, and a fresh process goes on with the next row. Whatever a process prints, and the whole traceback of
each row that failed, goes to the part's log.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]
REASON = "n/a"  # a row holds figures, or this key with the reason why there are none
STOPPED, NO_TIME = "stopped after", "no time was left for it"
START_S = 20.0  # more for the first row of a process, which starts CUDA
ROW_MARK = "== "  # begins the line of a log that names the row
LOG_BYTES = 4 << 20  # what is kept of a part's log
PRELOADED = ("torch", "bench.training")  # what the processes share: none of it touches CUDA, which survives no fork


def measured(target: str, rows: list[Row], dry: bool, row_limit_s: float, until: float, log: Path) -> Iterator[Row]:
    """Yield each row with its figures, or with the reason why there are none; every row exactly once.

    Args: target names a function of a row and of `dry`, as module.function; row_limit_s, seconds a row may take; until,
    time.monotonic() at which to stop; log, the file that is appended to.
    """
    left = list(rows)
    while left:
        if time.monotonic() >= until:
            yield from (row | {REASON: NO_TIME} for row in left)
            return
        answers = _answers(target, left, dry, row_limit_s, until, log)
        done = 0
        for done, answer in enumerate(answers, start=1):
            yield left[done - 1] | answer
        left = left[done:]


def _answers(target: str, rows: list[Row], dry: bool, row_limit_s: float, until: float, log: Path) -> Iterator[Row]:
    """Yield at least one answer, in the order of the rows; fewer than rows when the process had to be given up."""
    # Copied from one that has torch already: on a fresh machine reading it takes longer than most rows.
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(target, rows, dry, theirs, str(log)))
    process.start()
    theirs.close()
    try:
        for i in range(len(rows)):
            own, left = row_limit_s + START_S * (i == 0), until - time.monotonic()
            answer, healthy = _receive(ours, min(own, left), lambda: process.join(5) or process.exitcode, log)
            late = answer.get(REASON, "").startswith(STOPPED) and left < own
            yield {REASON: NO_TIME} if late else answer
            if not healthy:
                return
    finally:
        _end(process)


def _receive(pipe: Any, limit_s: float, exit_code: Callable[[], object], log: Path) -> tuple[Row, bool]:
    """Wait for one answer; the second value says whether the process can go on."""
    try:
        if pipe.poll(max(limit_s, 0.0)):
            return pipe.recv()
        return {REASON: f"{STOPPED} {limit_s:.0f} s{_last_line(log)}"}, False
    except (EOFError, ConnectionError):
        code = exit_code()
        how = signal.Signals(-code).name if isinstance(code, int) and code < 0 else f"exit code {code}"
        return {REASON: f"the process ended with {how}{_last_line(log)}"}, False


def _last_line(log: Path) -> str:
    """Return the last thing that the process printed in this row, to say where it was."""
    if not log.exists():
        return ""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f"; its last line: {lines[-1][:200]}" if lines and not lines[-1].startswith(ROW_MARK) else ""


def _end(process: Any) -> None:
    """End the process and whatever it started: its process group is its own."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # it has ended, or has not yet made its group
        process.kill()
    process.join()


def _serve(target: str, rows: list[Row], dry: bool, pipe: Any, log: str) -> None:
    """Answer every row, in the process of its own."""
    os.setsid()
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    module, _, function = target.rpartition(".")
    for row in rows:
        print(f"{ROW_MARK}{row}", file=sys.stderr, flush=True)
        try:
            answer, healthy = getattr(importlib.import_module(module), function)(row, dry), True
        except Exception as error:  # whatever goes wrong in a row is its answer
            traceback.print_exc()
            answer, healthy = {REASON: told(error)}, _healthy()
        pipe.send((answer, healthy))
        if not healthy:
            return


def told(error: BaseException) -> str:
    """Return an error's kind and its first line; and the last, where a compiler names the reason after the place."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    last = f" ... {lines[-1][:300]}" if len(lines) > 1 else ""
    return f"{type(error).__name__}: {lines[0][:300]}{last}"


def _healthy() -> bool:
    """Say whether the process can measure another row: CUDA was not touched, or still answers."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def keep_log(log: Path, limit: int = LOG_BYTES) -> None:
    """Remove a log that says nothing; cut the middle out of one that is larger than `limit` bytes."""
    if not log.exists():
        return
    content = log.read_bytes()
    if all(line.startswith(ROW_MARK.encode()) or not line.strip() for line in content.splitlines()):
        log.unlink()
    elif len(content) > limit:
        half, cut = limit // 2, f"\n... {len(content) - limit:,} bytes are left out here ...\n"
        log.write_bytes(content[:half] + cut.encode() + content[-half:])
