"""Run the commands of trials as tasks of Ray Core; trials.py decides which trial runs when, and judges how it ended.

Without RAY_ADDRESS a Ray of this machine is started on loopback, without dashboard, and ends with the sweep. With it a
cluster is joined: there the package is installed on every node, and the folder of runs lies on a disk that all share.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

from gtp_fast.device import cores
from gtp_fast.errors import UsageError
from gtp_fast.experiments.trials import POLL_SECONDS, Process, Trial, launch, search_path, stop
from gtp_fast.files import make_folder

CONNECT_SECONDS = 5.0
DIED = 1  # the code of a task whose worker or node was lost
NEUTRAL = "/"  # Ray has its workers import from the folder in which it is started or joined
OBJECT_STORE_BYTES = 80 << 20  # about the least that Ray accepts; only exit codes pass through it


def room(gpus_per_trial: float | None, any_gpu: bool) -> tuple[int, float]:
    """Return how many trials fit at once, and the share of a GPU that each takes.

    Args: gpus_per_trial None stands for 1 where there are GPUs and a trial may use one (any_gpu).
    Raises: UsageError where Ray is not installed, or its cluster cannot be reached.
    """
    ray = _ray()
    if _cluster():
        _join(ray)
        found = ray.cluster_resources()
        places, gpus = int(found.get("CPU", 1)), found.get("GPU", 0)
    else:
        places, gpus = cores(), _gpus() if any_gpu else 0
    share = float(gpus > 0 and any_gpu) if gpus_per_trial is None else gpus_per_trial
    if share > gpus:
        raise UsageError(f"--gpus-per-trial {share:g}: Ray has {gpus:g} GPUs; leave it out, or pass 0")
    return max(1, int(gpus / share + 1e-9) if share else places), share


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


@contextmanager
def starter(jobs: int, gpus_per_trial: float) -> Iterator[Callable[[Trial], Process]]:
    """Yield a function that starts a trial's command as a task; Ray runs until the block ends.

    A task takes as many cores of a cluster as its trial has threads (1 where none are set); a Ray of this machine has
    `jobs` places, and a task takes one.
    """
    ray, cluster = _ray(), bool(_cluster())
    if cluster:
        _join(ray)
    elif not ray.is_initialized():
        _begin(ray, jobs)
    task = ray.remote(max_retries=0)(_work)

    def start(trial: Trial) -> Process:
        make_folder(trial.path)
        threads = int(trial.settings.get("threads") or 1) if cluster else 1
        placed = task.options(num_cpus=threads, num_gpus=gpus_per_trial, name=trial.name)
        return _Task(ray, placed.remote(trial.typed, str(trial.console.absolute()), os.getcwd(), search_path()))

    try:
        yield start
    finally:
        ray.shutdown()


def _begin(ray: Any, jobs: int) -> None:
    """Start a Ray of this machine, whose workers look for modules where this process does."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(search_path())
    try:
        with chdir(NEUTRAL):
            ray.init(
                address="local",
                num_cpus=jobs,
                include_dashboard=False,
                _node_ip_address="127.0.0.1",
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    finally:
        del os.environ["PYTHONPATH"]
        os.environ |= {} if before is None else {"PYTHONPATH": before}


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before the import
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise UsageError(
            "--ray needs the package ray: pip install 'gtp-fast[sweep]'; or leave out --ray and pass --jobs N"
        ) from None
    return ray


def _cluster() -> str:
    """Return the address of the cluster to join, nothing where Ray is to be started here."""
    address = os.environ.get("RAY_ADDRESS", "")
    return "" if address == "local" else address


def _join(ray: Any) -> None:
    if ray.is_initialized():
        return
    address = _cluster()
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if host and port.isdigit():  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        with chdir(NEUTRAL):
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"no Ray answers at RAY_ADDRESS={address} ({error}); start one with ray start --head, or unset it"
        ) from None


def _work(words: list[str], console: str, folder: str, path: list[str]) -> int:
    """Run one command where Ray placed it, and return its exit code. A cancelled task waits until the command saved.

    Args: path, where the sweep looks for modules. On another node packages may lie elsewhere: its own places follow.
    """
    child = launch(words, Path(console), folder, [*path, *(place for place in search_path() if place not in path)])
    try:
        while child.poll() is None:
            time.sleep(POLL_SECONDS)
    finally:  # ray.cancel raises KeyboardInterrupt here
        stop([child])
    return child.wait()


class _Task:
    """A task of Ray, with the methods of a process."""

    def __init__(self, ray: Any, reference: Any):
        self._ray, self._reference, self._code = ray, reference, None

    def poll(self) -> int | None:
        if self._code is None and self._ray.wait([self._reference], timeout=0)[0]:
            try:
                self._code = int(self._ray.get(self._reference))
            except self._ray.exceptions.RayError:
                self._code = DIED
        return self._code

    def terminate(self) -> None:
        if self.poll() is None:
            self._ray.cancel(self._reference)

    def kill(self) -> None:
        if self.poll() is None:
            self._ray.cancel(self._reference, force=True)

    def wait(self, timeout: float | None = None) -> int:
        self._ray.wait([self._reference], timeout=timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired("a task of Ray", timeout or 0.0)
        return code
