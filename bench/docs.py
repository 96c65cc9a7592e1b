"""Put the tables of bench/results into docs/performance.md: `python -m bench.docs`; a test holds them equal."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import phases, sizes, table

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "performance.md"
TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "cpu.json": table.markdown,
    "cpu-phases.json": phases.markdown,
    "cpu-sizes.json": sizes.markdown,
}


def filled(text: str) -> str:
    """Return the page with each block between `<!-- FILE -->` and `<!-- end of FILE -->` made anew from its file."""
    for name, markdown in TABLES.items():
        found = json.loads((ROOT / "bench" / "results" / name).read_text())
        block = f"<!-- {name} -->\n\n{markdown(found)}\n<!-- end of {name} -->"
        pattern = rf"<!-- {re.escape(name)} -->.*<!-- end of {re.escape(name)} -->"
        text, count = re.subn(pattern, lambda _, block=block: block, text, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"{PAGE} has {count} blocks <!-- {name} -->, expected one")
    return text


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
