"""Block sizes of kernels: data that changes speed and no bit. Each target has a default; `inferc tune` writes others.

A tuning file is JSON, {"format": "inferc tuning", "version": 1, "targets": {NAME: TUNING}}, where a TUNING has the
fields of `Tuning` that differ from the target's default. What else it says (how it was measured) is for people.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from ...errors import InfercError
from ...ir.target import Target

FORMAT, VERSION = "inferc tuning", 1


@dataclass(frozen=True)
class Tile:
    """The micro-kernel's shape: `panels` (1 or 2) by each of `tokens`, ascending from 1."""

    panels: int
    tokens: tuple[int, ...]  # one number: any number up to it, as a variable

    def plan(self) -> list[int]:
        """The next tile for each number of tokens left below twice the largest. A tile of t tokens costs about
        t + 4 / t: a thin one waits on latency and loads as many weights as a full one."""
        best, first = [0.0], [0]
        for left in range(1, 2 * self.tokens[-1]):
            cost, tile = min((best[left - t] + t + 4 / t, -t) for t in self.tokens if t <= left)
            best.append(cost)
            first.append(-tile)
        return first


@dataclass(frozen=True)
class Tuning:
    """`block` and `dense` are the tiles of products with block formats and with dense ones: what fits the registers.

    `streams` is the panels (1, 2 or 4) that one token meets side by side: CPUs differ in how many streams of memory
    they foresee. `kblock` is the values of k that are unpacked at a time, `ahead` the bytes between what one token's
    product reads and what it fetches, `chunk` the bytes of weights that a worker claims at a time.
    """

    block: Tile
    dense: Tile
    streams: int = 1
    kblock: int = 256
    ahead: int = 2048
    chunk: int = 1 << 18


_AVX2 = Tuning(Tile(1, (1, 2, 4)), Tile(2, (1, 2, 3)))
_AVX512 = Tuning(Tile(2, (1, 2, 3, 4, 6)), Tile(2, (1, 2, 3, 4, 6)), ahead=4096)
_WASM = Tuning(Tile(1, (1, 2, 4)), Tile(1, (1, 2)))

DEFAULTS: Mapping[str, Tuning] = {
    "generic": Tuning(Tile(1, (4,)), Tile(1, (4,))),
    "avx2": _AVX2,
    "avxvnni": _AVX2,
    "avx512vnni": _AVX512,
    "avx512bf16": _AVX512,
    "amx": replace(_AVX512, streams=4, ahead=2048),
    "neon": Tuning(Tile(1, (1, 2, 3)), Tile(1, (1, 2, 4, 6))),
    "neon_i8mm": Tuning(Tile(1, (1, 2, 4)), Tile(1, (1, 2, 4, 6))),
    "wasm128": _WASM,
    "wasm128relaxed": _WASM,
}


# Panels of a block tile where the target's recipe leaves no choice.
PANELS: Mapping[str, int] = {"amx": 2, "neon_i8mm": 1}


def tuning_of(target: Target) -> Tuning:
    """The block sizes that a lowering for `target` uses."""
    assert isinstance(target.tuning, Tuning)
    return target.tuning


def as_data(tuning: Tuning) -> dict[str, Any]:
    """A tuning as JSON holds it."""
    data = asdict(tuning)
    return data | {name: value | {"tokens": list(value["tokens"])} for name, value in data.items() if name in _TILES}


