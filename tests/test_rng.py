"""Draws depend on (seed, step, stream, element) and on nothing else."""

from __future__ import annotations

import torch

from gtp_fast import rng


def _words(seeds, step, counts):
    return rng.random_bits(rng.plan(counts, "cpu"), rng.seed_keys(seeds, "cpu"), torch.tensor(step))


def test_a_seed_draws_the_same_alone_and_among_others():
    counts = {rng.INDEX: 17, rng.ACTION_NOISE: 9}
    among, alone = _words([3, 5, 8], 41, counts), _words([5], 41, counts)
    assert all(torch.equal(among[stream][1:2], alone[stream]) for stream in counts)


def test_a_stream_does_not_depend_on_its_neighbours():
    alone = _words([1], 2, {rng.TARGET_NOISE: 6})[rng.TARGET_NOISE]
    beside = _words([1], 2, {rng.INDEX: 100, rng.TARGET_NOISE: 6})[rng.TARGET_NOISE]
    assert torch.equal(alone, beside)


def test_seed_step_stream_and_element_each_change_the_draw():
    counts = {rng.INDEX: 4, rng.ACTION_NOISE: 4}
    base = _words([1], 2, counts)
    assert not torch.equal(base[rng.INDEX], _words([2], 2, counts)[rng.INDEX])
    assert not torch.equal(base[rng.INDEX], _words([1], 3, counts)[rng.INDEX])
    assert not torch.equal(base[rng.INDEX], base[rng.ACTION_NOISE])
    assert base[rng.INDEX].unique().numel() == 16


def test_steps_beyond_32_bits_and_64_bit_seeds_are_told_apart():
    counts = {rng.INDEX: 2}
    draws = [
        _words([seed], step, counts)[rng.INDEX] for seed, step in ((1, 0), (1, 2**32), (1 + 2**32, 0), (2**63 - 1, 0))
    ]
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == 4


def test_normals_are_standard_and_uncorrelated():
    z = rng.standard_normals([0, 1], rng.ACT, 0, 50_000, 6)
    assert z.shape == (2, 50_000, 6)
    # Five standard errors of 50,000 draws: 5 / sqrt(50,000) = 0.022.
    assert z.mean(1).abs().max() < 0.022 and (z.var(1) - 1).abs().max() < 0.032
    correlation = torch.corrcoef(z.permute(0, 2, 1).reshape(12, -1))
    assert (correlation - torch.eye(12)).abs().max() < 0.022
    assert abs(float((z.abs() > 3).float().mean()) - 0.0027) < 0.0004


def test_rows_keep_their_numbers_when_there_are_more_of_them():
    assert torch.equal(rng.standard_normals([7], rng.ACT, 3, 5, 3), rng.standard_normals([7], rng.ACT, 3, 9, 3)[:, :5])
