"""Choosing the next token, in llama.cpp's order: repetition penalty, top-k, top-p, min-p, temperature, draw."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from math import factorial, inf

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
            ("seed", self.seed is None or 0 <= self.seed < 1 << 64, "0 to 2^64 - 1"),
        )
        for name, holds, rule in bounds:
            if not holds:
                raise InfercError(f"{name} must be {rule}, not {getattr(self, name)}")


class Sampler:
    """Draws tokens by one `Sampling`; counts its draws.

    `model_sample` of the C interface does the same in the same order and gives the same ids: all is computed in
    doubles, sums are made one term after another, and e^x is `exp` below (docs/text.md).
    """

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._seed = secrets.randbits(64) if sampling.seed is None else sampling.seed
        self._draws = 0

    def __call__(self, logits: np.ndarray, previous: Sequence[int] = ()) -> int:
        """The next token: logits f32[V] (left as they are), the ids so far. Raises InfercError for NaN or only -inf."""
        how = self.sampling
        logits = self._penalised(logits.astype(np.float32), previous)
        best = int(np.argmax(logits))  # NaN counts as the greatest
        if not np.isfinite(logits[best]):
            raise InfercError(f"the model gave the logit {logits[best]}: its weights are damaged; compile it again")
        if how.temperature == 0:
            return best
        ids = np.arange(len(logits))
        distances = logits.astype(np.float64) - np.float64(logits[best])
        if 0 < how.top_k < len(ids):
            ids = _likeliest(logits, how.top_k)
        if how.top_p < 1:
            total = np.cumsum(exp(distances[ids]))[-1]
            ids = ids[np.argsort(-distances[ids], kind="stable")]
            weights = exp(distances[ids])
            before = np.concatenate([[0.0], np.cumsum(weights)[:-1]])
            ids = ids[: max(1, int(np.count_nonzero(before < how.top_p * total)))]
        with np.errstate(over="ignore"):  # a tiny temperature leaves only the likeliest
            weights = exp(distances[ids] / how.temperature)
        if how.min_p > 0:
            weights[exp(distances[ids]) < how.min_p] = 0
        cumulative = np.cumsum(weights)
        draw = random(self._seed, self._draws) * cumulative[-1]
        self._draws += 1
        chosen = min(int(np.searchsorted(cumulative, draw, side="right")), int(np.flatnonzero(weights)[-1]))
        return int(ids[chosen])

    def _penalised(self, logits: np.ndarray, previous: Sequence[int]) -> np.ndarray:
        how = self.sampling
        if how.repetition_penalty == 1 or not how.repetition_window:
            return logits
        seen = np.unique(np.asarray(previous[-how.repetition_window :], np.int64))
        seen = seen[(seen >= 0) & (seen < len(logits))]
        at = logits[seen].astype(np.float64)
        logits = logits.copy()
        logits[seen] = np.where(at > 0, at / how.repetition_penalty, at * how.repetition_penalty)
        return logits


def _likeliest(logits: np.ndarray, count: int) -> np.ndarray:
    """Ids i64 of the `count` greatest logits, greatest first, equal ones by id."""
    least = np.partition(logits, -count)[-count]
    candidates = np.flatnonzero(logits >= least)
    return candidates[np.argsort(-logits[candidates], kind="stable")[:count]]


def exp(x: np.ndarray) -> np.ndarray:
    """e^x of f64[N], none above 0: x = n ln 2 + r, and the series of e^r; 0 below -708. As in runtime/c/sampler.h."""
    small = x >= -708
    x = np.where(small, x, 0.0)
    n = (x * _LOG2_E + _MAGIC) - _MAGIC
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    total = np.full_like(x, _SERIES[0])
    for term in _SERIES[1:]:
        total = total * r + term
    powers = ((n.astype(np.int64) + 1023) << 52).view(np.float64)
    return np.where(small, total * powers, 0.0)


_LN2_HIGH, _LN2_LOW = float.fromhex("0x1.62e42fee00000p-1"), float.fromhex("0x1.a39ef35793c76p-33")
_LOG2_E, _MAGIC = float.fromhex("0x1.71547652b82fep0"), float.fromhex("0x1.8p52")  # the latter rounds to an integer
_SERIES = tuple(1.0 / factorial(k) for k in range(12, -1, -1))


def random(seed: int, count: int) -> float:
    """The number of [0, 1) that a seed gives at its draw `count`: SplitMix64."""
    mask = (1 << 64) - 1
    z = (seed + (count + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & mask
    return float((z ^ z >> 31) >> 11) * 2.0**-53
