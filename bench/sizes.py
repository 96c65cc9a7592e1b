"""What a step costs against batch, width, seeds and rows: `python -m bench.sizes` writes table, picture and roofline.

One size varies at a time from batch 256, width 256, one seed, 10,000 rows, K = 5. Each point has a process of its own,
so that its memory is its own. A CPU takes fewer points, in about five minutes; a GPU all of them.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from bench.gpu import machine as described
from bench.gpu.results import commit, rounded
from bench.table import keep, slug
from bench.timing import ceilings, seconds
from bench.training import config, training
from gtp_fast import device
from gtp_fast.config import TrainConfig

GPU = torch.cuda.is_available()
ROOT = Path(__file__).parent.parent
BASE = {"batch_size": 256, "hidden": 256, "seeds": 1, "rows": 10_000}
SIZES: dict[str, tuple[int, ...]] = {
    "batch_size": tuple(2**n for n in range(6, 15)) if GPU else (64, 256, 1024, 4096, 16_384),
    "hidden": (128, 256, 512, 1024),
    "seeds": (1, 2, 4, 8, 16),
    "rows": (10_000, 100_000, 1_000_000, 10_000_000),
}
TITLES = {"batch_size": "batch", "hidden": "width", "seeds": "seeds", "rows": "rows of data"}
ROUNDS, LEAST_S = 5, 0.2


class _Bytes(TorchDispatchMode):
    """Bytes that the operations of an eager step read and write; of a gather, the rows that it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if not func.is_view:
            written, read = _nbytes(found), _nbytes(args)
            self.total += 2 * written if func is torch.ops.aten.index_select.default else written + read
        return found


def _nbytes(values: Any) -> int:
    if isinstance(values, torch.Tensor):
        return values.numel() * values.element_size()
    return sum(map(_nbytes, values)) if isinstance(values, list | tuple) else 0


def point(size: dict[str, int], backend: str) -> dict[str, Any]:
    """Measure one point: time and memory of a step, its products, and the bytes of its eager form."""
    shape = {name: value for name, value in size.items() if name != "rows"}
    on = {"device": "cuda", "precision": "tf32"} if GPU else {"device": "cpu", "precision": "fp32"}
    cfg = config(backend=backend, **shape, **on)
    if backend == "fused" and device.missing_for_fused(cfg, cfg.device):
        cfg = replace(cfg, backend="compiled")
    device.prepare(replace(cfg, threads=1))
    before = _memory_mib()
    state, run = training(cfg, size["rows"])
    times = _times(run, cfg.unroll if GPU else 1)
    memory = _memory_mib() - before
    if (state.first_bad_SQ >= 0).any():
        raise ValueError("the state holds NaN or Inf after timing")
    low, middle, high = np.percentile(times, [20, 50, 80]).tolist()
    return {"backend": cfg.backend, "ms": middle, "p20_ms": low, "p80_ms": high, "memory_mib": memory} | _counted(cfg)


def _times(run: Any, chunk: int) -> list[float]:
    """Return milliseconds a step of each round, after one that warms up and says how many steps a round takes."""
    clock, taken = seconds(), []
    run(chunk)
    started = clock()
    run(chunk)
    n = chunk * max(1, int(LEAST_S / max(clock() - started, 1e-6)))
    for _ in range(ROUNDS):
        started = clock()
        run(n)
        taken.append((clock() - started) / n * 1e3)
    return taken


def _memory_mib() -> float:
    """Return the peak so far: of the device's allocator, or of this process."""
    if GPU:
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _counted(cfg: TrainConfig) -> dict[str, int]:
    _, run = training(replace(cfg, backend="eager", graph=False, device="cpu", precision="fp32"))
    with FlopCounterMode(display=False) as flops:
        run(1)
    with _Bytes() as moved:
        run(1)
    return {"flops": flops.get_total_flops(), "eager_bytes": moved.total}


def measure(backend: str) -> dict[str, Any]:
    """Measure every point, each in a process of its own; one that fails says why in its row."""
    rows, version = [], commit()
    for axis, values in SIZES.items():
        for value in values:
            asked = json.dumps(BASE | {axis: value})
            command = [sys.executable, "-m", "bench.sizes", "--point", asked, "--backend", backend]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            last = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines() or ["no word"]
            found = json.loads(last[-1]) if done.returncode == 0 else {"not measured": last[-1][:200]}
            rows.append({"axis": axis, "value": value} | found)
            print(f"{TITLES[axis]} {value:,}: {found.get('ms', last[-1])}", file=sys.stderr)
    torch.set_num_threads(1)
    machine = described.measure({}, False) | {"commit": version} | ceilings("cuda" if GPU else "cpu")
    return rounded({"machine": machine, "rows": rows})


