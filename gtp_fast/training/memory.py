"""Memory: what a run will take of its device, where the data set's rows lie, and errors of memory that ran out.

The estimate is made before anything is allocated. A run that cannot fit is refused with the flags that help.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

import torch

from gtp_fast.config import TrainConfig
from gtp_fast.errors import OutOfMemoryError

if TYPE_CHECKING:
    from gtp_fast.data.spec import ObsShape


FLOATS_A_PARAMETER = 8  # itself, two moments, slow copy, gradient, and what an update holds for a moment
# How many times --hidden floats a row of the batch takes at the peak of an eager step, measured (2026-11-21): the step
# itself; each sampling step that a gradient passes; each further action that is drawn at an observation.
WIDTHS_A_ROW = {"gtp": 52, "dql": 75, "cac": 52, "fql": 16, "iql": 36, "td3bc": 46}
WIDTHS_A_SAMPLING_STEP = {"dql": 10, "cac": 13, "linear-q": 15}
WIDTHS_A_SAMPLE = 10
# Floats a pixel of a row of the batch, measured (2026-11-21): what encoders keep for a gradient, and for each channel.
ENCODER_PLANES, FLOW_PLANES, FRAME_COPIES = 100, 160, 3  # fql's flow and its policy see apart
WIDTHS_A_HIDDEN_LAYER = 28  # of fql, whose --layers are free


def check_memory(cfg: TrainConfig, parameters: int, data_bytes: int, obs: ObsShape = 1) -> None:
    """Refuse a run that cannot fit, before anything is allocated.

    Args: parameters of one member; data_bytes of the packed data set; obs, numbers or height, width and channels of an
    observation. The estimate counts them, what Adam and the slow copies keep, and the activations of the largest pass.
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
    """Estimate what a run takes on its device: its data, its networks, the activations of its largest pass."""
    state = FLOATS_A_PARAMETER * parameters * cfg.seeds * 4
    row_floats = widths_a_row(cfg) * cfg.hidden + encoder_floats(cfg, obs)
    return data_bytes, state, row_floats * cfg.seeds * cfg.batch_size * 4


def widths_a_row(cfg: TrainConfig) -> int:
    """Return how many times --hidden floats a row of the batch takes at the peak of a step."""
    chain = WIDTHS_A_SAMPLING_STEP.get(cfg.actor_loss if cfg.algo == "gtp" else cfg.algo, 0) * cfg.sampling_steps
    samples = (9 if cfg.max_q_backup else 0) + (cfg.value_samples - 1 if cfg.algo == "gtp" else 0)
    deep = WIDTHS_A_HIDDEN_LAYER * cfg.layers if cfg.algo == "fql" else 0
    guided = 0 if cfg.bc else chain + WIDTHS_A_SAMPLE * samples
    return WIDTHS_A_ROW[cfg.algo] + deep + guided


def encoder_floats(cfg: TrainConfig, obs: ObsShape) -> int:
    """Return the floats that a row of the batch takes at the peak of a step for the encoder's sake."""
    if isinstance(obs, int):
        return 0
    height, width, channels = obs
    planes = FLOW_PLANES if cfg.algo == "fql" and not cfg.bc else ENCODER_PLANES
    return (planes + FRAME_COPIES * channels) * height * width


def free_bytes(device: str) -> int | None:
    """Return what is free on the device, None where the system does not say."""
    if device == "cuda":
        import torch

        return torch.cuda.mem_get_info()[0]
    info = Path("/proc/meminfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)


def place(cfg: TrainConfig, where: str, parameters: int, data_bytes: int, free: int | None = None) -> TrainConfig:
    """Resolve `buffer`: on the device where the packed rows fit beside everything else, otherwise in host memory.

    Args: where, "cpu" or "cuda"; parameters of one member; data_bytes of the packed rows; free bytes on the device,
    where it is not to be asked.
    Raises: OutOfMemoryError where host memory does not hold the rows either.
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


# What torch's allocator on a CPU, and CUDA's driver, say in errors that have no type of their own.
NO_MEMORY = ("can't allocate memory", "out of memory")
Rest = ParamSpec("Rest")
Returned = TypeVar("Returned")


def memory_errors(
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
