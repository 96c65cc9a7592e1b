"""Who waits for whom: the order that launches need, from the memory that each declares, and launching them in it.

Launches are given in an order that is right when each waits for the one before. A launch must wait for an earlier one
where one of them writes memory that the other touches; all others may run beside each other. Nothing else is an edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gtp_kernels.launch import Launch

Span = tuple[int, int]  # first byte of a tensor's memory, and the first behind it


def span(tensor: Tensor) -> Span:
    """Return the memory from a tensor's first element to its last; what lies between counts as touched."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def waits(launches: Sequence[Launch]) -> list[list[int]]:
    """Return for each launch the earlier ones that it waits for, without those that another of them waits for."""
    return reduced(conflicts(launches))


def conflicts(launches: Sequence[Launch]) -> list[set[int]]:
    """Return for each launch the earlier ones with which it may not change places.

    Of the earlier launches that touch the same span, those before its last writer are left out: that one waits for
    them.
    """
    spans = {span(tensor) for launch in launches for tensor in launch.tensors.values()}
    shared = {a: [b for b in spans if a[0] < b[1] and b[0] < a[1]] for a in spans}
    writers: dict[Span, set[int]] = {a: set() for a in spans}
    readers: dict[Span, set[int]] = {a: set() for a in spans}
    found = []
    for i, launch in enumerate(launches):
        written = {span(tensor) for tensor in launch.written.values()}
        read = {span(tensor) for tensor in launch.tensors.values()} - written
        earlier = [writers[b] for a in read | written for b in shared[a]]
        earlier += [readers[b] for a in written for b in shared[a]]
        found.append(set().union(*earlier))
        for a in read:
            readers[a].add(i)
        for a in written:
            writers[a], readers[a] = {i}, set()
    return found


def reduced(earlier: Sequence[set[int]]) -> list[list[int]]:
    """Leave out each wait that follows from the others."""
    before: list[int] = []  # bit j of entry i: i ends after j
    kept = []
    for own in earlier:
        known, needed = 0, []
        for j in sorted(own, reverse=True):
            if not known >> j & 1:
                needed.append(j)
                known |= before[j] | 1 << j
        before.append(known)
        kept.append(sorted(needed))
    return kept


def lanes(waiting: Sequence[Sequence[int]]) -> list[int]:
    """Deal the launches out to lanes, in each of which one runs after another; a lane adds no wait.

    A launch takes the lane of one that it waits for, else one whose last launch ends before it in any case, else a new
    one.
    """
    before: list[int] = []
    last: list[int] = []  # the last launch of each lane
    dealt: list[int] = []
    for i, own in enumerate(waiting):
        done = 0
        for j in own:
            done |= before[j] | 1 << j
        before.append(done)
        free = [lane for lane, j in enumerate(last) if done >> j & 1]
        free.sort(key=lambda lane: last[lane] not in own)
        if not free:
            free, last = [len(last)], [*last, i]
        dealt.append(free[0])
        last[free[0]] = i
    return dealt


def longest_path(waiting: Sequence[Sequence[int]]) -> list[int]:
    """Return the longest sequence of launches each of which waits for the one before."""
    length: list[int] = []
    for own in waiting:
        length.append(1 + max((length[j] for j in own), default=0))
    path = [max(range(len(length)), key=length.__getitem__)]
    while waiting[path[-1]]:
        path.append(max(waiting[path[-1]], key=length.__getitem__))
    return path[::-1]


def launch_beside(launches: Sequence[Launch], waiting: Sequence[Sequence[int]]) -> None:
    """Launch each behind those that it waits for, on streams that leave the current one and join it again.

    While the current stream captures, the graph gets these edges and no others.
    """
    first = torch.cuda.current_stream()
    lane_of = lanes(waiting)
    streams = [torch.cuda.Stream() for _ in range(max(lane_of) + 1)]
    awaited = {j for i, own in enumerate(waiting) for j in own if lane_of[j] != lane_of[i]}
    for stream in streams:
        stream.wait_stream(first)
    done: dict[int, Any] = {}
    for i, launch in enumerate(launches):
        stream = streams[lane_of[i]]
        for j in waiting[i]:
            if lane_of[j] != lane_of[i]:
                stream.wait_event(done[j])
        with torch.cuda.stream(stream):
            launch()
        if i in awaited:
            done[i] = stream.record_event()
    for stream in streams:
        first.wait_stream(stream)
