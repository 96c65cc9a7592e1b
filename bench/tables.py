"""Write tables: bench/results/<name>.json and .md, with machine and commit, rounded to five digits.

A result is {"machine", "rows"}. `command` is the command line of the other modules. What `pytest bench/` measured is
shown as the paper's Table 9 with our figures; `python -m bench.tables FILE.json` prints that table of a file that
--benchmark-json or the bench itself wrote.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import inspect
import json
import platform
import re
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gtp_fast.experiments import paper
from gtp_fast.files import publish

Row = dict[str, Any]
Found = dict[str, Any]
Columns = Mapping[str, str | Callable[[Row], Any]]
ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
PACKAGES = ["numpy", "triton", "gymnasium", "mujoco", "minari", "nvtx", "h5py", "safetensors", "yaml", "pytest"]
GPU_FIELDS = ("driver_version", "power.limit", "clocks.max.sm", "clocks.max.memory", "ecc.mode.current")


def described(row: Row, dry: bool) -> Row:
    """Describe this machine: device, driver, versions, and the packages that are absent."""
    import torch

    from gtp_fast import device

    cuda = torch.cuda.is_available() and not dry
    found = {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "cuda": torch.version.cuda if cuda else None,
        "memory_gib": torch.cuda.get_device_properties(0).total_memory / 2**30 if cuda else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": device.processor(),
        "cores": device.cores(),
    }
    missing = [name for name in (*PACKAGES, "hypothesis") if not importlib.util.find_spec(name)]
    triton = None if "triton" in missing else importlib.metadata.version("triton")
    return found | (_nvidia_smi() if cuda else {}) | {"triton": triton, "missing": ", ".join(missing)}


def _nvidia_smi() -> dict[str, str]:
    """Return driver, power limit and clocks; nothing where the tool is absent."""
    query = ["nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader", "--id=0"]
    try:
        line = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(GPU_FIELDS, (part.strip() for part in line.split(",")), strict=False))


@cache
def commit() -> str:
    """Return the checkout's commit, marked where files differ from it; empty outside a checkout.

    It is read once: files may change while a long measurement runs.
    """
    words = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def machine() -> Row:
    """Return this machine's description and the commit."""
    return described({}, False) | {"commit": commit()}


def rounded(value: Any) -> Any:
    """Round floats to five digits: no timing here has more."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def result(rows: list[Row], **about: Any) -> Found:
    """Return {"machine", "rows"} of rows that were measured here; about is added to the machine's description."""
    return rounded({"machine": machine() | about, "rows": rows})


def slug(found: Found) -> str:
    """Return the device's name as it stands in the name of a file."""
    return re.sub(r"[^a-z0-9]+", "-", str(found["machine"]["device"]).lower()).strip("-")


def json_rows(rows: list[Row], indent: int) -> str:
    """Return a JSON list with a row a line, which a person can read and compare."""
    space = " " * indent
    return "[\n" + ",\n".join(f"{space}{json.dumps(row)}" for row in rows) + f"\n{space[:-1]}]"


def keep(found: Found, path: Path, text: str) -> Path:
    """Write a result as JSON, its rows and any other lists, and its table beside it; return where the table is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lists = ",\n ".join(f'"{name}": {json_rows(rows, 2)}' for name, rows in found.items() if name != "machine")
    publish(path, f'{{"machine": {json.dumps(found["machine"])},\n {lists}}}\n'.encode())
    publish(path.with_suffix(".md"), text.encode())
    return path.with_suffix(".md")


def grid(heads: Sequence[str], rows: Iterable[Sequence[object]], rule: str = "|---") -> list[str]:
    """Return the lines of a Markdown table; rule begins each column of the line below its head."""
    head = "|".join(f" {text} " if text else " " for text in heads)
    return [f"|{head}|", rule * len(heads) + "|", *("| " + " | ".join(map(str, row)) + " |" for row in rows)]


def page(heading: str, heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a heading and the table below it."""
    return "\n".join([heading, "", *grid(heads, rows)]) + "\n"


