"""Signals to a process that a shell's background job started, for which SIGINT is switched off."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import time
from gtp_fast.training.signals import listen
with listen() as interrupt:
    interrupt.started = True
    print("hears", flush=True)
    while not interrupt.signal:
        time.sleep(0.01)
print("tidies up", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("before", [signal.SIG_IGN, signal.SIG_DFL], ids=["ignored", "heard"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_a_process_that_tidies_up_after_the_first(number, before):
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        preexec_fn=lambda: [signal.signal(each, before) for each in (signal.SIGINT, signal.SIGTERM)],
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "hears\n"
            process.send_signal(number)
            assert process.stdout.readline() == "tidies up\n"
            process.send_signal(number)
            assert process.wait(10) in (-number, 128 + number)
        finally:
            process.kill()
