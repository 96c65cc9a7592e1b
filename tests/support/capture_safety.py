"""A dispatch mode that fails on whatever a CUDA graph cannot hold, without a GPU.

Run a step on the CPU to catch host reads, data-dependent shapes, data made on the host and scalars that change from
step to step; run it on meta tensors, which stand for the accelerator, to catch tensors that live on the host.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

INDEXING = {"aten::index", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_"}  # static unless by a mask
HOST_DATA = {"aten::lift_fresh", "aten::lift_fresh_copy"}  # torch.tensor(...) of Python numbers


class CaptureCheck(TorchDispatchMode):
    """Record every operation with its shapes and scalars; `problems` names what a capture would refuse or freeze."""

    def __init__(self) -> None:
        super().__init__()
        self.trace: list[tuple[object, ...]] = []
        self.problems: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        leaves = [*_leaves(args), *_leaves(list((kwargs or {}).values()))]
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        name = func._schema.name
        self._check(name, func, args, tensors)
        self.trace.append((name, *(_signature(leaf) for leaf in leaves)))
        return func(*args, **(kwargs or {}))

    def _check(self, name: str, func, args, tensors: list[Tensor]) -> None:
        if torch.Tag.data_dependent_output in func.tags:
            self.problems.append(f"host read: {name}")
        elif torch.Tag.dynamic_output_shape in func.tags and name not in INDEXING:
            self.problems.append(f"data-dependent shape: {name}")
        elif name in INDEXING and any(
            t.dtype in (torch.bool, torch.uint8) for t in _leaves(args[1]) if isinstance(t, Tensor)
        ):
            self.problems.append(f"index by a mask: {name}")
        elif name in HOST_DATA:
            self.problems.append("data made on the host: torch.tensor inside the step")
        if {"meta", "cpu"} <= {t.device.type for t in tensors}:
            self.problems.append(f"host tensor mixed in: {name}")
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.problems.append(f"torch's generator: {name}")


def _leaves(tree: object) -> Iterator[object]:
    if isinstance(tree, list | tuple):
        for branch in tree:
            yield from _leaves(branch)
    else:
        yield tree


def _signature(leaf: object) -> object:
    return (tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else repr(leaf)


def problems_of(step: Callable[[], None], state: Callable[[], dict[str, Tensor]], steps: int = 3) -> list[str]:
    """Run the step several times; return what a captured graph could not hold, in words, or an empty list."""
    found: list[str] = []
    traces = []
    for _ in range(steps):
        before = {name: tensor.data_ptr() for name, tensor in state().items()}
        with CaptureCheck() as check:
            step()
        after = {name: tensor.data_ptr() for name, tensor in state().items()}
        found += check.problems
        found += [f"storage rebound: {name}" for name in before if before[name] != after.get(name)]
        traces.append(check.trace)
    found += ["operations, shapes or scalars change from step to step" for trace in traces[1:] if trace != traces[0]]
    return sorted(set(found))


def fill_free_memory() -> list[torch.Tensor]:
    """Fill the GPU memory that nobody holds with NaN, in the block sizes of a small step: a stale read reads NaN."""
    gc.collect()
    torch.cuda.synchronize()
    sizes = [1 << power for power in range(7, 22) for _ in range(200 if power < 18 else 8)]
    return [torch.full((size,), float("nan"), device="cuda") for size in sizes]
