"""The kernels' small functions in PyTorch against published vectors, float64 and their ranges."""

from __future__ import annotations

import math

import pytest
import torch
from gtp_kernels import primitives
from torch import Tensor
from torch.nn import functional


def _word(value: int) -> Tensor:
    return torch.tensor(value, dtype=torch.int64)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        pytest.param((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8), id="zeros"),
        pytest.param((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD), id="ones"),
        pytest.param(
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
            id="pi",
        ),
    ],
)
def test_philox_gives_the_published_known_answers(counter, key, expected):
    words = primitives.philox4x32(*[_word(c) for c in counter], *[_word(k) for k in key])
    assert tuple(int(w) for w in words) == expected


def test_uniform_stays_below_one_and_is_exact():
    bits = torch.tensor([0, 255, 256, 0xFFFFFFFF], dtype=torch.int64)
    assert primitives.uniform_from_bits(bits).tolist() == [0.0, 0.0, 2.0**-24, 1.0 - 2.0**-24]


def test_normal_pair_is_finite_at_the_ends_of_its_range():
    ends = torch.tensor([0, 0xFFFFFFFF], dtype=torch.int64)
    a, b = primitives.normal_pair(ends[:, None], ends[None, :])
    assert torch.isfinite(a).all() and torch.isfinite(b).all()
    assert a.abs().max() <= math.sqrt(2 * 24 * math.log(2)) + 1e-4


def test_integer_below_covers_its_range_and_never_reaches_the_bound():
    bits = torch.arange(0, 2**32, 2**26 - 1, dtype=torch.int64)
    drawn = primitives.integer_below(bits, 7)
    assert set(drawn.tolist()) == set(range(7))
    assert int(primitives.integer_below(_word(0xFFFFFFFF), 2**31 - 1)) == 2**31 - 2


def test_mish_matches_float64_over_its_whole_range():
    x = torch.cat([torch.linspace(-60, 60, 20_001), torch.tensor([-1e30, 0.0, 1e30])])
    exact = functional.mish(x.double())
    # 4 ulp: an exponential, two products and a division of float32.
    assert ((primitives.mish(x).double() - exact).abs() <= 4 * 2**-23 * exact.abs() + 1e-30).all()


def test_mish_gradient_matches_float64_autograd():
    x = torch.linspace(-30, 30, 20_001, requires_grad=True)
    exact_in = x.detach().double().requires_grad_()
    (exact,) = torch.autograd.grad(functional.mish(exact_in).sum(), exact_in)
    (ours,) = torch.autograd.grad(primitives.mish(x).sum(), x)
    # The slope is a sum of terms of order one: absolute error of a few float32 roundings.
    assert (ours.double() - exact).abs().max() < 2e-6


def test_mish_backward_passes_gradcheck_in_float64():
    x = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(primitives.mish, (x,))


def test_mish_leaves_its_input_untouched():
    x = torch.randn(64, requires_grad=True)
    before = x.detach().clone()
    primitives.mish(x).sum().backward()
    assert torch.equal(x.detach(), before)
