"""One launch of a kernel with everything bound: what a train step is a short list of."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

# Bytes of shared memory for each hidden unit, from which the chain keeps its thin weights there, and from which the
# hidden pair has three stages in flight (of the chain, 210 KB at width 256 in TF32).
KEEPING, STAGING = 625, 840
# Read once: Triton itself decides when a kernel is decorated whether it will be interpreted.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


@dataclass(frozen=True)
class Launch:
    """A kernel, its grid, its arguments by name (tensors, scalars, compile-time constants), and how it is compiled.

    `phase` names the part of the algorithm for a profile. Nothing in it changes from step to step: what does is
    device memory, so that a CUDA graph can hold it.
    """

    phase: str
    kernel: Any
    grid: tuple[int, ...]
    args: dict[str, Any]
    warps: int = 8
    stages: int = 2

    @property
    def name(self) -> str:
        """Name of the kernel, as a profile shows it."""
        return self.kernel.fn.__name__

    def __call__(self) -> None:
        """Launch on the current stream."""
        self.kernel[self.grid](**self.args, num_warps=self.warps, num_stages=self.stages)


@dataclass(frozen=True)
class Tuning:
    """Shapes that decide speed and resources but no result beyond the order of sums.

    rows: rows of a block; units: hidden units of one turn of the hidden pair; stages: depth of the software pipeline
    (actor_stages that of the actor, whose registers are full); warps of a block that runs a network and keeps what its
    gradients need, forward_warps of one that only runs forward. tile, tile_rows and tile_warps: the weight gradients'
    tile, the rows of one turn and a tile's warps. block: parameters of one block of an update. keep: the chain holds
    its thin weights in shared memory (150 KB).

    Measured on an H200 (2026-11-26, us of a launch alone, TF32, K = 5): 3 stages and 4 warps take the chain from 92 to
    67 and heads from 19 to 15, 3 stages the critic from 37 to 34; the actor hides behind the chain.
    """

    rows: int = 16
    units: int = 32
    stages: int = 2
    actor_stages: int = 2
    warps: int = 8
    forward_warps: int = 8
    tile: int = 32
    tile_rows: int = 64
    tile_warps: int = 4
    block: int = 1024
    keep: bool = True


def tuned_for(hidden: int, rows: int, shared_memory: int) -> Tuning:
    """Return the shapes for a width, a batch and a card with so many bytes of shared memory a block.

    On a card small blocks, so that a batch spreads over the multiprocessors. The interpreter pays for programs and
    turns, not for elements: there a block is the whole batch.
    """
    if INTERPRETED:
        return Tuning(rows=padded(min(rows, 256)), units=hidden, tile=64, tile_rows=256, block=1 << 16)
    deep = {"stages": 3, "forward_warps": 4} if shared_memory >= STAGING * hidden else {}
    return Tuning(units=min(Tuning.units, hidden), keep=shared_memory >= KEEPING * hidden, **deep)


def padded(size: int, least: int = 32) -> int:
    """Return the power of two, at least `least`, that holds `size` columns (`mlp.THIN` says why no less)."""
    return max(least, 1 << (size - 1).bit_length())


def blocks(size: int, block: int) -> int:
    """Return how many blocks cover `size`."""
    return -(-size // block)
