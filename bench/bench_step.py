"""Time of one train step of every algorithm in every backend that this machine has, and of its pieces.

Batch 256, obs 17, action 6. On a CPU it is the CPU time of one thread, on a GPU the device's time by events. A piece is
compared with a float64 or plain form first: on a CPU the twins of the kernels, on a GPU also every launch. Bytes count
what must be read and written once; percent is of the copy or the product that this device was seen to do.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gtp_kernels import primitives

from bench.clock import repeated
from bench.training import ACTION_DIM, DEVICE, GPU, METHODS, OBS_DIM, assert_finite, buffer_of, config, counted, opened
from gtp_fast import device
from gtp_fast.algorithms import equations, networks, optimizer

pytestmark = pytest.mark.benchmark(warmup=False)
DESCRIBED = ("algo", "backend", "graph", "precision", "seeds", "sampling_steps", "hidden", "layers", "batch_size")
BATCH, WIDTH, K = 256, 256, 5
ROUNDS = 20
# What is timed: a backend, captured or not, and how many seeds train at once.
ON_GPU = {
    "eager": ("eager", False, 1),
    "eager+graph": ("eager", True, 1),
    "compiled+graph": ("compiled", True, 1),
    "fused": ("fused", False, 1),
    "fused+graph": ("fused", True, 1),
    "fused+graph+8seeds": ("fused", True, 8),
}
ON_CPU = {"eager": ("eager", False, 1), "compiled": ("compiled", False, 1), "eager+8seeds": ("eager", False, 8)}
SWITCHES = ON_GPU if GPU else ON_CPU


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("switch", SWITCHES)
def bench_step(benchmark, timed, method, switch):
    changes, (backend, graph, seeds) = METHODS[method], SWITCHES[switch]
    algo = changes.get("algo", "gtp")
    if seeds > 1 and method != "gtp-k5":
        pytest.skip("several seeds are timed for GTP, K = 5")
    if method == "gtp-bc" and backend == "compiled":
        pytest.skip("compiling takes most of a minute: the methods of the paper's table only")
    on = {"device": DEVICE, "precision": "tf32" if GPU else "fp32", "threads": 1}
    cfg = config(**changes, backend=backend, graph=graph, seeds=seeds, **on)
    if backend == "fused" and (missing := device.missing_for_fused(cfg, cfg.device)):
        pytest.skip(f"fused needs {missing}")
    benchmark.group = f"step/{algo}/{switch}"
    state, run, _ = opened(cfg, 20 if GPU else 3)
    steps, rounds = (400, 15) if GPU else (3 if seeds > 1 else 5, 12 if seeds == 1 else 5)
    described = {name: getattr(cfg, name) for name in DESCRIBED} | {"obs_dim": OBS_DIM, "action_dim": ACTION_DIM}
    timed(run, steps, rounds, method=method, switch=switch, flops=counted(cfg)["flops"], **described)
    assert_finite(state)


@pytest.mark.benchmark(group="kernel/product")
def bench_product(benchmark, timed):
    a, b = (torch.randn(WIDTH, WIDTH, device=DEVICE) for _ in range(2))
    assert (torch.mm(a, b) - (a.double() @ b.double())).abs().max() < 1e-3  # 256 products of normals, 24 bits
    flops = 2 * WIDTH**3
    timed(repeated(lambda: torch.mm(a, b)), 100, ROUNDS, shape="256x256x256", precision="fp32", flops=flops)


@pytest.mark.benchmark(group="kernel/mish")
def bench_mish(benchmark, timed):
    x = torch.randn(BATCH, WIDTH, device=DEVICE)
    expected = torch.nn.functional.mish(x.double())
    assert (primitives.mish(x) - expected).abs().max() < 1e-5
    moved = 2 * x.numel() * 4
    timed(repeated(lambda: primitives.mish(x)), 100, ROUNDS, shape="256x256", precision="fp32", bytes=moved)


@pytest.mark.benchmark(group="kernel/gather")
def bench_gather(benchmark, timed):
    buffer = buffer_of(config(device=DEVICE))
    index = torch.randint(buffer.size, (1, BATCH), device=DEVICE)
    assert torch.equal(buffer.gather(index).next_obs_SBD[0, 3], buffer.rows[index[0, 3]][25:42])
    moved = 2 * BATCH * buffer.rows.shape[1] * 4
    timed(repeated(lambda: buffer.gather(index)), 100, ROUNDS, shape=f"{BATCH} of {buffer.size} rows", bytes=moved)


@pytest.mark.benchmark(group="kernel/chain")
def bench_chain(benchmark, timed):
    layout = networks.actor_layout(OBS_DIM, ACTION_DIM, WIDTH)
    flat = networks.init_flat(layout, [0]).to(DEVICE)
    p, exact = networks.views(flat, layout), networks.views(flat.double(), layout)
    obs, z = torch.randn(1, 2 * BATCH, OBS_DIM, device=DEVICE), torch.randn(1, 2 * BATCH, ACTION_DIM, device=DEVICE)
    grid = equations.sampling_grid(K, 0.002, 80.0, 7.0, DEVICE)

    @torch.inference_mode()
    def chain(p: Any = p, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return equations.sample_actions(p, obs.to(dtype), z.to(dtype), grid.to(dtype), 0.5, 0.002)

    assert (chain() - chain(exact, torch.float64)).abs().max() < 2e-5  # 80 z at the start, 24 bits
    flops = 2 * 2 * BATCH * K * layout.parameters
    timed(repeated(chain), 5, ROUNDS, shape=f"2 x {BATCH} rows, K = {K}", precision="fp32", flops=flops)


@pytest.mark.benchmark(group="kernel/update")
def bench_update(benchmark, timed):
    """Time Adam, clipping and EMA on the actor's flat buffer. Adam's first step is lr times the gradient's sign."""
    param = networks.init_flat(networks.actor_layout(OBS_DIM, ACTION_DIM, WIDTH), [0]).to(DEVICE)
    grad, slow, start = torch.randn_like(param), param.clone(), param.clone()
    first, second = torch.zeros_like(param), torch.zeros_like(param)
    step, lr = torch.zeros((), dtype=torch.int64, device=DEVICE), torch.full((1, 1), 3e-4, device=DEVICE)

    def update() -> None:
        _, scale_M1 = optimizer.clip_scale(grad, 1, 9.0)
        optimizer.adam_(param, grad, first, second, step, lr, scale_M1)
        optimizer.average_(slow, param, 0.005)

    update()
    moved = (param - start)[grad.abs() > 0.1]
    assert torch.allclose(moved, -3e-4 * grad[grad.abs() > 0.1].sign(), atol=1e-6)
    moved = 11 * param.numel() * 4  # grad twice, four tensors read and written, param again
    timed(repeated(update), 20, ROUNDS, shape=f"{param.numel()} parameters", precision="fp32", bytes=moved)


@pytest.mark.skipif(DEVICE == "cpu", reason="the fused launches need a GPU; interpreted they are not timed")
@pytest.mark.parametrize("place", range(13))
def bench_launch(benchmark, timed, place):
    """Time each launch of the fused step by itself; `bench_step` checks that the whole step is right."""
    from bench.gpu.speed import fused_of

    step = fused_of({"precision": "tf32"}, False)
    step()
    launch = step.launches[place]
    benchmark.group = f"kernel/{launch.name}"
    timed(repeated(launch), 200, ROUNDS, phase=launch.phase, precision="tf32", shape="batch 256, width 256, K = 5")
