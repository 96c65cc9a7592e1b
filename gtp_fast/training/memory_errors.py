"""Memory that runs out in spite of the estimate: the libraries' errors, told with the flags that help."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

import torch

from gtp_fast.config import TrainConfig
from gtp_fast.errors import OutOfMemoryError

# What torch's allocator on a CPU, and CUDA's driver, say in errors that have no type of their own.
NO_MEMORY = ("can't allocate memory", "out of memory")
Rest = ParamSpec("Rest")
Returned = TypeVar("Returned")


def tells_of_memory(
    run: Callable[Concatenate[TrainConfig, Rest], Returned],
) -> Callable[Concatenate[TrainConfig, Rest], Returned]:
    """Turn the errors of NumPy's and torch's allocators into OutOfMemoryError, exit code 8."""

    @functools.wraps(run)
    def told(cfg: TrainConfig, *args: Rest.args, **kwargs: Rest.kwargs) -> Returned:
        try:
            return run(cfg, *args, **kwargs)
        except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
            said = str(error).strip().split("\n")[0]
            # A RuntimeError may also be a fault of the compiler or an illegal address on a GPU.
            named = isinstance(error, (MemoryError, torch.OutOfMemoryError))
            if not named and not any(words in said for words in NO_MEMORY):
                raise
            raise OutOfMemoryError(
                f"memory ran out ({said or type(error).__name__}); lower --seeds ({cfg.seeds}), --hidden "
                f"({cfg.hidden}) or --batch-size ({cfg.batch_size}), or train on fewer transitions; a run that had "
                "saved continues from its last checkpoint"
            ) from error

    return told
