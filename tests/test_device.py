"""What `auto` becomes, and the phases that a profile names."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path

import peak_memory
import pytest
import torch
from gtp_kernels.launch import tuned_for
from run_cases import python, tiny

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


KIB = 1024
OUTER = {"memory.max": "max", "memory.current": "9", "memory.stat": "inactive_file 1", "cpu.max": "max 100000"}
OLD = {"memory.limit_in_bytes": "9223372036854771712", "memory.usage_in_bytes": "9", "cpu.cfs_quota_us": "-1"}


def machine(folder: Path, groups: str, mounts: list[tuple[str, str, str]], files: dict[str, dict[str, str]]) -> Path:
    """Write /proc and control groups as a kernel shows them, and return the former.

    Args: groups, of this process; mounts, (root, kind, options) of each mounted at `folder`/options; files, by group.
    """
    (folder / "self").mkdir()
    lines = [
        f"{30 + i} 20 0:{i} {root} {folder / place} rw,nosuid shared:{i} - {kind} {kind} rw,{place}"
        for i, (root, kind, place) in enumerate(mounts)
    ]
    (folder / "self/mountinfo").write_text(
        "".join(f"{line}\n" for line in ["1 1 8:1 / / rw - ext4 /dev/sda rw", *lines])
    )
    (folder / "self/cgroup").write_text(groups)
    (folder / "meminfo").write_text(f"MemTotal: {64 * KIB} kB\nMemFree: 1 kB\nMemAvailable: {32 * KIB} kB\n")
    for group, values in files.items():
        (folder / group).mkdir(parents=True, exist_ok=True)
        for name, text in values.items():
            (folder / group / name).write_text(text + "\n")
    return folder


def newer(folder: Path, path: str = "/", **groups: dict[str, str]) -> Path:
    """A container of version 2, which sees its own group at the place of the mount."""
    files = {f"all/{name.replace('_', '/')}".rstrip("/"): values for name, values in groups.items()}
    return machine(folder, f"0::{path}\n", [("/", "cgroup2", "all")], files)


def test_without_limits_memory_is_the_machines(tmp_path: Path):
    proc = machine(tmp_path, "", [], {})
    assert device.free_memory(proc) == 32 << 20 and device.limits(proc) == device.limits(tmp_path / "none")
    assert device.memory_bytes(proc) == device.memory_bytes(tmp_path / "none")
    assert device.free_memory(tmp_path / "none") is None
    assert device.cores(proc) == device.affine_cores()


@pytest.mark.parametrize(
    ("own", "free", "whole"),
    [
        (
            {"memory.max": "1000", "memory.current": "700", "memory.stat": "anon 1\ninactive_file 200\nfile 9"},
            500,
            1000,
        ),
        ({"memory.max": "1000", "memory.high": "800", "memory.current": "700"}, 100, 800),
        ({"memory.max": "1000", "memory.high": "max", "memory.current": "1200"}, 0, 1000),
        ({"memory.max": "max", "memory.current": "700"}, 32 << 20, None),
        ({"memory.max": "broken", "memory.current": ""}, 32 << 20, None),
    ],
    ids=["files that the kernel can drop", "high", "beyond it", "max", "damaged"],
)
def test_memory_ends_at_the_limit_of_a_group_of_version_2(tmp_path: Path, own, free, whole):
    proc = newer(tmp_path, _=own)
    assert device.free_memory(proc) == free
    assert device.memory_bytes(proc) == (whole or device.memory_bytes(tmp_path / "none"))


def test_the_least_of_all_groups_around_a_process_counts(tmp_path: Path):
    inner = {"memory.max": "5000", "memory.current": "100", "cpu.max": "150000 100000"}
    middle = {"memory.max": "900", "memory.current": "800", "cpu.max": "50000 100000"}
    proc = newer(tmp_path, "/pod/job", _=OUTER, pod=middle, pod_job=inner)
    assert (device.free_memory(proc), device.memory_bytes(proc), device.cores(proc)) == (100, 900, 1)
    said = device.limits(proc)
    assert f"1.5 cores by {tmp_path}/all/pod/job" in said and f"0.5 cores by {tmp_path}/all/pod" in said
    assert f"0.0 GB, 0.0 used, by {tmp_path}/all/pod" in said


@pytest.mark.parametrize(("root", "path"), [("/", "/docker/a"), ("/docker/a", "/docker/a"), ("/docker/a", "/../b")])
def test_memory_ends_at_the_limit_of_a_group_of_version_1(tmp_path: Path, root: str, path: str):
    own = {"memory.limit_in_bytes": "1000", "memory.usage_in_bytes": "700", "cpu.cfs_quota_us": "100000"}
    own |= {"memory.stat": "inactive_file 999\ntotal_inactive_file 50", "cpu.cfs_period_us": "100000"}
    mounts = [(root, "cgroup", "memory"), (root, "cgroup", "cpu"), ("/", "cgroup2", "unified")]
    inside = "/docker/a" if root == "/" else ""
    files = {f"{name}{inside}": own for name in ("memory", "cpu")} | ({"memory": OLD, "cpu": OLD} if inside else {})
    proc = machine(tmp_path, f"3:cpu,cpuacct:{path}\n2:memory:{path}\n1:name=systemd:/\n0::/\n", mounts, files)
    assert (device.free_memory(proc), device.memory_bytes(proc), device.cores(proc)) == (350, 1000, 1)


@pytest.mark.parametrize(("quota", "cores"), [("100", 1), ("150000", 2), ("6400000", None), ("max", None), ("0", None)])
def test_a_quota_of_cores_is_rounded_up_and_gives_none_that_affinity_does_not(
    tmp_path: Path, quota, cores, monkeypatch
):
    monkeypatch.setattr(device.os, "sched_getaffinity", lambda _: {*range(8)})
    assert device.cores(newer(tmp_path, _={"cpu.max": f"{quota} 100000"})) == (cores or 8)


MEASURED = "import sys, json; from gtp_fast import device; from gtp_fast.config import TrainConfig\n"
TOLD = "print(json.dumps([device.cores(), device.memory_bytes(), device.free_memory(), device.limits(), threads]))"


@pytest.mark.skipif(sys.platform != "linux", reason="affinity and limits as Linux sets them")
def test_affinity_and_a_limited_address_space_bound_a_real_process():
    bound = "import os, resource; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    bound += "resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))\n"
    threads = "threads = device.resolve(TrainConfig(env='x', device='cpu', backend='eager'))[0].threads\n"
    cores, whole, free, said, threads = json.loads(python(bound + MEASURED + threads + TOLD).stdout)
    assert (cores, threads) == (1, 1) and whole == 6 << 30 and 0 < free < 6 << 30
    assert any("by ulimit -v" in line for line in said)


LIMITS = {
    ("memory", False): ("memory.limit_in_bytes", 2 << 30),
    ("memory", True): ("memory.max", 2 << 30),
    ("cpu", False): ("cpu.cfs_quota_us", 50_000),
    ("cpu", True): ("cpu.max", 50_000),
}


def group_of(controller: str) -> Path | None:
    """Make a control group with a limit where this machine lets us, and return it."""
    for around, newer in device._groups(controller, device.PROC):
        made, (file, limit) = around / f"gtp-fast-{os.getpid()}-{controller}", LIMITS[controller, newer]
        try:
            made.mkdir()
        except OSError:
            continue
        with suppress(OSError):
            (made / file).write_text(str(limit))
            return made
        made.rmdir()
    return None


ENTERED = """
import os, sys
for group in sys.argv[1:3]:
    open(group + "/cgroup.procs", "w").write(str(os.getpid()))
"""
TOO_LARGE = "train --env hopper-demo-v0 --seeds 1024 --batch-size 64 --device cpu --backend eager --eval-every 0"


def test_promise_7_a_real_container_bounds_cores_and_memory_and_a_run_that_is_too_large_for_it_exits_8(tmp_path: Path):
    made = [group_of(controller) for controller in ("memory", "cpu")]
    try:
        if None in made:
            pytest.skip("this machine lets us make no control group")
        run = f"from gtp_fast.cli.main import main; main({TOO_LARGE.split()} + ['--run-dir', sys.argv[3]])"
        code = ENTERED + MEASURED + TOLD.replace(", threads", "") + "\n" + run
        done = python(code, *map(str, made), str(tmp_path / "run"), ends_with=8)
    finally:
        for folder in filter(None, made):
            folder.rmdir()
    cores, whole, free, said = json.loads(done.stdout)
    assert cores == 1 and whole == 2 << 30 and 0 < free < 2 << 30 and len(said) == 2
    assert "error: the run needs about" in done.stderr and "are free on the cpu; lower --seeds" in done.stderr
