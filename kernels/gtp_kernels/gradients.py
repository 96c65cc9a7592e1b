"""All gradients of a network in one grouped launch: dW = X^T (w dZ), one tile a program.

A bias is the weight of an input that is always 1. Each kept row holds that 1, so a bias's gradient is a tile, too.

A program reads the TILE columns of X and of dZ in all of a member's kept rows, and writes TILE^2 gradients and the sum
of their squares, for the clipping that follows. A tile sums its rows in a fixed order and without atomics, so a step is
bitwise repeatable and a member's gradient does not depend on its neighbours.
"""

import triton
import triton.language as tl

from gtp_kernels import launch, mlp


@launch.writes("grad_ptr", "square_ptr")
@triton.jit
def gtp_gradients(
    act_ptr, weight_ptr, table_ptr, grad_ptr, square_ptr, grad_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, PERIOD: tl.constexpr, TILE: tl.constexpr, BR: tl.constexpr,
    STAGES: tl.constexpr, PREC: tl.constexpr, INTERP: tl.constexpr,
):  # fmt: skip
    """Write the flat gradient rows grad_ptr, float32 (M, grad_stride); grid (tiles, M).

    act_ptr (M, ROWS, COLUMNS) holds X and dZ side by side. table_ptr int32 (tiles, 7) holds for each tile: column of
    X, column of dZ, inputs, outputs, offset of the weight, first input, first output. With PERIOD > 0 the weight of row
    r is weight_ptr[member, r % PERIOD], else 1 and weight_ptr is None. square_ptr float32 (M, tiles) receives the
    squares.
    """
    tile, member = tl.program_id(0), mlp.wide(tl.program_id(1))
    entry = table_ptr + tile * 7
    # Columns begin at multiples of 16 and tiles at multiples of TILE. The hints let the compiler copy 16 bytes at once.
    x_column, z_column = tl.multiple_of(tl.load(entry), 16), tl.multiple_of(tl.load(entry + 1), 16)
    inputs, outputs = tl.load(entry + 2), tl.load(entry + 3)
    weight_at = tl.load(entry + 4)
    i = tl.multiple_of(tl.load(entry + 5), TILE) + tl.arange(0, TILE)
    j = tl.multiple_of(tl.load(entry + 6), TILE) + tl.arange(0, TILE)
    # Reads end at a multiple of 16 too, because a layer's columns are padded to it; writes end at the layer's size.
    read_i, read_j = i < (inputs + 15) // 16 * 16, j < (outputs + 15) // 16 * 16
    acts = act_ptr + member * ROWS * COLUMNS
    acc = tl.zeros((TILE, TILE), tl.float32)
    for first in tl.range(0, ROWS, BR, num_stages=STAGES):
        r = first + tl.arange(0, BR)
        live = r < ROWS
        x_at = acts + r[None, :] * COLUMNS + x_column + i[:, None]
        z_at = acts + r[:, None] * COLUMNS + z_column + j[None, :]
        x = tl.load(x_at, mask=live[None, :] & read_i[:, None], other=0.0)
        z = tl.load(z_at, mask=live[:, None] & read_j[None, :], other=0.0)
        if PERIOD > 0:
            weight = tl.load(weight_ptr + member * PERIOD + r % PERIOD, mask=live, other=0.0)
            z = mlp.operand(z.to(tl.float32) * weight[:, None], PREC, INTERP)
        acc = mlp.product(x, z, acc, PREC, INTERP)
    inside = (i < inputs)[:, None] & (j < outputs)[None, :]
    tl.store(grad_ptr + member * grad_stride + weight_at + i[:, None] * outputs + j[None, :], acc, mask=inside)
    square = tl.sum(tl.where(inside, acc * acc, 0.0))
    tl.store(square_ptr + member * tl.num_programs(0) + tile, square)
