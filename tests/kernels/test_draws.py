"""Draws inside a kernel against the streams of `gtp_fast.rng`, and its cosine and sine against float64."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from fused_cases import DEVICE
from gtp_kernels import draws

from gtp_fast import rng


@triton.jit
def _drawn(seed_ptr, step_ptr, word_ptr, normal_ptr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PADDED: tl.constexpr):
    seed, step = tl.load(seed_ptr), tl.load(step_ptr)
    r = tl.arange(0, ROWS)
    w0, w1, w2, w3 = draws.random_bits(seed, step, 5, r)
    tl.store(word_ptr + 4 * r, w0.to(tl.int64))
    tl.store(word_ptr + 4 * r + 1, w1.to(tl.int64))
    tl.store(word_ptr + 4 * r + 2, w2.to(tl.int64))
    tl.store(word_ptr + 4 * r + 3, w3.to(tl.int64))
    column = tl.arange(0, PADDED)[None, :]
    z = draws.normals(seed, step, 6, r[:, None], column, COLUMNS)
    tl.store(normal_ptr + r[:, None] * COLUMNS + column, z, mask=column < COLUMNS)


@pytest.mark.parametrize("seed", [0, 2**63 + 12_345, 2**32 - 1])
@pytest.mark.parametrize("step", [0, 2**32 + 5])
def test_draws_are_those_of_the_reference_streams(seed, step):
    keys = rng.seed_keys([seed], DEVICE)
    word, normal = torch.empty(64, 4, dtype=torch.int64, device=DEVICE), torch.empty(64, 6, device=DEVICE)
    steps = torch.tensor([step], device=DEVICE)
    _drawn[(1,)](keys[:, 0] | (keys[:, 1] << 32), steps, word, normal, ROWS=64, COLUMNS=6, PADDED=8)
    drawn = rng.random_bits(rng.plan({5: 64, 6: rng.counters_for_normals(64, 6)}, DEVICE), keys, steps[0])
    assert torch.equal(word, drawn[5][0])
    torch.testing.assert_close(normal, rng.normals(drawn[6], 64, 6)[0], rtol=1e-5, atol=2e-6)


@triton.jit
def _cos_sin(u_ptr, cos_ptr, sin_ptr, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    cos, sin = draws.cos_sin(tl.load(u_ptr + i))
    tl.store(cos_ptr + i, cos)
    tl.store(sin_ptr + i, sin)


def test_cosine_and_sine_are_those_of_float64():
    edges = torch.tensor([0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0 - 2.0**-24, -0.125, -0.3, 3.7])
    u = torch.cat([edges, torch.rand(4_096 - len(edges), generator=torch.Generator().manual_seed(0)) * 2 - 1]).to(
        DEVICE
    )
    cos, sin = torch.empty_like(u), torch.empty_like(u)
    _cos_sin[(1,)](u, cos, sin, SIZE=4_096)
    angle = u.double() * 2 * torch.pi
    assert (cos.double() - angle.cos()).abs().max() < 3e-7 and (sin.double() - angle.sin()).abs().max() < 3e-7


def test_streams_have_the_numbers_of_the_eager_step():
    own = [draws.INDEX, draws.ACTION_NOISE, draws.TARGET_NOISE, draws.VALUE_NOISE]
    assert [stream.value for stream in own] == [rng.INDEX, rng.ACTION_NOISE, rng.TARGET_NOISE, rng.VALUE_NOISE]
