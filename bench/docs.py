"""Put the tables of bench/results into the documents: `python -m bench.docs [RUNS]`; a test checks that they are equal.

With RUNS, the folder of `gtp-fast reproduce --runs`, the summaries and pictures of its reports are copied first:
bench/results/reproduce-<item>.json is what docs/reproduce.md is made of, docs/images what it shows.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import data, evaluation, pipeline, runs, steps, tables
from bench.gpu.tables import section
from gtp_fast.experiments.reproduce.items import NAMES
from gtp_fast.experiments.reproduce.page import body
from gtp_fast.files import publish, publish_json

RESULTS, IMAGES = tables.RESULTS, tables.ROOT / "docs" / "images"


def report(summary: dict[str, Any]) -> str:
    """Return what docs/reproduce.md shows of an item: its report, pictures first."""
    pictures = "".join(f"![{summary['title']}](images/{picture})\n\n" for picture in summary["pictures"])
    return pictures + body(summary)


# page -> the name of a block -> what makes it of its file
PAGES: dict[str, dict[str, Callable[[dict[str, Any]], str]]] = {
    "docs/performance.md": {
        "cpu.json": tables.markdown,
        "cpu-beside.json": runs.beside_table,
        "cpu-phases.json": steps.phases_table,
        "cpu-sizes.json": steps.sizes_table,
        "cpu-evaluation.json": evaluation.markdown,
        "cpu-loading.json": data.loading_table,
        "cpu-minari.json": data.minari_table,
        "cpu-sweep.json": runs.sweep_table,
        "nvidia-h200.json": section,
        "pipeline.json": pipeline.markdown,
    },
    "kernels/README.md": {"pipeline.json": pipeline.waits_picture},
    "docs/reliability.md": {"cpu-saves.json": data.saves_table},
    "docs/results.md": {f"returns-{name}.json": runs.returns_table for name in ("halfcheetah", "presets", "hopper")},
    "docs/reproduce.md": dict.fromkeys(NAMES, report),
}


def filled(page: str, text: str) -> str:
    """Return a page with each of its blocks made again from its file; without a report it says so."""
    return tables.fill(text, {name: _block(name, markdown) for name, markdown in PAGES[page].items()})


def _block(name: str, markdown: Callable[[dict[str, Any]], str]) -> str:
    path = RESULTS / (name if name.endswith(".json") else f"reproduce-{name}.json")
    if markdown is report and not path.is_file():
        return "Not run yet.\n"
    return markdown(json.loads(path.read_text()))


def take_over(folder: Path) -> list[str]:
    """Copy the summary and pictures of every report below a folder of runs; return the items that were there."""
    found = []
    for name in NAMES:
        own = folder / name / "report"
        if (own / "summary.json").is_file():
            summary = json.loads((own / "summary.json").read_text())
            publish_json(RESULTS / f"reproduce-{name}.json", summary)
            for picture in summary["pictures"]:
                publish(IMAGES / picture, (own / picture).read_bytes())
            found.append(name)
    return found


def main() -> None:
    """Copy the reports of a folder, if one is named, and fill every page."""
    parser = argparse.ArgumentParser(prog="python -m bench.docs", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="?", help="as gtp-fast reproduce --runs: runs/reproduce")
    if folder := parser.parse_args().runs:
        print(f"taken over: {', '.join(take_over(folder)) or 'nothing, for there is no report'}")
    for page in PAGES:
        path = tables.ROOT / page
        path.write_text(filled(page, path.read_text()))


if __name__ == "__main__":
    main()
