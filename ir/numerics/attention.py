"""Softmax, norms, rotary embedding and attention, as bits: in f32, products and sums rounded separately but where fused
steps are named."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import elementary as el
from .elementary import F32, quiet
from .linear import exp_fused, fma
from .reductions import max16, sum16

BLOCK = 256  # keys per partial result of attention
SMALLEST = np.float32(1e-30)  # a group of a quantised cache whose greatest magnitude is no greater is zeros


@quiet
def softmax(x: NDArray, axis: int = -1) -> F32:
    """e = exp(x - max16(x)); e / sum16(e), along `axis`."""
    x = np.moveaxis(np.asarray(x, np.float32), axis, -1)
    e = el.exp(x - max16(x)[..., None])
    return np.moveaxis(e / sum16(e)[..., None], -1, axis)


@quiet
def rms_norm(x: NDArray, weight: NDArray, eps: float) -> F32:
    """x[..., K], weight[K] -> f32[..., K]: r = 1 / sqrt(sum16(x*x)/K + eps); y = (x*r)*weight."""
    x = np.asarray(x, np.float32)
    r = el.rsqrt(sum16(x * x) / np.float32(x.shape[-1]) + np.float32(eps))
    return (x * r[..., None]) * np.asarray(weight, np.float32)


@quiet
def layer_norm(x: NDArray, weight: NDArray, bias: NDArray, eps: float) -> F32:
    """x[..., K]: c = x - sum16(x)/K; r = 1 / sqrt(sum16(c*c)/K + eps); y = ((c*r)*weight) + bias."""
    x = np.asarray(x, np.float32)
    k = np.float32(x.shape[-1])
    mean: F32 = np.divide(sum16(x), k)
    c = x - mean[..., None]
    r = el.rsqrt(sum16(c * c) / k + np.float32(eps))
    return (c * r[..., None]) * np.asarray(weight, np.float32) + np.asarray(bias, np.float32)


@quiet
def rope_angles(position: NDArray, inv_freq: NDArray, scale: float = 1.0) -> tuple[F32, F32]:
    """position i32[T], inv_freq f32[D/2] -> cos, sin f32[T, D/2]: angle = f32(position)*inv_freq; cos(angle)*scale."""
    angle = np.asarray(position).astype(np.float32)[:, None] * np.asarray(inv_freq, np.float32)[None, :]
    return el.cos(angle) * np.float32(scale), el.sin(angle) * np.float32(scale)


@quiet
def rope(x: NDArray, cos: NDArray, sin: NDArray, style: str = "neox") -> F32:
    """x[T, H, D], cos and sin [T, n] with 2n <= D: rotates pairs of the first 2n values, the rest passes.

    Pair i is (i, i + n) in style "neox" and (2i, 2i + 1) in "interleaved":
    a' = a*cos - b*sin; b' = b*cos + a*sin.
    """
    x = np.asarray(x, np.float32)
    n = cos.shape[-1]
    c, s = np.asarray(cos, np.float32)[:, None, :], np.asarray(sin, np.float32)[:, None, :]
    first, second = PAIRS[style](n)
    a, b = x[..., first], x[..., second]
    y = x.copy()
    y[..., first], y[..., second] = a * c - b * s, b * c + a * s
    return y


PAIRS = {
    "neox": lambda n: (slice(0, n), slice(n, 2 * n)),
    "interleaved": lambda n: (slice(0, 2 * n, 2), slice(1, 2 * n, 2)),
}

Partial = tuple[F32, F32, F32]  # (m, l, o): maximum, sum of exponentials, weighted sum of values


def attend_block(q: F32, k: F32, v: F32, visible: NDArray[np.bool_], scale: float, softcap: float = 0.0,
                 bias: F32 | None = None, fused: bool = False) -> Partial:  # fmt: skip
    """One block of at most 256 keys: q[..., D], k[..., n, D], v[..., n, Dv], visible and bias [..., n].

    score = (chain over d ascending from +0 of q_d*k_d) * scale; then cap*tanh(score/cap) if `softcap`; then + bias.
    m = max16 over the visible keys; p = exp(score - m), +0 where not visible; l = sum16(p), a key's lane being its
    index in the block modulo 16; o = chain over visible keys ascending from +0 of p*v. `fused`: both chains and exp are
    of fused steps, the chain of o is over all keys of the block.
    """
    shape = np.broadcast_shapes(q.shape[:-1] + k.shape[-2:-1], k.shape[:-1], visible.shape)
    score = np.zeros(shape, np.float32)
    for d in range(q.shape[-1]):
        a, b = q[..., None, d], k[..., d]
        score = fma(*np.broadcast_arrays(a, b, score)) if fused else score + a * b
    score = score * np.float32(scale)
    if softcap:
        score = el.softcap(score, softcap)
    if bias is not None:
        score = score + bias
    visible = np.broadcast_to(visible, shape)
    m = max16(np.where(visible, score, np.float32("-inf")))
    p = np.where(visible, (exp_fused if fused else el.exp)(score - m[..., None]), np.float32(0))
    o = np.zeros((*shape[:-1], v.shape[-1]), np.float32)
    for j in range(shape[-1]):
        a, b = p[..., j, None], v[..., j, :]
        o = fma(*np.broadcast_arrays(a, b, o)) if fused else np.where(visible[..., j, None], o + a * b, o)
    return m, sum16(p), o


def merge(a: Partial, b: Partial) -> Partial:
    """The partial over the keys of both: M = max(m1, m2); l = l1*exp(m1-M) + l2*exp(m2-M); o likewise."""
    m = el.maximum(a[0], b[0])
    fa, fb = el.exp(a[0] - m), el.exp(b[0] - m)
    return m, a[1] * fa + b[1] * fb, a[2] * fa[..., None] + b[2] * fb[..., None]


def _merge_seen(total: Partial, seen: NDArray[np.bool_], part: Partial, any_visible: NDArray[np.bool_]) -> Partial:
    """Blocks without a visible key do not count; the first that has one starts the total."""
    both, new = seen & any_visible, any_visible & ~seen
    merged = merge(total, part)

    def choose(old: F32, started: F32, joined: F32) -> F32:
        extra = (...,) + (None,) * (old.ndim - seen.ndim)
        return np.where(both[extra], joined, np.where(new[extra], started, old))

    m, l, o = (choose(*three) for three in zip(total, part, merged))
    return m, l, o


def _finish(total: Partial, seen: NDArray[np.bool_]) -> F32:
    return np.where(seen[..., None], total[2] / total[1][..., None], np.float32(0))


def cache_row(position: NDArray, rows: int, window: int = 0) -> NDArray:
    """The row of a cache of `rows` rows that holds `position`: itself, or a ring where there is a window."""
    return np.asarray(position) % rows if window else np.asarray(position)


@quiet
def quantize_cache(x: NDArray) -> NDArray[np.uint8]:
    """f32[..., D], D a multiple of 32 -> q8_0 blocks, uint8[..., D / 32 * 34], what a quantised cache holds.

    Per 32 values: amax = max16(|x|); d = f16(amax / 127) and inv = 127 / amax, both 0 unless amax > 1e-30;
    q = nearest even of min(max(x * inv, -127), 127). A value is f32(d) * q, which is exact.
    """
    groups = np.asarray(x, np.float32).reshape(*x.shape[:-1], -1, 32)
    amax = max16(np.abs(groups))
    used = amax > SMALLEST
    d = np.where(used, amax / np.float32(127), np.float32(0)).astype("<f2")
    inverse = np.where(used, np.float32(127) / amax, np.float32(0))
    scaled = el.minimum(el.maximum(groups * inverse[..., None], np.float32(-127)), np.float32(127))
    q = np.rint(scaled).astype(np.int8).view(np.uint8)
    return np.concatenate([d[..., None].view(np.uint8), q], axis=-1).reshape(*x.shape[:-1], -1)


@quiet
def cached_attention(q: NDArray, k_cache: NDArray, v_cache: NDArray, sequence: NDArray, position: NDArray,
                     scale: float, softcap: float = 0.0, window: int = 0) -> F32:  # fmt: skip
    """q[T, Hq, D], f32 or f16 caches [S, Hkv, C, D] and [S, Hkv, C, Dv], sequence, position [T] -> f32[T, Hq, Dv].

    Query head h reads key head h // (Hq/Hkv). Token t sees positions p of its own sequence with p <= position[t] and,
    if `window`, p > position[t] - window. Block b is positions 256b … 256b+255, as far as they are visible
    (`attend_block`); blocks with a visible key merge in ascending order (`merge`), the first starting; out = o / l.
    Tokens whose sequence is not in 0..S-1 give zeros.
    """
    q, sequence, position = np.asarray(q, np.float32), np.asarray(sequence), np.asarray(position)
    heads, kv_heads, rows = q.shape[1], k_cache.shape[1], k_cache.shape[2]
    group = heads // kv_heads
    out = np.zeros((*q.shape[:2], v_cache.shape[-1]), np.float32)
    for s in range(k_cache.shape[0]):
        tokens = np.flatnonzero(sequence == s)
        if not tokens.size:
            continue
        queries, last = q[tokens], position[tokens].astype(np.int64)
        first = np.maximum(last - window + 1, 0) if window else np.zeros_like(last)
        n = len(tokens)
        total: Partial = (np.zeros((n, heads), np.float32), np.zeros((n, heads), np.float32),
                          np.zeros((n, heads, v_cache.shape[-1]), np.float32))  # fmt: skip
        seen = np.zeros((n, heads), np.bool_)
        for block in range(int(first.min()) // BLOCK, int(last.max()) // BLOCK + 1):
            keys = np.arange(block * BLOCK, min(block * BLOCK + BLOCK, int(last.max()) + 1))
            at = cache_row(keys, rows, window)
            k, v = (np.repeat(c[s][:, at].astype(np.float32), group, axis=0) for c in (k_cache, v_cache))
            visible = ((keys <= last[:, None]) & (keys >= first[:, None]))[:, None, :]
            part = attend_block(queries, k, v, visible, scale, softcap)
            some = np.broadcast_to(visible.any(axis=-1), seen.shape)
            total, seen = _merge_seen(total, seen, part, some), seen | some
        out[tokens] = _finish(total, seen)
    return out


@quiet
def attention(q: NDArray, k: NDArray, v: NDArray, mask: NDArray | None = None, scale: float = 1.0, causal: bool = False,
              softcap: float = 0.0) -> F32:  # fmt: skip
    """q[B, Hq, Tq, D], k[B, Hkv, Tk, D], v[B, Hkv, Tk, Dv] -> f32[B, Hq, Tq, Dv]; Hq a multiple of Hkv.

    `mask` broadcasts to [B, Hq, Tq, Tk]: bool, true where visible, or f32, added to the score. `causal` hides key j
    from query i where j > i + Tk - Tq. Blocks of 256 keys as in `cached_attention`, of fused steps. A query that sees
    no key gives zeros.
    """
    q, k, v = (np.asarray(a, np.float32) for a in (q, k, v))
    heads, queries, keys = q.shape[1], q.shape[2], k.shape[2]
    k, v = (np.repeat(a, heads // a.shape[1], axis=1)[:, :, None] for a in (k, v))
    visible = np.ones((*q.shape[:3], keys), np.bool_)
    bias = None
    if causal:
        visible &= np.arange(keys) <= np.arange(queries)[:, None] + (keys - queries)
    if mask is not None and mask.dtype == np.bool_:
        visible &= mask
    elif mask is not None:
        bias = np.broadcast_to(np.asarray(mask, np.float32), visible.shape)
    total: Partial = (np.zeros(q.shape[:3], np.float32), np.zeros(q.shape[:3], np.float32),
                      np.zeros((*q.shape[:3], v.shape[-1]), np.float32))  # fmt: skip
    seen = np.zeros(q.shape[:3], np.bool_)
    for start in range(0, keys, BLOCK):
        at = slice(start, start + BLOCK)
        part = attend_block(q, k[..., at, :], v[..., at, :], visible[..., at], scale, softcap,
                            None if bias is None else bias[..., at], fused=True)  # fmt: skip
        some = np.asarray(visible[..., at].any(axis=-1))
        total, seen = _merge_seen(total, seen, part, some), seen | some
    return _finish(total, seen)
