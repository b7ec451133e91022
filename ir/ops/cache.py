"""State: the key and value caches, [slots, heads, rows, width], which only these ops touch.

A cache is linear: a write consumes it and gives the next one. Tokens whose sequence is no slot are padding: they are
not written, and read zeros.
"""

from __future__ import annotations

import numpy as np

from ..graph import REQUIRED, IRError, Op
from ..numerics import attention
from ..quant import dequantize
from ..types import DTYPES, DType, Type, bf16, f16, f32
from . import decompose
from .common import Arrays, Types, expect, is_rank, narrow, vector, widen
from .named import heads, infer_rope

q8_0 = DTYPES["q8_0"]
CACHE_DTYPES = (f32, f16, bf16, q8_0)


def cache_row(rows: int, position: np.ndarray, window: int) -> np.ndarray:
    """The row of a slot that holds a position: itself, or, in a cache with a window, its place in a ring of `rows`.

    A ring as long as the context is the identity. Raises IRError for a position that a cache without a window lacks.
    """
    if not window and position.size and not 0 <= position.min() <= position.max() < rows:
        raise IRError(f"positions {position.min()}..{position.max()} lie outside a cache of {rows} rows")
    return attention.cache_row(position, rows, window)


def _cache(t: Type, what: str) -> None:
    is_rank(t, 4, what)
    expect(t.dtype in CACHE_DTYPES and not t.layout, f"{what} must be f32, f16, bf16 or q8_0, not {t}")


def _store(x: np.ndarray, dtype: DType) -> np.ndarray:
    return attention.quantize_cache(x) if dtype == q8_0 else narrow(x, dtype)


def _values(cache: np.ndarray, t: Type) -> np.ndarray:
    return dequantize(q8_0, cache, (*cache.shape[:3], t.sizes[3])) if t.dtype == q8_0 else widen(cache, t.dtype)


def _infer_cache_write(cache: Type, x: Type, sequence: Type, position: Type, *, window: int) -> Types:
    _cache(cache, "the cache")
    expect(x.dtype == f32 and x.rank == 3 and x.shape[1:] == (cache.shape[1], cache.shape[3]),
           f"x must be f32[T, {cache.shape[1]}, {cache.shape[3]}], not {x}")  # fmt: skip
    vector(sequence, x.shape[0], "sequence")
    vector(position, x.shape[0], "position")
    expect(window >= 0, f"window {window} must not be negative")
    return (cache,)


def _cache_write(types: Types, cache: np.ndarray, x: np.ndarray, sequence: np.ndarray, position: np.ndarray, *,
                 window: int) -> Arrays:  # fmt: skip
    result = cache.copy()
    kept = (sequence >= 0) & (sequence < cache.shape[0])
    rows = cache_row(cache.shape[2], position[kept], window)
    result[sequence[kept], :, rows] = _store(x[kept], types[0].dtype)
    return (result,)


def _infer_rope_cache_write(cache: Type, x: Type, cos: Type, sin: Type, sequence: Type, position: Type, *, style: str,
                            window: int) -> Types:  # fmt: skip
    (turned,) = infer_rope(x, cos, sin, style=style)
    return _infer_cache_write(cache, turned, sequence, position, window=window)


def _rope_cache_write(types: Types, cache: np.ndarray, x: np.ndarray, cos: np.ndarray, sin: np.ndarray,
                      sequence: np.ndarray, position: np.ndarray, *, style: str, window: int) -> Arrays:  # fmt: skip
    turned = attention.rope(x, cos, sin, style)
    return _cache_write(types, cache, turned, sequence, position, window=window)


def _infer_cached_attention(q: Type, k: Type, v: Type, sequence: Type, position: Type, *, scale: float, softcap: float,
                            window: int) -> Types:  # fmt: skip
    is_rank(q, 3, "q")
    expect(q.dtype == f32, f"q must be f32, not {q}")
    _cache(k, "the key cache")
    _cache(v, "the value cache")
    expect(k.shape[:3] == v.shape[:3], f"the caches {k} and {v} differ in slots, heads or rows")
    expect(q.shape[2] == k.shape[3], f"q {q} and the key cache {k} have different head sizes")
    heads(q.shape[1], k.shape[1])
    vector(sequence, q.shape[0], "sequence")
    vector(position, q.shape[0], "position")
    return (Type((*q.shape[:2], v.shape[3]), f32),)


def _cached_attention(types: Types, q: np.ndarray, k: np.ndarray, v: np.ndarray, sequence: np.ndarray,
                      position: np.ndarray, *, scale: float, softcap: float, window: int) -> Arrays:  # fmt: skip
    k, v = _values(k, types[1]), _values(v, types[2])
    live = (sequence >= 0) & (sequence < k.shape[0])
    cache_row(k.shape[2], position[live], window)
    return (attention.cached_attention(q, k, v, sequence, position, scale, softcap, window),)


CACHE = (
    Op("cache_write", _infer_cache_write, _cache_write, attributes=(("window", 0),)),
    Op("rope_cache_write", _infer_rope_cache_write, _rope_cache_write, decompose.rope_cache_write,
       (("style", REQUIRED), ("window", 0))),
    Op("cached_attention", _infer_cached_attention, _cached_attention,
       attributes=(("scale", REQUIRED), ("softcap", 0.0), ("window", 0))),
)  # fmt: skip

# What an op does to each operand that is a state: an op that is not here, and no control op, may not have one.
STATE_USES: dict[str, dict[int, str]] = {
    "cache_write": {0: "write"}, "rope_cache_write": {0: "write"}, "cached_attention": {1: "read", 2: "read"},
}  # fmt: skip
