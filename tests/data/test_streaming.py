"""Rows that are streamed from host memory train to the same bits as rows on the device; and what it costs is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from capture_safety import problems_of
from gtp_kernels.primitives import integer_below
from learn_cases import ALGORITHMS, case, fresh, small_config, transitions
from run_cases import back_to, tiny

from gtp_fast import device, rng
from gtp_fast.algorithms import gtp
from gtp_fast.algorithms.backends import stepper
from gtp_fast.algorithms.state import TrainState
from gtp_fast.config import TrainConfig
from gtp_fast.data import streaming
from gtp_fast.errors import OutOfMemoryError, UsageError
from gtp_fast.runs.directory import RunDir
from gtp_fast.runs.events import Event, Started
from gtp_fast.training import memory
from gtp_fast.training.train import train

STEPS = 11
HOST = replace(small_config(), buffer="host")
SETTINGS = ("gtp", "gtp-bc", "gtp-expectile", "gtp-meanflow", "gtp-lognormal", "gtp-shortcut", *ALGORITHMS[1:])


@pytest.fixture(autouse=True)
def windows_of_three_steps(monkeypatch):
    """Make windows shorter than a training, and no divisor of it."""
    monkeypatch.setattr(streaming, "LONGEST_WINDOW", 3)


def trained(cfg: TrainConfig, *chunks: int, state: TrainState | None = None) -> str:
    """Train a state, a fresh one unless given, in chunks of steps; return the digest of all of it."""
    state = state or fresh(cfg, cfg.device)
    run = stepper(cfg, state, streaming.make_buffer(transitions(), cfg, state.step))  # pyright: ignore[reportArgumentType]
    for chunk in chunks:
        run(chunk)
    return state.digest()


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("name", SETTINGS)
def test_streamed_rows_train_to_the_bits_of_resident_ones(name: str, seeds: int):
    cfg = case(name, seeds=seeds)
    assert trained(replace(cfg, buffer="host"), STEPS) == trained(cfg, STEPS)


def test_another_seed_reads_other_rows():
    assert trained(HOST, 1) != trained(replace(HOST, seed=2), 1)


@pytest.mark.parametrize("chunks", [(1, 6, 0, 4), (3, 3, 3, 2), (10, 1)], ids=str)
def test_chunks_of_steps_make_the_bits_of_one_run(chunks: tuple[int, ...]):
    assert trained(HOST, *chunks) == trained(HOST, STEPS)


@pytest.mark.parametrize("at", [1, 3, 4, 8])
def test_a_state_loaded_from_another_step_goes_on_with_that_steps_rows(at: int):
    saved = fresh(HOST)
    trained(HOST, at, state=saved)
    state = fresh(HOST)
    run = stepper(HOST, state, streaming.make_buffer(transitions(), HOST, state.step))  # pyright: ignore[reportArgumentType]
    run(7)
    state.load_(saved.tensors())
    run(STEPS - at)
    assert state.digest() == trained(HOST, STEPS)


def test_the_host_draws_the_indices_of_the_step(monkeypatch):
    monkeypatch.setattr(rng, "INDICES_AT_ONCE", 100)  # several blocks
    keys, first = rng.seed_keys([3, 2**40 + 1], "cpu"), 2**32 - 2
    drawn = rng.indices(keys, first, 5, 16, 300)
    layout = rng.plan({rng.ACTION_NOISE: 7, rng.INDEX: 16}, "cpu")
    for i in range(5):
        words = rng.random_bits(layout, keys, torch.tensor(first + i))[rng.INDEX][..., 0]
        assert torch.equal(drawn[i], integer_below(words, 300))


def test_a_graph_can_hold_the_step_with_streamed_rows():
    state = fresh(HOST)
    buffer = streaming.make_buffer(transitions(), HOST, state.step)  # pyright: ignore[reportArgumentType]
    assert problems_of(gtp.make_step(HOST, state, buffer), state.tensors) == []


@pytest.mark.long
def test_the_compiled_step_with_streamed_rows_makes_the_bits_of_resident_ones():
    torch._dynamo.reset()
    cfg = replace(small_config(), backend="compiled")
    assert trained(replace(cfg, buffer="host"), 4) == trained(cfg, 4)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_replays_with_streamed_rows_make_the_bits_of_resident_ones(backend):
    torch._dynamo.reset()
    cfg = replace(small_config(), device="cuda", backend=backend, graph=True, unroll=2)
    assert trained(replace(cfg, buffer="host"), 2, 50, 7) == trained(cfg, 59)


# ---- a run


def final(folder: Path, run: str = "run", **changes: Any) -> tuple[str, list[Event]]:
    """Train the tiny run; return its last policy and state as bytes, and what it told."""
    told: list[Event] = []
    done = train(tiny(folder, run_dir=str(folder / run), **changes), told.append)
    last = RunDir(Path(done.run_dir)).checkpoint(done.steps)
    return "".join(str(p.read_bytes()) for p in sorted(last.glob("*.safetensors"))), told


def test_a_streamed_run_that_is_cut_off_ends_as_the_resident_one(tmp_path: Path):
    resident, _ = final(tmp_path, "a")
    streamed, _ = final(tmp_path, "b", buffer="host")
    back_to(tmp_path / "b", 10)
    resumed, _ = final(tmp_path, "b", buffer="host")
    assert resident == streamed == resumed


def test_a_run_may_be_resumed_with_its_rows_elsewhere(tmp_path: Path):
    resident, _ = final(tmp_path)
    back_to(tmp_path / "run", 20)
    assert final(tmp_path, buffer="host")[0] == resident


def test_what_streaming_costs_is_said_at_the_start(tmp_path: Path):
    _, told = final(tmp_path, buffer="host")
    notes = next(event.notes for event in told if isinstance(event, Started))
    said = next(note for note in notes if note.startswith("the rows stay in host memory"))
    # 2 members, batches of 8 rows of 2 * 17 + 6 + 2 floats, padded to 44
    assert "streamed to the cpu: 3 kB a step, 3 steps a copy, measured " in said and "--buffer device" in said
    _, resident = final(tmp_path, "resident")
    assert not any("host memory" in note for event in resident for note in getattr(event, "notes", ()))


# ---- where the rows lie


def test_rows_that_do_not_fit_the_gpu_stay_in_host_memory():
    cfg = TrainConfig(env="x")
    assert memory.place(cfg, "cuda", 10**6, 10**9, free=10**10).buffer == "device"
    assert memory.place(cfg, "cuda", 10**6, 10**8, free=10**8).buffer == "host"


def test_rows_that_fit_nowhere_are_refused_with_the_figures():
    with pytest.raises(OutOfMemoryError, match=r"the packed rows take 1000000\.0 GB; 10\.0 GB are free on the cuda"):
        memory.place(TrainConfig(env="x"), "cuda", 10**6, 10**15, free=10**10)


def test_rows_on_a_cpu_are_never_streamed_unasked():
    cfg = TrainConfig(env="x")
    assert memory.place(cfg, "cpu", 10**6, 10**15, free=1).buffer == "device"
    assert memory.place(replace(cfg, buffer="host"), "cpu", 1, 1).buffer == "host"


def test_the_fused_step_refuses_streamed_rows_and_says_why(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(UsageError, match="--backend fused needs --buffer device: its kernels read the rows in"):
        device.resolve(TrainConfig(env="x", device="cpu", backend="fused", buffer="host"))


def test_streamed_rows_take_the_staged_windows_of_the_device():
    data = transitions(size=10**5)
    staged = 2 * 3 * 2 * 16 * 16 * 4  # two windows of 3 steps of 2 members, 16 rows of 16 floats
    assert streaming.row_bytes(data) == 10**5 * 16 * 4  # pyright: ignore[reportArgumentType]
    assert streaming.device_bytes(replace(HOST, device="cuda"), data) == staged  # pyright: ignore[reportArgumentType]
    assert streaming.device_bytes(HOST, data) == staged + 10**5 * 64  # pyright: ignore[reportArgumentType]
