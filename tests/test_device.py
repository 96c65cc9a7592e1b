"""What `auto` becomes, and the phases that a profile names."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import peak_memory
import pytest
import torch
from gtp_kernels.launch import tuned_for
from run_cases import tiny

from gtp_fast import device, profiling
from gtp_fast.config import TrainConfig
from gtp_fast.errors import UsageError
from gtp_fast.training.profile import profile_run

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="states what a machine without a GPU does")


@no_gpu
def test_short_runs_on_a_cpu_are_eager_and_long_ones_compiled_where_a_compiler_is(monkeypatch):
    short, why = device.resolve(TrainConfig(env="x", steps=1_000))
    assert (short.device, short.backend, short.graph) == ("cpu", "eager", False)
    assert short.threads >= 1 and "cpu, backend eager" in why
    long, why = device.resolve(TrainConfig(env="x", steps=1_000_000))
    expected = "compiled" if device.missing_for_compile("cpu") is None else "eager"
    assert long.backend == expected
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("PATH", "")
    assert device.resolve(TrainConfig(env="x", steps=1_000_000))[0].backend == "eager"
    with pytest.raises(UsageError, match="--backend compiled needs a C"):
        device.resolve(TrainConfig(env="x", backend="compiled"))


@no_gpu
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"device": "cuda"}, "sees no NVIDIA GPU"),
        ({"precision": "tf32"}, "needs a GPU"),
        ({"precision": "bf16"}, "needs --backend fused"),
    ],
)
def test_what_this_machine_has_not_is_refused(changes, words):
    with pytest.raises(UsageError, match=words):
        device.resolve(TrainConfig(env="x", **changes))


@pytest.mark.parametrize(
    ("hidden", "there", "keeps"), [(256, 101_376, True), (512, 232_448, True), (512, 101_376, False)]
)
def test_the_chain_keeps_its_thin_weights_only_where_they_fit(hidden, there, keeps, monkeypatch):
    monkeypatch.setattr("gtp_kernels.launch.INTERPRETED", False)
    assert tuned_for(hidden, 256, there).keep is keeps  # 98 KB at width 256, 194 KB at 512


def test_a_phase_is_nothing_at_all_unless_it_is_recorded():
    assert profiling.phase("critic") is profiling.phase("actor")


def test_a_profile_names_the_phases_of_the_step_and_writes_a_trace(tmp_path: Path):
    found = profile_run(tiny(tmp_path), tmp_path / "out", steps=3)
    phases = [found[f"{name} us"] for name in profiling.PHASES]
    assert all(us > 0 for us in phases) and found["step us"] > 0
    assert "nsys profile" in found["nsight systems"]
    names = {event.get("name") for event in json.loads((tmp_path / "out/trace.json").read_text())["traceEvents"]}
    assert set(profiling.PHASES) <= names


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's mallopt exists on Linux")
def test_keeping_freed_memory_does_no_harm_when_called_twice():
    device.keep_freed_memory()
    device.keep_freed_memory()
    assert torch.ones(1 << 18).exp().sum() > 0


def test_products_by_onednn_are_taken_only_where_they_are_float32(monkeypatch):
    before = torch.get_float32_matmul_precision()
    try:
        taken = device.make_products_by_onednn()
        assert torch.get_float32_matmul_precision() == ("medium" if taken else "highest")
        assert device._worst_product() < device.FLOAT32_PRODUCT
        monkeypatch.setattr(device, "FLOAT32_PRODUCT", 1e-9)  # as if they were rounded
        assert not device.make_products_by_onednn()
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)


def test_bfloat16_products_would_be_seen(monkeypatch):
    product = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda a, b: product(a.bfloat16(), b.bfloat16()).float())
    assert device._worst_product() > 100 * device.FLOAT32_PRODUCT


@pytest.mark.skipif(sys.platform != "linux", reason="reads memory as Linux tells it")
def test_the_memory_of_a_step_is_estimated_within_a_factor_of_two():
    cases = ({}, {"algo": "dql", "sampling_steps": 8}, {"algo": "fql", "layers": 8})
    found = peak_memory.shares([("numbers", changes) for changes in cases])
    assert all(0.5 < share < 2.0 for share in found), found
