"""Many steps from one: by call. `test_compiled.py` compiles the step, `test_graph_gpu.py` captures it."""

from __future__ import annotations

import gc
import weakref
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from learn_cases import buffer_of, fresh, small_config

from gtp_fast.algorithms import backends, gtp
from gtp_fast.algorithms.backends import stepper


def _run(cfg, chunks):
    state = fresh(cfg)
    run = stepper(cfg, state, buffer_of(cfg))
    for chunk in chunks:
        run(chunk)
    return state


def test_chunks_of_steps_make_the_same_bits_as_one_run():
    assert _run(small_config(), [2, 0, 5]).digest() == _run(small_config(), [7]).digest()


@pytest.fixture
def graphs_that_hold_nothing(monkeypatch):
    """Capture as on a GPU, where a graph remembers addresses: here it remembers nothing."""
    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, stub in {"Stream": lambda: stream, "current_stream": lambda: stream, "stream": nullcontext}.items():
        monkeypatch.setattr(torch.cuda, name, stub)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(backends, "_capture", lambda step, steps: None)


def test_what_a_captured_step_reads_lives_as_long_as_its_replays(graphs_that_hold_nothing):
    cfg = small_config()
    state, rows = fresh(cfg), buffer_of(cfg)
    captured = backends._captured(gtp.make_step(cfg, state, rows), lambda: None, state, 4)
    alive = weakref.ref(rows.rows)
    del rows
    gc.collect()
    assert alive() is not None
    del captured
    gc.collect()
    assert alive() is None