def shown(columns: Columns, row: Row) -> list[Any]:
    """Return a row's cells: a column, by its title, is a format or a function of the row."""
    return [column.format(**row) if isinstance(column, str) else column(row) for column in columns.values()]


def table(heading: str, columns: Columns, rows: Iterable[Row]) -> str:
    """Return a heading and the table of rows below it."""
    return page(heading, list(columns), [shown(columns, row) for row in rows])


def fill(text: str, blocks: dict[str, str]) -> str:
    """Return a document with each block between `<!-- NAME -->` and `<!-- end of NAME -->` replaced.

    Raises: ValueError where a name has no such block, or several.
    """
    for name, block in blocks.items():
        new = f"<!-- {name} -->\n\n{block}\n<!-- end of {name} -->"
        pattern = rf"<!-- {re.escape(name)} -->.*<!-- end of {re.escape(name)} -->"
        text, count = re.subn(pattern, lambda _, new=new: new, text, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"there are {count} blocks <!-- {name} -->, expected one")
    return text


def over_seeds(scores: Sequence[float]) -> tuple[str, str]:
    """Return each seed's score, and their mean with the standard deviation."""
    each = np.array(scores)
    spread = f"{each.mean():.1f} ({each.std():.1f})" if len(each) > 1 else "one seed"
    return ", ".join(f"{score:.1f}" for score in each), spread


class Kind(NamedTuple):
    """One measurement of a command: the functions that measure, make the table, and draw a picture, if there is one."""

    measure: Callable[..., Found]
    markdown: Callable[[Found], str]
    picture: Callable[[Found, Path], None] | None = None


def command(module: str, kinds: dict[str, Kind]) -> None:
    """Run `python -m bench.MODULE KIND`: measure, write <device>-KIND.json and .md, and print the table.

    The parameters of the measuring function are the flags; one without a default is positional. If one is `name`, the
    files are KIND-<name>. A command with one kind takes no KIND.
    """
    parser = argparse.ArgumentParser(prog=f"python -m bench.{module}")
    choices = parser.add_subparsers(dest="kind", required=True) if len(kinds) > 1 else None
    for name, kind in kinds.items():
        about = str(inspect.getdoc(kind.measure))
        own = choices.add_parser(name, description=about, help=about.partition("\n")[0]) if choices else parser
        _add_flags(own, kind)
    asked = vars(parser.parse_args())
    name, out = asked.pop("kind", next(iter(kinds))), asked.pop("out")
    found = kinds[name].measure(**asked)
    path = out / (f"{name}-{asked['name']}.json" if "name" in asked else f"{slug(found)}-{name}.json")
    print(keep(found, path, kinds[name].markdown(found)).read_text())
    if draw := kinds[name].picture:
        draw(found, path.with_suffix(".png"))


def _add_flags(parser: argparse.ArgumentParser, kind: Kind) -> None:
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    for flag in inspect.signature(kind.measure).parameters.values():
        if flag.default is not flag.empty:
            parser.add_argument(f"--{flag.name.replace('_', '-')}", type=type(flag.default), default=flag.default)
        else:
            parser.add_argument(flag.name, nargs="+" if str(flag.annotation).startswith("list") else None)


# The paper's Table 9 beside ours, of what `pytest bench/` measured.
STEPS_OF_PAPER = 2_000_000
KINDS = ("kernel", "step", "latency", "data", "eval")
MACHINE = ("device", "processor", "cores", "cuda", "memory_gib", "torch", "triton", "python", "missing", "commit")
# Methods of the timing table: title, settings.
METHODS: dict[str, tuple[str, Row]] = {
    "gtp-k5": ("GTP", {"sampling_steps": 5}),
    "gtp-k2": ("GTP", {"sampling_steps": 2}),
    "gtp-bc": ("GTP-BC", {"bc": True, "eta": 0.0}),
    "dql": ("DQL", {"algo": "dql"}),
    "cac": ("CAC", {"algo": "cac"}),
    "fql-4x512": ("FQL, 4 x 512", {"algo": "fql"}),
    "fql-3x256": ("FQL, 3 x 256", {"algo": "fql", "hidden": 256, "layers": 3}),
    "iql": ("IQL", {"algo": "iql"}),
    "td3bc": ("TD3+BC", {"algo": "td3bc"}),
}
HEADS = (
    *("method", "switch", "K", "batch", "ms / step", "steps / s", "hours for 2M", "paper, hours", "ratio"),
    *("vs own eager", "ms / action", "paper, ms", "ratio", "us / sampling step", "ms / action of 50"),
)


