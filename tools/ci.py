"""What a change must pass, within 90 minutes on any machine: `make test`, format, lint and types, then a rehearsal.

A usual machine needs ten minutes (2026-11-27). One was seen where a Python loop took 15 times as long as usual,
importing torch two minutes and installing everything over an hour. So the machine is measured, a clock is kept, the
tests run in the order of their worth (`tests/support/in_order.py`), and what no time is left for is left out and named
in the last lines. A machine that is not slow may leave nothing out. Needs nothing but Python's own library: it runs
before anything is installed.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import textwrap
import time
import timeit
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

# Seconds since the start; all must end within 5,400.
BEGIN_S = 3600  # no test is begun later,
LEAST_S = 900  # but where installing left less than this, that long: importing torch and collecting take half of it,
LAST_S = 4680  # and never later than this: what was begun may take seven minutes more (`tests/support/in_order.py`)
STOP_S = 5160  # what still runs is stopped, for the last lines to be written
GRACE_S = 60  # a step that is stopped may say in this time what it had
TEST_S = 1200  # a test that takes longer hangs: its process ends with a traceback, it fails, the other tests go on

SLOW = 3.0  # times as long as usual; the rehearsal's own limits are three times what it takes
# AMD EPYC, 2 cores, Python 3.11, 2026-11-26; torch from a cold disk: from a warm one it takes a third of that.
USUAL_S = {"a Python loop": 0.2, "a product of matrices": 0.08, "importing torch": 9.0}
STEPS_S = {"lint": 10.0, "gpu-dry": 60.0}
BIN = Path(os.environ.get("VENV", ".venv")) / "bin"
KEPT = Path(".pytest_cache/v/gtp-fast/outcome")  # by tests/support/in_order.py


def main() -> int:
    """Return 0 when nothing failed, a test passed, and nothing was left out that a machine like this has time for."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is ended too
    started = float(os.environ.get("GTP_FAST_CI_STARTED") or time.time())
    slowness = measured_without_torch()
    failed, left_out, outcome = [], [], {}
    if not made(started, "install"):
        failed.append("install")
    else:
        slowness = max(slowness, measured("importing torch", import_torch, 1))
        KEPT.unlink(missing_ok=True)
        if not made(started, "test", f"TEST_FLAGS={test_flags(begin_until(started, time.time()))}"):
            failed.append("test")
        outcome = json.loads(KEPT.read_text()) if KEPT.exists() else {}
        for step, usual_s in STEPS_S.items():
            ends = time.time() + usual_s * slowness
            if ends > started + STOP_S or (step == "gpu-dry" and slowness > SLOW):
                left_out.append(step)
            elif not made(started, step, f"PYTHON={BIN / 'python'}"):
                failed.append(step)
        if outcome.get("left_out"):  # a machine may have become slow on the way
            slowness = max(slowness, measured_without_torch())
    lines, code = verdict(failed, left_out, outcome, slowness, time.time() - started)
    say("\n" + "\n".join(lines))
    return code


def begin_until(started: float, now: float) -> float:
    """Return the moment after which no test is begun, for tests that are called now."""
    return started + min(max(BEGIN_S, now - started + LEAST_S), LAST_S)


def test_flags(until: float) -> str:
    hangs = f"-o faulthandler_timeout={TEST_S} -o faulthandler_exit_on_timeout=true"
    return f"--begin-until={until:.0f} {hangs} {os.environ.get('TEST_FLAGS', '')}".strip()


def verdict(
    failed: list[str], steps: list[str], outcome: dict[str, Any], slowness: float, seconds: float
) -> tuple[list[str], int]:
    """Return the last lines, of which the very last is pytest's closing one, and the exit code."""
    counts, tests = outcome.get("counts", {}), outcome.get("left_out", {})
    total, without = sum(counts.values()), sum(tests.values())
    slow = slowness > SLOW
    lines = [f"{seconds / 60:.0f} of 90 minutes; this machine takes {slowness:.1f} times as long as usual."]
    if without:
        files = ", ".join(f"{name}\xa0{count}" for name, count in tests.items())  # no line ends before a number
        lines += [f"Left out, as no time was left: {without} of {total} tests, which are:"]
        wrapped = textwrap.wrap(files, 118, initial_indent="  ", subsequent_indent="  ")
        lines += [line.replace("\xa0", " ") for line in wrapped]
    if steps:
        lines += [f"Left out, as no time was left: {' and '.join(f'make {step}' for step in steps)}."]
    if not without and not steps and not failed:
        lines += ["Nothing was left out."]
    if (without or steps) and not slow:
        lines += ["This machine is not slow: something hangs, or takes longer than it did. That counts as a failure."]
    if not counts.get("passed"):
        lines += ["No test passed: that counts as a failure."]
    if failed:
        lines += [f"Failed: {', '.join(f'make {step}' for step in failed)}."]
    said = ", ".join(f"{count} {name}" for name, count in counts.items()) or "no tests ran"
    good = not failed and counts.get("passed") and (slow or not (without or steps))
    return [*lines, f"{said} in {seconds:.2f}s"], 0 if good else 1


def made(started: float, *words: str) -> bool:
    """Run make with these words, until no time is left; say how long it took, and return whether it succeeded."""
    say(f"make {words[0]}")
    began = time.time()
    # A session of its own: what is left of it is ended with it, a child of a test that hung too.
    process = subprocess.Popen(["make", *words], stdin=subprocess.DEVNULL, start_new_session=True)
    code: int | None = None
    try:
        code = process.wait(max(1.0, started + STOP_S - began))
    except subprocess.TimeoutExpired:
        say(f"{STOP_S / 60:.0f} minutes are over: make {words[0]} is stopped")
        os.killpg(process.pid, signal.SIGINT)  # pytest answers with its summary
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    ended = "was stopped" if code is None else "failed" if code else "done"
    say(f"make {words[0]}: {ended} after {time.time() - began:.0f} s")
    return code == 0


def measured(what: str, work: Callable[[], object], times: int) -> float:
    """Time some work, say it, and return how many times as long as usual it took (the median)."""
    seconds = statistics.median(timeit.repeat(work, number=1, repeat=times))
    slowness = seconds / USUAL_S[what]
    say(f"{what}: {seconds:.2f} s, {slowness:.1f} times the usual")
    return slowness


def measured_without_torch() -> float:
    return max(measured("a Python loop", loop, 3), measured("a product of matrices", product, 3))


def loop() -> int:
    total = 0
    for i in range(2_000_000):
        total += i * i % 7
    return total


def product() -> list[list[float]]:
    """Multiply two matrices in Python: numpy is not there yet."""
    rows = [[float(i * j % 7) for j in range(90)] for i in range(90)]
    columns = list(zip(*rows, strict=True))
    return [[sum(map(float.__mul__, row, column)) for column in columns] for row in rows]


def import_torch() -> None:
    subprocess.run([BIN / "python", "-c", "import torch"], check=False)  # where it fails, the tests say so


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
