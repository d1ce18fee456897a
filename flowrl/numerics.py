"""The version of the package's arithmetic: runs of equal recipes, weights and seeds are one run where it is equal."""

from __future__ import annotations

NUMERICS = 1
"""Raise by one where a pinned run changes its numbers (tests/test_numerics.py): ``flowrl bench`` then repeats runs that
were made before, in place of mixing the two."""
