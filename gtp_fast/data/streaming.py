"""Data sets larger than the device's memory: the packed rows stay in host memory and are staged window by window.

In: transitions and the training state's step counter. Out: a buffer that gives the same bits as
rows on the device, also after a resume. The indices of a step are a function of seed and step (`rng`): a host thread
draws them ahead, gathers the rows into pinned memory and copies them to the device, which meanwhile trains on the
previous window. A step finds its rows at (step mod staged steps) by arithmetic on the device, so that CUDA graphs need
no change.

Legend: N transitions, W floats per row, S members, B batch rows, G steps per window; two windows are staged.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from gtp_fast import rng
from gtp_fast.config import TrainConfig, member_seeds
from gtp_fast.data.replay import Batch, ReplayBuffer, packed
from gtp_fast.data.transitions import Transitions, row_width

WINDOW_BYTES = 4 * 2**20  # of rows; docs/data.md has the cost
LONGEST_WINDOW = 512  # steps


def make_buffer(data: Transitions, cfg: TrainConfig, step: Tensor) -> ReplayBuffer:
    """Put the transitions where `cfg.buffer` says. Args: step int64 (), the training state's counter on the device."""
    if cfg.buffer != "host":
        return ReplayBuffer.from_transitions(data, cfg, cfg.device)
    rows, scale = packed(data, cfg)
    host_NW = torch.from_numpy(rows)
    stager = Stager(host_NW, member_seeds(cfg), cfg.batch_size, window_steps(cfg, host_NW.shape[1]), step.device)
    sizes = data.obs_ND.shape[1], data.action_NA.shape[1]
    return StreamedBuffer(stager.staged, *sizes, scale, stager=stager, step=step)


def notes(buffer: object) -> tuple[str, ...]:
    """Return a note about the cost of streaming; none for rows on the device."""
    return (buffer.cost(),) if isinstance(buffer, StreamedBuffer) else ()


def batch_bytes(cfg: TrainConfig, width: int) -> int:
    """Return the bytes of the rows that one step of all members reads: S B W floats."""
    return cfg.seeds * cfg.batch_size * width * 4


