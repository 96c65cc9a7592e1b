"""Where the rows of the data set lie: what `--buffer auto` stands for, once their size is known."""

from __future__ import annotations

from dataclasses import replace

from gtp_fast import device
from gtp_fast.config import TrainConfig
from gtp_fast.errors import OutOfMemoryError
from gtp_fast.training import memory


def place(
    asked: TrainConfig, cfg: TrainConfig, chosen: str, parameters: int, data_bytes: int, free: int | None = None
) -> tuple[TrainConfig, str]:
    """Resolve `buffer`: on the device where the packed rows fit beside everything else, otherwise in host memory.

    Args: asked as typed, cfg and chosen as `device.resolve` answered; parameters of one member; data_bytes of the
    packed rows; free bytes on the device, where they are not to be asked of it. Without room the backend is chosen
    anew, as the fused kernels read rows on the device alone.
    Raises: UsageError where `--backend fused` was asked for and the rows do not fit; OutOfMemoryError where host memory
    does not hold them either.
    """
    if cfg.buffer != "auto":
        return cfg, chosen
    free = memory.free_bytes(cfg.device) if free is None else free
    if cfg.device == "cpu" or free is None or sum(memory.needed_bytes(cfg, parameters, data_bytes)) <= free:
        return replace(cfg, buffer="device"), chosen
    on_host = memory.free_bytes("cpu")
    if on_host is not None and data_bytes > on_host:
        raise OutOfMemoryError(
            f"the packed rows take {data_bytes / 1e9:.1f} GB; {free / 1e9:.1f} GB are free on the {cfg.device} and "
            f"{on_host / 1e9:.1f} GB of host memory; train on fewer transitions"
        )
    return device.resolve(replace(asked, buffer="host"))
