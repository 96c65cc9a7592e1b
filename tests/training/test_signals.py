"""Signals to real processes: which end a run, what counts as the second, and a main thread that cannot answer."""

from __future__ import annotations

import contextlib
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from run_cases import wait_for

from gtp_fast.training.signals import SIGNALS, Interrupt

LISTENING = """
import hashlib, os, signal, time, weakref
from gtp_fast.training.signals import listen
with listen(lambda: "busy", lambda message: print(message, flush=True)) as interrupt:
"""
SAVING = """
    interrupt.started = True
    print("hears", flush=True)
    while not interrupt.signal:
        time.sleep(0.01)
    time.sleep(0.6)
    print("saved", flush=True)
"""
TIDYING = "print('tidies up', flush=True)\ntime.sleep(60)\n"
WORKING = """
    interrupt.started = True
    print("hears", flush=True)
    until = time.process_time() + 2.2
    while time.process_time() < until:
        pass
    print("saved", interrupt.signal, flush=True)
"""
COLLECTING = """
    class Thing: pass
    thing = Thing()
    def forgotten(_):
        print("hears", flush=True)
        time.sleep(1)
    there = weakref.ref(thing, forgotten)
    del thing
    time.sleep(60)
"""
COMPILING = """
    import subprocess, sys
    grandchild = "import subprocess; print(subprocess.Popen(['sleep', '60']).pid, flush=True); input()"
    print("hears", flush=True)
    child = subprocess.Popen([sys.executable, "-c", grandchild], stdin=subprocess.PIPE)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 100_000_000)
"""
CLOSING = """
    try:
        print("hears", flush=True)
        time.sleep(60)
    finally:
        time.sleep(0.3)
        print("closed", flush=True)
"""
IN_C = """
    print("hears", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 100_000_000)
"""


@contextlib.contextmanager
def hearing(body: str, before: Callable[[], object] = lambda: None) -> Iterator[subprocess.Popen[str]]:
    """Start a program that listens, and wait until it does; `before` runs in the process that becomes it."""
    with subprocess.Popen(
        [sys.executable, "-c", LISTENING + body], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        preexec_fn=before,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None and process.stdout.readline() == "hears\n"
            yield process
        finally:
            process.kill()


def _said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.mark.parametrize(
    ("number", "before"),
    [
        (signal.SIGINT, signal.SIG_IGN),
        (signal.SIGTERM, signal.SIG_DFL),
        pytest.param(signal.SIGINT, signal.SIG_DFL, marks=pytest.mark.long),
        pytest.param(signal.SIGTERM, signal.SIG_IGN, marks=pytest.mark.long),
    ],
    ids=lambda value: value.name,
)
def test_a_second_signal_ends_a_process_that_tidies_up_after_the_first(number, before):
    given = lambda: [signal.signal(each, before) for each in (signal.SIGINT, signal.SIGTERM)]  # noqa: E731
    with hearing(SAVING + TIDYING, given) as process:
        process.send_signal(number)
        assert [_said(process), _said(process)] == ["saved\n", "tidies up\n"]
        process.send_signal(number)
        assert process.wait(10) in (-number, 128 + number)


@pytest.mark.parametrize("number", [*SIGNALS], ids=lambda number: number.name)
def test_the_first_signal_lets_the_run_save_and_a_later_one_does_not(number):
    with hearing(SAVING) as process:
        process.send_signal(number)
        time.sleep(0.4)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 128 + signal.SIGTERM
        assert _said(process) == ""


def test_two_signals_at_the_same_moment_are_one():
    """GNU timeout sends one to its child and one to the group; a terminal that closes, and systemd, send two."""
    with hearing(SAVING) as process:
        for number in (signal.SIGTERM, signal.SIGHUP):
            process.send_signal(number)
        assert _said(process) == "saved\n" and process.wait(10) == 0


@pytest.mark.long
def test_the_limit_on_cpu_time_whose_signal_the_kernel_repeats_lets_the_run_save():
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (1, 60))

    with hearing(WORKING, limited) as process:
        assert _said(process) == f"saved {signal.SIGXCPU:d}\n" and process.wait(10) == 0


def test_nohup_keeps_its_word():
    with hearing(SAVING, lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) as process:
        process.send_signal(signal.SIGHUP)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert _said(process) == "saved\n"


@pytest.mark.parametrize(
    ("number", "body"),
    [
        pytest.param(signal.SIGINT, COLLECTING, id="SIGINT in a callback that drops exceptions"),
        pytest.param(signal.SIGTERM, IN_C, id="SIGTERM in a C function"),
        pytest.param(signal.SIGTERM, COLLECTING, id="SIGTERM in such a callback", marks=pytest.mark.long),
        pytest.param(signal.SIGINT, IN_C, id="SIGINT in a C function", marks=pytest.mark.long),
    ],
)
def test_a_main_thread_that_does_not_react_holds_no_signal_up(number, body):
    with hearing(body) as process:
        time.sleep(0.2)  # for it to be where it does not react
        process.send_signal(number)
        sent = time.monotonic()
        assert process.wait(10) == 128 + number
        assert time.monotonic() - sent < 2.0
        assert _said(process) == f"stopped by {number.name} while busy\n"


def test_the_handler_itself_leaves_with_the_signals_own_code_before_the_first_step():
    with pytest.raises(SystemExit) as left:
        Interrupt(lambda: "", lambda said: None).handle(signal.SIGTERM, None)
    assert left.value.code == 128 + signal.SIGTERM


def test_a_main_thread_that_reacts_within_a_second_may_close_what_it_opened():
    with hearing(CLOSING) as process:
        process.send_signal(signal.SIGTERM)
        assert _said(process) == "closed\n"


def test_no_child_outlives_a_run_whose_main_thread_does_not_react():
    with hearing(COMPILING) as process:
        grandchild = int(_said(process))  # as a compiler that a compiler started
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 128 + signal.SIGTERM
        wait_for(lambda: _ended(grandchild), 5.0)


def _ended(process: int) -> bool:
    state = Path(f"/proc/{process}/stat")
    return not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z"
