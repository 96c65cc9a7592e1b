"""Profiles of train steps: NVTX ranges, the time of each phase, a Chrome trace. Only this module imports nvtx.

Algorithms mark phases with `phase`. `profile_steps` takes a function that runs steps, and returns microseconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

PHASES = ("sample", "chain", "critic", "advantage", "actor", "average")
_QUIET = nullcontext()
# Whether phases are recorded. It is off in training: a phase then costs one attribute read.
_recorder = SimpleNamespace(on=False)


def _nvtx_range(name: str) -> AbstractContextManager[Any]:
    """Return an NVTX range; an empty one without the package nvtx, where only torch's profiler sees phases."""
    try:
        import nvtx
    except ImportError:
        return _QUIET
    return nvtx.annotate(name)


@contextmanager
def _recorded(name: str) -> Iterator[None]:
    with record_function(name), _nvtx_range(name):
        yield


def phase(name: str) -> AbstractContextManager[None]:
    """Mark a phase of the train step. It costs nothing unless phases are recorded; compiled steps have none."""
    if torch.compiler.is_compiling() or not _recorder.on:
        return _QUIET
    return _recorded(name)


def profile_steps(run: Callable[[int], None], steps: int, trace: Path) -> dict[str, float]:
    """Run `steps` train steps under the profiler and write a Chrome trace.

    Returns microseconds per step for each phase, by name, and for the whole `step`, timed without the profiler. A
    compiled or captured step has no separate phases: then only `step` is returned.
    """
    run(2)
    _synchronise()
    started = time.perf_counter()
    run(steps)
    _synchronise()
    whole = (time.perf_counter() - started) / steps
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    _recorder.on = True
    try:
        with profile(activities=activities) as profiler:
            run(steps)
            _synchronise()
    finally:
        _recorder.on = False
    profiler.export_chrome_trace(str(trace))
    phases = {event.key: event.cpu_time_total / steps for event in profiler.key_averages() if event.key in PHASES}
    return {name: phases[name] for name in PHASES if name in phases} | {"step": whole * 1e6}


def record_phases(on: bool) -> None:
    """Switch NVTX ranges on or off, as `gtp-fast train --profile` does under Nsight Systems."""
    _recorder.on = on


def nsys_command(env: str, dataset: str | None = None) -> str:
    """Return the command line for a profile with Nsight Systems."""
    data = f"--env {env}" + (f" --dataset {dataset}" if dataset else "")
    return (
        f"nsys profile --trace=cuda,nvtx,osrt --output=gtp-fast-{env.replace('/', '-').replace(':', '-')} "
        f"gtp-fast train {data} --steps 2000 --backend eager --no-graph --eval-every 0 --profile"
    )


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
