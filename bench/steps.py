"""A step by phase, and its cost against batch, width, seeds and rows: `python -m bench.steps phases` or `sizes`.

Phases are what `gtp-fast profile` says of hopper-demo-v0 (obs 11, action 3, batch 256, width 256). A phase's time is
the host's: on a CPU that is where the work is done, on a GPU where it is launched. Of the sizes one varies at a time
from batch 256, width 256, one seed, 10,000 rows, K = 5. `bench_step.py` times every algorithm and backend.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from bench.clock import apart, ceilings, per_unit
from bench.tables import Found, Kind, Row, command, page, result
from bench.training import DEVICE, GPU, assert_finite, config, counted, memory_mib, training
from gtp_fast import device
from gtp_fast.data.catalog import run_settings
from gtp_fast.profiling import PHASES
from gtp_fast.training.profile import profile_run

ENV, PROFILED = "hopper-demo-v0", 20
# A compiled or captured step is one range: its phases cannot be seen apart.
BACKENDS = ("eager", "fused") if GPU else ("eager",)
SETTINGS: tuple[Row, ...] = tuple({"backend": b, "sampling_steps": k} for k in (5, 2) for b in BACKENDS)
BASE = {"batch_size": 256, "hidden": 256, "seeds": 1, "rows": 10_000}
SIZES: dict[str, tuple[int, ...]] = {
    "batch_size": tuple(2**n for n in range(6, 15)) if GPU else (64, 256, 1024, 4096, 16_384),
    "hidden": (128, 256, 512, 1024),
    "seeds": (1, 2, 4, 8, 16),
    "rows": (10_000, 100_000, 1_000_000, 10_000_000),
}
TITLES = {"batch_size": "batch", "hidden": "width", "seeds": "seeds", "rows": "rows of data"}


def phases() -> Found:
    """Profile each setting on one thread, uncaptured."""
    rows = []
    for setting in SETTINGS:
        cfg = run_settings({"env": ENV, "steps": 2_000_000, "graph": False, "threads": 1, "eta": 5.0} | setting)
        with tempfile.TemporaryDirectory() as folder:
            found = profile_run(cfg, Path(folder), PROFILED)
        times = {name.removesuffix(" us"): value for name, value in found.items() if name.endswith(" us")}
        rows.append({**setting, "us": times})
    return result(rows)


def phases_table(found: Found) -> str:
    """Return the table: each phase's share of the step, which a busy machine changes less than its time."""
    m, rows = found["machine"], []
    for row in found["rows"]:
        own = [row["us"].get(name, 0.0) for name in PHASES]
        rows.append([row["backend"], row["sampling_steps"], *(f"{100 * us / sum(own):.0f} %" for us in own)])
    heading = f"device: {m['device']} ({m['processor']}), torch {m['torch']}, commit {m['commit']}; {ENV}"
    return page(heading, ("backend", "K", *PHASES), rows)


def sizes(backend: str = "fused" if GPU else "eager") -> Found:
    """Measure every size in a process of its own, so that its memory is its own; one that fails says why in its row.

    A CPU takes fewer sizes, in about five minutes.
    """
    rows = []
    for axis, values in SIZES.items():
        for value in values:
            try:
                found = apart("bench.steps", "size", BASE | {axis: value}, backend)
            except RuntimeError as error:
                found = {"not measured": str(error).splitlines()[-1][:200]}
            rows.append({"axis": axis, "value": value} | found)
            print(f"{TITLES[axis]} {value:,}: {found.get('ms', found.get('not measured'))}", file=sys.stderr)
    torch.set_num_threads(1)
    return result(rows, **ceilings(DEVICE))


def size(sizes: dict[str, int], backend: str) -> Row:
    """Measure one size: time and memory of a step, its products, and the bytes of its eager form."""
    shape = {name: value for name, value in sizes.items() if name != "rows"}
    cfg = config(backend=backend, **shape, device=DEVICE, precision="tf32" if GPU else "fp32")
    if backend == "fused" and device.missing_for_fused(cfg, cfg.device):
        cfg = replace(cfg, backend="compiled")
    device.prepare(replace(cfg, threads=1))
    before = memory_mib()
    state, run = training(cfg, sizes["rows"])
    times = per_unit(run, cfg.unroll if GPU else 1, rounds=5, least_s=0.2)
    memory = memory_mib() - before
    assert_finite(state)
    names = {"ms": "us", "p20_ms": "p20", "p80_ms": "p80"}
    ms = {name: times[of] / 1e3 for name, of in names.items()}
    return {"backend": cfg.backend, **ms, "memory_mib": memory} | counted(cfg)


