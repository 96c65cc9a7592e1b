"""The paper's Table 9 beside ours: from what the bench measured to bench/results/<device>.json and .md.

`python -m bench.table FILE.json` prints the table of a file that --benchmark-json or the bench itself wrote.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from bench.gpu.machine import GPU_FIELDS
from bench.gpu.results import replace_file, rounded
from gtp_fast.experiments import paper

Row = dict[str, Any]
STEPS_OF_PAPER = 2_000_000
KINDS = ("kernel", "step", "latency", "data", "eval")
MACHINE = ("device", "processor", "cores", "cuda", "memory_gib", "torch", "triton", "python", "missing", "commit")
NAMES = {
    "gtp-k5": "GTP",
    "gtp-k2": "GTP",
    "gtp-bc": "GTP-BC",
    "dql": "DQL",
    "cac": "CAC",
    "fql-4x512": "FQL, 4 x 512",
    "fql-3x256": "FQL, 3 x 256",
    "iql": "IQL",
    "td3bc": "TD3+BC",
}
HEADS = (
    *("method", "switch", "K", "batch", "ms / step", "steps / s", "hours for 2M", "paper, hours", "ratio"),
    *("vs own eager", "ms / action", "paper, ms", "ratio", "us / sampling step", "ms / action of 50"),
)


def gathered(benchmarks: Iterable[Row]) -> dict[str, Any]:
    """Return {"machine", "rows"} of pytest-benchmark's dictionaries: what is the same in all of them stands once."""
    rows, machine = [], {}
    for item in benchmarks:
        info = dict(item["extra_info"])
        machine = {name: info[name] for name in (*MACHINE, *GPU_FIELDS) if name in info}
        rows.append({"group": item["group"], "name": item["name"], **_spread(item["stats"])} | _without(info, machine))
    return rounded({"machine": machine, "rows": rows})


def _spread(stats: Row) -> Row:
    """Return p20 and p80 in seconds a round, and the number of rounds."""
    low, high = np.percentile(stats["data"], [20, 80])
    return {"median_s": stats["median"], "p20_s": float(low), "p80_s": float(high), "rounds": stats["rounds"]}


def _without(info: Row, machine: Row) -> Row:
    return {name: value for name, value in info.items() if name not in machine}


def whole(found: dict[str, Any]) -> bool:
    """Say whether every kind of group was measured, so that the table is one run's."""
    return {row["group"].split("/")[0] for row in found["rows"]} == set(KINDS)


def write(found: dict[str, Any], folder: Path) -> Path:
    """Write <folder>/<device>.json and .md; return the latter.

    `make gpu` keeps the plain name of a GPU for its own parts, hence <gpu>-bench.
    """
    return keep(found, folder / f"{slug(found)}{'' if slug(found) == 'cpu' else '-bench'}.json", markdown(found))


def slug(found: dict[str, Any]) -> str:
    """Return the device's name as it stands in the name of a file."""
    return re.sub(r"[^a-z0-9]+", "-", str(found["machine"]["device"]).lower()).strip("-")


def keep(found: dict[str, Any], path: Path, text: str) -> Path:
    """Write {"machine", "rows"} as JSON, a row a line, and its table beside it; return where the table is."""
    rows = ",\n".join(f"  {json.dumps(row)}" for row in found["rows"])
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, f'{{"machine": {json.dumps(found["machine"])},\n "rows": [\n{rows}\n ]}}\n')
    replace_file(path.with_suffix(".md"), text)
    return path.with_suffix(".md")


def cells(found: dict[str, Any]) -> list[list[str]]:
    """Return the table's rows, a switch each, in the order of the methods."""
    steps = [row for row in found["rows"] if row["group"].startswith("step/")]
    acts = [row for row in found["rows"] if row["group"].startswith("latency/")]
    order = list(NAMES)
    return [_cells(row, steps, acts) for row in sorted(steps, key=lambda row: order.index(row["method"]))]


