"""What the host prepares for the kernels: launches, block shapes, copies of weights, the columns of kept rows."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

# A turn copies at most so many bytes of a weight. Every card has room for two turns of it.
TURN_BYTES = 32_768
# Shared memory per hidden unit of a chain that keeps its first and last weights there: 100,352 bytes at width 256.
KEEP_BYTES = 392
# Numbers that `gtp_gradients` reaches from a member's first kept row, and rows that a draw chooses among: of 32 bits.
LARGEST_OFFSET = 2**31
# Read once, because Triton decides at decoration time whether a kernel is interpreted.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
Kernel = TypeVar("Kernel")


def writes(*names: str) -> Callable[[Kernel], Kernel]:
    """Declare the arguments of a kernel that it writes. It reads the other tensors, and may read these too."""

    def declared(kernel: Kernel) -> Kernel:
        kernel.writes = names  # pyright: ignore[reportAttributeAccessIssue]
        return kernel

    return declared


@dataclass(frozen=True)
class Launch:
    """A kernel, its grid, its arguments by name (tensors, scalars, compile-time constants), and its compile options.

    `phase` names the part of the algorithm in a profile. An argument that a launch does not use is None. No field
    changes while a run trains: whatever changes lies in device memory, so a CUDA graph can hold the launch.
    `cooperative`: all blocks are resident together, or the driver refuses the launch.
    """

    phase: str
    kernel: Any
    grid: tuple[int, ...]
    args: dict[str, Any]
    warps: int = 8
    stages: int = 2
    cooperative: bool = False

    @property
    def name(self) -> str:
        """Name of the kernel in a profile."""
        return self.kernel.fn.__name__

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors that it touches, by the names of its arguments."""
        return {name: value for name, value in self.args.items() if isinstance(value, Tensor) and value.numel()}

    @property
    def written(self) -> dict[str, Tensor]:
        """Those of its tensors that it writes, as its kernel declares."""
        return {name: tensor for name, tensor in self.tensors.items() if name in self.kernel.writes}

    def __call__(self) -> None:
        """Launch on the current stream."""
        options = {"launch_cooperative_grid": True} if self.cooperative else {}
        self.kernel[self.grid](**self.args, num_warps=self.warps, num_stages=self.stages, **options)


