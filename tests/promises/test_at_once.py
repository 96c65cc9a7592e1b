"""The same command in several processes at once, as a job array starts it: nothing is trained twice."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from families import family
from places import SUPPORT
from run_cases import tiny_settings, wait_for

from gtp_fast.runs import checkpoint
from gtp_fast.runs.directory import RunDir

LONG = 1_000_000


@dataclass(frozen=True)
class Started:
    """A command that runs: its process, and the files of its two outputs."""

    pid: int
    out: Path
    err: Path

    def said(self, words: str) -> str:
        """Return the first line of standard error with these words, once it is there."""

        def found() -> list[str]:
            return [line for line in self.err.read_text().split("\n")[:-1] if words in line]

        return wait_for(lambda: self.err.exists() and found())[0]


class Commands:
    """Starts `gtp-fast train` again and again with the same settings in the same folder."""

    def __init__(self) -> None:
        self.folder, self._codes = Path(), {}
        words = [sys.executable, str(SUPPORT / "command_server.py")]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._read_until("ready")

    def _read_until(self, wanted: str) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = json.loads(line)
            if "ended" in answer:
                self._codes[answer["ended"]] = answer["code"]
            if wanted in answer:
                return answer[wanted]
        raise AssertionError("the server ended")

    def start(self, steps: int, **changes: object) -> Started:
        settings = tiny_settings(self.folder, steps=steps, run_dir=None, save_every=50, **changes)
        typed = [[f"--{name.replace('_', '-')}", str(value)] for name, value in settings.items() if value is not None]
        words = ["train", "--json", *(word for pair in typed for word in pair)]
        count = len(list(self.folder.glob("*.err")))
        out, err = self.folder / f"{count}.out", self.folder / f"{count}.err"
        command = {"words": words, "folder": str(self.folder), "out": str(out), "err": str(err)}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        started = Started(self._read_until("started"), out, err)
        wait_for(err.exists)
        return started

    def code(self, started: Started) -> int:
        """Return a command's exit code, once it has ended."""
        while started.pid not in self._codes:
            self._read_until("ended")
        return self._codes[started.pid]

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)


@pytest.fixture(scope="module")
def server():
    running = Commands()
    yield running
    running.close()


@pytest.fixture
def commands(server, tmp_path: Path):
    server.folder = tmp_path
    running: list[Started] = []
    start = server.start
    server.start = lambda *args, **changes: running.append(start(*args, **changes)) or running[-1]
    yield server
    server.start = start
    for one in running:
        with suppress(ProcessLookupError):
            os.kill(one.pid, signal.SIGKILL)
        server.code(one)


def _runs(folder: Path) -> list[Path]:
    return sorted((folder / "runs/HalfCheetah-v5").glob("gtp-*"))


def _training(folder: Path) -> Path:
    """Return the only run, once it has a checkpoint."""
    return wait_for(lambda: [run for run in _runs(folder) if checkpoint.steps(RunDir(run))])[0]


def test_of_three_processes_that_start_together_one_trains_and_the_others_say_that_the_run_is_finished(
    commands, tmp_path
):
    together = [commands.start(100) for _ in range(3)]
    assert [commands.code(one) for one in together] == [0, 0, 0]
    assert sorted(json.loads(one.out.read_text())["finished_before"] for one in together) == [False, True, True]
    assert sum("is finished, with 100 steps" in one.err.read_text() for one in together) == 2
    (run,) = _runs(tmp_path)
    assert len(re.findall("^start ", (run / "train.log").read_text(), re.MULTILINE)) == 1


def test_a_process_that_waits_names_the_holder_once_and_goes_on_with_the_run_when_that_is_killed(commands, tmp_path):
    first = commands.start(LONG)
    run = _training(tmp_path).relative_to(tmp_path)
    second = commands.start(LONG)
    assert second.said("waiting for").startswith(f"note   waiting for {run}, which process {first.pid} on ")
    time.sleep(1.2)  # it looks twice more
    os.kill(first.pid, signal.SIGKILL)
    assert second.said("run  ") == f"run    {run}" and second.said("continuing from")
    assert second.err.read_text().count("waiting for") == 1 and len(_runs(tmp_path)) == 1


@pytest.mark.parametrize(
    "number", family([signal.SIGINT, signal.SIGTERM], quick=[signal.SIGTERM]), ids=lambda number: number.name
)
def test_a_process_that_waits_ends_at_once_at_a_signal(commands, tmp_path, number):
    commands.start(LONG)
    _training(tmp_path)
    waiting = commands.start(LONG)
    waiting.said("waiting for")
    signalled = time.monotonic()
    os.kill(waiting.pid, number)
    assert commands.code(waiting) in (128 + number, -number)
    assert time.monotonic() - signalled < 2.0


def test_a_directory_that_is_named_is_not_waited_for(commands, tmp_path):
    first = commands.start(LONG)
    second = commands.start(LONG, resume=str(_training(tmp_path)))
    assert commands.code(second) == 6 and f"process {first.pid} on" in second.err.read_text()


def test_never_twice_at_once_makes_two_runs(commands, tmp_path):
    together = [commands.start(10, resume="never") for _ in range(2)]
    assert [commands.code(one) for one in together] == [0, 0] and len(_runs(tmp_path)) == 2
