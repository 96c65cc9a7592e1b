"""The rounding of a product's operands, bit for bit, and the offsets of the time networks."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from fused_cases import DEVICE
from gtp_kernels import mlp
from gtp_kernels.launch import INTERPRETED, round_to_tf32

from gtp_fast.algorithms import networks


@triton.jit
def _rounded(x_ptr, out_ptr, SIZE: tl.constexpr, PREC: tl.constexpr, INTERP: tl.constexpr):
    i = tl.arange(0, SIZE)
    tl.store(out_ptr + i, mlp.operand(tl.load(x_ptr + i), PREC, INTERP).to(tl.float32))


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_operands_are_rounded_to_the_nearest_bit_for_bit(precision):
    x = torch.randn(4_096, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    x[:4] = torch.tensor([1.0 + 2.0**-8, 1.0 + 3 * 2.0**-8, -1.0 - 2.0**-11, 0.0])  # halfway between neighbours
    found = torch.empty_like(x)
    _rounded[(1,)](x, found, SIZE=4_096, PREC=precision, INTERP=INTERPRETED)
    assert torch.equal(found, x.bfloat16().float() if precision == "bf16" else round_to_tf32(x))


def test_the_time_networks_lie_where_the_actors_layout_has_them():
    assert (mlp.TIME_WIDTH.value, mlp.TIME_HIDDEN.value) == (networks.TIME_WIDTH, networks.TIME_HIDDEN)
    places = {name: offset for name, (offset, _) in networks.actor_layout(5, 3, 32).places.items()}
    first, second = ("t0.w", "t1.w", "t1.b"), ("s0.w", "s1.w", "s1.b")
    own = [0, mlp.TIME_W1.value, mlp.TIME_B1.value]
    assert [places[name] for name in first] == own
    assert [places[name] for name in second] == [mlp.TIME_NET.value + offset for offset in own]
    assert places["mlp0.w"] == mlp.TIME_NETS.value
