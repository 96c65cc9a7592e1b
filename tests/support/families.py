"""Families of tests: `make test` takes a few members of each, so that it ends in minutes; `make slow` the others."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def family(members: Iterable[Any], quick: Collection[Any]) -> list[Any]:
    """Return the members for `pytest.mark.parametrize`; those that are not in `quick` are marked `long`."""
    found = list(members)
    missing = [one for one in quick if one not in found]
    assert not missing, f"not members of the family: {missing}"
    return [one if one in quick else pytest.param(one, marks=pytest.mark.long) for one in found]
