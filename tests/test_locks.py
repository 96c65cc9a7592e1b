"""One holder, also where flock is missing or holds on each node alone, and at once where nobody can be there.

A second node is a process that calls its machine by another name; a file system without flock, or with one that is
local to a node, is a flock that fails, or that is granted to everybody.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from run_cases import logged_steps, python, tiny, wait_for

from gtp_fast import locks
from gtp_fast.errors import BusyError
from gtp_fast.locks import Times, holder, locked
from gtp_fast.runs import checkpoint
from gtp_fast.runs.directory import RunDir
from gtp_fast.runs.events import Progress
from gtp_fast.training.train import train

QUICK = Times(beat=0.05, look=0.02, watch=0.5)

# Holds a lock as `node` under flock of a kind, and says so; ends at the end of its input.
HOLD = """
import errno, fcntl, sys
from pathlib import Path
from gtp_fast import locks
path, node, kind = sys.argv[1:]
def flock(descriptor, how):
    if kind == "none":
        raise OSError(errno.ENOLCK, "no locks")
if kind != "whole":
    fcntl.flock = flock
if node:
    locks.boot_id = lambda: "boot of " + node
    locks.socket.gethostname = lambda: node
with locks.locked(Path(path), "the run", times=locks.Times(0.05, 0.02, 0.5)) as claim:
    print("held", flush=True)
    sys.stdin.read()
    claim.check()