def _cells(row: Row, steps: list[Row], acts: list[Row]) -> list[str]:
    printed = _printed(row)
    seconds = row["us"] / 1e6 / row["seeds"]  # of one step of one seed
    hours = seconds * STEPS_OF_PAPER / 3600
    plain = [r for r in steps if (r["method"], r["switch"]) == (row["method"], "eager")]
    action, chain = _action(row, acts, 1), "1" if row["algo"] == "fql" else str(row["sampling_steps"])
    fifty = _action(row, acts, 50)
    return [
        *(NAMES[row["method"]], row["switch"].replace("+", " + ").replace("8seeds", "8 seeds")),
        *("10/1" if row["algo"] == "fql" else chain, str(row["batch_size"])),
        *(f"{row['us'] / 1e3:.3g}", f"{1 / seconds:,.0f}", f"{hours:.3g}"),
        *(_or(printed, lambda p: f"{p['train_h']}"), _or(printed, lambda p: f"{hours / p['train_h']:.3g}")),
        _or(plain, lambda p: f"{seconds / (p[0]['us'] / 1e6):.2f}"),
        *(_or(action, lambda ms: f"{ms:.3g}"), _or(printed, lambda p: f"{p['infer_ms']}")),
        "-" if not (printed and action) else f"{action / printed['infer_ms']:.2f}",
        *(_or(action, lambda ms: f"{ms * 1e3 / int(chain):.3g}"), _or(fifty, lambda ms: f"{ms:.3g}")),
    ]


def _or(value: Any, text: Any) -> str:
    return text(value) if value else "-"


def _printed(row: Row) -> Row | None:
    """Return the paper's row of this method, None where Table 9 has none."""
    if row["method"] in ("gtp-bc", "fql-3x256"):
        return None
    k = "10/1" if row["algo"] == "fql" else row["sampling_steps"]
    rows = (p for p in paper.tables()["timing"] if (p["method"].lower(), p["sampling_steps"]) == (row["algo"], k))
    return next(rows, None)


def _action(row: Row, acts: list[Row], candidates: int) -> float | None:
    """Return the milliseconds of an action: by the formulas in torch beside the eager step, else the fastest way."""
    own = [a for a in acts if (a["method"], a["candidates"], a["batch_size"]) == (row["method"], candidates, 1)]
    plain = [a for a in own if a["way"] == "torch"]
    chosen = plain if row["switch"] == "eager" else own
    return min((a["us"] for a in chosen), default=0.0) / 1e3 or None


def markdown(found: dict[str, Any]) -> str:
    """Return the table with what it was measured on, and every other figure below."""
    m = found["machine"]
    lines = [f"device: {m['device']} ({m['processor']}), torch {m['torch']}, commit {m['commit']}", ""]
    body = cells(found)
    if body:
        lines += [_line(HEADS), _line(["---"] * len(HEADS)), *map(_line, body), "", NOTE.format(**_note(found)), ""]
    others = [row for row in found["rows"] if row["group"].split("/")[0] not in ("step", "latency")]
    if others:
        lines += [_line(("group", "us", "what", "of the ceiling")), _line(["---"] * 4)]
        lines += [_line(_other(row)) for row in others]
    return "\n".join(lines) + "\n"


def _note(found: dict[str, Any]) -> dict[str, str]:
    on_cpu = found["machine"]["device"] == "cpu"
    return {
        "clock": "CPU time of one thread" if on_cpu else "time of the device, by events",
        "setup": paper.tables()["timing_setup"],
    }


NOTE = """A step's time is {clock}. Steps a second and hours count a step of each seed. Ratios are ours to the
paper's ({setup}), below 1 is faster, and of the step to the
`eager` row of the same method. An action is one observation from NumPy to NumPy; beside `eager` by the algorithm's
formulas in torch, else by the fastest way of this device."""


def _other(row: Row) -> list[str]:
    where = {"rows": "{:,} rows", "env_steps_per_second": "{:,.0f} env steps / s", "shape": "{}"}
    what = ", ".join(text.format(row[name]) for name, text in where.items() if name in row)
    shares = {"percent_of_product_ceiling": "products", "percent_of_copy_ceiling": "copy"}
    share = ", ".join(f"{row[name]:.0f} % of {text}" for name, text in shares.items() if name in row)
    return [row["group"], f"{row['us']:,.4g}", what, share or "-"]


def _line(texts: Iterable[str]) -> str:
    return "| " + " | ".join(texts) + " |"


def read(path: Path) -> dict[str, Any]:
    """Read a file of the bench, or of --benchmark-json."""
    values = json.loads(path.read_text())
    return values if "rows" in values else gathered(values["benchmarks"])


def main() -> None:
    """Print the table of a file."""
    parser = argparse.ArgumentParser(prog="python -m bench.table", description=__doc__)
    parser.add_argument("file", type=Path)
    print(markdown(read(parser.parse_args().file)))


if __name__ == "__main__":
    main()
