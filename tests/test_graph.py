"""Many steps from one: by call. `test_compiled.py` compiles the step, `test_graph_gpu.py` captures it."""

from __future__ import annotations

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
