"""The train step of `gtp` as ten fused launches on the same state, from the same random numbers.

Legend: S members (seeds), B batch rows, M rows of a parameter buffer, H hidden units. A step is the list
`FusedStep.launches`; every tensor that it touches exists before the first, so that a CUDA graph can hold many steps.
The actor's launch needs no critic (advantage weights enter with the weight gradients), so it runs beside the chain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from gtp_kernels.launch import Launch, Tuning, tuned_for
from torch import Tensor

from gtp_fast.algorithms.binding import Binding
from gtp_fast.algorithms.state import TrainState
from gtp_fast.config import TrainConfig
from gtp_fast.data.replay import ReplayBuffer
from gtp_fast.profiling import phase


@dataclass(frozen=True)
class FusedStep:
    """One train step: call it. The first launch runs on `stream` beside the next ones, until launch number `join`.

    `refresh` rebuilds what derives from the state; whoever writes the state from outside calls it.
    """

    launches: tuple[Launch, ...]
    join: int
    refresh: Callable[[], None]
    scratch: dict[str, Tensor]
    stream: torch.cuda.Stream | None

    def __call__(self) -> None:
        """Launch the step on the current stream."""
        if self.stream is None:
            for launch in self.launches:
                with phase(launch.phase):
                    launch()
            return
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream), phase(self.launches[0].phase):
            self.launches[0]()
        for place, launch in enumerate(self.launches[1:], start=1):
            if place == self.join:
                torch.cuda.current_stream().wait_stream(self.stream)
            with phase(launch.phase):
                launch()


def make_step(cfg: TrainConfig, state: TrainState, buffer: ReplayBuffer, shapes: Tuning | None = None) -> FusedStep:
    """Bind the launches of a train step to a state and a buffer.

    Args: cfg with device and precision resolved; shapes override those of `tuned_for`, for measurements and tests.
    """
    bind = Binding(cfg, state, buffer, shapes or tuned_for(cfg.hidden, cfg.batch_size, shared_memory(buffer.rows)))
    launches = [bind.actor()]
    if state.critic is not None:
        launches += [bind.chain(), bind.target_q(), bind.critic(), bind.gradients("critic"), bind.update("critic")]
        launches += [bind.advantage_q()]
    join = len(launches)
    launches += [bind.advantage(), bind.gradients("actor"), bind.update("actor")]
    stream = torch.cuda.Stream() if buffer.rows.is_cuda and state.critic is not None else None
    return FusedStep(tuple(launches), join, bind.refresh, bind.scratch, stream)


def shared_memory(tensor: Tensor) -> int:
    """Return the bytes of shared memory that a block may take where a tensor lies; 0 without a GPU."""
    return torch.cuda.get_device_properties(tensor.device).shared_memory_per_block_optin if tensor.is_cuda else 0
