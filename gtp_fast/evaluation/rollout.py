"""Rollouts: a policy and environments in, returns out; groups of episodes in processes of their own, over the cores.

A group is at most GROUP episodes of one member that act by one call. It is rollouts from its first step to its last in
one place, and always acts with GROUP rows: an episode depends on neither the number of cores nor of episodes.
"""

from __future__ import annotations

import ctypes
import json
import math
import multiprocessing
import os
import signal
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from gtp_fast import errors
from gtp_fast.errors import GtpError, UsageError

if TYPE_CHECKING:
    import gymnasium

    from gtp_fast.policy.policy import Policy

# Ten episodes, which most tasks have, are two groups, for two cores.
GROUP = 5


class RolloutError(GtpError):
    """A rollout failed in its process; the message holds what it said."""


class ProcessLostError(RolloutError):
    """A process ended without an answer: it was killed."""


class Rollouts(NamedTuple):
    """What each episode came to: its return, its steps, whether it diverged, whether it succeeded (None: not told)."""

    returns: list[float]
    lengths: list[int]
    diverged: list[bool]
    success: list[bool | None]


def episode_seed(seed: int, episode: int) -> int:
    """Return the seed of an episode's reset: the same for every member."""
    return seed * 100_003 + episode


def play(policy: Policy, envs: Sequence[gymnasium.Env], seeds: Sequence[int], rows: int, name: str) -> Rollouts:
    """Step environment i from a reset with seeds[i] to its end and never after.

    Args: rows, observations of one call of each member, in which the environments fill the first of each; name, of the
    environment, for errors. Raises: UsageError where an observation is not finite at the reset.
    """
    count, one = len(envs), policy.config.observation
    obs = np.zeros((policy.members * rows, *one), np.uint8 if policy.config.frame_shape else np.float32)
    rollouts = Rollouts([0.0] * count, [0] * count, [False] * count, [None] * count)
    running = list(range(count))
    with np.errstate(over="ignore"):  # what is too large for float32 becomes Inf, which is looked for
        for i in running:
            obs[i] = envs[i].reset(seed=seeds[i])[0]
        if not np.isfinite(obs).all():
            raise UsageError(f"{name} gave an observation with NaN or Inf at its reset; mend the environment")
        while running:
            actions = policy.act_members(obs.reshape(policy.members, rows, *one)).reshape(len(obs), -1)
            running = _step(running, envs, actions, obs, rollouts)
    return rollouts


def _step(
    running: list[int], envs: Sequence[gymnasium.Env], actions: np.ndarray, obs: np.ndarray, rollouts: Rollouts
) -> list[int]:
    """Step each running environment once, write what follows into `obs` and `rollouts`, and return which go on."""
    returns, lengths, diverged, success = rollouts
    going = []
    for i in running:
        following, reward, terminated, truncated, info = envs[i].step(actions[i])
        obs[i], reward = following, float(reward)
        lengths[i] += 1
        if math.isfinite(reward):
            returns[i] += reward
        else:
            diverged[i] = True
        if "success" in info:
            success[i] = bool(success[i] or info["success"])
        if not (terminated or truncated or diverged[i]):
            going.append(i)
    if obs.dtype == np.float32 and not np.isfinite(obs).all():
        # A simulation that blew up cannot go on, and must take no other episode and no training run with it.
        for i in np.flatnonzero(~np.isfinite(obs).all(axis=1)).tolist():
            diverged[i], obs[i] = True, 0.0
        going = [i for i in going if not diverged[i]]
    return going


def spread(task: Callable[[int], Any], count: int, workers: int) -> list[Any]:
    """Return [task(0), ..., task(count - 1)], plain values, each made in a process forked from this one.

    At most `workers` run at a time, each forked anew: it finds everything as it stands here, whatever others did.
    None outlives this call, or this process. With one worker, or where processes cannot be forked, it happens here.
    Raises: a task's GtpError as its own class; RolloutError for what else it raised; ProcessLostError for a killed one.
    """
    if min(workers, count) <= 1 or "fork" not in multiprocessing.get_all_start_methods():
        return [task(index) for index in range(count)]
    context, answers, waiting = multiprocessing.get_context("fork"), [None] * count, iter(range(count))
    running: dict[Any, tuple[int, Any]] = {}
    try:
        while True:
            while len(running) < workers and (index := next(waiting, None)) is not None:
                receiving, sending = context.Pipe(duplex=False)
                process = context.Process(target=_answer, args=(task, index, sending))
                with warnings.catch_warnings():
                    # Other threads' locks do not matter to a child that steps environments; torch's loaders do as much.
                    warnings.simplefilter("ignore", DeprecationWarning)
                    process.start()
                sending.close()  # the child has the only other one: its end is the end of this pipe
                running[receiving] = index, process
            if not running:
                return answers
            for receiving in wait(list(running)):
                index, process = running[receiving]
                answers[index] = _received(receiving, process)
                del running[receiving]
    finally:
        for receiving, (_, process) in running.items():
            process.kill()
            process.join()
            receiving.close()


def _received(receiving: Any, process: Any) -> Any:
    try:
        answer = json.loads(receiving.recv_bytes())
    except EOFError:
        process.join()
        raise ProcessLostError(
            f"a process of the evaluation ended in the middle of a rollout (exit code {process.exitcode}); is memory "
            "short? try fewer workers"
        ) from None
    process.join()
    receiving.close()
    if "failed" in answer:
        raise getattr(errors, answer["error"], RolloutError)(answer["failed"])
    return answer["value"]


def _answer(task: Callable[[int], Any], index: int, sending: Any) -> None:
    """Run in a forked process: make one task and send what it returned, or what it raised."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    try:
        answer = {"value": task(index)}
    except GtpError as error:
        answer = {"failed": str(error), "error": type(error).__name__}
    except Exception:
        answer = {"failed": f"a rollout failed:\n{traceback.format_exc()}", "error": RolloutError.__name__}
    sending.send_bytes(json.dumps(answer).encode())


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


@contextmanager
def one_thread() -> Iterator[None]:
    """Hold torch and NumPy's BLAS to one thread: products of a few rows only make more wait, and differ by a bit.

    Forked processes inherit it. NumPy's is found in this process's own map, where the system shows one.
    """
    before, (blas_threads, set_blas_threads) = torch.get_num_threads(), _blas()
    torch.set_num_threads(1)
    set_blas_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        set_blas_threads(blas_threads)


def _blas() -> tuple[int, Callable[[int], None]]:
    """Return how many threads NumPy's OpenBLAS takes and what sets them; where it is not found, nothing does."""
    with suppress(OSError):
        mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "openblas" in line}
        for library in map(ctypes.CDLL, sorted(mapped)):
            for name in ("scipy_openblas_{}_num_threads64_", "openblas_{}_num_threads64_", "openblas_{}_num_threads"):
                if hasattr(library, name.format("set")):
                    return getattr(library, name.format("get"))(), getattr(library, name.format("set"))
    return 1, lambda threads: None