def window_steps(cfg: TrainConfig, width: int) -> int:
    """Return G, the steps per window."""
    return max(1, min(LONGEST_WINDOW, WINDOW_BYTES // batch_bytes(cfg, width)))


def row_bytes(data: Transitions) -> int:
    """Return the bytes of the packed rows, on the host or on the device."""
    return 4 * len(data.obs_ND) * row_width(data.obs_ND.shape[1], data.action_NA.shape[1])


def device_bytes(cfg: TrainConfig, data: Transitions) -> int:
    """Return the bytes of the rows on the device; for a CPU, host memory counts as the device's."""
    if cfg.buffer != "host":
        return row_bytes(data)
    width = row_width(data.obs_ND.shape[1], data.action_NA.shape[1])
    staged = 2 * window_steps(cfg, width) * batch_bytes(cfg, width)
    return staged + (row_bytes(data) if cfg.device == "cpu" else 0)


@dataclass(frozen=True, kw_only=True)
class StreamedBuffer(ReplayBuffer):
    """Transitions in host memory; `rows` on the device, float32 (2 G S B, W), holds those of the steps near `step`."""

    stager: Stager
    step: Tensor

    @property
    def size(self) -> int:
        """Number of transitions N."""
        return self.stager.host_NW.shape[0]

    def gather(self, index_SB: Tensor, step: Tensor | None = None) -> Batch:
        """Read the staged transitions of the current step; the host drew the same indices."""
        batch = index_SB.numel()
        slot = self.step % (self.rows.shape[0] // batch)
        place = slot * batch + torch.arange(batch, device=self.rows.device).view(index_SB.shape)
        # index >> 62 is 0. With it the compiled step depends on drawn indices, as it does for rows on the device, and
        # gives the same bits; without it GTP's compiled step did not (torch 2.13, 2026-11-21).
        return super().gather(place + (index_SB >> 62))

    def cost(self) -> str:
        """Measure the staging of a window; return a note with its cost and the alternatives."""
        stager, device = self.stager, self.rows.device.type
        seconds = stager.seconds_a_step()
        return (
            f"the rows stay in host memory ({stager.host_NW.nbytes / 1e9:,.2g} GB) and are streamed to the {device}: "
            f"{stager.batch_bytes / 1e3:,.0f} kB a step, {stager.window} steps a copy, measured {seconds * 1e6:,.0f} "
            f"us a step beside the training, which allows {1 / seconds:,.0f} steps/s at most; fewer --seeds or a "
            "smaller --batch-size lower that cost, and --buffer device avoids it if the rows fit"
        )


class Stager:
    """The rows in host memory, and the thread that stages windows of them on the device."""

    def __init__(self, host_NW: Tensor, seeds: list[int], batch: int, window: int, device: torch.device):
        self.host_NW, self.window, self.batch = host_NW, window, batch
        self.batch_bytes = len(seeds) * batch * host_NW.shape[1] * 4
        self._keys_S2 = rng.seed_keys(seeds, "cpu")
        # Zeros, not empty: a graph capture warms up on these rows, and NaN might slow it down.
        self.staged = torch.zeros(2 * window * len(seeds) * batch, host_NW.shape[1], device=device)
        self._halves = self.staged.chunk(2)
        self._coming: dict[int, Future[None]] = {}
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="stage")
        self._cuda = device.type == "cuda"
        self._filled = self._halves
        if self._cuda:
            self._filled = tuple(torch.empty(half.shape, pin_memory=True) for half in self._halves)
            self._stream = torch.cuda.Stream(device)
            self._copied, self._used = (tuple(torch.cuda.Event() for _ in range(2)) for _ in range(2))

    def ready(self, window: int) -> None:
        """Wait until a window is staged, and start to stage the next one.

        The two windows use different halves; the earlier contents of both halves have been used.
        """
        known = self._coming
        self._coming = {n: known.get(n) or self._begin(n) for n in (window, window + 1)}
        self._coming[window].result()
        if self._cuda:
            torch.cuda.current_stream().wait_event(self._copied[window % 2])

    def _begin(self, window: int) -> Future[None]:
        """Start to stage a window: in the thread for a GPU; at once on a CPU, where two threads would slow each other
        down (30 instead of 71 steps/s on two cores).
        """
        if self._cuda:
            return self._worker.submit(self._stage, window)
        done: Future[None] = Future()
        self._stage(window)
        done.set_result(None)
        return done

    def used(self, window: int) -> None:
        """Record that steps of a window have been launched."""
        if self._cuda:
            self._used[window % 2].record(torch.cuda.current_stream())

    def seconds_a_step(self) -> float:
        """Measure the time to stage a window, per step, before training uses any."""
        for window in (0, 1):  # the first one pays for fresh memory
            started = time.perf_counter()
            self._stage(window)
            if self._cuda:
                self._copied[window].synchronize()
        return (time.perf_counter() - started) / self.window

    def _stage(self, window: int) -> None:
        half = window % 2
        if self._cuda:
            self._copied[half].synchronize()  # until the earlier copy out of this pinned half is done
        index = rng.indices(self._keys_S2, window * self.window, self.window, self.batch, self.host_NW.shape[0])
        torch.index_select(self.host_NW, 0, index.flatten(), out=self._filled[half])
        if self._cuda:
            with torch.cuda.stream(self._stream):
                self._stream.wait_event(self._used[half])
                self._halves[half].copy_(self._filled[half], non_blocking=True)
                self._copied[half].record(self._stream)


def fed(run: Callable[[int], None], buffer: object) -> Callable[[int], None]:
    """Wrap `run`, which makes n steps, so that the rows of each step are staged before it."""
    if not isinstance(buffer, StreamedBuffer):
        return run
    stager = buffer.stager

    def stepwise(steps: int) -> None:
        step = int(buffer.step)  # read each time: a checkpoint may have been loaded
        end = step + steps
        while step < end:
            window = step // stager.window
            count = min(end, (window + 1) * stager.window) - step
            stager.ready(window)
            run(count)
            stager.used(window)
            step += count

    return stepwise
