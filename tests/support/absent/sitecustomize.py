"""With this folder on PYTHONPATH, the packages that GTP_FAST_ABSENT names are not there: for this process and its own.

What looks for modules on sys.path does not find them: an import fails, and find_spec returns None, as where nothing is
installed.
"""

from __future__ import annotations

import importlib.machinery
import os
import sys

ABSENT = frozenset(os.environ["GTP_FAST_ABSENT"].split())


class Installed(importlib.machinery.PathFinder):
    """The usual finder, of what is left."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        """Find a module, unless its package is absent."""
        return None if fullname.partition(".")[0] in ABSENT else super().find_spec(fullname, path, target)


sys.meta_path[:] = [Installed if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path]
