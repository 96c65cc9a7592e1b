"""`gtp-fast latency`: the time of an action by sampling steps, batch size and candidates, as figures and a picture.

An action is timed as its user waits for it, from a NumPy observation to a NumPy action, noise and checks included.
A line through the medians, fixed_us + step_us K, separates the cost of a call from that of a sampling step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gtp_fast.config import DETERMINISTIC
from gtp_fast.device import cores, processor
from gtp_fast.errors import UsageError
from gtp_fast.experiments.figures import latency_lines
from gtp_fast.files import publish, publish_json
from gtp_fast.policy import export
from gtp_fast.policy.export import Run
from gtp_fast.policy.policy import Policy, load_policy
from gtp_fast.runs.disk import writing
from gtp_fast.runs.records import SavedPolicy, find_policy, read_settings, run_of

STEPS, FEWER_STEPS = tuple(range(1, 11)), (1, 2, 5, 10)
BATCHES, CANDIDATES = (1, 256), (1, 50)
MANY_ROWS = 1_000  # with more a CPU takes a tenth of a second for an action: fewer points are timed
ROUNDS = 5  # each times every K, so that a slow moment of the machine does not change the slope


@dataclass(frozen=True)
class LatencyConfig:
    """The command's flags: one member of the run, the device ("auto", "cpu" or "cuda"), seconds spent on each point."""

    seed: int | None = None
    device: str = "auto"
    seconds: float = 0.2
    out: Path | None = None  # None: report/ of the run


def latency_run(path: Path, asked: LatencyConfig) -> dict[str, Any]:
    """Time the policy of a run, write <out>/latency.json and latency.png beside it, and return the former.

    `rows` has an entry a point: backend, batch, candidates, sampling_steps, and median, p20, p80 of an action and the
    median of a sampling step in microseconds. `fits` has one a line of several K: fixed_us and step_us.
    Raises: UsageError for what is no run; CheckpointError without a usable checkpoint.
    """
    if not 0 < asked.seconds < 3600:
        raise UsageError(f"--seconds {asked.seconds:g} is outside (0, 3600); 0.2 takes about a minute in all")
    torch.set_num_threads(min(torch.get_num_threads(), cores()))  # torch knows no container's quota
    settings, saved = read_settings(path), find_policy(path)
    first = load_policy(saved, device=asked.device)
    seed = first.config.seeds[0] if asked.seed is None else asked.seed
    rows: list[dict[str, Any]] = []
    for candidates in (1,) if settings["bc"] or settings["algo"] in DETERMINISTIC else CANDIDATES:
        file_run = _exported(saved, seed, candidates) if first.device.type == "cpu" else None
        for batch in BATCHES:
            rows += _line(saved, seed, first, batch, candidates, asked.seconds, file_run)
    found = {
        "run": str(path),
        "algo": settings["algo"],
        "seed": seed,
        "hidden": first.config.hidden,
        "device": torch.cuda.get_device_name() if first.device.type == "cuda" else "cpu",
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rows": rows,
        "fits": fits(rows),
    }
    out = asked.out or run_of(path).report
    with writing(out, "name another folder with --out"):
        out.mkdir(parents=True, exist_ok=True)
        publish(out / "latency.png", latency_lines(found))
        publish_json(out / "latency.json", found)
    return found | {"picture": str(out / "latency.png")}


def _exported(saved: SavedPolicy, seed: int, candidates: int) -> Run | None:
    """Return the policy's ONNX file as a function, in its own number of steps; None where onnx is not installed."""
    if export.lacking("onnx"):
        return None
    policy = load_policy(saved, seed, device="cpu", candidates=candidates, select=_select(candidates))
    return export.reader("onnx", export.onnx_bytes(policy, {}))


def _select(candidates: int) -> str:
    return "none" if candidates == 1 else "argmax"