def digest(tunings: Mapping[str, Tuning]) -> str:
    """SHA-256, in hex, of the tunings of some targets."""
    text = json.dumps({name: as_data(t) for name, t in tunings.items()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write(path: Path, tunings: Mapping[str, Tuning], **facts: Any) -> None:
    """Writes a tuning file; `facts` are for people. Raises InfercError where it cannot."""
    data = {"format": FORMAT, "version": VERSION, **facts, "targets": {n: as_data(t) for n, t in tunings.items()}}
    try:
        path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise InfercError(f"cannot write {path}: {error.strerror}") from error


def read(path: Path) -> dict[str, Tuning]:
    """The tunings of a file, by target. Raises InfercError, naming the file and the field, for anything unusable."""
    try:
        data = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InfercError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InfercError(f"{path} is no JSON: write it anew with `inferc tune`") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT or data.get("version") != VERSION:
        raise InfercError(f"{path} is no tuning of version {VERSION}: write it anew with `inferc tune`")
    targets = data.get("targets")
    if not isinstance(targets, dict) or not all(isinstance(given, dict) for given in targets.values()):
        raise InfercError(f"{path} has no usable 'targets': write it anew with `inferc tune`")
    return {name: from_data(path, name, given) for name, given in targets.items()}


def from_data(path: Path, name: str, given: Mapping[str, Any]) -> Tuning:
    """A target's tuning as `as_data` gives it, read from `path`. Raises InfercError, naming the field."""
    if name not in DEFAULTS:
        raise InfercError(f"{path}: there is no target {name!r}; the targets are {', '.join(DEFAULTS)}")
    if unknown := sorted(given.keys() - {f.name for f in fields(Tuning)}):
        raise InfercError(f"{path}: {name} has no block size {unknown[0]!r}; write it anew with `inferc tune`")
    changes: dict[str, Any] = {}
    for key, value in given.items():
        fits, what = _RANGES[key]
        if not fits(value):
            raise InfercError(f"{path}: {key} of {name} must be {what}, not {value!r}")
        changes[key] = Tile(value["panels"], tuple(value["tokens"])) if key in _TILES else value
    tuning = replace(DEFAULTS[name], **changes)
    if not _is_possible(name, tuning):
        raise InfercError(f"{path}: block of {name} must have {PANELS[name]} panels, not {tuning.block.panels}")
    return tuning


def _is_possible(name: str, tuning: Tuning) -> bool:
    return tuning.block.panels == PANELS.get(name, tuning.block.panels)


def _is_tile(value: Any) -> bool:
    match value:
        case {"panels": 1 | 2, "tokens": [*tokens]} if len(value) == 2:
            counts = all(type(t) is int and 1 <= t <= 16 for t in tokens)
            return counts and (len(tokens) == 1 or (tokens[:1] == [1] and tokens == sorted(set(tokens))))
    return False


def _multiple(step: int, low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value <= high and value % step == 0


_TILES = ("block", "dense")
_TILE = _is_tile, "panels, 1 or 2, and tokens, ascending from 1 to at most 16"
_RANGES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "block": _TILE, "dense": _TILE,
    "streams": (lambda value: type(value) is int and value in (1, 2, 4), "1, 2 or 4"),
    "kblock": (_multiple(256, 256, 4096), "a multiple of 256 up to 4096"),
    "ahead": (_multiple(64, 0, 1 << 16), "a multiple of 64 up to 65536"),
    "chunk": (_multiple(64, 1 << 10, 1 << 26), "a multiple of 64 from 1024 to 67108864"),
}  # fmt: skip


def candidates(target: str, tuning: Tuning, size: str) -> list[Tuning]:
    """What `inferc tune` tries for one block size of a target, the others being as given."""
    found = (replace(tuning, **{size: value}) for value in SPACE[size])
    return [t for t in found if t != tuning and _is_possible(target, t)]


def _tile(panels: int, most: int) -> Tile:
    return Tile(panels, tuple(t for t in (1, 2, 3, 4, 6, 8) if t <= most))


_SHAPES = (*(_tile(1, most) for most in (3, 4, 6, 8)), *(_tile(2, most) for most in (2, 3, 4, 6, 8)))

# What `inferc tune` measures, in this order.
SPACE: Mapping[str, tuple[Any, ...]] = {
    "block": _SHAPES, "dense": _SHAPES, "streams": (1, 2, 4), "kblock": (256, 512, 1024),
    "chunk": tuple(1 << n for n in range(15, 20)), "ahead": (0, 1024, 2048, 4096, 8192),
}  # fmt: skip