def gathered(benchmarks: Iterable[Row]) -> Found:
    """Return {"machine", "rows"} of pytest-benchmark's dictionaries: the machine's description is kept once."""
    rows, about = [], {}
    for item in benchmarks:
        info, stats = item["extra_info"], item["stats"]
        about = {name: info[name] for name in (*MACHINE, *GPU_FIELDS) if name in info}
        low, high = np.percentile(stats["data"], [20, 80]).tolist()
        times = {"median_s": stats["median"], "p20_s": low, "p80_s": high, "rounds": stats["rounds"]}  # of a round
        own = {name: value for name, value in info.items() if name not in about}
        rows.append({"group": item["group"], "name": item["name"], **times, **own})
    return rounded({"machine": about, "rows": rows})


def whole(found: Found) -> bool:
    """Say whether every kind of group was measured, so that the table is one run's."""
    return {row["group"].split("/")[0] for row in found["rows"]} == set(KINDS)


def write(found: Found, folder: Path) -> Path:
    """Write <folder>/<device>.json and .md; return the latter.

    `make gpu` keeps the plain name of a GPU for its own parts, hence <gpu>-bench.
    """
    name = slug(found) if slug(found) == "cpu" else f"{slug(found)}-bench"
    return keep(found, folder / f"{name}.json", markdown(found))


def cells(found: Found) -> list[list[str]]:
    """Return the table's rows, one for each switch, in the order of the methods."""
    steps = [row for row in found["rows"] if row["group"].startswith("step/")]
    acts = [row for row in found["rows"] if row["group"].startswith("latency/")]
    order = list(METHODS)
    return [_cells(row, steps, acts) for row in sorted(steps, key=lambda row: order.index(row["method"]))]


def _cells(row: Row, steps: list[Row], acts: list[Row]) -> list[str]:
    printed = _printed(row)
    seconds = row["us"] / 1e6 / row["seeds"]  # of one step of one seed
    hours = seconds * STEPS_OF_PAPER / 3600
    plain = [r for r in steps if (r["method"], r["switch"]) == (row["method"], "eager")]
    action, chain = _action(row, acts, 1), "1" if row["algo"] == "fql" else str(row["sampling_steps"])
    fifty = _action(row, acts, 50)
    return [
        *(METHODS[row["method"]][0], row["switch"].replace("+", " + ").replace("8seeds", "8 seeds")),
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


def markdown(found: Found) -> str:
    """Return the timing table below the machine's description, and all other figures below it."""
    m = found["machine"]
    lines = [f"device: {m['device']} ({m['processor']}), torch {m['torch']}, commit {m['commit']}", ""]
    if body := cells(found):
        clock = "CPU time of one thread" if m["device"] == "cpu" else "time of the device, by events"
        note = NOTE.format(clock=clock, setup=paper.tables()["timing_setup"])
        lines += [*grid(HEADS, body, "| --- "), "", note, ""]
    if others := [_other(row) for row in found["rows"] if row["group"].split("/")[0] not in ("step", "latency")]:
        lines += grid(("group", "us", "what", "of the ceiling"), others, "| --- ")
    return "\n".join(lines) + "\n"


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


def read(path: Path) -> Found:
    """Read a file of the bench, or of --benchmark-json."""
    values = json.loads(path.read_text())
    return values if "rows" in values else gathered(values["benchmarks"])


def main() -> None:
    """Print the table of a file."""
    parser = argparse.ArgumentParser(prog="python -m bench.tables", description=__doc__)
    parser.add_argument("file", type=Path)
    print(markdown(read(parser.parse_args().file)))


if __name__ == "__main__":
    main()
