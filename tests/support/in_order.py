"""Tests in the order of their worth; past a given moment none is begun, and how many those are is said.

A machine was seen on which all of them would take ten hours: there the first hour must be worth the most. Loaded by
`conftest.py`. The order holds in every run; `--begin-until` is what `tools/ci.py` passes.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

import pytest

# Folders by what their tests show. A `test_promise_...` is of the first kind wherever it stands; a folder that is not
# here is of the last.
WORTH = (
    ("promises", "runs", "training"),  # what a run promises
    ("kernels", "algorithms"),  # interpreted and compiled, and what may be captured
    ("data",),
)
RANKS = {folder: rank for rank, folders in enumerate(WORTH) for folder in folders}
NO_TIME = "no time was left for it"
OUTCOMES = ("failed", "error", "passed", "skipped", "xfailed", "xpassed")
LEEWAY_S = 420.0  # for what was begun: at a fifteenth of the usual speed the slowest promise takes ten minutes
KEPT = "gtp-fast/outcome"  # in pytest's cache, for tools/ci.py


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--begin-until", type=float, metavar="EPOCH", help="skip the tests not begun by then")


def worth(item: pytest.Item) -> int:
    """Return the rank of what a test shows; 0 is run first."""
    return 0 if item.name.startswith("test_promise_") else RANKS.get(item.path.parent.name, len(WORTH))


@pytest.hookimpl(trylast=True)  # once what `-m` and `-k` leave out is gone: it would shift the cut between the piles
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    slow = {item for item in items if item.get_closest_marker("slow")}
    files: dict[Path, int] = {}
    for item in items:
        files.setdefault(item.path, len(files))
    dear = {item.path for item in slow}
    # Of one rank the files with slow tests come first, and in each of them those: none is left at the end. A file is
    # not cut in two, because its fixtures would be made twice.
    items.sort(key=lambda item: (worth(item), item.path not in dear, files[item.path], item not in slow))
    items[:] = dealt(items, getattr(config, "workerinput", {"workercount": 1})["workercount"])


def dealt(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """Lay the tests out for `--dist worksteal`, which cuts the list into as many pieces as there are workers.

    Each piece is in order, and a file stays with one worker: two would make its fixtures twice, which took an eighth
    more of the CPU's time (213 tests under `--dist load --maxschedchunk=1`, which keeps this order without more ado).
    """
    piles: list[list[pytest.Item]] = [[] for _ in range(workers)]
    home: dict[object, list[pytest.Item]] = {}
    for _, block in groupby(items, key=lambda item: (worth(item), item.path)):
        tests = list(block)
        home.setdefault(tests[0].path, min(piles, key=len)).extend(tests)
    share = len(items) // workers
    spare = [item for pile in piles for item in pile[share:]]  # what is worth least fills the pile that is too small
    for pile in piles:
        missing = max(share - len(pile), 0)
        pile[share:] = spare[:missing]
        del spare[:missing]
    return [item for pile in piles for item in pile] + spare


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None]:
    until = item.config.getoption("begin_until")
    if until is not None and time.time() > until:
        pytest.skip(NO_TIME)
    with _cut_off_at(until and until + LEEWAY_S):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    until = item.config.getoption("begin_until")
    with _cut_off_at(until and until + LEEWAY_S):
        return (yield)


@contextmanager
def _cut_off_at(end: float | None) -> Generator[None]:
    """Leave a test out that does not come to its end either: an alarm interrupts what waits and what is Python."""
    if end is None:
        yield
        return
    signal.signal(signal.SIGALRM, lambda *_: pytest.skip(NO_TIME))
    signal.setitimer(signal.ITIMER_REAL, max(end - time.time(), 0.1))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say how many tests were left out, and of which files; keep it for the caller too."""
    if config.getoption("begin_until") is None:
        return
    stats = terminalreporter.stats
    ends = [report for report in stats.get("skipped", []) if NO_TIME in str(report.longrepr)]
    left_out = Counter(report.nodeid.split("::")[0] for report in ends)
    counts = {outcome: len(stats[outcome]) for outcome in OUTCOMES if outcome in stats}
    if hasattr(config, "cache"):
        config.cache.set(KEPT, {"counts": counts, "left_out": left_out})
    files = ", ".join(f"{name} {count}" for name, count in left_out.items())
    said = f"{len(ends)} tests were left out, as no time was left for them: {files}" if ends else "no test was left out"
    terminalreporter.section("left out")
    terminalreporter.write_line(said)
