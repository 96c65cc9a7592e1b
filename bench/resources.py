"""What each kernel of the fused step takes on each architecture, without a GPU: `python -m bench.resources`.

Compiles the launches of a step (obs 17, action 6, batch 256, width 256, K = 5) and the choice among 50 candidates ahead
of time for every architecture, by the installed Triton and by the oldest one that is supported, and counts their bytes
in the interpreter. Prints tables; --json prints the figures of the installed Triton, --write puts the tables into
kernels/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gtp_kernels.launch import Launch

ROOT = Path(__file__).parent.parent
README = ROOT / "kernels" / "README.md"
START, END = "<!-- resources: python -m bench.resources --write -->", "<!-- end of resources -->"
ARCHITECTURES = (80, 86, 89, 90, 100)
# The oldest Triton of pyproject.toml, which `make` lays beside the installed packages: PYTHONPATH puts it before them.
OLDEST = Path(sys.prefix) / "triton-3.6.0"


def training_launches(precision: str, capability: int) -> list[Launch]:
    """Return the launches of a step, with the shapes of a card."""
    from gtp_kernels import aot
    from gtp_kernels.launch import tuned_for

    from bench.training import config, fused_step

    cfg = config(precision=precision, backend="fused")
    return list(fused_step(cfg, tuned_for(cfg.hidden, cfg.batch_size, aot.SHARED_MEMORY[capability])).launches)


def acting_launches(precision: str, capability: int, **changes: Any) -> list[Launch]:
    """Return the launches that act at one observation, with 50 candidates and the shapes of a card."""
    import torch
    from gtp_kernels import aot
    from gtp_kernels.launch import tuned_for

    from bench.training import ACTION_DIM, OBS_DIM, config
    from gtp_fast.algorithms import networks
    from gtp_fast.algorithms.policy_config import of_run
    from gtp_fast.policy.cuda_sampler import CudaSampler, _Call

    described = replace(of_run(config(), OBS_DIM, ACTION_DIM), **({"candidates": 50, "select": "argmax"} | changes))
    sizes = described.obs_dim, described.action_dim, described.hidden
    tensors = {
        "actor": networks.init_flat(networks.actor_layout(*sizes), [0]),
        "critic": networks.init_flat(networks.critic_layout(*sizes), [0], 2),
    }
    sampler = CudaSampler(described, tensors, torch.device("cpu"), precision)
    launches = sampler.launches(_Call(sampler, 1))  # on a CPU nothing is captured, and shapes are a small card's
    shapes = tuned_for(described.hidden, 1, aot.SHARED_MEMORY[capability])
    own = {"KEEP": shapes.keep, "STAGES": shapes.stages}
    return [
        replace(
            x,
            args=x.args | {n: v for n, v in own.items() if n in x.args},
            warps=shapes.forward_warps,
            stages=shapes.stages,
        )
        if "STAGES" in x.args
        else x
        for x in launches
    ]


def compiled(precision: str, capability: int, acting: bool = False) -> list[dict[str, Any]]:
    """Return the resources of each different kernel of a step, in the order of the step, and of the choice.

    acting: of every launch that acts instead, with one candidate and with many, of both processes.
    """
    from gtp_kernels import aot

    launches = [*training_launches(precision, capability), acting_launches(precision, capability)[-1]]
    if acting:
        kinds = [{}, {"select": "softmax"}, {"candidates": 1}, {"process": "flow"}]
        launches = [x for changes in kinds for x in acting_launches(precision, capability, **changes)]
    rows, seen = [], set()
    for launch in launches:
        identity = launch.name, tuple(sorted((n, v) for n, v in launch.args.items() if n.isupper()))
        if identity in seen:
            continue
        seen.add(identity)
        kernel = aot.compile_for(launch, capability)
        found = aot.resources(kernel, capability)
        rows.append(
            {"precision": precision, "capability": capability, "phase": launch.phase, "kernel": launch.name}
            | {"grid": launch.grid, "warps": launch.warps, "fits": found.fits(capability)}
            | {"warps_of_products": sorted(set(aot.warps_of_products(kernel)))}
            | {"drops_nan": aot.drops_nan(kernel), "triton": aot.VERSION}
            | asdict(found)
        )
    return rows


def measure(precisions: list[str], architectures: list[int], processes: int, acting: bool) -> list[dict[str, Any]]:
    """Compile every combination, on several cores."""
    pairs = [(precision, capability, acting) for precision in precisions for capability in architectures]
    with ProcessPoolExecutor(processes) as pool:
        return [row for rows in pool.map(compiled, *zip(*pairs, strict=True)) for row in rows]


def measured_apart(*flags: str, triton: Path | None = None) -> list[dict[str, Any]]:
    """Return the rows of `--json` with these flags, from a process in which kernels are compiled.

    triton: a folder that holds another Triton than the installed one.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    path = [*([str(triton)] if triton else []), str(ROOT), str(ROOT / "kernels")]
    done = subprocess.run(
        [sys.executable, "-m", "bench.resources", "--json", *flags],
        cwd=ROOT, env=environment | {"PYTHONPATH": os.pathsep.join(path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout)


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
    parser.add_argument("--acting", action="store_true", help="compile the launches that act instead of a step's")
    parser.add_argument("--json", action="store_true", help="print what was compiled, one JSON list")
    parser.add_argument("--write", action="store_true", help="put the tables into kernels/README.md")
    asked = parser.parse_args()
    if asked.json:
        print(json.dumps(measure(asked.precision, asked.architecture, asked.processes, asked.acting)))
        return
    flags = ["--precision", *asked.precision, "--architecture", *map(str, asked.architecture)]
    flags += ["--processes", str(asked.processes), *["--acting"] * asked.acting]
    all_rows = [measured_apart(*flags)]
    if OLDEST.is_dir():
        all_rows.append(measured_apart(*flags, triton=OLDEST))
    tables = [f"Triton {rows[0]['triton']}:\n\n{table(rows)}" for rows in all_rows]
    counts = {f"{precision}, K = {k}": traffic(precision, k) for precision in asked.precision[:2] for k in (5, 2)}
    text = "\n\n".join([*tables, traffic_table(counts)])
    print(text)
    if asked.write:
        _write(text)


if __name__ == "__main__":
    main()
