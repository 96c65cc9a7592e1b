"""Put the reports of gtp-fast reproduce into docs/reproduce.md: `python -m bench.reproduce_docs [RUNS]`.

With RUNS the summaries and pictures of its reports are taken over first: bench/results/reproduce-<item>.json is what
the page is made of, docs/images what it shows. A test holds page and results equal.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from gtp_fast.experiments.reproduce.items import NAMES
from gtp_fast.experiments.reproduce.page import body
from gtp_fast.files import publish, publish_json

ROOT = Path(__file__).parent.parent
PAGE, RESULTS, IMAGES = ROOT / "docs" / "reproduce.md", ROOT / "bench" / "results", ROOT / "docs" / "images"
NOT_RUN = "Not run yet."


def take_over(runs: Path) -> list[str]:
    """Copy the summary and pictures of every report below `runs`; return the items that were there."""
    found = []
    for name in NAMES:
        report = runs / name / "report"
        if (report / "summary.json").is_file():
            summary = json.loads((report / "summary.json").read_text())
            publish_json(RESULTS / f"reproduce-{name}.json", summary)
            for picture in summary["pictures"]:
                publish(IMAGES / picture, (report / picture).read_bytes())
            found.append(name)
    return found


def block(name: str) -> str:
    """Return what the page shows of an item: its report, pictures first, or that it has not been run."""
    file = RESULTS / f"reproduce-{name}.json"
    if not file.is_file():
        return NOT_RUN + "\n"
    summary = json.loads(file.read_text())
    pictures = "".join(f"![{summary['title']}](images/{picture})\n\n" for picture in summary["pictures"])
    return pictures + body(summary)


def filled(text: str) -> str:
    """Return the page with each block between `<!-- ITEM -->` and `<!-- end of ITEM -->` made anew."""
    for name in NAMES:
        new = f"<!-- {name} -->\n\n{block(name)}\n<!-- end of {name} -->"
        pattern = rf"<!-- {name} -->.*<!-- end of {name} -->"
        text, count = re.subn(pattern, lambda _, new=new: new, text, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"{PAGE} has {count} blocks <!-- {name} -->, expected one")
    return text


def main() -> None:
    """Take over reports where a folder is named, and fill the page."""
    parser = argparse.ArgumentParser(prog="python -m bench.reproduce_docs", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="?", help="as gtp-fast reproduce --runs: runs/reproduce")
    runs = parser.parse_args().runs
    if runs is not None:
        print(f"taken over: {', '.join(take_over(runs)) or 'nothing, for there is no report'}")
    PAGE.write_text(filled(PAGE.read_text()))


if __name__ == "__main__":
    main()
