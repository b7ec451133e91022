"""Choosing the next token, in llama.cpp's order: repetition penalty, top-k, top-p, min-p, temperature, draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from ..errors import InfercError


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. The defaults are greedy; with a temperature alone, the model's own distribution.

    temperature: the logits are divided by it; 0 takes the likeliest token.
    top_k: only the K likeliest tokens; 0: all.
    top_p: only the likeliest tokens whose probabilities first sum to P or more, never none.
    min_p: only tokens at least P times as likely as the likeliest.
    repetition_penalty: logits of the last `repetition_window` tokens are divided by it where positive, else multiplied.
    seed: the same seed gives the same draws; None takes a new one.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    repetition_window: int = 64
    seed: int | None = None

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0 and self.repetition_penalty == 1

    def __post_init__(self) -> None:
        bounds = (
            ("temperature", 0 <= self.temperature < inf, "0 or more"),
            ("top_k", self.top_k >= 0, "0 (all) or more"),
            ("top_p", 0 <= self.top_p <= 1, "between 0 and 1"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
            ("repetition_window", self.repetition_window >= 0, "0 or more"),
            ("seed", self.seed is None or self.seed >= 0, "0 or more"),
        )
        for name, holds, rule in bounds:
            if not holds:
                raise InfercError(f"{name} must be {rule}, not {getattr(self, name)}")


class Sampler:
    """Draws tokens by one `Sampling`; holds the random state."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._random = np.random.Generator(np.random.PCG64(sampling.seed))

    def __call__(self, logits: np.ndarray, previous: Sequence[int] = ()) -> int:
        """The next token: logits f32[V] (left as they are), the ids so far. Raises InfercError for NaN or only -inf."""
        how = self.sampling
        logits = logits.astype(np.float64)
        if how.repetition_penalty != 1 and how.repetition_window:
            seen = np.unique(np.asarray(previous[-how.repetition_window :], np.int64))
            seen = seen[seen < len(logits)]
            at = logits[seen]
            logits[seen] = np.where(at > 0, at / how.repetition_penalty, at * how.repetition_penalty)
        best = int(np.argmax(logits))  # NaN counts as the greatest
        if not np.isfinite(logits[best]):
            raise InfercError(f"the model gave the logit {logits[best]}: its weights are damaged; compile it again")
        if how.temperature == 0:
            return best
        ids = _likeliest(logits, how.top_k)
        kept = logits[ids]
        if how.top_p < 1:
            before = np.cumsum(_softmax(kept)) - _softmax(kept)
            kept = kept[: max(1, int(np.count_nonzero(before < how.top_p)))]
        if how.min_p > 0:
            kept = kept[kept >= kept[0] + np.log(how.min_p)]
        with np.errstate(over="ignore"):  # a tiny temperature leaves only the likeliest
            cumulative = np.cumsum(_softmax((kept - kept[0]) / how.temperature))
        draw = self._random.random() * cumulative[-1]
        return int(ids[min(np.searchsorted(cumulative, draw, side="right"), len(kept) - 1)])


def _likeliest(logits: np.ndarray, count: int) -> np.ndarray:
    """Ids i64 of the `count` greatest logits (0: all), greatest first, equal ones by id."""
    if 0 < count < len(logits):
        least = np.partition(logits, -count)[-count]
        candidates = np.flatnonzero(logits >= least)
    else:
        count, candidates = len(logits), np.arange(len(logits))
    return candidates[np.argsort(-logits[candidates], kind="stable")[:count]]


def _softmax(logits: np.ndarray) -> np.ndarray:
    """f64[N] of f64[N] whose first element is the greatest."""
    weights = np.exp(logits - logits[0])
    return weights / weights.sum()
