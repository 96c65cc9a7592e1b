"""From one train step to many: compile it, capture it in CUDA graphs, replay it. The only user of CUDA graphs.

Capturing changes no state: the state is copied before warm-up and restored after capture. A replay does what the
uncaptured step does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial

import torch
from gtp_kernels.primitives import Compiler, mish
from torch import Tensor

from gtp_fast import algorithms
from gtp_fast.algorithms import updates
from gtp_fast.algorithms.state import TrainState
from gtp_fast.config import TrainConfig
from gtp_fast.data.buffers import Buffer
from gtp_fast.data.frames import FrameBuffer
from gtp_fast.data.streaming import fed
from gtp_fast.errors import UsageError
from gtp_fast.profiling import phase

WARMUP_STEPS = 3  # allocator, cuBLAS workspaces and compiled kernels must exist before capture
Step = Callable[[], None]


def stepper(cfg: TrainConfig, state: TrainState, buffer: Buffer) -> Callable[[int], None]:
    """Return a function that makes n train steps on the state in place.

    Args: cfg with device, backend and graph resolved (no "auto"). On the CPU, or with graph off, steps are called one
    by one; on CUDA, cfg.unroll steps are one graph launch where they begin at a multiple of cfg.unroll, and shorter
    graphs make the others.
    Raises: UsageError when the installed torch cannot compile the step.
    """
    step, refresh, beside = _step(cfg, state, buffer)
    if buffer.rows.is_cuda and cfg.graph:
        return fed(_captured({n: beside(n) for n in graph_lengths(cfg)}, refresh, state), buffer)

    def run(steps: int) -> None:
        for _ in range(steps):
            step()

    return fed(run, buffer)


def _step(cfg: TrainConfig, state: TrainState, buffer: Buffer) -> tuple[Step, Step, Callable[[int], Step]]:
    """Return three functions: one makes a step, one must follow a write to the state, one returns n steps as one."""
    if cfg.backend == "fused":
        from gtp_fast.algorithms import fused  # Triton is not needed by the other backends

        assert not isinstance(buffer, FrameBuffer)  # `device.resolve` chooses another backend for frames

        fused_step = fused.make_step(cfg, state, buffer)
        return fused_step, fused_step.refresh, fused_step.beside
    step = algorithms.of(cfg).make_step(cfg, state, buffer)
    step = compile_step(step) if cfg.backend == "compiled" else step
    return step, lambda: None, partial(_in_a_row, step)


def _in_a_row(step: Step, count: int) -> Step:
    def steps() -> None:
        for _ in range(count):
            step()

    return steps


def graph_lengths(cfg: TrainConfig) -> list[int]:
    """Return how many steps the graphs hold, largest first; each begins at a multiple of its length.

    The fused step is faster where it knows when the EMA moves. So it also has a graph of the steps between two moves,
    for what is left beside the longest graph.
    """
    between = cfg.ema_every if cfg.backend == "fused" and cfg.ema_every < cfg.unroll else 1
    return sorted({cfg.unroll, between, 1}, reverse=True)


def pieces(start: int, count: int, lengths: list[int]) -> Iterator[int]:
    """Yield the lengths of graphs that make `count` steps from `start` on, each the longest that may begin there.

    Args: lengths, largest first, the last 1.
    """
    end = start + count
    while start < end:
        length = next(n for n in lengths if start % n == 0 and n <= end - start)
        yield length
        start += length


def compile_step(step: Callable[[], None]) -> Callable[[], None]:
    """Compile the whole step, backward and optimisers included, as one graph without breaks. Held to torch 2.11, 2.13.

    Measured on one core of an AMD EPYC (Zen 5), 2026-11-21, obs 17, action 6, batch 256, K = 5: 25.6 ms a step against
    33.6 ms eager; 40 s to compile cold.
    """
    import torch._dynamo

    if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
        raise UsageError(
            f"torch {torch.__version__} cannot compile a step that takes gradients; "
            "install torch 2.11 or newer, or pass --backend eager"
        )
    torch._dynamo.config.trace_autograd_ops = True  # pyright: ignore[reportAttributeAccessIssue]
    if not _traces_gradients():
        kinds = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
        updates.ASKING.update({kind: torch.ones((), device=kind, requires_grad=True) for kind in kinds})
        Compiler.loses_functions = True
    return torch.compile(step, fullgraph=True)


def kernels_written() -> int:
    """Return how many kernels torch.compile has written in this process so far."""
    metrics = sys.modules.get("torch._inductor.metrics")  # not loaded before the compilation begins
    return getattr(metrics, "generated_kernel_count", 0)


@cache
def _traces_gradients() -> bool:
    """Say whether a compiled graph can make a leaf and take its gradient through an autograd.Function.

    torch 2.13 can; torch 2.11 refuses requires_grad_() there and loses the gradient silently. A probe decides, so that
    the versions between them need no list.
    """
    from torch._dynamo.exc import TorchDynamoException

    def slope(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(mish(x).sum(), x)[0]

    x = torch.ones(1)
    try:
        found = torch.compile(slope, backend="aot_eager", fullgraph=True)(x)
    except TorchDynamoException:
        return False
    return torch.allclose(found, slope(x))


def _captured(parts: dict[int, Step], refresh: Step, state: TrainState) -> Captured:
    """Capture a graph of each number of steps."""
    saved = {name: tensor.clone() for name, tensor in state.tensors().items()}
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for part in (*[parts[1]] * WARMUP_STEPS, *parts.values()):
            part()
    torch.cuda.current_stream().wait_stream(stream)
    captured = Captured(parts, {length: _capture(part) for length, part in parts.items()}, state)
    _restore(state, saved)
    refresh()
    return captured


@dataclass(frozen=True)
class Captured:
    """Steps as graphs, by how many of them a graph holds: call it with the number of steps to make.

    A graph holds addresses and keeps no tensor alive, so this object keeps `parts` and their tensors. Without it they
    were freed, and replays read what others wrote there (on an H200, 2026-11-26: NaN, or an illegal address).
    """

    parts: dict[int, Step]
    graphs: dict[int, torch.cuda.CUDAGraph]
    state: TrainState

    def __call__(self, steps: int) -> None:
        """Make so many train steps on the state, which says at which step it is."""
        self.replay(int(self.state.step), steps)

    def replay(self, start: int, steps: int) -> None:
        """Make the steps from `start` on, without waiting for the device."""
        for length in pieces(start, steps, sorted(self.graphs, reverse=True)):
            with phase("replay"):
                self.graphs[length].replay()


def _capture(part: Step) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        part()
    return graph


def _restore(state: TrainState, saved: dict[str, Tensor]) -> None:
    torch.cuda.synchronize()
    state.load_(saved)


def capture_once(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Capture a step that depends on nothing before it; return the function that replays it and waits for its end.

    Without a GPU the step itself is returned.
    """
    if device.type != "cuda":
        return step
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        step()  # compiles and loads the kernels
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        step()

    def run() -> None:
        with torch.cuda.stream(stream):
            graph.replay()
        stream.synchronize()

    return run
