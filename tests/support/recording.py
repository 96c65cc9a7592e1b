"""The bytes that a launch really loads and stores, block by block, recorded while the interpreter runs it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
from gtp_kernels.graph import span
from gtp_kernels.launch import Launch
from torch import Tensor
from triton.runtime import interpreter

Bytes = np.ndarray  # addresses of single bytes, ascending, each once


@dataclass
class Recorded:
    """What a launch touched: for each block of its grid the bytes loaded and the bytes stored."""

    launch: Launch
    loads: dict[tuple[int, ...], list[np.ndarray]] = field(default_factory=dict)
    stores: dict[tuple[int, ...], list[np.ndarray]] = field(default_factory=dict)

    def loaded(self, block: tuple[int, ...] | None = None) -> Bytes:
        """Return the bytes that one block loaded, or all did."""
        return _gathered(self.loads, block)

    def stored(self, block: tuple[int, ...] | None = None) -> Bytes:
        """Return the bytes that one block stored, or all did."""
        return _gathered(self.stores, block)

    def undeclared(self) -> list[str]:
        """Name what was touched outside of the declared tensors, and what was declared and not touched."""
        launch, loaded, stored = self.launch, self.loaded(), self.stored()
        found = []
        if len(outside(loaded, launch.tensors)):
            found.append(f"{launch.name} loads what it does not declare")
        if len(outside(stored, launch.written)):
            found.append(f"{launch.name} stores what it does not declare")
        touched = np.union1d(loaded, stored)
        for name, tensor in launch.tensors.items():
            own = stored if name in launch.written else touched
            if not len(inside(own, tensor)):
                found.append(f"{launch.name} does not {'store' if name in launch.written else 'load'} {name}")
        return found

    def unwritten(self, name: str) -> int:
        """Return how many bytes of a written tensor were not stored."""
        tensor = self.launch.written[name]
        return tensor.numel() * tensor.element_size() - len(inside(self.stored(), tensor))

    def races(self) -> list[str]:
        """Name the blocks that store a byte that another block of the launch loads or stores."""
        found = []
        blocks = sorted(self.stores.keys() | self.loads.keys())
        stored = {block: self.stored(block) for block in blocks}
        touched = {block: np.union1d(self.loaded(block), stored[block]) for block in blocks}
        for block in blocks:
            for other in blocks:
                if other != block and len(shared(stored[block], touched[other])):
                    found.append(f"{self.launch.name}: block {block} stores what block {other} touches")
        return found


def recorded(launch: Launch) -> Recorded:
    """Run a launch in the interpreter and return what it touched."""
    record, builder = Recorded(launch), interpreter.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store

    def noted_load(this: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        loaded = load(this, pointers, mask, *rest)
        _note(record.loads, this.grid_idx, pointers, mask, loaded.data.itemsize)
        return loaded

    def noted_store(this: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        _note(record.stores, this.grid_idx, pointers, mask, value.data.itemsize)
        return store(this, pointers, value, mask, *rest)

    # Every access goes through these two primitives of the interpreter.
    with mock.patch.multiple(builder, create_masked_load=noted_load, create_masked_store=noted_store):
        launch()
    return record


def conflict(first: Recorded, second: Recorded) -> bool:
    """Return whether one of two launches stores a byte that the other touches."""
    a, b = first.stored(), second.stored()
    return bool(len(shared(a, b)) or len(shared(a, second.loaded())) or len(shared(first.loaded(), b)))


def shared(first: Bytes, second: Bytes) -> Bytes:
    """Return the addresses that are in both."""
    return np.intersect1d(first, second, assume_unique=True)


def outside(addresses: Bytes, tensors: dict[str, Tensor]) -> Bytes:
    """Return the addresses that lie in none of the tensors."""
    for tensor in tensors.values():
        begin, end = span(tensor)
        addresses = addresses[(addresses < begin) | (addresses >= end)]
    return addresses


def inside(addresses: Bytes, tensor: Tensor) -> Bytes:
    """Return the addresses that lie in a tensor."""
    begin, end = span(tensor)
    return addresses[(addresses >= begin) & (addresses < end)]


def _note(kept: dict[tuple[int, ...], list[np.ndarray]], block: tuple[int, ...], pointers: Any, mask: Any, size: int):
    at = pointers.data[mask.data.astype(bool)].astype(np.int64)
    kept.setdefault(block, []).append((np.unique(at)[:, None] + np.arange(size)).ravel())


def _gathered(kept: dict[tuple[int, ...], list[np.ndarray]], block: tuple[int, ...] | None) -> Bytes:
    chosen = kept.values() if block is None else [kept.get(block, [])]
    pieces = [piece for pieces in chosen for piece in pieces]
    return np.unique(np.concatenate(pieces)) if pieces else np.empty(0, np.int64)