def sizes_table(found: Found) -> str:
    """Return the table, one row for each size, with the share of what the roofline allows."""
    m = found["machine"]
    heading = (
        f"device: {m['device']} ({m['processor']}), commit {m['commit']}; large fp32 product "
        f"{m['product_gflop_s']:,.0f} GFLOP/s, large copy {m['copy_gb_s']:,.1f} GB/s"
    )
    heads = ("size", "", "backend", "ms / step", "p20 - p80", "MiB", "GFLOP", "GFLOP / s", "FLOP / byte")
    return page(heading, (*heads, "of the roofline"), [_size_cells(row, m) for row in found["rows"]])


def _size_cells(row: Row, m: Row) -> list[str]:
    head = [TITLES[row["axis"]], f"{row['value']:,}"]
    if "ms" not in row:
        return [*head, row["not measured"], *[""] * 7]
    rate, intensity, share = _roofline(row, m)
    times = [f"{row['ms']:,.4g}", f"{row['p20_ms']:,.4g} - {row['p80_ms']:,.4g}", f"{row['memory_mib']:,.0f}"]
    work = [f"{row['flops'] / 1e9:,.3g}", f"{rate:,.3g}", f"{intensity:.1f}", f"{100 * share:.0f} %"]
    return [*head, row["backend"], *times, *work]


def _roofline(row: Row, m: Row) -> tuple[float, float, float]:
    """Return GFLOP/s, FLOP a byte of the eager step, and the share of what the roofline allows."""
    rate, intensity = row["flops"] / row["ms"] / 1e6, row["flops"] / row["eager_bytes"]
    return rate, intensity, rate / min(m["product_gflop_s"], intensity * m["copy_gb_s"])


def picture(found: Found, path: Path) -> None:
    """Draw time and memory over each size, and every point under the roofline."""
    from gtp_fast.experiments.figures import COLOURS, plt

    m, rows = found["machine"], [row for row in found["rows"] if "ms" in row]
    figure, panels = plt.subplots(1, 5, figsize=(17, 3.4), layout="constrained")
    roof, points = panels[4], [_roofline(row, m)[:2] for row in rows]
    x = np.geomspace(0.5, 2 * max(intensity for _, intensity in points), 50)
    roof.loglog(x, np.minimum(m["product_gflop_s"], x * m["copy_gb_s"]), color="#555555", label="copy, product")
    for axes, axis, colour in zip(panels, SIZES, COLOURS, strict=False):
        own = [row for row in rows if row["axis"] == axis]
        x = [row["value"] for row in own]
        axes.loglog(x, [row["ms"] for row in own], "o-", color=COLOURS[0], label="ms a step")
        axes.loglog(x, [row["memory_mib"] for row in own], "s--", color=COLOURS[1], label="MiB")
        axes.set_xlabel(TITLES[axis])
        axes.set_xticks(x, [f"{value / 1000:g}k" if value >= 10_000 else str(value) for value in x], fontsize=7)
        axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        y, x = zip(*(_roofline(row, m)[:2] for row in own), strict=True)
        roof.loglog(x, y, "o", color=colour, markersize=4, label=TITLES[axis])
    for axis in (*(axes.yaxis for axes in panels), roof.xaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    for axes in panels:
        axes.legend(fontsize=7, frameon=False)
    roof.set(xlabel="FLOP a byte of the eager step", ylabel="GFLOP / s")
    figure.suptitle(f"{m['processor'] if m['device'] == 'cpu' else m['device']}, batch 256, width 256, one seed, K = 5")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    command("steps", {"phases": Kind(phases, phases_table), "sizes": Kind(sizes, sizes_table, picture)})