def _line(
    saved: SavedPolicy, seed: int, first: Policy, batch: int, candidates: int, seconds: float, file_run: Run | None
) -> list[dict[str, Any]]:
    """Return the points of every backend and every K at one batch and one number of candidates."""
    device, own, select = first.device.type, first.config.sampling_steps, _select(candidates)
    single = load_policy(saved, seed, device=device)
    steps = (STEPS if batch * candidates < MANY_ROWS else FEWER_STEPS) if single.steps_are_free else (own,)
    acting: dict[tuple[str, int], Policy] = {}
    for k in steps:
        policy = load_policy(saved, seed, device=device, sampling_steps=k, candidates=candidates, select=select)
        # A dictionary, since both are the same where the policy itself acts by torch.
        acting |= {(p.runtime, k): p for p in (policy.reference(), policy)}
    obs = export.drawn_observations(single.config, batch, np.random.default_rng(0))
    calls: dict[tuple[str, int], Callable[[], object]] = {key: partial(p.act, obs) for key, p in acting.items()}
    if file_run is not None:
        calls["onnx", own] = _file_call(file_run, obs, batch * candidates, single.noise_columns)
    times = interleaved(calls, seconds)
    return [
        {"backend": backend, "batch": batch, "candidates": candidates, "sampling_steps": k, **spread(times[backend, k])}
        | {"us_per_sampling_step": float(np.median(times[backend, k])) / k}
        for backend, k in sorted(calls)
    ]


def _file_call(run: Run, obs: np.ndarray, rows: int, columns: int) -> Callable[[], object]:
    """Return a call of an exported policy, with noise drawn by NumPy."""
    rng = np.random.default_rng(0)
    if not columns:
        return lambda: run({"obs": obs})
    return lambda: run({"obs": obs, "noise": rng.standard_normal((rows, columns), np.float32)})


def interleaved(calls: dict[Any, Callable[[], object]], seconds: float) -> dict[Any, list[float]]:
    """Time calls in turn, about `seconds` on each but 3 calls at least; return microseconds of each call."""
    for call in calls.values():
        call()
    times: dict[Any, list[float]] = {key: [] for key in calls}
    for _ in range(ROUNDS):
        for key, call in calls.items():
            if len(times[key]) >= 3 and sum(times[key]) > seconds * 1e6:
                continue
            until = time.perf_counter() + seconds / ROUNDS
            while True:
                started = time.perf_counter()
                call()
                ended = time.perf_counter()
                times[key].append((ended - started) * 1e6)
                if ended > until:
                    break
    return times


def spread(us: Sequence[float]) -> dict[str, Any]:
    """Return the median, the 20th and the 80th percentile, and how many calls they are of."""
    low, middle, high = np.percentile(us, [20, 50, 80])
    return {"median_us": float(middle), "p20_us": float(low), "p80_us": float(high), "calls": len(us)}


def fits(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Fit a line to the medians of each backend, batch and candidates that were timed at several K."""
    groups: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["backend"], row["batch"], row["candidates"]), []).append(row)
    lines = []
    for (backend, batch, candidates), points in groups.items():
        if len(points) < 2:
            continue
        k, us = (np.array([point[name] for point in points], float) for name in ("sampling_steps", "median_us"))
        slope, fixed = np.polyfit(k, us, 1)
        line = {"backend": backend, "batch": batch, "candidates": candidates}
        lines.append(line | {"fixed_us": float(fixed), "step_us": float(slope)})
    return lines


def table(found: dict[str, Any]) -> str:
    """Return the lines that a person reads: a point a row, then the fits."""
    heads = ("backend", "batch", "candidates", "K", "median us", "p20", "p80", "us / step")
    lines = ["".join(f"{head:>11}" for head in heads)]
    for row in found["rows"]:
        cells = [row["backend"], row["batch"], row["candidates"], row["sampling_steps"]]
        cells += [f"{row[name]:,.1f}" for name in ("median_us", "p20_us", "p80_us", "us_per_sampling_step")]
        lines.append("".join(f"{cell:>11}" for cell in cells))
    for fit in found["fits"]:
        where = f"{fit['backend']}, batch {fit['batch']}, candidates {fit['candidates']}"
        lines.append(f"{where}: {fit['fixed_us']:,.1f} us + {fit['step_us']:,.1f} us a sampling step")
    return "\n".join(lines)
