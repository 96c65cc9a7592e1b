"""What each kernel of the fused step takes on each architecture, without a GPU: `python -m bench.resources`.

Compiles the launches of a step (obs 17, action 6, batch 256, width 256, K = 5) ahead of time for every architecture and
counts their bytes in the interpreter. Prints a table; --json prints the figures, --write puts the table into
kernels/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
README = ROOT / "kernels" / "README.md"
START, END = "<!-- resources: python -m bench.resources --write -->", "<!-- end of resources -->"
ARCHITECTURES = (80, 86, 89, 90, 100)


def compiled(precision: str, capability: int) -> list[dict[str, Any]]:
    """Return the resources of each different kernel of a step, in the order of the step."""
    from gtp_kernels import ahead
    from gtp_kernels.launch import tuned_for

    from bench.training import config, fused_step

    cfg = config(precision=precision, backend="fused")
    rows, seen = [], set()
    for launch in fused_step(cfg, tuned_for(cfg.hidden, cfg.batch_size, ahead.SHARED_MEMORY[capability])).launches:
        identity = launch.name, tuple(sorted((n, v) for n, v in launch.args.items() if n.isupper()))
        if identity in seen:
            continue
        seen.add(identity)
        kernel = ahead.compile_for(launch, capability)
        found = ahead.resources(kernel, capability)
        rows.append(
            {"precision": precision, "capability": capability, "phase": launch.phase, "kernel": launch.name}
            | {"grid": launch.grid, "warps": launch.warps, "fits": found.fits(capability)}
            | {"warps_of_products": sorted(set(ahead.warps_of_products(kernel)))}
            | asdict(found)
        )
    return rows


def measure(precisions: list[str], architectures: list[int], processes: int) -> list[dict[str, Any]]:
    """Compile every combination, on several cores."""
    pairs = [(precision, capability) for precision in precisions for capability in architectures]
    with ProcessPoolExecutor(processes) as pool:
        return [row for rows in pool.map(compiled, *zip(*pairs, strict=True)) for row in rows]


def traffic(precision: str, sampling_steps: int) -> list[dict[str, Any]]:
    """Return `bench.traffic`'s count, from a process in which kernels are interpreted."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.traffic", precision, str(sampling_steps)],
        cwd=ROOT, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table: registers, spilled bytes where there are any, and shared memory of each kernel."""
    architectures = sorted({row["capability"] for row in rows})
    lines = ["| kernel | operands | grid x warps | " + " | ".join(f"sm_{a}" for a in architectures) + " |"]
    lines.append("|---" * (3 + len(architectures)) + "|")
    for key in dict.fromkeys((row["kernel"], row["phase"], row["precision"]) for row in rows):
        own = {r["capability"]: r for r in rows if (r["kernel"], r["phase"], r["precision"]) == key}
        first = next(iter(own.values()))
        grid = " x ".join(map(str, first["grid"]))
        cells = [_cell(own[a]) for a in architectures]
        lines.append(f"| `{key[0]}` ({key[1]}) | {key[2]} | {grid} x {first['warps']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(row: dict[str, Any]) -> str:
    spilled = f", spills {row['spilled']} B" if row["spilled"] else ""
    return f"{row['registers']} / {row['shared'] / 1024:.0f} KB{spilled}{'' if row['fits'] else ' (too much)'}"


def traffic_table(counts: dict[str, list[dict[str, Any]]]) -> str:
    """Return a Markdown table: kilobytes loaded and stored by each launch, for each precision."""
    lines = ["| launch | " + " | ".join(f"{name}: loaded, stored KB" for name in counts) + " |"]
    lines.append("|---" * (1 + len(counts)) + "|")
    for launches in zip(*counts.values(), strict=True):
        cells = [f"{x['loaded'] / 1e3:,.0f}, {x['stored'] / 1e3:,.0f}" for x in launches]
        lines.append(f"| `{launches[0]['kernel']}` ({launches[0]['phase']}) | " + " | ".join(cells) + " |")
    sums = [
        f"{sum(x['loaded'] for x in c) / 1e3:,.0f}, {sum(x['stored'] for x in c) / 1e3:,.0f}" for c in counts.values()
    ]
    return "\n".join([*lines, "| all | " + " | ".join(sums) + " |"])


def _write(text: str) -> None:
    before, rest = README.read_text().split(START)
    README.write_text(f"{before}{START}\n\n{text}\n\n{END}{rest.split(END)[1]}")


def main() -> None:
    """Compile, count, and print or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", nargs="+", default=["tf32", "bf16", "fp32"])
    parser.add_argument("--architecture", nargs="+", type=int, default=list(ARCHITECTURES))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true", help="print what was compiled, one JSON list")
    parser.add_argument("--write", action="store_true", help="put the tables into kernels/README.md")
    asked = parser.parse_args()
    rows = measure(asked.precision, asked.architecture, asked.processes)
    if asked.json:
        print(json.dumps(rows))
        return
    counts = {f"{precision}, K = {k}": traffic(precision, k) for precision in asked.precision[:2] for k in (5, 2)}
    text = f"{table(rows)}\n\n{traffic_table(counts)}"
    print(text)
    if asked.write:
        _write(text)


if __name__ == "__main__":
    main()
