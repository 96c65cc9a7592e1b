"""Real processes, killed, interrupted and doubled: what a run promises, it keeps."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_cases import columns, write
from families import family
from places import SUPPORT
from run_cases import gtp_fast, started, tiny_settings, wait_for, words

from gtp_fast.algorithms import backends
from gtp_fast.data.catalog import run_settings
from gtp_fast.errors import BusyError, CheckpointError
from gtp_fast.runs import checkpoint
from gtp_fast.runs.directory import RunDir
from gtp_fast.runs.events import Event, Progress
from gtp_fast.training.signals import SIGNALS
from gtp_fast.training.train import train

STEPS = 90
PARTIAL = "ckpt/.partial-step-N"
FILES = ("state.safetensors", "policy.safetensors", "state.json", "MANIFEST.json")
SAVE = (  # every point of a save, and of the removal of an older checkpoint; see run_server
    *("fsync metrics.jsonl", f"mkdir {PARTIAL}"),
    *(f"{what} {PARTIAL}/{file}" for file in FILES for what in ("open", "half", "fsync")),
    *(f"fsync {PARTIAL}", "rename ckpt/step-N", "fsync ckpt"),
    *(f"remove ckpt/step-N/{file}" for file in FILES),
    "rmdir ckpt/step-N",
)
BEST, RESULT = "ckpt/.partial-best", "eval/.partial-step-N.json"
EVALUATION = (  # and of an evaluation: its policy in a checkpoint while it is pending, the best policies, its result
    *(f"{what} {PARTIAL}/pending-eval-N.safetensors" for what in ("open", "half", "fsync")),
    f"mkdir {BEST}",
    *(f"{what} {BEST}/{file}" for file in FILES[1:] for what in ("open", "half", "fsync")),
    *(f"fsync {BEST}", "rename ckpt/.partial-old-best", "rename ckpt/best"),
    *(f"remove ckpt/.partial-old-best/{file}" for file in FILES[1:]),
    "rmdir ckpt/.partial-old-best",
    *(f"{what} {RESULT}" for what in ("remove", "open", "half", "fsync")),
    *("rename eval/step-N.json", "fsync eval"),
)
# One of them, at its second passage: that of a later evaluation, once the first is finished.
SOME = (("rename ckpt/best", 2),)
# The averaged policy, which is evaluated, moves at every step, so that the members' best are of different steps.
EVALUATES = {"env": "own_envs:Graded-v0", "eval_every": 30, "save_every": 30}
EVALUATES |= {"ema_start": 1, "ema_every": 1, "ema_decay": 0.9, "seed": 1}
pytestmark = pytest.mark.slow


class Server:
    """Starts training processes and waits for them."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(SUPPORT / "run_server.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._read() == {"ready": True}

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def start(self, settings: dict[str, Any]) -> int:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(settings) + "\n")
        self._process.stdin.flush()
        return self._read()["started"]

    def wait(self, pid: int) -> int:
        ended = self._read()
        assert ended["ended"] == pid
        return ended["code"]

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)


@pytest.fixture(scope="module")
def server():
    running = Server()
    yield running
    running.close()


Settings = Callable[..., dict[str, Any]]


def _settings(folder: Path) -> Settings:
    own = {"steps": STEPS, "batch_size": 16, "preset": "paper", "log_every": 7}
    return lambda name, **changes: tiny_settings(folder, run_dir=str(folder / name), **(own | changes))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return _settings(tmp_path)


def _whole(server: Server, folder: Path, **changes: Any) -> Path:
    """Let a run come to its end, and write the points that it passes to a file beside it."""
    faults = {"record": str(folder / "points")}
    assert server.wait(server.start({**_settings(folder)("whole", **changes), "faults": faults})) == 0
    return folder / "whole"


