"""What a model runs on: the interface that every backend's engine has, and the choice between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from . import session
from .artifact import Artifact


class Session(Protocol):
    """The cache of one sequence."""

    @property
    def position(self) -> int: ...

    def rewind(self, position: int) -> int:
        """Forgets what was evaluated from `position` on; the new position, 0 where that one cannot be had."""
        ...

    def eval(self, ids: Sequence[int], rows: int = 1) -> np.ndarray:
        """Evaluates at most a chunk of ids; the logits f32[rows, V] of the last `rows`, or their embeddings."""
        ...

    def greedy(self, id: int, count: int, ends: Sequence[int]) -> list[int]:
        """Evaluates `id` and makes the likeliest ids after it, at most `count`; none where the host is to do it."""
        ...


class Engine(Protocol):
    """An opened model. Not for two threads at once."""

    vocab_size: int
    output: str  # what an evaluation gives of a wanted token: "logits" or "embeddings"
    output_width: int  # floats of that
    context: int
    chunk: int
    threads: int
    target: str

    @property
    def building_seconds(self) -> float:
        """Seconds spent making programs for this machine since the model was opened."""
        ...

    def session(self) -> Session: ...
    def close(self) -> None: ...


def open_engine(artifact: Artifact, threads: int | None = None, target: str | None = None) -> Engine:
    """The engine of the artifact's backend. Raises InfercError where it cannot run here."""
    if artifact.manifest["backend"] == "xla":
        from . import xla_engine  # here: it imports jax

        return xla_engine.Engine(artifact, threads, target)
    return session.Engine(artifact, threads, target)
