"""Run the tests marked gpu, each file in its own process: an illegal address in one file spares the others."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.gpu.supervise import told
from bench.tables import ROOT

SHOWN_FAILURES = 12
OUTCOMES = ("failure", "error", "skipped")
GRACE_S = 12.0  # for the report of an interrupted run; pytest still has time for one when a call ends
UNTIL = "GTP_GPU_UNTIL"  # the time at which the call ends, in seconds since 1970
MARK = re.compile(r"mark\.gpu\b")


def files() -> list[str]:
    """Return the test files that hold such a test. Others may import what this machine lacks, and are not read."""
    names = sorted(ROOT.glob("tests/**/test_*.py"))
    return [str(path.relative_to(ROOT)) for path in names if MARK.search(path.read_text(encoding="utf-8"))]


def run_file(row: dict[str, Any], dry: bool) -> dict[str, Any]:
    """Run pytest on row["file"] for row["limit_s"] seconds at most; count outcomes and name the failures.

    What pytest prints, each failure whole, goes to the part's log. A file that takes longer is interrupted, which
    pytest answers with a report of what ran: that counts as a failure.
    Raises: RuntimeError when pytest brought no report, or collected nothing.
    """
    started, limit_s = time.monotonic(), min(row["limit_s"], max(1.0, left_s() - GRACE_S))
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        code, stopped = _pytest(row["file"], report, limit_s)
        if not report.exists():
            raise RuntimeError(f"pytest ended with exit code {code} and no report")
        # A test that was interrupted stands there without a name, and else like one that passed.
        cases = [case for case in ElementTree.parse(report).iter("testcase") if case.get("name")]
    if not cases and not stopped:
        raise RuntimeError(f"pytest collected no test (exit code {code})")
    outcomes = [(case, next((part for part in case if part.tag in OUTCOMES), None)) for case in cases]
    failed = [f"{case.get('name')}: {_said(why)}" for case, why in outcomes if why is not None and why.tag != "skipped"]
    skipped = [_said(why) for _, why in outcomes if why is not None and why.tag == "skipped"]
    passed = sum(why is None for _, why in outcomes)
    if stopped:
        last = cases[-1].get("name") if cases else "the start"
        failed.insert(0, f"stopped after {limit_s:.0f} s: nothing ended after {last}")
    return {
        "passed": passed,
        "failed": len(failed),
        "skipped": len(skipped),
        "seconds": time.monotonic() - started,
        "failures": failed[:SHOWN_FAILURES],
        "skip_reasons": sorted(set(skipped)),
    }


def left_s() -> float:
    """Return what is left of the call."""
    return float(os.environ.get(UNTIL, "inf")) - time.time()


def _pytest(file: str, report: Path, limit_s: float) -> tuple[int, bool]:
    """Return pytest's exit code, and whether it had to be stopped."""
    command = [sys.executable, "-m", "pytest", "-v", "-m", "gpu", "-p", "no:cacheprovider", "--tb=long"]
    command += [f"--junitxml={report}", *_workers(file), file]
    process = subprocess.Popen(command, cwd=ROOT, preexec_fn=_hear_interrupts)
    try:
        return process.wait(limit_s), False
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):  # its workers may take longer to end than its report
        return process.wait(GRACE_S), True
    process.kill()
    return process.wait(), True


def _hear_interrupts() -> None:
    """Give a child the interrupt that a shell's background job has switched off for itself and all below it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _workers(file: str) -> list[str]:
    """Spread a whole file of such tests over the cores where pytest-xdist is there: most of their time is compiling."""
    cores = os.cpu_count() or 1
    whole = "\npytestmark = pytest.mark.gpu" in Path(ROOT, file).read_text(encoding="utf-8")
    return ["-n", str(min(14, cores))] if whole and cores > 2 and importlib.util.find_spec("xdist") else []


def _said(outcome: ElementTree.Element) -> str:
    """Return in one line what a test that did not pass says."""
    return told(Exception(outcome.get("message") or outcome.text or "")).removeprefix("Exception: ")
