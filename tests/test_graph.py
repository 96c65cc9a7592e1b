"""Many steps from one: by call or compiled. `test_graph_gpu.py` captures them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from learn_cases import ACTION_DIM, OBS_DIM, buffer_of, small_config

from gtp_fast.algorithms import gtp
from gtp_fast.graph import stepper


def _run(cfg, chunks, device="cpu"):
    state = gtp.init_state(cfg, OBS_DIM, ACTION_DIM, device)
    run = stepper(cfg, state, buffer_of(cfg, device=device))
    for chunk in chunks:
        run(chunk)
    return state


def test_chunks_of_steps_make_the_same_bits_as_one_run():
    assert _run(small_config(), [2, 0, 5]).digest() == _run(small_config(), [7]).digest()


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"bc": True}], ids=["gtp", "bc"])
def test_the_compiled_step_agrees_with_eager(changes):
    cfg = replace(small_config(), **changes)
    eager, compiled = _run(cfg, [6]), _run(replace(cfg, backend="compiled"), [6])
    for name, tensor in eager.tensors().items():
        # The compiler fuses and reorders float32 sums; Adam turns that into up to 1e-3 of a step of 1e-3.
        assert torch.allclose(tensor.double(), compiled.tensors()[name].double(), rtol=1e-3, atol=2e-5), name
