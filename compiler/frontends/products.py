"""Products of arrays of a graph that is built: matmul, and `linear` where a matrix is a weight."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from ...ir.types import f32
from .arrays import Array, common_shape

COMPUTED = ("f32", "f16", "bf16")  # dtypes of matrices that `linear` takes


def dot(a: Array, b: Array, contracting: tuple[Sequence[int], Sequence[int]],
        batch: tuple[Sequence[int], Sequence[int]] = ((), ())) -> Array:  # fmt: skip
    """The op dot_general; batch axes first, then the free ones of `a`, then of `b`."""
    pairs = (tuple(contracting[0]), tuple(contracting[1])), (tuple(batch[0]), tuple(batch[1]))
    return a.body.apply("dot_general", a, b, contracting=pairs[0], batch=pairs[1])


def is_weight(x: Array) -> bool:
    """Whether an array is a weight as it is, so that products with it can be packed."""
    return x.value.node.op.name == "input" and x.value.node.attr("role") == "weight"


def matmul(a: Array, b: Array) -> Array:
    """NumPy's matmul. A matrix of weights on the right makes the op `linear`."""
    if a.rank == 1:
        return matmul(a.unsqueeze(0), b).squeeze(-2)
    if b.rank == 1:
        return matmul(a, b.unsqueeze(1)).squeeze(-1)
    if b.rank == 2 and is_weight(b) and a.dtype == b.dtype and a.dtype.name in COMPUTED:
        return linear(a, b.transpose())
    if b.rank == 2:
        return dot(a, b, ((a.rank - 1,), (0,)))
    lead = common_shape(a.shape[:-2], b.shape[:-2])
    a, b = a.broadcast_to((*lead, *a.shape[-2:])), b.broadcast_to((*lead, *b.shape[-2:]))
    n = len(lead)
    return dot(a, b, ((n + 1,), (n,)), (range(n), range(n)))


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """x[..., K] times weight[N, K] transposed, plus bias[N]; half floats in f32, rounded once."""
    flat = x.reshape(prod(x.shape[:-1]), x.shape[-1]).astype(f32)
    y = x.body.apply("linear", flat, weight, *(() if bias is None else (bias.astype(f32),)))
    return y.reshape(*x.shape[:-1], weight.shape[0]).astype(x.dtype)
