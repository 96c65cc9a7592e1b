"""Put the tables of bench/results into the documents: `python -m bench.docs`; a test holds them equal."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import beside, evaluation, loading, minari_sets, phases, returns, saves, sizes, sweep, table
from bench.gpu import tables

ROOT = Path(__file__).parent.parent
Tables = dict[str, Callable[[dict[str, Any]], str]]
PAGES: dict[str, Tables] = {
    "docs/performance.md": {
        "cpu.json": table.markdown,
        "cpu-beside.json": beside.markdown,
        "cpu-phases.json": phases.markdown,
        "cpu-sizes.json": sizes.markdown,
        "cpu-evaluation.json": evaluation.markdown,
        "cpu-loading.json": loading.markdown,
        "cpu-minari.json": minari_sets.markdown,
        "cpu-sweep.json": sweep.markdown,
        "nvidia-h200.json": tables.section,
    },
    "docs/reliability.md": {"cpu-saves.json": saves.markdown},
    "docs/results.md": {
        "returns-halfcheetah.json": returns.markdown,
        "returns-presets.json": returns.markdown,
        "returns-hopper.json": returns.markdown,
    },
}


def filled(page: str, text: str) -> str:
    """Return the page with each block between `<!-- FILE -->` and `<!-- end of FILE -->` made anew from its file."""
    for name, markdown in PAGES[page].items():
        found = json.loads((ROOT / "bench" / "results" / name).read_text())
        block = f"<!-- {name} -->\n\n{markdown(found)}\n<!-- end of {name} -->"
        pattern = rf"<!-- {re.escape(name)} -->.*<!-- end of {re.escape(name)} -->"
        text, count = re.subn(pattern, lambda _, block=block: block, text, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"{page} has {count} blocks <!-- {name} -->, expected one")
    return text


if __name__ == "__main__":
    for page in PAGES:
        path = ROOT / page
        path.write_text(filled(page, path.read_text()))