def _points(run: Path) -> set[str]:
    """Return the points that such a run has passed from its first save on."""
    passed = run.with_name("points").read_text().splitlines()
    return set(passed[passed.index(SAVE[0]) :])


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory) -> Path:
    """A run that was never killed; nothing below changes it."""
    return _whole(server, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def evaluated(server, tmp_path_factory) -> Path:
    """A run that was evaluated and never killed; nothing below changes it."""
    run = _whole(server, tmp_path_factory.mktemp("evaluated"), **EVALUATES)
    best = json.loads((run / "ckpt/best/state.json").read_text())
    assert len(set(best["steps"])) == 2 and 30 in best["steps"]  # what was best before a kill still counts
    return run


def outcome(run: Path) -> tuple[dict[str, bytes], bytes, dict[str, Any], list[str]]:
    """Return what two runs must share: the last state and policy, every metric line, what evaluations left.

    And the names of what is kept. Only the seconds that an evaluation took may differ.
    """
    last = RunDir(run).checkpoint(STEPS)
    tensors = {name: (last / name).read_bytes() for name in (checkpoint.STATE, checkpoint.POLICY)}
    results = {path.name: json.loads(path.read_text()) for path in (run / "eval").iterdir()}
    left = {name: {**values, "seconds": None} for name, values in results.items()}
    left |= {path.name: path.read_bytes() for path in (run / "ckpt/best").glob("*")}
    names = sorted(path.name for path in (run / "ckpt").iterdir())
    return tensors, (run / "metrics.jsonl").read_bytes(), left, names


def _wait_for_a_checkpoint(run: Path, after: int = 0) -> int:
    return wait_for(lambda: [step for step in checkpoint.steps(RunDir(run)) if step > after])[-1]


def _killed_somewhere(server: Server, wanted: dict[str, Any], chance: random.Random, _: Path) -> bool:
    """Kill the run at a random moment; return whether it was still running."""
    pid = server.start(wanted)
    time.sleep(chance.uniform(0.02, 4.0 if wanted["eval_every"] else 0.4))  # the evaluations take longer
    with contextlib.suppress(ProcessLookupError):  # it may have ended just now
        os.kill(pid, signal.SIGKILL)
    code = server.wait(pid)
    assert code in (0, -signal.SIGKILL)
    return code != 0


def _killed_at(point: str, passage: int = 1) -> Callable[..., bool]:
    def kill(server: Server, wanted: dict[str, Any], _: random.Random, met: Path) -> bool:
        """Let the run kill itself at a point, if it comes to it so often; return whether it did."""
        met.unlink(missing_ok=True)
        faults = {"point": point, "passage": passage, "met": str(met)}
        code = server.wait(server.start({**wanted, "faults": faults}))
        assert code == (-signal.SIGKILL if met.exists() else 0)
        return met.exists()

    return kill


def _survived(server: Server, wanted: dict[str, Any], ways: list[Callable[..., bool]], whole: Path, seed: int) -> int:
    """Kill a run in these ways, one after another, and let it end; return how often it was killed, all equal to whole.

    Where it ends before a kill it is compared, and followed by another that can be killed.
    """
    chance, survived, run = random.Random(seed), 0, Path(wanted["run_dir"])
    for kill in ways:
        ended = 0
        while not kill(server, wanted, chance, run.with_name("met")):
            assert outcome(run) == outcome(whole)
            shutil.rmtree(run)
            assert (ended := ended + 1) < 9  # a whole run passes every point
        survived += 1
    assert server.wait(server.start(wanted)) == 0
    assert outcome(run) == outcome(whole)
    return survived


@pytest.mark.parametrize(("rounds", "kills"), [(1, 24), pytest.param(4, 200, marks=pytest.mark.crash)])
def test_promise_1_a_run_killed_at_any_instant_ends_bitwise_equal_to_one_never_killed(
    server, settings, whole, rounds, kills, day
):
    ways = [_killed_at(point) for point in SAVE] * rounds
    ways += [_killed_somewhere] * (kills - len(ways))
    random.Random(day).shuffle(ways)
    assert _survived(server, settings("killed"), ways, whole, day) == kills


def test_promise_1_a_kill_in_the_middle_of_an_evaluations_files_changes_no_policy_and_no_result(
    server, settings, evaluated
):
    ways = [_killed_at(point, passage) for point, passage in SOME]
    assert _survived(server, settings("killed", **EVALUATES), ways, evaluated, 0) == len(SOME)


@pytest.mark.crash
def test_promise_1_an_evaluated_run_killed_at_any_instant_has_the_policies_and_results_of_one_never_killed(
    server, settings, evaluated, day
):
    second = [_killed_at(point, 2) for point in EVALUATION if "best" in point or "eval/" in point]
    ways = [*(_killed_at(point) for point in EVALUATION), *second, *[_killed_somewhere] * 16]
    random.Random(day).shuffle(ways)
    assert _survived(server, settings("killed", **EVALUATES), ways, evaluated, day) == len(ways)


def test_the_named_points_are_those_that_a_save_passes(whole):
    assert _points(whole) == set(SAVE)


def test_the_named_points_of_an_evaluation_are_those_that_its_files_pass(evaluated):
    assert _points(evaluated) - set(SAVE) == set(EVALUATION)


def test_a_writer_that_writes_in_place_loses_the_run_by_the_same_kills(server, settings, tmp_path):
    lost = 0
    for point in ("half ckpt/step-N/state.safetensors", "open ckpt/step-N/MANIFEST.json"):
        wanted, met = settings("naive"), tmp_path / "met"
        faults = {"in_place": True, "point": point, "met": str(met)}
        assert server.wait(server.start({**wanted, "faults": faults})) == -signal.SIGKILL
        lost += server.wait(server.start(wanted)) == CheckpointError.exit_code
        shutil.rmtree(tmp_path / "naive")
    assert lost == 2


def test_a_run_of_another_seed_differs_so_the_comparison_can_fail(server, settings, whole, tmp_path):
    assert server.wait(server.start(settings("other", seed=5))) == 0
    assert outcome(whole)[0] != outcome(tmp_path / "other")[0]


def test_promise_2_n_steps_a_kill_and_n_more_are_the_steps_of_a_run_never_killed(server, settings, whole, tmp_path):
    wanted = settings("halves", save_every=STEPS // 2)
    assert _killed_at(f"mkdir {PARTIAL}", 2)(server, wanted, random.Random(0), tmp_path / "met")
    assert checkpoint.steps(RunDir(tmp_path / "halves")) == [STEPS // 2]
    assert server.wait(server.start(wanted)) == 0
    assert outcome(tmp_path / "halves")[:3] == outcome(whole)[:3]


@pytest.mark.crash
@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_promise_2_twice_n_steps_are_n_steps_a_kill_and_n_more(settings, tmp_path, backend):
    for name in ("whole", "killed"):
        typed = words(settings(name, backend=backend, save_every=STEPS // 2))
        if name == "killed":
            process = started(["train", *typed])
            assert _wait_for_a_checkpoint(tmp_path / name) == STEPS // 2
            process.kill()
            process.communicate()
        done = gtp_fast("train", *typed)
        assert done.returncode == 0, done.stderr
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


@pytest.mark.parametrize(
    "number", family(SIGNALS, quick=[signal.SIGTERM, signal.SIGUSR1]), ids=lambda number: number.name
)
def test_promise_3_a_signal_commits_a_checkpoint_and_the_run_continues_bitwise(
    server, settings, whole, tmp_path, number
):
    wanted = settings("stopped", save_every=80)
    pid = server.start(wanted)
    metrics = tmp_path / "stopped/metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text())
    os.kill(pid, number)
    signalled = time.monotonic()
    assert server.wait(pid) == 128 + number
    assert time.monotonic() - signalled < 2.0
    saved = checkpoint.steps(RunDir(tmp_path / "stopped"))
    assert saved and 7 <= saved[-1] < STEPS
    assert server.wait(server.start(wanted)) == 0
    assert outcome(tmp_path / "stopped")[:2] == outcome(whole)[:2]


def _sleeping(package: str, module: str, function: str) -> str:
    """Return a program that is the command, except that this function says so and sleeps."""
    return f"""
import time
from gtp_fast.cli.main import main
from gtp_fast.{package} import {module}
def sleeping(*_):
    print("sleeps", flush=True)
    time.sleep(60)
{module}.{function} = sleeping
main()
"""


@pytest.mark.long
def test_promise_3_a_second_signal_ends_at_once(settings, tmp_path):
    process = started(
        ["train", *words(settings("stubborn", steps=100_000, save_every=0))],
        program=_sleeping("runs", "checkpoint", "save"),
    )
    wait_for(
        lambda: (tmp_path / "stubborn/metrics.jsonl").exists() and (tmp_path / "stubborn/metrics.jsonl").read_text()
    )
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None and process.stdout.readline() == "sleeps\n"
    time.sleep(0.4)  # two at the same moment are one
    process.send_signal(signal.SIGINT)
    signalled = time.monotonic()
    process.communicate()
    assert process.returncode == 130 and time.monotonic() - signalled < 1.0


def test_promise_3_a_signal_to_the_whole_group_saves_while_the_evaluation_worker_starts(settings, tmp_path):
    write(tmp_path / "data.hdf5", columns(sizes=(11, 3)))
    typed = words(settings("group", env="Hopper-v5", steps=100_000, eval_every=10, save_every=10))
    process = started(["train", *typed], start_new_session=True)
    first = _wait_for_a_checkpoint(tmp_path / "group")
    os.killpg(process.pid, signal.SIGHUP)
    signalled = time.monotonic()
    told = process.communicate()[1]
    assert process.returncode == 129 and time.monotonic() - signalled < 2.0
    saved = checkpoint.load_newest(RunDir(tmp_path / "group"))[0]
    assert saved is not None and saved.step >= first and saved.pending_evals
    said = f"stopped by SIGHUP: the checkpoint {saved.path} is saved; run the same command again to continue"
    assert told.endswith(f"error: {said}\n")


def _stopped_at(step: int) -> Callable[[Event], None]:
    def report(event: Event) -> None:
        if isinstance(event, Progress) and event.step == step:
            raise KeyboardInterrupt

    return report


@pytest.mark.parametrize("before", family([0, 10], quick=[10]), ids=["fresh", "resumed"])
def test_promise_3_a_signal_during_compilation_is_answered_and_harms_no_checkpoint(
    settings, tmp_path, monkeypatch, before
):
    if before:
        monkeypatch.setattr(backends, "compile_step", lambda step: step)  # nothing of this part is compared
        with contextlib.suppress(KeyboardInterrupt):
            train(run_settings(settings("cold", backend="compiled")), _stopped_at(14))
    cold = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    process = started(["train", *words(settings("cold", backend="compiled"))], env=cold)
    log, starts = tmp_path / "cold/train.log", f"start  at step {before}"
    wait_for(lambda: log.exists() and starts in log.read_text())
    time.sleep(2.0)  # in the middle of it: a step takes half a minute to compile
    process.send_signal(signal.SIGTERM)
    signalled = time.monotonic()
    told = process.communicate()[1]
    assert process.returncode == 143 and time.monotonic() - signalled < 2.0
    kept = f" since {tmp_path}/cold/ckpt/step-{before:08d}" if before else ""
    said = (
        f"stopped by SIGTERM while compiling the step: no step was made{kept}; run the same command again to continue"
    )
    assert told.endswith(f"error: {said}\n") and log.read_text().endswith(f"{said}\n")
    newest, refused = checkpoint.load_newest(RunDir(tmp_path / "cold"))
    assert (newest.step if newest else 0, refused) == (before, [])


@pytest.mark.parametrize(
    "number", family([signal.SIGINT, signal.SIGHUP], quick=[signal.SIGINT]), ids=lambda number: number.name
)
def test_promise_3_a_signal_while_data_are_loading_is_answered(settings, tmp_path, number):
    process = started(["train", *words(settings("run"))], program=_sleeping("data", "dataset", "load"))
    assert process.stdout is not None and process.stdout.readline() == "sleeps\n"
    process.send_signal(number)
    signalled = time.monotonic()
    told = process.communicate()[1]
    assert process.returncode == 128 + number and time.monotonic() - signalled < 2.0
    assert f"stopped by {number.name} while loading the data: no step was made" in told
    assert not (tmp_path / "run").exists()


def test_promise_6_a_second_process_is_told_who_holds_the_run(server, settings, tmp_path, capfd):
    first = server.start(settings("shared", steps=100_000))
    _wait_for_a_checkpoint(tmp_path / "shared")
    with pytest.raises(BusyError, match=f"process {first} on"):
        train(run_settings(settings("shared", steps=100_000)))
    os.kill(first, signal.SIGKILL)
    server.wait(first)


@pytest.mark.long
def test_evaluations_that_a_kill_cut_off_are_made_after_the_resume(server, settings, tmp_path):
    write(tmp_path / "data.hdf5", columns(sizes=(11, 3)))  # of a hopper that falls soon
    wanted = {"env": "Hopper-v5", "eval_every": 30, "save_every": 15}
    assert server.wait(server.start(settings("whole", **wanted))) == 0
    pid = server.start(settings("killed", **wanted))
    _wait_for_a_checkpoint(tmp_path / "killed", after=29)
    os.kill(pid, signal.SIGKILL)
    server.wait(pid)
    assert server.wait(server.start(settings("killed", **wanted))) == 0
    for step in (30, 60, 90):
        a, b = (json.loads((tmp_path / run / f"eval/step-{step:08d}.json").read_text()) for run in ("whole", "killed"))
        assert a["returns"] == b["returns"] and a["scores"] == b["scores"]
    best = [(tmp_path / run / "ckpt/best/policy.safetensors").read_bytes() for run in ("whole", "killed")]
    assert best[0] == best[1]