@dataclass(frozen=True)
class Tuning:
    """Block shapes. They decide speed and resources, and change results only by the order of sums.

    rows: rows per block. turn: bytes of an operand's row that a turn of a hidden layer's loop copies; chain_turn: the
    same in the chain, which holds its thin weights in shared memory beside. stages: depth of the software pipeline.
    warps: per block of a network and of an update. tile, tile_rows, tile_warps: width of a weight-gradient tile, rows
    per iteration, warps per tile. block: parameters per block of an update. keep: the chain keeps its first and last
    weights in shared memory. slots: steps whose results lie side by side, so that a later step may begin before an
    earlier one has ended.

    H200, 2026-11-27, TF32, K = 5, us of a launch by itself, with 1 and 8 seeds. 8 warps: actor 35.2, 78.7; 4 warps:
    39.4, 69.3. Turns of 128 bytes: critic forward and back 14.9 and 12.5; of 64: 15.4 and 13.3. 4 stages gain nothing.
    Tiles of 2 warps and 64 rows: gradients of critic and actor 5.6 and 7.0, 25.2 and 26.5; of 4 warps and 128 rows 5.9
    and 7.5, 31.5 and 34.1. A step of the kernels before took 96.1 us with 3 slots, 96.9 with 2, 142 with 1, and 102.8
    with 5, because five chains begin at once and the actor waits for room.
    """

    rows: int = 16
    turn: int = 128
    chain_turn: int = 64
    stages: int = 3
    warps: int = 8
    tile: int = 32
    tile_rows: int = 64
    tile_warps: int = 2
    block: int = 1024
    keep: bool = True
    slots: int = 3

    def critic_rows(self, rows: int, networks: int, processors: int) -> int:
        """Return the rows per block of a launch of so many critics: twice as many on a crowded card.

        A block of 32 rows reads as much of the weights as one of 16, and takes a third longer. So they pay where blocks
        of 16 do not each find a multiprocessor. Each row's sums keep their order, so the bits are the same: a warp has
        the same columns of all rows (`tests/kernels/test_aot.py`).
        """
        return self.rows * (2 if blocks(rows, self.rows) * networks > processors else 1)

    def columns(self, hidden: int, operand: torch.dtype, chain: bool = False) -> int:
        """Return the columns of a layer's input that a turn copies."""
        return min((self.chain_turn if chain else self.turn) // operand.itemsize, hidden)


def tuned_for(hidden: int, rows: int, shared_memory: int) -> Tuning:
    """Return the block shapes for a width, a batch and a card's shared memory per block in bytes.

    On a card blocks are small, to spread a batch over the multiprocessors. In the interpreter a block is the whole
    batch, because its time goes into blocks and loop iterations, not into elements.
    """
    if INTERPRETED:
        wide = 4 * hidden  # a layer in one turn
        return Tuning(padded(min(rows, 256)), wide, wide, tile=64, tile_rows=256, block=1 << 16)
    return Tuning(turn=min(Tuning.turn, TURN_BYTES // hidden), keep=shared_memory >= KEEP_BYTES * hidden)


# A thread of `gtp_act` holds so many of the hidden layers' weights that 8 blocks of 4 warps, or 4 of 8, share a network
# of width 256. More than MOST_UNITS of all rows spill. A meeting has at least LEAST_WORDS, because each has one reader.
WEIGHTS, FEWEST_BLOCKS, MOST_UNITS, LEAST_WORDS = 8192, 8, 512, 1024


def spread(rows: int, hidden: int, members: int, processors: int) -> tuple[int, int, int] | None:
    """Return rows, blocks and warps of a tile of `gtp_act`; None where its blocks would not be resident at once.

    Args: processors is a card's number of multiprocessors; a block takes most of one. The interpreter's tile is one
    block.
    """
    most = max(FEWEST_BLOCKS, hidden * hidden // WEIGHTS)
    shared = ((most, 4), (most // 2, 8)) if hidden <= 256 else ((most, 8),)  # wider ones spill with fewer threads
    for own in (1, 2, 4):
        for tile, warps in shared:
            fits = own * hidden <= MOST_UNITS and own * hidden * tile >= LEAST_WORDS
            if fits and blocks(rows, own) * tile * members <= processors:
                return own, 1 if INTERPRETED else tile, warps
    return None


def multiprocessors(tensor: Tensor) -> int:
    """Return how many multiprocessors a tensor's device has; on the CPU as many as an H100."""
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count if tensor.is_cuda else 132


def shared_memory(tensor: Tensor) -> int:
    """Return the bytes of shared memory that a block may take on a tensor's device; 0 on the CPU."""
    return torch.cuda.get_device_properties(tensor.device).shared_memory_per_block_optin if tensor.is_cuda else 0


def padded(size: int, least: int = 32) -> int:
    """Return the smallest power of two that is at least `size` and `least`: Triton's blocks have such widths."""
    return max(least, 1 << (size - 1).bit_length())


def blocks(size: int, block: int) -> int:
    """Return how many blocks cover `size` elements."""
    return -(-size // block)


def operand_type(precision: str) -> torch.dtype:
    """Return the type in which the operands of the hidden layers' products lie in memory."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


@dataclass(frozen=True)
class Operands:
    """A flat parameter buffer (M, P) and its two hidden weights, (H, H) each, at `first` and `second` in a row.

    With precision "fp32" the products read the buffer and `copies` is empty. Otherwise they read `copies`, (M, 2, H,
    H): float32 rounded to TF32, or bfloat16. Code that writes the buffer must write the copies too, or call `refresh`.
    """

    flat: Tensor
    copies: Tensor
    first: int
    second: int
    precision: str

    @classmethod
    def of(cls, flat_MP: Tensor, hidden: int, first: int, precision: str) -> Operands:
        """Copy the hidden weights of a buffer; the first begins at `first`, its bias lies between the two."""
        members = 0 if precision == "fp32" else flat_MP.shape[0]
        copies = torch.empty(members, 2, hidden, hidden, dtype=operand_type(precision), device=flat_MP.device)
        operands = cls(flat_MP, copies, first, first + hidden * hidden + hidden, precision)
        operands.refresh()
        return operands

    def refresh(self) -> None:
        """Rewrite the copies from the buffer."""
        if self.precision == "fp32":
            return
        size = self.copies[0, 0].numel()
        for i, offset in enumerate((self.first, self.second)):
            weight = self.flat[:, offset : offset + size].view(-1, *self.copies.shape[2:])
            self.copies[:, i] = round_to_tf32(weight) if self.precision == "tf32" else weight

    def args(self) -> dict[str, object]:
        """Return the pointers and strides under the names that every kernel uses."""
        own = self.precision == "fp32"
        return {
            "param_ptr": self.flat,
            "w1_ptr": self.flat[:, self.first :] if own else self.copies[:, 0],
            "w2_ptr": self.flat[:, self.second :] if own else self.copies[:, 1],
            "param_stride": self.flat.stride(0),
            "hidden_stride": self.flat.stride(0) if own else self.copies.stride(0),
        }


def round_to_tf32(x: Tensor) -> Tensor:
    """Round float32 to the ten mantissa bits of TF32, to nearest, ties away from zero."""
    return ((x.view(torch.int32) + 0x1000) & -8192).view(torch.float32)


TIME_WIDTH, TIME_HIDDEN = 16, 32  # of a time network: sinusoids and embedding; hidden layer
# Where a kept row of the actor holds its time networks' values, counted from the first of them: sinusoids, activated
# hidden layer, dL/dz of the hidden layer, dL/dz of the embedding. Each stands there twice, for t and then for s.
TIME_FEATURES_AT = 0
TIME_HIDDEN_AT = TIME_FEATURES_AT + 2 * TIME_WIDTH
TIME_HIDDEN_DZ_AT = TIME_HIDDEN_AT + 2 * TIME_HIDDEN
TIME_OUTPUT_DZ_AT = TIME_HIDDEN_DZ_AT + 2 * TIME_HIDDEN
TIME_COLUMNS = TIME_OUTPUT_DZ_AT + 2 * TIME_WIDTH


@dataclass(frozen=True)
class Saved:
    """The columns of a kept row: [x (`inputs`, padded), h0, h1, h2, dz0, dz1, dz2 (H each), dz3, time networks, 1].

    width: columns of a row. one: the column of the 1, the input of every bias. layers: for each linear layer the
    columns where its input and its dL/dz begin. slopes: floats per row of a second buffer, the slopes of Mish for the
    way back.
    """

    inputs: int
    slopes: int
    one: int
    layers: dict[str, tuple[int, int]]

    def tiles(self, places: dict[str, tuple[int, tuple[int, ...]]], tile: int) -> list[list[int]]:
        """Return the table of `gtp_gradients`: one row per tile, with the columns that the kernel documents.

        Args: places maps a parameter ("mlp0.w", "mlp0.b", ...) to its offset in the flat row and its shape.
        """
        table = []
        for layer, (x_column, z_column) in self.layers.items():
            weight_at, (inputs, outputs) = places[f"{layer}.w"]
            bias_at, _ = places[f"{layer}.b"]
            for at, column, rows in ((weight_at, x_column, inputs), (bias_at, self.one, 1)):
                for i in range(0, rows, tile):
                    table += [[column, z_column, rows, outputs, at, i, j] for j in range(0, outputs, tile)]
        return table

    @property
    def width(self) -> int:
        """Columns of a kept row; each part begins at a multiple of 16, and the 1 has 15 zeros behind it."""
        return self.one + 16


def actor_saved(obs_dim: int, action_dim: int, hidden: int) -> Saved:
    """Return the columns that `gtp_actor` keeps."""
    inputs = 16 * blocks(action_dim + 2 * TIME_WIDTH + obs_dim, 16)
    time = inputs + 6 * hidden + padded(action_dim)
    layers = _mlp_layers(inputs, hidden)
    for i, name in enumerate("ts"):
        wide, deep = time + i * TIME_WIDTH, time + i * TIME_HIDDEN
        layers[f"{name}0"] = (wide + TIME_FEATURES_AT, deep + TIME_HIDDEN_DZ_AT)
        layers[f"{name}1"] = (deep + TIME_HIDDEN_AT, wide + TIME_OUTPUT_DZ_AT)
    return Saved(inputs, 3 * hidden, time + TIME_COLUMNS, layers)


def critic_saved(obs_dim: int, action_dim: int, hidden: int) -> Saved:
    """Return the columns that `gtp_critic_forward` and `gtp_critic_backward` keep."""
    inputs = 16 * blocks(obs_dim + action_dim, 16)
    return Saved(inputs, 3 * hidden, inputs + 6 * hidden + 16, _mlp_layers(inputs, hidden))


def _mlp_layers(inputs: int, hidden: int) -> dict[str, tuple[int, int]]:
    starts = [0, inputs, inputs + hidden, inputs + 2 * hidden]
    return {f"mlp{i}": (start, inputs + (3 + i) * hidden) for i, start in enumerate(starts)}
