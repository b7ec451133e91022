"""Sets of characters, and the Unicode data that tokenizers use (`unicode.json`)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

LIMIT = 0x110000
CharSet = np.ndarray  # bool[LIMIT]


@cache
def data() -> dict[str, Any]:
    """`unicode.json`; `unicode_data.data` says what it holds."""
    return json.loads(Path(__file__).with_name("unicode.json").read_text())


def from_runs(edges: Iterable[int]) -> CharSet:
    """The set of code points from each first to before its end: first, end, first, end, …"""
    ends = iter(edges)
    found = np.zeros(LIMIT, bool)
    for first, end in zip(ends, ends):
        found[first:end] = True
    return found


def chars(text: Iterable[str]) -> CharSet:
    found = np.zeros(LIMIT, bool)
    found[[ord(c) for c in text]] = True
    return found


@cache
def prop(name: str) -> CharSet:
    """The characters of a general category (L, Lu, …) or a script. Raises KeyError for one that is not in the data."""
    classes = data()["regex"]
    names = [name] if name in classes else [n for n in classes if len(name) == 1 and n != "s" and n[0] == name]
    if not names:
        raise KeyError(name)
    return np.logical_or.reduce([from_runs(classes[n]) for n in names])


@cache
def space() -> CharSet:
    return from_runs(data()["regex"]["s"])


def mapped(name: str) -> dict[str, str]:
    """The map `name` of the data, {character: what it becomes}."""
    value = data()[name]
    if isinstance(value, dict):
        return value
    return {chr(c): text for text, edges in value for c in np.flatnonzero(from_runs(edges))}
