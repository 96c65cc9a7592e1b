"""A training whose output cannot be written: it ends as it would have ended, and train.log says that nothing is shown.

Real processes: a reader that goes away, a terminal that is closed, a full disk, streams that a shell closed.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from data_cases import columns, write
from run_cases import tiny, tiny_settings, wait_for, words

from gtp_fast.cli import screen
from gtp_fast.cli.main import main
from gtp_fast.runs import checkpoint, records
from gtp_fast.runs.directory import RunDir
from gtp_fast.runs.streams import Lasting
from gtp_fast.training import train as loop

TRAIN = [sys.executable, "-m", "gtp_fast", "train"]


def _ended_well(folder: Path, steps: int = 30) -> str:
    """Check that the whole run was trained and that its log says once that nothing was shown; return why."""
    assert checkpoint.steps(RunDir(folder / "run"))[-1] == steps
    lines = (folder / "run/train.log").read_text().splitlines()
    (told,) = [line for line in lines if "nothing more can be shown" in line]
    assert told.startswith("warning: ") and told.endswith("; the run goes on, and this file tells of it")
    return told


def _in_a_shell(folder: Path, redirected: str, *more: str, **changes: object) -> subprocess.CompletedProcess[str]:
    """Train with redirections; the last line on standard output is the exit code of the training."""
    line = " ".join([*TRAIN, *words(tiny_settings(folder, **changes)), *more])
    shell = ["bash", "-c", f"{line} {redirected}; echo ${{PIPESTATUS[0]}} >&3", "3>&1"]
    return subprocess.run(
        [*shell[:2], f"exec 3>&1; {shell[2]}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("redirected", "why"),
    [
        (">&- 2>&-", "it was closed from the start"),
        pytest.param("2>&-", "it was closed from the start", marks=pytest.mark.long),
        pytest.param("2>&1 | head -1", "Broken pipe", marks=pytest.mark.long),
        pytest.param("2>/dev/full", "No space left on device", marks=pytest.mark.long),
    ],
)
def test_a_run_that_nobody_can_read_ends_with_its_own_code(tmp_path: Path, redirected, why):
    done = _in_a_shell(tmp_path, redirected)
    assert done.stdout.splitlines()[-1] == "0", done.stderr
    assert why in _ended_well(tmp_path)


@pytest.mark.long
def test_an_environment_that_prints_is_scored_where_nobody_reads(tmp_path: Path):
    write(tmp_path / "data.hdf5", columns(sizes=(4, 3)))
    done = _in_a_shell(tmp_path, "2>&1 | head -1", env="eval_cases:gtp_fast_tests/Talking-v0", eval_every=10)
    assert done.stdout.splitlines()[-1] == "0", done.stderr
    assert "Broken pipe" in _ended_well(tmp_path)
    results = records.read_evaluations(RunDir(tmp_path / "run"))
    assert [result.step for result in results] == [10, 20, 30]


@pytest.mark.long
def test_a_result_that_cannot_be_printed_leaves_the_exit_code(tmp_path: Path):
    loop.train(tiny(tmp_path))  # the command finds a finished run, and a report
    (tmp_path / "run/report").mkdir()
    (tmp_path / "run/report/README.md").touch()
    done = _in_a_shell(tmp_path, ">/dev/full", "--json")
    assert done.stdout.splitlines()[-1] == "0" and "Traceback" not in done.stderr
    assert "the result could not be printed" in done.stderr


@pytest.mark.slow
def test_a_terminal_that_is_closed_ends_no_run(tmp_path: Path):
    ours, theirs = os.openpty()
    typed = words(tiny_settings(tmp_path, steps=100, save_every=0))
    process = subprocess.Popen([*TRAIN, *typed], stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    assert os.read(ours, 10).startswith(b"run ")
    process.send_signal(signal.SIGSTOP)
    os.close(ours)
    process.send_signal(signal.SIGCONT)
    assert process.wait(60) == 0
    assert "Input/output error" in _ended_well(tmp_path, 100)


@pytest.mark.long
def test_a_diverged_run_that_nobody_can_read_ends_with_4(tmp_path: Path):
    done = _in_a_shell(tmp_path, "2>&1 | head -1", "--lr", "1e30", "--grad-norm", "0")
    assert done.stdout.splitlines()[-1] == "4", done.stderr


def test_a_command_that_only_prints_ends_with_141_where_nobody_reads():
    line = f"exec 3>&1; {sys.executable} -m gtp_fast data list | true; echo ${{PIPESTATUS[0]}} >&3"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("141\n", "")


def test_a_stream_that_failed_once_is_never_written_again(tmp_path: Path):
    with (tmp_path / "a").open("w") as file:
        lasting = Lasting(file)
        lasting.write("seen")
        lasting.flush()
        file.close()
        lasting.write("unseen")
        assert isinstance(lasting.lost, OSError) and lasting.isatty() is False
    assert (tmp_path / "a").read_text() == "seen"


def _slow(patch: pytest.MonkeyPatch) -> None:
    """Let a run wait for its data, and sleep after each step."""
    load, stepper = loop.dataset.load, loop.patient_stepper

    def slowly(*given: Any) -> Any:
        time.sleep(0.5)
        return load(*given)

    def slow(*given: Any) -> Callable[[int], None]:
        run = stepper(*given)

        def steps(count: int) -> None:
            for _ in range(count):
                run(1)
                time.sleep(0.1)

        return steps

    patch.setattr(screen, "SILENCE_SECONDS", 0.2)
    patch.setattr(loop.dataset, "load", slowly)
    patch.setattr(loop, "patient_stepper", slow)


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> list[str]:
    """Return what a slow run of one log interval shows where there is no terminal."""
    folder, said = tmp_path_factory.mktemp("slow"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said):
        _slow(patch)
        main(["train", *words(tiny_settings(folder, log_every=1000, save_every=0, steps=12))])
    log = (folder / "run/train.log").read_text()
    assert "so far" not in log and log.count("step ") == 2  # the start, and the interval
    return said.getvalue().splitlines()


def test_a_run_shows_that_it_lives_while_data_are_loading(shown):
    assert "loading the data, 0:00 so far" in shown[0]


def test_a_run_shows_between_two_log_intervals_where_it_is_and_what_is_left(shown):
    between = [line.split() for line in shown if line.startswith("step ") and "actor_loss" not in line]
    steps = [int(words[1]) for words in between]
    assert len(steps) >= 2 and steps == sorted(steps) and steps[-1] < 12
    assert all(words[2:4] == ["of", "12"] and words[5] == "steps/s" and words[7] == "left" for words in between)


@pytest.mark.slow
def test_the_bar_on_a_terminal_moves_between_two_log_intervals(tmp_path: Path, monkeypatch):
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    _slow(monkeypatch)
    with _read(ours) as drawn, os.fdopen(theirs, "w") as terminal, contextlib.redirect_stderr(terminal):
        main(["train", *words(tiny_settings(tmp_path, log_every=1000, save_every=0, steps=12))])
    counts = {part.split(b"/12 ")[0].split()[-1] for part in b"".join(drawn).split(b"\r") if b"/12 " in part}
    assert len(counts) >= 3, drawn


@contextlib.contextmanager
def _read(terminal: int) -> Iterator[list[bytes]]:
    """Read a terminal until nobody writes to it any more, and close it."""
    found: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):
            while part := os.read(terminal, 4096):
                found.append(part)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield found
    finally:
        reader.join()
        os.close(terminal)


IMPATIENT = """
from gtp_fast.cli import main, screen
screen.SILENCE_SECONDS = 0.2
main.main()
"""


@pytest.mark.slow
def test_a_compilation_shows_for_how_long_it_lasts_and_what_it_has_written(tmp_path: Path):
    cold = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    typed = words(tiny_settings(tmp_path, backend="compiled"))
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen([sys.executable, "-c", IMPATIENT, "train", *typed], stderr=said, env=cold)
    try:
        shown = wait_for(lambda: [x for x in (tmp_path / "said").read_text().splitlines() if "compiling" in x])
    finally:
        process.kill()
        process.wait()
    assert shown[0].startswith("compiling the step, 0:0") and shown[0].endswith(" so far, 0 kernels written")
