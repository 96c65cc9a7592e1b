"""The kernels' small functions in PyTorch: Philox4x32-10; uniform, normal and integer draws; Mish and its gradient.

The eager path runs them and the tests compare the kernels with them. They take and return tensors and never read one on
the host, so they run on any device, under `torch.compile` and inside a CUDA graph.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

PHILOX_M0, PHILOX_M1 = 0xD2511F53, 0xCD9E8D57  # round multipliers of Philox4x32 (Salmon et al., 2011)
PHILOX_W0, PHILOX_W1 = 0x9E3779B9, 0xBB67AE85  # key increments: golden ratio and sqrt(3) - 1
PHILOX_ROUNDS = 10
WORD = 0xFFFFFFFF  # 32-bit words are carried in int64, where torch has every operation on every device
MISH_CLAMP = 20.0  # beyond it n / (n + 2) rounds to 1 in float32; exp(2 * 20) is still far from overflow


def philox4x32(c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, k0: Tensor, k1: Tensor) -> tuple[Tensor, ...]:
    """Return the four 32-bit words of Philox4x32-10 for each counter and key.

    Args: counters and keys, int64 in [0, 2^32), broadcast together. Returns four int64 tensors in [0, 2^32).
    The 64-bit products wrap in int64, but their bits are the right ones.
    """
    for _ in range(PHILOX_ROUNDS):
        p0, p1 = c0 * PHILOX_M0, c2 * PHILOX_M1
        c0, c1, c2, c3 = ((p1 >> 32) & WORD) ^ c1 ^ k0, p1 & WORD, ((p0 >> 32) & WORD) ^ c3 ^ k1, p0 & WORD
        k0, k1 = (k0 + PHILOX_W0) & WORD, (k1 + PHILOX_W1) & WORD
    return c0, c1, c2, c3


def uniform_from_bits(bits: Tensor) -> Tensor:
    """Map 32-bit words (int64) to float32 in [0, 1): the upper 24 bits, so that every value is exact."""
    return (bits >> 8).to(torch.float32) * 2.0**-24


def normal_pair(bits_a: Tensor, bits_b: Tensor) -> tuple[Tensor, Tensor]:
    """Turn two words into two independent standard normals (float32) by Box and Muller."""
    radius = (-2.0 * torch.log(1.0 - uniform_from_bits(bits_a))).sqrt()  # 1 - u lies in (0, 1]: never log 0
    angle = (2.0 * math.pi) * uniform_from_bits(bits_b)
    return radius * angle.cos(), radius * angle.sin()


def integer_below(bits: Tensor, bound: Tensor | int) -> Tensor:
    """Map 32-bit words (int64) to integers in [0, bound), bound < 2^31, by the upper half of a product.

    The bias is below bound / 2^32: 2e-4 of a percent for ten million rows.
    """
    return (bits * bound) >> 32


class Compiler:
    """What this torch's compiler cannot do. Code that compiles a step finds out and sets it."""

    loses_functions = False  # torch 2.11: a compiled step silently drops the gradient of an autograd.Function


def mish(x: Tensor) -> Tensor:
    """Mish with one exponential: e = exp(min(x, 20)), n = e (e + 2), mish = x n / (n + 2); any shape."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return _mish_parts(x)[0]
    if Compiler.loses_functions and torch.compiler.is_compiling():
        return torch.nn.functional.mish(x)
    return _Mish.apply(x)


def _mish_parts(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mish(x), e and 1 / (n / 2 + 1) in few passes: on the CPU a pass costs a tenth of the layer's product."""
    e = x.clamp(max=MISH_CLAMP).exp_()
    n = torch.addcmul(e, e, e, value=0.5)  # n / 2 = e + e^2 / 2
    inverse = (n + 1.0).reciprocal_()
    return n.mul_(inverse).mul_(x), e, inverse


class _Mish(torch.autograd.Function):
    """Mish whose backward reuses the exponential of its forward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out, e, inverse = _mish_parts(x)
        ctx.save_for_backward(x, e, inverse)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        # With m = 1 + e + e^2/2 the slope is (1 - 1/m) + x e (e + 1) / m^2.
        x, e, inverse = ctx.saved_tensors
        slope = torch.addcmul(e, e, e).mul_(inverse).mul_(x).sub_(1.0).mul_(inverse).add_(1.0)
        return slope.mul_(grad)
