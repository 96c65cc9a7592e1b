"""Random draws inside a kernel: Philox4x32-10 bits, row indices, grid times and normals. Reads no memory but the grid.

Every draw is a function of (seed, step, stream, element), so no kernel hands random numbers to another. The draws are
those of `primitives` and of the eager step.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Streams, numbered as in `gtp_fast.rng`.
INDEX = tl.constexpr(0)
ACTION_NOISE = tl.constexpr(1)
TARGET_NOISE = tl.constexpr(2)
VALUE_NOISE = tl.constexpr(3)


@triton.jit
def random_bits(seed, step, stream, element):
    """Return the four uint32 words of (seed, step, stream, element).

    element is an int32 block; seed and step are int64 scalars; stream broadcasts.
    """
    zero = element - element
    low = (step & 0xFFFFFFFF).to(tl.uint32) + zero.to(tl.uint32)
    high = ((step >> 32) & 0xFFFFFFFF).to(tl.uint32) + zero.to(tl.uint32)
    return tl.philox(seed, element.to(tl.uint32), (zero + stream).to(tl.uint32), low, high)


@triton.jit
def integer_below(bits, bound):
    """Map uint32 words to int32 in [0, bound), the upper half of bits * bound; bound is an int scalar or block."""
    return tl.umulhi(bits, ((bits - bits).to(tl.int32) + bound).to(tl.uint32)).to(tl.int32)


@triton.jit
def grid_times(bits_n, bits_j, step, points_ptr, grid_ptr, stage_length, STAGES: tl.constexpr, WIDTH: tl.constexpr):
    """Return float32 t = t_n, u = t_(n-1), s = t_j with n ~ U{1..N-1} and j ~ U{0..n-1}, on the step's grid.

    points_ptr: int64 (STAGES,), N of each stage. grid_ptr: float32 (STAGES, WIDTH). A stage has stage_length steps.
    """
    stage = tl.minimum(step // stage_length, STAGES - 1)
    points = tl.load(points_ptr + stage)
    n = 1 + integer_below(bits_n, points - 1)
    j = integer_below(bits_j, n)
    grid = grid_ptr + stage * WIDTH
    return tl.load(grid + n), tl.load(grid + n - 1), tl.load(grid + j)


@triton.jit
def normals(seed, step, stream, row, column, COLUMNS: tl.constexpr):
    """Return the standard normals (R, C) of rows (R, 1) and columns (1, C) of a stream, a scalar or (R, 1).

    Element (row, 4 j + lane) comes from counter row * ceil(COLUMNS / 4) + j. Box and Muller turn the first two words
    into lanes 0 and 1, and the other two into lanes 2 and 3.
    """
    w0, w1, w2, w3 = random_bits(seed, step, stream, row * ((COLUMNS + 3) // 4) + column // 4)
    lane = column % 4 + (row - row)
    upper = lane >= 2
    first, second = tl.where(upper, w2, w0), tl.where(upper, w3, w1)
    radius = tl.sqrt(-2.0 * tl.log(1.0 - _uniform(first)))  # 1 - u lies in (0, 1]: never log 0
    cos, sin = cos_sin(_uniform(second))
    return radius * tl.where(lane % 2 == 0, cos, sin)


@triton.jit
def _uniform(bits):
    return (bits >> 8).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08  # 2^-24


@triton.jit
def cos_sin(u):
    """Return cos(2 pi u) and sin(2 pi u) of a float32 block, |u| < 2^20, to 2e-7.

    Subtracting the quarter turns is exact; on the remaining [-pi/4, pi/4] the Taylor series to x^9 and x^8 are exact to
    float32. It takes a dozen operations and no stack, where the library's functions keep a table on the stack.
    """
    quarter = tl.floor(4.0 * u + 0.5)
    x = (4.0 * u - quarter) * 1.5707963267948966
    square = x * x
    sine = x + x * square * (-1 / 6 + square * (1 / 120 + square * (-1 / 5040 + square * (1 / 362880))))
    cosine = 1.0 + square * (-0.5 + square * (1 / 24 + square * (-1 / 720 + square * (1 / 40320))))
    place = quarter.to(tl.int32) & 3
    swapped = (place & 1) == 1
    cos, sin = tl.where(swapped, sine, cosine), tl.where(swapped, cosine, sine)
    cos = tl.where((place == 1) | (place == 2), -cos, cos)
    return cos, tl.where(place >= 2, -sin, sin)
