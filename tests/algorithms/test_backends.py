"""Many steps from one: by call. `test_compiled.py` compiles the step, `test_graph_gpu.py` captures it."""

from __future__ import annotations

import gc
import weakref
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from learn_cases import buffer_of, fresh, small_config

from gtp_fast.algorithms import backends, gtp
from gtp_fast.algorithms.backends import graph_lengths, pieces, stepper


def _run(cfg, chunks):
    state = fresh(cfg)
    run = stepper(cfg, state, buffer_of(cfg))
    for chunk in chunks:
        run(chunk)
    return state


def test_chunks_of_steps_make_the_same_bits_as_one_run():
    assert _run(small_config(), [2, 0, 5]).digest() == _run(small_config(), [7]).digest()


@given(start=st.integers(0, 10_000), count=st.integers(0, 500), unroll=st.integers(1, 64), every=st.integers(1, 70))
def test_graphs_make_each_step_once_and_begin_at_multiples_of_their_length(start, count, unroll, every):
    lengths = graph_lengths(replace(small_config(), backend="fused", unroll=unroll, ema_every=every))
    step = start
    for length in pieces(start, count, lengths):
        assert step % length == 0
        step += length
    assert step == start + count


def test_an_interval_that_begins_at_a_whole_graph_is_made_of_whole_graphs():
    lengths = graph_lengths(replace(small_config(), backend="fused", unroll=20, ema_every=5))
    assert lengths == [20, 5, 1]
    assert set(pieces(3_000, 1_000, lengths)) == {20}
    assert list(pieces(3_012, 31, lengths)) == [1, 1, 1, 5, 20, 1, 1, 1]


@pytest.fixture
def graphs_that_hold_nothing(monkeypatch):
    """Capture as on a GPU, where a graph remembers addresses: here it remembers nothing."""
    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, stub in {"Stream": lambda: stream, "current_stream": lambda: stream, "stream": nullcontext}.items():
        monkeypatch.setattr(torch.cuda, name, stub)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(backends, "_capture", lambda part: None)


def test_what_a_captured_step_reads_lives_as_long_as_its_replays(graphs_that_hold_nothing):
    cfg = small_config()
    state, rows = fresh(cfg), buffer_of(cfg)
    captured = backends._captured({1: gtp.make_step(cfg, state, rows)}, lambda: None, state)
    alive = weakref.ref(rows.rows)
    del rows
    gc.collect()
    assert alive() is not None
    del captured
    gc.collect()
    assert alive() is None
