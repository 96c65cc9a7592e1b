"""Only what tells of memory is told as memory that ran out: other errors keep their own type and words."""

from __future__ import annotations

import errno
import mmap
import multiprocessing
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from triton.runtime.errors import OutOfResources

from gtp_fast.config import TrainConfig
from gtp_fast.errors import OutOfMemoryError
from gtp_fast.experiments.trials import Trial, _judge
from gtp_fast.training.memory import memory_errors

HUGE = 10**15  # more than any machine can address


def made(action: Callable[[], Any]) -> Exception:
    """Return the error that an action raises."""
    with pytest.raises(Exception) as raised:
        action()
    return raised.value


def compiled(backend: Callable[[Any, Any], Any]) -> Exception:
    """Return the error of torch.compile with a compiler that fails."""
    torch._dynamo.reset()
    return made(lambda: torch.compile(lambda x: x + 1, backend=backend)(torch.ones(2)))


def without_end(depth: int) -> int:
    return without_end(depth + 1)


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_: object) -> Any:
        raise error

    return fail


def judged(error: Exception) -> Exception:
    """Return the error that a run ends with, where a part of it raises this one."""

    @memory_errors
    def run(cfg: TrainConfig) -> None:
        raise error

    return made(lambda: run(TrainConfig(env="any")))


REAL = {
    "numpy": lambda: np.empty(HUGE),
    "python": lambda: bytearray(HUGE),
    "torch": lambda: torch.empty(HUGE),
    "system": lambda: mmap.mmap(-1, HUGE),
}


@pytest.mark.parametrize("action", REAL.values(), ids=REAL)
def test_memory_that_a_real_allocator_refuses_ends_with_8_and_the_flags_that_help(action):
    found = judged(made(action))
    assert isinstance(found, OutOfMemoryError) and found.exit_code == 8
    assert str(found).startswith("memory ran out (") and "lower --seeds (1), --hidden (256)" in str(found)


@memory_errors
def _map_more_than_allowed(cfg: TrainConfig, file: Path) -> None:
    with file.open("wb") as made:
        made.truncate(1 << 42)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (8 << 30), resource.RLIM_INFINITY))
    torch.from_file(str(file), size=1 << 39, dtype=torch.float64)


def _ends_with_its_code(file: Path) -> None:
    try:
        _map_more_than_allowed(TrainConfig(env="any"), file)
    except OutOfMemoryError as error:
        sys.stderr.write(str(error))
        sys.exit(error.exit_code)


def test_a_file_that_cannot_be_mapped_ends_with_8(tmp_path: Path, capfd):
    process = multiprocessing.get_context("fork").Process(target=_ends_with_its_code, args=(tmp_path / "large",))
    process.start()
    process.join()
    told = capfd.readouterr().err
    assert process.exitcode == 8 and "memory ran out (unable to mmap" in told, told


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
    ],
    ids=["allocator", "runtime, also of pinned memory", "driver", "triton", "cublas", "cudnn", "cusolver"],
)
def test_memory_that_a_gpu_refuses_ends_with_8(error):
    assert isinstance(judged(error), OutOfMemoryError)


def test_memory_that_runs_out_in_a_compiler_is_told_in_its_own_words():
    found = judged(compiled(raising(RuntimeError("CUDA error: out of memory"))))
    assert isinstance(found, OutOfMemoryError) and str(found).startswith("memory ran out (CUDA error: out of memory);")
    assert isinstance(judged(compiled(lambda *_: lambda *_: torch.empty(HUGE))), OutOfMemoryError)


OTHER = {
    "an illegal address": lambda: torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    "recursion": lambda: made(lambda: without_end(0)),
    "a compiler": lambda: compiled(raising(ValueError("no such kernel"))),
    "a compiler that speaks of memory": lambda: compiled(raising(RuntimeError("the planner ran out of memory slots"))),
    "triton, too much for a block": lambda: OutOfResources(300_000, 232_448, "shared memory"),
    "a user's sentence": lambda: RuntimeError("the arm's controller is out of memory cards"),
    "a user's sentence about an allocation": lambda: RuntimeError("my_env can't allocate memory banks to bodies"),
    "a user's sentence that ends alike": lambda: RuntimeError("the simulator said: CUDA error: out of memory"),
    "shapes": lambda: made(lambda: torch.ones(2) @ torch.ones(3)),
    "a missing operator": lambda: NotImplementedError("CUDA error: not out of memory"),
    "a file": lambda: OSError(errno.ENOENT, "No such file or directory"),
}


@pytest.mark.parametrize("error", OTHER.values(), ids=OTHER)
def test_another_error_keeps_its_type_and_its_words_and_is_tried_again_by_a_sweep(error, tmp_path: Path):
    other = error()
    assert judged(other) is other
    trial = Trial("one", {}, tmp_path, 4)  # an error without a type of ours ends a process with 1
    assert getattr(other, "exit_code", 1) == 1 and _judge(trial, 1, tries=1) is None


def test_memory_that_ran_out_is_not_tried_again_by_a_sweep(tmp_path: Path):
    trial = Trial("one", {}, tmp_path, 4)
    trial.console.write_text("error: memory ran out (...); lower --seeds\n")
    outcome = _judge(trial, OutOfMemoryError.exit_code, tries=1)
    assert outcome is not None and (outcome.kind, outcome.exit_code) == ("failed", 8)
