"""One launch of a kernel with everything bound: what a train step is a short list of.

The hidden weights as products read them: rounded copies beside the float32 masters, or the masters themselves.

What a network's launch keeps of each row for the weight gradients, and the tiles in which those are computed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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


@dataclass(frozen=True)
class Operands:
    """A flat parameter buffer (M, P) and its two hidden weights, (H, H) at `first` and `second` of each row.

    With precision "fp32" `copies` is empty and the weights are read from the buffer; else it is (M, 2, H, H), float32
    rounded to TF32 or bfloat16, and whoever writes the buffer writes it too, or calls `refresh`.
    """

    flat: Tensor
    copies: Tensor
    first: int
    second: int
    precision: str

    @classmethod
    def of(cls, flat_MP: Tensor, hidden: int, first: int, precision: str) -> Operands:
        """Make the copies of a buffer whose hidden weights begin at `first`, a bias of `hidden` between them."""
        members = 0 if precision == "fp32" else flat_MP.shape[0]
        kind = torch.bfloat16 if precision == "bf16" else torch.float32
        copies = torch.empty(members, 2, hidden, hidden, dtype=kind, device=flat_MP.device)
        operands = cls(flat_MP, copies, first, first + hidden * hidden + hidden, precision)
        operands.refresh()
        return operands

    def refresh(self) -> None:
        """Write the copies anew from the buffer."""
        if self.precision == "fp32":
            return
        size = self.copies[0, 0].numel()
        for i, offset in enumerate((self.first, self.second)):
            weight = self.flat[:, offset : offset + size].view(-1, *self.copies.shape[2:])
            self.copies[:, i] = round_to_tf32(weight) if self.precision == "tf32" else weight

    def args(self) -> dict[str, object]:
        """Return the pointers and strides by the names that every kernel gives them."""
        own = self.precision == "fp32"
        return {
            "param_ptr": self.flat,
            "w1_ptr": self.flat[:, self.first :] if own else self.copies[:, 0],
            "w2_ptr": self.flat[:, self.second :] if own else self.copies[:, 1],
            "param_stride": self.flat.stride(0),
            "pair_stride": self.flat.stride(0) if own else self.copies.stride(0),
        }


def round_to_tf32(x: Tensor) -> Tensor:
    """Round float32 to the ten mantissa bits of TF32, to nearest, ties away from zero."""
    return ((x.view(torch.int32) + 0x1000) & -8192).view(torch.float32)


TIME_COLUMNS = 192  # each for t and s: sinusoids 16, hidden 32, dz of the hidden 32, dz of the embedding 16


@dataclass(frozen=True)
class Saved:
    """Columns of a kept row: [x (`inputs`, padded), h0, h1, h2, dz0, dz1, dz2 (H each), dz3, time networks].

    `layers` maps each linear layer to the columns where its input and its dL/dz begin. `slopes` floats a row are kept
    apart, for the launch itself.
    """

    inputs: int
    slopes: int
    width: int
    layers: dict[str, tuple[int, int]]

    def tiles(self, places: dict[str, tuple[int, tuple[int, ...]]], tile: int) -> list[list[int]]:
        """Return the table of `gtp_gradients`, one row for each tile of each layer.

        Args: places maps a parameter ("mlp0.w", "mlp0.b", ...) to its offset in the flat row and its shape.
        """
        table = []
        for layer, (x_column, z_column) in self.layers.items():
            weight_at, (inputs, outputs) = places[f"{layer}.w"]
            bias_at, _ = places[f"{layer}.b"]
            for i in range(0, inputs, tile):
                for j in range(0, outputs, tile):
                    table.append([x_column, z_column, inputs, outputs, weight_at, bias_at, i, j])
        return table


def actor_saved(obs_dim: int, action_dim: int, hidden: int) -> Saved:
    """Return what `gtp_actor` keeps."""
    inputs = 16 * blocks(action_dim + 32 + obs_dim, 16)
    time = inputs + 6 * hidden + padded(action_dim)
    layers = _mlp_layers(inputs, hidden)
    for i, name in enumerate("ts"):
        layers[f"{name}0"] = (time + 16 * i, time + 96 + 32 * i)
        layers[f"{name}1"] = (time + 32 + 32 * i, time + 160 + 16 * i)
    return Saved(inputs, 3 * hidden, time + TIME_COLUMNS, layers)


def critic_saved(obs_dim: int, action_dim: int, hidden: int) -> Saved:
    """Return what `gtp_critic` keeps."""
    inputs = 16 * blocks(obs_dim + action_dim, 16)
    return Saved(inputs, hidden, inputs + 6 * hidden + 16, _mlp_layers(inputs, hidden))


def _mlp_layers(inputs: int, hidden: int) -> dict[str, tuple[int, int]]:
    starts = [0, inputs, inputs + hidden, inputs + 2 * hidden]
    return {f"mlp{i}": (start, inputs + (3 + i) * hidden) for i, start in enumerate(starts)}
