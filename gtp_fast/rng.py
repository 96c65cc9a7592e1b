"""Counter-based random numbers: every draw is a function of (seed, step, stream, element) alone.

Philox4x32-10, with the seed as key and (element, stream, step) as counter. There is no generator state to save: a
resumed run draws the same numbers as an uninterrupted one, and a seed draws the same alone and beside other seeds.
Legend: S members (seeds), L counters of all streams.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from gtp_kernels.primitives import WORD, integer_below, normal_pair, philox4x32
from torch import Tensor

# Streams: the purpose of a draw. The numbers are part of the checkpoint format: never reuse one.
INDEX, ACTION_NOISE, TARGET_NOISE, VALUE_NOISE, INIT, ACT, SELECT, SHIFT = range(8)

RandomBits = dict[int, Tensor]  # of each stream, int64 (S, count, 4) in [0, 2^32)

INDICES_AT_ONCE = 32_768  # torch uses only the calling thread up to here, and the numbers fit in a core's cache


def seed_keys(seeds: list[int], device: torch.device | str) -> Tensor:
    """Return the Philox keys of S members, int64 (S, 2): lower and upper word of each 64-bit seed."""
    return torch.tensor([[seed & WORD, (seed >> 32) & WORD] for seed in seeds], dtype=torch.int64, device=device)


@dataclass(frozen=True)
class Plan:
    """The counters of several streams in one array, so that one Philox call serves a whole train step.

    `element` and `stream` are int64 (L,); `slices` gives each stream's part of L.
    """

    element: Tensor
    stream: Tensor
    slices: dict[int, slice]


def plan(counts: dict[int, int], device: torch.device | str) -> Plan:
    """Lay out `counts[stream]` counters for each stream, in the order of `counts`."""
    element = torch.cat([torch.arange(count, dtype=torch.int64) for count in counts.values()])
    stream = torch.cat([torch.full((count,), stream, dtype=torch.int64) for stream, count in counts.items()])
    slices, start = {}, 0
    for name, count in counts.items():
        slices[name] = slice(start, start + count)
        start += count
    return Plan(element.to(device), stream.to(device), slices)


def random_bits(plan: Plan, keys_S2: Tensor, step: Tensor) -> RandomBits:
    """Draw every stream of a plan at one step.

    Args: keys_S2 from `seed_keys`; step int64 () on the device. Returns stream -> int64 (S, count, 4) in [0, 2^32).
    """
    key_low_S1, key_high_S1 = keys_S2[:, :1], keys_S2[:, 1:]
    drawn = philox4x32(plan.element[None], plan.stream[None], step & WORD, step >> 32, key_low_S1, key_high_S1)
    bits_SL4 = torch.stack(drawn, dim=-1)
    return {stream: bits_SL4[:, part] for stream, part in plan.slices.items()}


def indices(keys_S2: Tensor, first: int, steps: int, rows: int, size: int) -> Tensor:
    """Draw on the host which rows of the data set each of `steps` train steps reads.

    Args: first, the first step; rows of a batch; size N of the data set. Returns int64 (steps, S, rows) in [0, N), from
    word 0 of stream INDEX: the same indices that the steps draw on the device.
    """
    element = torch.arange(rows, dtype=torch.int64)
    stream = torch.tensor(INDEX, dtype=torch.int64)
    key_low_S1, key_high_S1 = keys_S2[:, :1], keys_S2[:, 1:]
    drawn = []
    at_once = max(1, INDICES_AT_ONCE // (rows * len(keys_S2)))
    for start in range(first, first + steps, at_once):
        step_G11 = torch.arange(start, min(start + at_once, first + steps), dtype=torch.int64)[:, None, None]
        random_bits = philox4x32(element, stream, step_G11 & WORD, step_G11 >> 32, key_low_S1, key_high_S1)
        drawn.append(integer_below(random_bits[0], size))
    return torch.cat(drawn)


def counters_for_normals(rows: int, columns: int) -> int:
    """Return how many counters `normals` needs: each gives four numbers, and rows do not share a counter."""
    return rows * ((columns + 3) // 4)


def normals(bits_SL4: Tensor, rows: int, columns: int) -> Tensor:
    """Turn a stream's random words into standard normals, float32 (S, rows, columns).

    Element (row, 4 j + lane) comes from counter row * ceil(columns / 4) + j.
    """
    a, b = normal_pair(bits_SL4[..., 0::2], bits_SL4[..., 1::2])
    drawn = 4 * ((columns + 3) // 4)
    return torch.stack([a, b], dim=-1).reshape(bits_SL4.shape[0], rows, drawn)[..., :columns]


def standard_normals(seeds: list[int], stream: int, step: int, rows: int, columns: int) -> Tensor:
    """Draw standard normals of one stream on the CPU, outside a train step, float32 (S, rows, columns)."""
    layout = plan({stream: counters_for_normals(rows, columns)}, "cpu")
    drawn = random_bits(layout, seed_keys(seeds, "cpu"), torch.tensor(step, dtype=torch.int64))
    return normals(drawn[stream], rows, columns)
