"""How far two arrays of the same meaning are apart, and what that means for the next token."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ...runtime.perplexity import log_softmax

# Buckets of the histogram of distances in units in the last place, by their greatest: 0, 1, 2–3, 4–15, 16–255, …
ULPS = {"0": 0, "1": 1, "2-3": 3, "4-15": 15, "16-255": 255, "256-65535": 65535, "more": 1 << 33}


@dataclass(frozen=True)
class Difference:
    """`b` against `a`, elementwise: the greatest absolute difference, the greatest relative one (of |a|, where that is
    not below a millionth of a's greatest), the difference's norm over a's, and elements by distance in f32 ulps.
    Elements that are NaN in both are equal; in one alone they count as infinitely far."""

    equal: bool
    max_abs: float
    max_rel: float
    norm_rel: float
    ulps: dict[str, int]

    def data(self) -> dict[str, Any]:
        return asdict(self)


def difference(a: np.ndarray, b: np.ndarray) -> Difference:
    """Compares f32 arrays, or any others as numbers, of one shape."""
    same_bits = a.dtype == b.dtype and a.tobytes() == b.tobytes()
    counts = dict.fromkeys(ULPS, 0)
    if same_bits or a.size == 0:
        return Difference(True, 0.0, 0.0, 0.0, counts | {"0": int(a.size)})
    distance = ulp_distance(a, b)
    low = -1
    for name, high in ULPS.items():
        counts[name] = int(np.count_nonzero((distance > low) & (distance <= high)))
        low = high
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.where(same, 0.0, np.abs(x - y))
    apart[np.isnan(apart)] = np.inf
    size = np.absolute(np.nan_to_num(x, posinf=0.0, neginf=0.0))
    least = max(float(size.max()) * 1e-6, float(np.finfo(np.float32).tiny))
    return Difference(
        bool(counts["0"] == a.size), float(apart.max()), float((apart / np.maximum(size, least)).max()),
        float(np.linalg.norm(apart) / max(float(np.linalg.norm(size)), 1e-300)), counts,
    )  # fmt: skip


def ulp_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How many f32 values lie between each pair, i64[n]: 0 for equal bits and NaN with NaN, and +0 beside -0 is 1."""

    def ordered(x: np.ndarray) -> np.ndarray:
        bits = np.ascontiguousarray(x, np.float32).ravel().view(np.int32).astype(np.int64)
        return np.asarray(np.where(bits < 0, -(bits & 0x7FFFFFFF) - 1, bits))

    x, y = np.asarray(a, np.float32).ravel(), np.asarray(b, np.float32).ravel()
    distance = np.absolute(ordered(x) - ordered(y))
    nans = np.isnan(x).astype(int) + np.isnan(y)
    return np.asarray(np.where(nans == 2, 0, np.where(nans == 1, ULPS["more"], distance)))


@dataclass(frozen=True)
class Agreement:
    """Of next-token distributions: KL(a ‖ b) in nats, its mean, 99th percentile and greatest, and how often both find
    the same token likeliest, over `positions`."""

    positions: int
    kl_mean: float
    kl_99: float
    kl_max: float
    top_1: float

    def data(self) -> dict[str, Any]:
        return asdict(self)


def agreement(a: np.ndarray, b: np.ndarray) -> Agreement:
    """Compares logits f32[positions, vocabulary]."""
    kl, same = [], 0
    for x, y in zip(a, b, strict=True):
        p, q = log_softmax(x), log_softmax(y)
        kl.append(max(divergence(p, q), 0.0))
        same += int(x.argmax() == y.argmax())
    values = np.array(kl)
    return Agreement(len(kl), float(values.mean()), float(np.quantile(values, 0.99)), float(values.max()),
                     same / len(kl))  # fmt: skip


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    """KL(p ‖ q) in nats of two distributions given as logarithms f64[V]: the sum of exp(p) (p - q)."""
    return float(np.dot(np.exp(p), p - q))


def statistics_of(x: np.ndarray) -> dict[str, Any]:
    """What a value looks like: its shape and dtype, and of numbers the least, greatest, mean, deviation and counts of
    zeros and of what is not finite."""
    facts: dict[str, Any] = {"shape": list(x.shape), "dtype": x.dtype.name}
    if x.dtype == np.uint8 or x.size == 0:  # packed weights, blocks and int8 activations are no numbers
        return facts
    numbers = x.astype(np.float64)
    finite = numbers[np.isfinite(numbers)]
    if finite.size:
        facts |= {"min": float(finite.min()), "max": float(finite.max()), "mean": float(finite.mean()),
                  "std": float(finite.std())}  # fmt: skip
    return facts | {"zeros": int(np.count_nonzero(numbers == 0)), "not_finite": int(x.size - finite.size)}
