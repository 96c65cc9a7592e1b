"""Where things lie: the checkout, what the tests share, and the data that stand beside some checkouts."""

from __future__ import annotations

from pathlib import Path

SUPPORT = Path(__file__).parent
TESTS = SUPPORT.parent
ROOT = TESTS.parent
SHARED = ROOT.parent / "shared" / "data"
