"""A compile that takes longer than the whole run would take eagerly is given up, and the run is stepped eagerly.

Only a new run on the CPU whose backend `auto` chose gives up; environment.json then says so, and every later part of
the run is stepped eagerly, too. A run that has made a compiled step never switches: its results would not be equal bit
for bit.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from gtp_fast.algorithms.backends import stepper
from gtp_fast.algorithms.state import TrainState
from gtp_fast.config import TrainConfig
from gtp_fast.data.buffers import Buffer
from gtp_fast.data.replay import ReplayBuffer
from gtp_fast.files import publish_json
from gtp_fast.runs.directory import RunDir
from gtp_fast.runs.records import read_environment

GAVE_UP = "gave_up_compiling"  # in environment.json: how long it was waited for, and what all steps take eagerly
TIMED_STEPS = 3  # eager ones, after a first that allocates
AGAIN_SECONDS = 0.2  # Python drops what is raised in a callback of a weak reference: the alarm rings until it is heard

Steps = Callable[[int], None]


class _TooLongError(BaseException):
    """Not an Exception: torch.compile would wrap that in an error of its own."""


def patient_stepper(
    cfg: TrainConfig, run: RunDir, state: TrainState, buffer: Buffer, by_auto: bool, say: Callable[[str], None]
) -> Steps:
    """Return a function that makes n train steps on the state in place, as `backends.stepper` does.

    Args: by_auto, whether `auto` chose the backend; say takes the note about a compile that was given up.
    """
    if GAVE_UP in read_environment(run):
        return stepper(replace(cfg, backend="eager"), state, buffer)
    made = stepper(cfg, state, buffer)
    new, here = int(state.step) == 0, threading.current_thread() is threading.main_thread()
    if not (by_auto and new and here and cfg.backend == "compiled" and cfg.device == "cpu"):
        return made
    if not isinstance(buffer, ReplayBuffer):  # steps of a streamed buffer cannot be made twice
        return made
    chosen: list[Steps] = []

    def run_steps(steps: int) -> None:
        if not chosen:
            chosen.append(_compiled_in_time(made, cfg, run, state, buffer, say))
        chosen[0](steps)

    return run_steps


def _compiled_in_time(
    made: Steps, cfg: TrainConfig, run: RunDir, state: TrainState, buffer: Buffer, say: Callable[[str], None]
) -> Steps:
    """Return `made` once it is compiled, or eager steps where all of them would have been made sooner."""
    saved = {name: tensor.clone() for name, tensor in state.tensors().items()}
    eager = stepper(replace(cfg, backend="eager"), state, buffer)
    eager(1)
    started = time.perf_counter()
    eager(TIMED_STEPS)
    seconds = (time.perf_counter() - started) / TIMED_STEPS * cfg.steps
    state.load_(saved)
    in_time = _within(seconds, lambda: made(1))
    state.load_(saved)  # the first step is made again, by whichever way all are made
    if in_time:
        return made
    import torch._dynamo

    torch._dynamo.reset()
    taken = round(time.perf_counter() - started, 1)
    publish_json(run.environment, read_environment(run) | {GAVE_UP: [taken, round(seconds, 1)]})
    say(
        f"compiling the step took more than {taken:.1f} s, and all {cfg.steps:,} steps take about {seconds:.1f} s "
        "without it: this run is stepped eagerly, to its end; --backend compiled waits for it"
    )
    return eager


def _within(seconds: float, action: Callable[[], None]) -> bool:
    """Say whether an action ended within so many seconds; where it did not, an alarm stopped it in the middle."""
    armed, rang = [True], [False]

    def ring(number: int, frame: object) -> None:
        if armed:
            rang[0] = True
            raise _TooLongError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, AGAIN_SECONDS), AGAIN_SECONDS)
    done = False
    try:
        action()
        done = True
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:
        if not rang[0]:
            raise
    finally:
        _disarm(armed)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return done


def _disarm(armed: list[bool]) -> None:
    while armed:
        try:
            armed.clear()
        except _TooLongError:
            continue
