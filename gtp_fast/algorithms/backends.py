"""From one train step to many: compile it, capture it in CUDA graphs, replay it. The only user of CUDA graphs.

Capturing changes no state: the state is copied before warm-up and restored after capture. A replay does what the
uncaptured step does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

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


def stepper(cfg: TrainConfig, state: TrainState, buffer: Buffer) -> Callable[[int], None]:
    """Return a function that makes n train steps on the state in place.

    Args: cfg with device, backend and graph resolved (no "auto"). On the CPU, or with graph off, steps are called one
    by one; on CUDA, cfg.unroll steps are one graph launch and a remainder is replayed step by step.
    Raises: UsageError when the installed torch cannot compile the step.
    """
    step, refresh = _step(cfg, state, buffer)
    if buffer.rows.is_cuda and cfg.graph:
        return fed(_captured(step, refresh, state, cfg.unroll), buffer)

    def run(steps: int) -> None:
        for _ in range(steps):
            step()

    return fed(run, buffer)


def _step(cfg: TrainConfig, state: TrainState, buffer: Buffer) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return one step, and a function to call when other code has written the state."""
    if cfg.backend == "fused":
        from gtp_fast.algorithms import fused  # Triton is not needed by the other backends

        assert not isinstance(buffer, FrameBuffer)  # `device.resolve` chooses another backend for frames

        step = fused.make_step(cfg, state, buffer)
        return step, step.refresh
    step = algorithms.of(cfg).make_step(cfg, state, buffer)
    return (compile_step(step) if cfg.backend == "compiled" else step), lambda: None


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


def _captured(
    step: Callable[[], None], refresh: Callable[[], None], state: TrainState, unroll: int
) -> Callable[[int], None]:
    """Capture one graph of `unroll` steps and one of a single step; return the function that replays them."""
    saved = {name: tensor.clone() for name, tensor in state.tensors().items()}
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARMUP_STEPS):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    captured = Captured(step, unroll, _capture(step, unroll), _capture(step, 1))
    _restore(state, saved)
    refresh()
    return captured


@dataclass(frozen=True)
class Captured:
    """A step as two graphs, of `unroll` steps and of one: call it with the number of steps to make.

    A graph holds addresses and keeps no tensor alive, so this object keeps `step` and its tensors. Without it they were
    freed, and replays read what others wrote there (on an H200, 2026-11-26: NaN, or an illegal address).
    """

    step: Callable[[], None]
    unroll: int
    many: torch.cuda.CUDAGraph
    single: torch.cuda.CUDAGraph

    def __call__(self, steps: int) -> None:
        """Make so many train steps on the state."""
        launches, rest = divmod(steps, self.unroll)
        for graph, times in ((self.many, launches), (self.single, rest)):
            for _ in range(times):
                with phase("replay"):
                    graph.replay()


def _capture(step: Callable[[], None], steps: int) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(steps):
            step()
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
