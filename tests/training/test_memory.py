"""Only what tells of memory is told as memory that ran out: other errors keep their own words."""

from __future__ import annotations

import pytest
import torch

from gtp_fast.config import TrainConfig
from gtp_fast.errors import OutOfMemoryError
from gtp_fast.training.memory import memory_errors


def raising(error: Exception) -> None:
    @memory_errors
    def run(cfg: TrainConfig) -> None:
        raise error

    run(TrainConfig(env="any"))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
    ],
    ids=["numpy", "allocator", "cpu", "driver"],
)
def test_memory_that_runs_out_is_told_with_the_flags_that_help(error):
    with pytest.raises(OutOfMemoryError, match=r"memory ran out .*lower --seeds"):
        raising(error)


@pytest.mark.parametrize("kind", [RuntimeError, NotImplementedError, RecursionError])
def test_another_error_is_left_as_it_is(kind):
    with pytest.raises(kind, match="an illegal memory access"):
        raising(kind("an illegal memory access was encountered"))
