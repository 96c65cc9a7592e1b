"""The columns and tiles of the weight gradients, and rounding to TF32."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from gtp_kernels.launch import Saved, Tuning, actor_saved, critic_saved, round_to_tf32
from hypothesis import given
from hypothesis import strategies as st

from gtp_fast.algorithms.networks import Layout, actor_layout, critic_layout


@pytest.mark.parametrize("net", [(actor_saved, actor_layout), (critic_saved, critic_layout)], ids=["actor", "critic"])
@given(sizes=st.tuples(st.integers(1, 300), st.integers(1, 70), st.sampled_from([32, 64, 256, 512])))
def test_what_a_tile_reads_is_aligned_and_lies_within_the_row(
    net: tuple[Callable[..., Saved], Callable[..., Layout]], sizes: tuple[int, int, int]
):
    keep, layout = net
    saved = keep(*sizes)
    assert saved.width % 16 == 0
    for x_column, z_column, inputs, outputs, _, i, j in saved.tiles(layout(*sizes).places, 32):
        # The kernel copies 16 bytes at a time, and reads each layer's columns up to a multiple of 16.
        assert x_column % 16 == z_column % 16 == i % 32 == j % 32 == 0
        assert x_column + -(-inputs // 16) * 16 <= saved.width
        assert z_column + -(-outputs // 16) * 16 <= saved.width


@pytest.mark.parametrize(
    ("rows", "seeds", "tile"), [(256, 1, 16), (512, 1, 16), (256, 4, 16), (256, 5, 32), (2_560, 1, 32)]
)
def test_a_critics_tile_has_32_rows_where_those_of_16_would_share_multiprocessors(rows, seeds, tile):
    # 16 blocks of 16 rows for each of two heads: four seeds take 128 of 132 multiprocessors.
    assert Tuning().critic_rows(rows, 2 * seeds, 132) == tile


def test_rounding_to_tf32_goes_to_the_nearest():
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    rounded = round_to_tf32(x)
    assert ((rounded - x).abs() <= x.abs() * 2.0**-11).all()
    assert (rounded.view(torch.int32) & 0x1FFF == 0).all()
    assert abs(float(((rounded - x) / x).mean())) < 2e-6, "truncation would shrink by 2^-12 on average"
