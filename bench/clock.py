"""How everything here is timed: on the device, on the host, in turns, or in a fresh process.

Work on a device is timed by CUDA events on a GPU and by the CPU time of this process elsewhere. A figure is the median
of several rounds, with the 20th and the 80th percentile beside it.
"""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

ROOT = Path(__file__).parent.parent
Figures = dict[str, float]
K = TypeVar("K")
T = TypeVar("T")


def device_clock() -> Callable[[], float]:
    """Return a clock in seconds: CPU time of this process, or on a GPU the time at which an event is reached."""
    if not torch.cuda.is_available():
        return time.process_time
    first = torch.cuda.Event(enable_timing=True)
    first.record()

    def now() -> float:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        event.synchronize()
        return first.elapsed_time(event) / 1e3

    return now


def once_s(run: Callable[[int], object], n: int) -> float:
    """Return the device's seconds of run(n)."""
    clock = device_clock()
    started = clock()
    run(n)
    return clock() - started


def per_unit(
    run: Callable[[int], object], chunk: int = 1, dry: bool = False, rounds: int = 15, least_s: float = 0.04
) -> Figures:
    """Time run(n) on the device and return microseconds a unit: `us` (the median), `p20` and `p80`.

    Args: n is a multiple of chunk so that a round lasts at least least_s; the search for n is the warm-up. A dry run
    takes one chunk, once.
    """
    if dry:
        return spread([once_s(run, chunk) / chunk * 1e6])
    n = chunk
    while (taken := once_s(run, n)) < least_s and n < 1_000_000:
        n = chunk * math.ceil(n / chunk * min(max(1.2 * least_s / max(taken, 1e-6), 1.5), 20.0))
    return spread([once_s(run, n) / n * 1e6 for _ in range(rounds)])


def spread(us: list[float]) -> Figures:
    """Return the median and the 20th and 80th percentile of rounds."""
    low, middle, high = np.percentile(us, [20, 50, 80])
    return {"us": float(middle), "p20": float(low), "p80": float(high)}


def repeated(call: Callable[[], object]) -> Callable[[int], object]:
    """Return the function that makes a call n times."""
    return lambda n: [call() for _ in range(n)]


def captured(work: Callable[[], object]) -> Callable[[], object]:
    """Return the replay of a CUDA graph of the work; on the CPU the work itself."""
    if not torch.cuda.is_available():
        return work
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def wall_us(call: Callable[[], object], dry: bool, least_s: float = 0.3) -> Figures:
    """Time single calls by the clock of the host, which is what a robot waits for."""
    for _ in range(1 if dry else 10):
        call()
    times, until = [], time.perf_counter() + (0.0 if dry else least_s)
    while len(times) < 3 or time.perf_counter() < until:
        times.append(taken(call).seconds * 1e6)
    return spread(times) | {"calls": len(times)}


class Taken(NamedTuple):
    """What a call returned, its seconds by the host's clock, and CPU seconds with those of processes it waited for."""

    result: Any
    seconds: float
    cpu_seconds: float


def taken(call: Callable[[], Any]) -> Taken:
    """Make a call and time it."""
    used, started = _cpu_s(), time.perf_counter()
    result = call()
    seconds = time.perf_counter() - started
    return Taken(result, seconds, _cpu_s() - used)


def _cpu_s() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def in_turn(calls: Mapping[K, Callable[[], T]], rounds: int) -> dict[K, list[T]]:
    """Make all calls once a round, so that a slow moment of the machine meets all of them; return what each gave."""
    found: dict[K, list[T]] = {key: [] for key in calls}
    for _ in range(rounds):
        for key, call in calls.items():
            found[key].append(call())
    return found


def apart(module: str, function: str, *args: Any, first: Path | None = None, **environment: str) -> Any:
    """Return what a module's function gives in a fresh process, whose memory, imports and environment are its own.

    Args: args and the result travel as JSON; first is a folder that stands before all others in the search for modules.
    Raises: RuntimeError with what the process printed as its error.
    """
    code = f"import json, sys; from {module} import {function} as run; print(json.dumps(run(*json.loads(sys.argv[1]))))"
    path = [*([str(first)] if first else []), str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    there = os.environ | environment | {"PYTHONPATH": os.pathsep.join(path).rstrip(os.pathsep)}
    words = [sys.executable, "-c", code, json.dumps(args)]
    done = subprocess.run(words, cwd=ROOT, env=there, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip() or "the process said nothing")
    return json.loads(done.stdout.splitlines()[-1])


def ceilings(device: str) -> Figures:
    """Return GFLOP/s of a large square product, and GB/s of a large copy, counting reads and writes.

    The product is of fp32, on a GPU by TF32, as the steps are timed. On a CPU the copy is of 256 MiB, beyond any cache,
    on as many threads as torch has.
    """
    if device != "cpu":  # on the CPU `quicken_cpu` has chosen
        torch.set_float32_matmul_precision("high")
    size, megabytes = (1024, 256) if device == "cpu" else (8192, 1024)
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    out = torch.empty_like(a)
    source = torch.zeros(megabytes * 2**18, device=device)
    target = torch.zeros_like(source)

    def median_s(call: Callable[[], object]) -> float:
        return per_unit(repeated(call), rounds=7)["us"] / 1e6

    return {
        "product_gflop_s": 2 * size**3 / median_s(lambda: torch.mm(a, b, out=out)) / 1e9,
        "copy_gb_s": 2 * source.numel() * 4 / median_s(lambda: target.copy_(source)) / 1e9,
    }