"""


@contextmanager
def held(path: Path, node: str = "", kind: str = "whole") -> Iterator[subprocess.Popen[str]]:
    """Have another process hold the lock; end it after the block in its own way, unless the block did."""
    pipe = subprocess.PIPE
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", HOLD, str(path), node, kind]
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n", process.communicate()
        yield process
    finally:
        process.communicate(timeout=30)


def _kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "LOCK"


def _missing(descriptor: int, how: int) -> None:
    raise OSError(errno.ENOLCK, "no locks available")


@pytest.fixture(params=["none", "local"])
def kind(request, monkeypatch) -> str:
    """A file system that has no flock, or one that holds on each node alone."""
    monkeypatch.setattr(fcntl, "flock", _missing if request.param == "none" else lambda descriptor, how: None)
    return request.param


def _seconds(take: Callable[[], object]) -> float:
    started = time.monotonic()
    take()
    return time.monotonic() - started


def _take(path: Path) -> None:
    with locked(path, "the run", times=QUICK):
        pass


def test_a_holder_on_another_node_that_lives_keeps_its_lock_and_is_named(path, kind):
    with held(path, "node7", kind) as process, pytest.raises(BusyError) as refused:
        _take(path)
    assert f"the run is in use by process {process.pid} on node7 since " in str(refused.value)
    assert process.returncode == 0


def test_a_holder_on_another_node_that_is_gone_is_followed_after_a_while(path, kind, caplog):
    with held(path, "node7", kind) as process:
        _kill(process)
    assert _seconds(lambda: _take(path)) >= QUICK.watch
    assert "on node7" in caplog.text and "gives no sign of life; going on in its place" in caplog.text


def test_a_clean_end_leaves_nothing_to_watch(path, kind):
    with held(path, "node7", kind):
        pass
    assert path.read_bytes() == b""
    assert _seconds(lambda: _take(path)) < QUICK.watch


@pytest.mark.parametrize("missing", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_flock_a_process_of_this_machine_is_asked_for_itself(path, monkeypatch, missing):
    def flock(descriptor: int, how: int) -> None:
        raise OSError(missing, os.strerror(missing))

    monkeypatch.setattr(fcntl, "flock", flock)
    with held(path, kind="none") as process:
        with pytest.raises(BusyError, match=f"process {process.pid} on "):
            _take(path)
        assert holder(path, QUICK) is not None
        _kill(process)
        assert holder(path, QUICK) is None
        assert _seconds(lambda: _take(path)) < QUICK.watch


def test_without_flock_a_number_that_was_given_again_is_no_holder(path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", _missing)
    mark = locks._own_mark()
    path.write_bytes(replace(mark, started=(mark.started or 0) - 1).to_bytes())
    _take(path)


def test_with_flock_a_killed_holder_of_this_machine_is_followed_at_once(path):
    with held(path) as process:
        _kill(process)
    assert holder(path) is None
    assert _seconds(lambda: _take(path)) < 0.5  # though no Times were given: nothing is watched


def test_with_flock_a_holder_of_this_kernel_is_followed_at_once_whatever_its_host_was_called(path):
    mark = replace(locks._own_mark(), host="the container before this one")
    path.write_bytes(mark.to_bytes())
    assert holder(path) is None
    assert _seconds(lambda: _take(path)) < QUICK.watch


def test_a_holder_on_another_node_is_told_until_it_was_seen_without_a_heartbeat_for_a_while(path, kind):
    with held(path, "node7", kind) as process:
        for _ in range(20):
            assert "on node7" in (holder(path, QUICK) or "")
            time.sleep(QUICK.look)
        _kill(process)
        assert wait_for(lambda: holder(path, QUICK) is None, 5)


def test_asking_does_not_wait(path, kind):
    with held(path, "node7", kind):
        assert _seconds(lambda: holder(path)) < 1.0 < locks.TIMES.watch


def test_of_two_that_find_a_dead_holder_one_is_named_and_the_other_sees_it(path, kind):
    with held(path, "node7", kind) as dead:
        _kill(dead)
    with held(path, "node8", kind), pytest.raises(BusyError, match="on node8"):
        _take(path)


def test_without_flock_the_earlier_of_two_that_saw_the_file_empty_ends_before_it_begins(path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", _missing)
    other = replace(locks._own_mark(), text="process 7 on node7", host="node7", boot="boot of node7", pid=7)
    monkeypatch.setattr(time, "sleep", lambda seconds: path.write_bytes(other.to_bytes()))  # it writes after us
    with pytest.raises(BusyError, match="taken over by process 7 on node7"), locked(path, "the run", times=QUICK):
        pytest.fail("two processes hold the lock")


def test_a_process_that_stood_still_and_lost_its_lock_ends_and_leaves_the_other_alone(path, kind):
    with held(path, "node7", kind) as process:
        process.send_signal(signal.SIGSTOP)
        with locked(path, "the run", times=QUICK) as claim:
            process.send_signal(signal.SIGCONT)
            time.sleep(5 * QUICK.beat)
            claim.check()
            _, said = process.communicate(timeout=30)
            assert f"BusyError: the run was taken over by process {os.getpid()} on " in said
            claim.check()


def test_a_lock_that_another_took_and_gave_back_is_lost_all_the_same(path, kind):
    with held(path, "node7", kind) as process:
        process.send_signal(signal.SIGSTOP)
        _take(path)
        process.send_signal(signal.SIGCONT)
        _, said = process.communicate(timeout=30)
    assert "BusyError: the run was taken over by a process that has ended" in said


SAVES: dict[str, Callable[[RunDir], object]] = {
    "a checkpoint": lambda run: checkpoint.save(run, 20, {}, {}, {}, {}),
    "the best policy": lambda run: checkpoint.save_best(run, {}, {}),
}


@pytest.mark.parametrize("save", SAVES.values(), ids=SAVES)
def test_a_run_that_was_taken_over_gets_no_more_of(tmp_path, save):
    run = RunDir(tmp_path / "run")
    with run.claim():
        save(run)
        shutil.rmtree(run.checkpoints)
        other = replace(locks._own_mark(), host="node7", boot="another", text="process 7 on node7 since noon")
        run.lock.write_bytes(other.to_bytes())
        with pytest.raises(BusyError) as refused:
            save(run)
    assert str(refused.value) == (
        f"run directory {run.path} was taken over by process 7 on node7 since noon, because this process did not "
        "answer for a while; it writes nothing more there"
    )
    assert not run.checkpoints.exists() and run.lock.read_bytes() == other.to_bytes()


def test_a_training_whose_run_was_taken_over_ends_with_the_exit_code_of_a_busy_run(tmp_path):
    def take_over(event: object) -> None:
        if isinstance(event, Progress) and event.step == 10:
            other = replace(locks._own_mark(), host="node7", boot="another", text="process 7 on node7")
            (tmp_path / "run/LOCK").write_bytes(other.to_bytes())

    with pytest.raises(BusyError, match="was taken over by process 7 on node7") as refused:
        train(tiny(tmp_path, save_every=0), take_over)
    assert refused.value.exit_code == 6 and checkpoint.steps(RunDir(tmp_path / "run")) == []
    assert logged_steps(tmp_path / "run") == [10]


def test_a_lock_file_of_an_earlier_version_is_taken_at_once(path):
    path.write_text("process 1 on node7 since 2026-11-27 13:05:01 UTC")
    assert holder(path) is None
    assert _seconds(lambda: _take(path)) < QUICK.watch


@pytest.mark.parametrize(
    "content", [b"\xff" * 2_000, b"a\n[]", b"a\n" + b"[" * 1_900, b'a\n{"host": 1}', b'a\n{"x": 1}']
)
def test_a_lock_file_with_anything_in_it_is_no_holder(path, content):
    path.write_bytes(content)
    assert holder(path) is None
    _take(path)


def test_what_a_lock_file_says_is_shown_without_control_characters(path, kind, caplog):
    mark = replace(locks._own_mark(), host="node7", boot="another", text="process 7\x1b]0;x\x07 on node7")
    path.write_bytes(mark.to_bytes())
    _take(path)
    assert "held by process 7]0;x on node7; watching" in caplog.text and "\x1b" not in caplog.text


def test_a_lock_file_that_was_removed_ends_no_run(path):
    with locked(path, "the run", times=QUICK) as claim:
        path.unlink()
        time.sleep(3 * QUICK.beat)
        claim.check()


def test_who_waits_goes_on_when_the_holder_elsewhere_has_ended(path, kind, caplog):
    with held(path, "node7", kind) as process:
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
        with locked(path, "the data", wait=True, times=QUICK):
            assert "node7" not in path.read_text()


def test_the_threads_of_a_lock_end_with_it(path):
    python(
        "import sys, threading\nfrom pathlib import Path\nfrom gtp_fast.locks import locked\n"
        "with locked(Path(sys.argv[1]), 'it'):\n    pass\nassert threading.active_count() == 1",
        str(path),
    )
