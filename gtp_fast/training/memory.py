"""Memory: what a run will take of its device, whether the data set fits beside it, and errors when memory runs out.

From a run's settings and sizes to bytes, before it allocates anything: a run that cannot fit is refused with the flags
that help. `memory_errors` turns allocators' errors into the same typed error.
"""

from __future__ import annotations

import errno
import functools
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Concatenate, ParamSpec, TypeVar

import torch

from gtp_fast.config import TrainConfig
from gtp_fast.data.spec import ObsShape
from gtp_fast.device import free_memory
from gtp_fast.errors import OutOfMemoryError

FLOATS_A_PARAMETER = 8  # itself, two moments, EMA copy, gradient, and temporaries of an update
# Floats of a batch row at the peak of an eager step, in multiples of --hidden, measured (2026-11-21): for the step
# itself, for each sampling step that a gradient passes through, for each further action sampled at an observation.
WIDTHS_A_ROW = {"gtp": 52, "dql": 75, "cac": 52, "fql": 16, "iql": 36, "td3bc": 46}
WIDTHS_A_SAMPLING_STEP = {"dql": 10, "cac": 13, "linear-q": 15}
WIDTHS_A_SAMPLE = 10
# Floats for each pixel of a batch row, measured (2026-11-21): what encoders keep for a gradient, and for each channel.
ENCODER_PLANES, FLOW_PLANES, FRAME_COPIES = 100, 160, 3  # fql's flow and its policy have an encoder each
WIDTHS_A_HIDDEN_LAYER = 28  # only fql has --layers
# How the errors begin, or name themselves, by which torch tells of memory in a RuntimeError: of its CPU allocator, of
# mapped and shared memory, of CUDA's driver (also for pinned host memory, and as Triton tells it) and its libraries.
NO_MEMORY = re.compile(
    r".*DefaultCPUAllocator: (can't allocate|not enough) memory"
    r"|unable to (mmap|allocate shared memory).*Cannot allocate memory \(12\)"
    r"|(CUDA( driver)?|HIP) error: out of memory"
    r"|Triton Error \[\w+\]: out of memory"
    r"|(CUDA|cuDNN|cusolver) error: \w+_STATUS_ALLOC_FAILED"
)
Rest = ParamSpec("Rest")
Returned = TypeVar("Returned")


def check_memory(cfg: TrainConfig, parameters: int, data_bytes: int, obs: ObsShape = 1) -> None:
    """Refuse a run that cannot fit, before it allocates anything.

    Args: parameters of one member; data_bytes of the packed data set; obs, the number of values of an observation, or
    its height, width and channels. The estimate adds Adam's moments, the EMA copies and the activations of the largest
    pass.
    Raises: OutOfMemoryError with the figures and the flags that help.
    """
    data, state, activations = needed_bytes(cfg, parameters, data_bytes, obs)
    needed, free = data + state + activations, free_bytes(cfg.device)
    if free is not None and needed > free:
        raise OutOfMemoryError(
            f"the run needs about {needed / 1e9:.1f} GB (data {data / 1e9:.1f}, networks {state / 1e9:.1f}, "
            f"activations {activations / 1e9:.1f}) but {free / 1e9:.1f} GB are free on the {cfg.device}; "
            "lower --seeds, --hidden or --batch-size, or train on fewer transitions"
        )


def needed_bytes(cfg: TrainConfig, parameters: int, data_bytes: int, obs: ObsShape = 1) -> tuple[int, int, int]:
    """Estimate a run's bytes on its device: its data, its networks, the activations of its largest pass."""
    state = FLOATS_A_PARAMETER * parameters * cfg.seeds * 4
    row_floats = widths_a_row(cfg) * cfg.hidden + encoder_floats(cfg, obs)
    return data_bytes, state, row_floats * cfg.seeds * cfg.batch_size * 4


