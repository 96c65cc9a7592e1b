"""The noise of a policy's calls: a function of (seed, call, row), drawn for many calls at once.

Legend: S members, R rows (observations times candidates), A columns.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from gtp_fast import rng

# One call's numbers take 0.33 ms, almost all of it the dispatch of Philox's operations; those of 1,024 counters, 512
# calls at batch 1, take 0.41 ms (2026-11, EPYC Zen 5, one thread). A longer block saves nothing and delays its call.
BLOCK_COUNTERS = 1_024


class CallNoise:
    """Standard normals of one stream, call by call, or Gumbel's numbers made of them.

    What is kept is a cache: a call's numbers do not depend on which calls were asked for before.
    """

    def __init__(self, seeds: tuple[int, ...], stream: int, columns: int, gumbel: bool = False):
        self._seeds, self._stream, self._columns, self._gumbel, self._first = seeds, stream, columns, gumbel, 0
        self._drawn: tuple[int, np.ndarray] = 0, np.empty((0, 0, 0, 0), np.float32)

    def from_row(self, first: int) -> CallNoise:
        """Return the same noise without each call's first rows: its row 0 is row `first` here."""
        other = CallNoise(self._seeds, self._stream, self._columns, self._gumbel)
        other._first = self._first + first
        return other

    def of_call(self, call: int, rows: int) -> np.ndarray:
        """Return the numbers of a call, float32 (S, rows, columns); not to be written to."""
        first, block = self._drawn
        if block.shape[2] != rows or not first <= call < first + len(block):
            first, block = self._drawn = call, self._draw(call, rows)
        return block[call - first]

    def _draw(self, first: int, rows: int) -> np.ndarray:
        """Draw the calls from `first` on, (calls, S, rows, columns): each call of a member is one more key."""
        counters = rng.counters_for_normals(rows, self._columns)
        calls = max(1, BLOCK_COUNTERS // max(1, counters * len(self._seeds)))  # no columns take no counters
        keys = rng.seed_keys(list(self._seeds), "cpu").repeat(calls, 1)
        steps = torch.arange(first, first + calls).repeat_interleave(len(self._seeds))[:, None]
        layout = rng.plan({self._stream: counters}, "cpu")
        skipped = rng.counters_for_normals(self._first, self._columns)
        words = rng.words(replace(layout, element=layout.element + skipped), keys, steps)[self._stream]
        numbers = rng.normals(words, rows, self._columns)
        if self._gumbel:
            numbers = _gumbel(numbers)
        return numbers.unflatten(0, (calls, -1)).numpy()


def _gumbel(normals: Tensor) -> Tensor:
    """Turn normals into Gumbel's numbers G: the largest of Q + G is a draw from softmax(Q)."""
    uniform = torch.special.ndtr(normals.double()).clamp(1e-12, 1 - 1e-12)
    return (-(-uniform.log()).log()).float()
