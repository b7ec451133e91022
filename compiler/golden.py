"""Golden logits: what a model answered when it was compiled, for `inferc inspect --verify` to ask again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.session import Compiled, Engine

LENGTHS = (1, 7, 33)  # tokens of the prompts
SHOWN = 8  # logits of a prompt's last token that stand in the manifest, beside the hash of all
MADE = 8  # likeliest tokens that follow the second prompt


@dataclass(frozen=True)
class Parts:
    """A library and its weights as `Engine` takes them: u8[bytes] each, none of weights that are inside of the library.
    `path` names both in errors."""

    path: Path
    manifest: dict[str, Any]
    parts: dict[str, np.ndarray]

    def view(self, name: str) -> np.ndarray:
        return self.parts[name]


def parts(path: Path, manifest: Mapping[str, Any], library: np.ndarray, weights: np.ndarray | None) -> Parts:
    """What an `Engine` opens, of a manifest's facts."""
    named = {**manifest, "library": "library", "weights": {"file": "weights"}, "tokenizer": None}
    return Parts(path, named, {"library": library, "weights": np.empty(0, np.uint8) if weights is None else weights})


def mapped(path: Path) -> np.ndarray:
    """A file's bytes, u8, read when they are looked at."""
    return np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)


def ask(model: Compiled) -> list[dict[str, Any]]:
    """What the model answers to prompts of pseudo-random ids: for each "ids", the "sha256" of the logits f32[ids, V] of
    all its tokens in memory's order, the first few "logits" of its last token, and for one the likeliest ids that
    follow ("next"). Embeddings, where it gives them, stand in the place of logits, and nothing follows. Raises
    InfercError where the model cannot be opened."""
    engine = Engine(model)
    try:
        found = []
        for number, length in enumerate(n for n in LENGTHS if n + MADE <= engine.context):
            ids = _ids(number, length, engine.vocab_size)
            session, digest = engine.session(), hashlib.sha256()
            for i in range(0, length, engine.chunk):
                part = ids[i : i + engine.chunk]
                rows = session.eval(part, len(part))
                digest.update(rows.data)
            entry = {"ids": ids, "sha256": digest.hexdigest(), engine.output: [float(x) for x in rows[-1, :SHOWN]]}
            if number == 1 and engine.output == "logits":
                entry["next"] = made = [int(rows[-1].argmax())]
                while len(made) < MADE:
                    made.append(int(session.eval(made[-1:])[0].argmax()))
            found.append(entry)
        return found
    finally:
        engine.close()


def _ids(seed: int, count: int, vocabulary: int) -> list[int]:
    """A linear congruential generator's ids."""
    state, ids = seed + 1, []
    for _ in range(count):
        state = (state * 1664525 + 1013904223) % (1 << 32)
        ids.append((state >> 8) % vocabulary)
    return ids
