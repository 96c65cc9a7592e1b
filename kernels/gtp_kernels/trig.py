"""Cosine and sine of a turn for bounded angles: a dozen operations, where the library keeps a table on the stack."""

import triton
import triton.language as tl


@triton.jit
def turn(u):
    """Return cos(2 pi u) and sin(2 pi u) of a float32 block, |u| < 2^20, to 2e-7.

    The quarter turn is taken off exactly; on the remaining [-pi/4, pi/4] the Taylor series to x^9 and x^8 are exact to
    float32.
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