def markdown(found: dict[str, Any]) -> str:
    """Return the table: a row a point, with the share of the product ceiling and what the roofline allows."""
    m = found["machine"]
    lines = [
        f"device: {m['device']} ({m['processor']}), commit {m['commit']}; large fp32 product "
        f"{m['product_gflop_s']:,.0f} GFLOP/s, large copy {m['copy_gb_s']:,.1f} GB/s",
        "",
        "| size | | backend | ms / step | p20 - p80 | MiB | GFLOP | GFLOP / s | FLOP / byte | of the roofline |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        head = f"| {TITLES[row['axis']]} | {row['value']:,} |"
        if "ms" not in row:
            lines.append(f"{head} {row['not measured']} |||||||||")
            continue
        rate, intensity, share = _roofline(row, m)
        times = f"{row['ms']:,.4g} | {row['p20_ms']:,.4g} - {row['p80_ms']:,.4g} | {row['memory_mib']:,.0f}"
        work = f"{row['flops'] / 1e9:,.3g} | {rate:,.3g} | {intensity:.1f} | {100 * share:.0f} %"
        lines.append(f"{head} {row['backend']} | {times} | {work} |")
    return "\n".join(lines) + "\n"


def _roofline(row: dict[str, Any], m: dict[str, Any]) -> tuple[float, float, float]:
    """Return GFLOP/s, products a byte of the eager step, and the share of what those allow on this device."""
    rate, intensity = row["flops"] / row["ms"] / 1e6, row["flops"] / row["eager_bytes"]
    return rate, intensity, rate / min(m["product_gflop_s"], intensity * m["copy_gb_s"])


def picture(found: dict[str, Any], path: Path) -> None:
    """Draw time and memory over each size, and every point under the roofline."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    m, rows = found["machine"], [row for row in found["rows"] if "ms" in row]
    figure, panels = plt.subplots(1, 5, figsize=(17, 3.4), layout="constrained")
    for axes, axis in zip(panels, SIZES, strict=False):
        own = [row for row in rows if row["axis"] == axis]
        x = [row["value"] for row in own]
        axes.loglog(x, [row["ms"] for row in own], "o-", color="#1f5fa8", label="ms a step")
        axes.loglog(x, [row["memory_mib"] for row in own], "s--", color="#d1661f", label="MiB")
        axes.set_xlabel(TITLES[axis])
        axes.set_xticks(x, [f"{value / 1000:g}k" if value >= 10_000 else str(value) for value in x], fontsize=7)
        axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
        axes.legend(fontsize=8, frameon=False)
    roof, points = panels[4], [(_roofline(row, m), row) for row in rows]
    x = np.geomspace(0.5, 2 * max(p[0][1] for p in points), 50)
    roof.loglog(x, np.minimum(m["product_gflop_s"], x * m["copy_gb_s"]), color="#555555", label="copy, product")
    for axis, colour in zip(SIZES, ("#1f5fa8", "#d1661f", "#2f8f4e", "#8a4fa3"), strict=True):
        own = [p for p, row in points if row["axis"] == axis]
        roof.loglog([p[1] for p in own], [p[0] for p in own], "o", color=colour, markersize=4, label=TITLES[axis])
    for axis in (roof.xaxis, roof.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    roof.set(xlabel="FLOP a byte of the eager step", ylabel="GFLOP / s")
    roof.legend(fontsize=7, frameon=False)
    figure.suptitle(f"{m['processor'] if m['device'] == 'cpu' else m['device']}, batch 256, width 256, one seed, K = 5")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, write <out>/<device>-sizes.json, .md and .png, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.sizes", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--backend", choices=["eager", "compiled", "fused"], default="fused" if GPU else "eager")
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.point:
        print(json.dumps(point(asked.point, asked.backend)))
        return
    found = measure(asked.backend)
    path = keep(found, asked.out / f"{slug(found)}-sizes.json", markdown(found))
    picture(found, path.with_suffix(".png"))
    print(markdown(found))


if __name__ == "__main__":
    main()