def widths_a_row(cfg: TrainConfig) -> int:
    """Return the floats of a batch row at the peak of a step, in multiples of --hidden."""
    chain = WIDTHS_A_SAMPLING_STEP.get(cfg.actor_loss if cfg.algo == "gtp" else cfg.algo, 0) * cfg.sampling_steps
    samples = (9 if cfg.max_q_backup else 0) + (cfg.value_samples - 1 if cfg.algo == "gtp" else 0)
    deep = WIDTHS_A_HIDDEN_LAYER * cfg.layers if cfg.algo == "fql" else 0
    guided = 0 if cfg.bc else chain + WIDTHS_A_SAMPLE * samples
    return WIDTHS_A_ROW[cfg.algo] + deep + guided


def encoder_floats(cfg: TrainConfig, obs: ObsShape) -> int:
    """Return the floats of a batch row that the image encoder adds at the peak of a step."""
    if isinstance(obs, int):
        return 0
    height, width, channels = obs
    planes = FLOW_PLANES if cfg.algo == "fql" and not cfg.bc else ENCODER_PLANES
    return (planes + FRAME_COPIES * channels) * height * width


def free_bytes(device: str) -> int | None:
    """Return the free bytes of the device; None where the system does not tell them."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    return free_memory()


def place(cfg: TrainConfig, where: str, parameters: int, data_bytes: int, free: int | None = None) -> TrainConfig:
    """Resolve --buffer auto: the device where the packed rows fit beside everything else, otherwise host memory.

    Args: where, "cpu" or "cuda"; parameters of one member; data_bytes of the packed rows; free, the device's free
    bytes, by default as the device reports them.
    Raises: OutOfMemoryError where the rows do not fit in host memory either.
    """
    if cfg.buffer != "auto":
        return cfg
    free = free_bytes(where) if free is None else free
    if where == "cpu" or free is None or sum(needed_bytes(cfg, parameters, data_bytes)) <= free:
        return replace(cfg, buffer="device")
    on_host = free_bytes("cpu")
    if on_host is not None and data_bytes > on_host:
        raise OutOfMemoryError(
            f"the packed rows take {data_bytes / 1e9:.1f} GB; {free / 1e9:.1f} GB are free on the {where} and "
            f"{on_host / 1e9:.1f} GB of host memory; train on fewer transitions"
        )
    return replace(cfg, buffer="host")


def memory_errors(
    run: Callable[Concatenate[TrainConfig, Rest], Returned],
) -> Callable[Concatenate[TrainConfig, Rest], Returned]:
    """Turn the errors of NumPy's and torch's allocators into OutOfMemoryError, exit code 8."""

    @functools.wraps(run)
    def wrapped(cfg: TrainConfig, *args: Rest.args, **kwargs: Rest.kwargs) -> Returned:
        try:
            return run(cfg, *args, **kwargs)
        except (MemoryError, RuntimeError, OSError) as error:
            cause = _innermost(error)
            if not _tells_of_memory(cause):
                raise
            said = str(cause).strip().split("\n")[0]
            raise OutOfMemoryError(
                f"memory ran out ({said or type(cause).__name__}); lower --seeds ({cfg.seeds}), --hidden "
                f"({cfg.hidden}) or --batch-size ({cfg.batch_size}), or train on fewer transitions; a run with a "
                "checkpoint continues from there"
            ) from error

    return wrapped


def _innermost(error: BaseException) -> BaseException:
    """Return what a compiler raised, where torch.compile wrapped it; any other error is its own."""
    inner = getattr(error, "inner_exception", None)
    return _innermost(inner) if isinstance(inner, BaseException) else error


def _tells_of_memory(error: BaseException) -> bool:
    """Say whether memory ran out; a RuntimeError may have other causes, as an illegal address on a GPU."""
    if isinstance(error, OSError):  # a process that cannot be forked, a file that cannot be mapped
        return error.errno == errno.ENOMEM
    typed = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return typed or (isinstance(error, RuntimeError) and NO_MEMORY.match(str(error).strip()) is not None)
