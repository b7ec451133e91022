"""Linear kernels, quantisation, embedding equal `ir.numerics` bit for bit: each format, ISA, epilogue, token count."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest

from inferc.backends.c import embedding, linear
from inferc.backends.c.kernels import Call
from inferc.backends.c.target import get
from inferc.ir import quant
from inferc.ir.graph import IRError, Node, make, make_input
from inferc.ir.numerics import elementary
from inferc.ir.numerics import linear as numerics
from inferc.ir.ops import OPS
from inferc.ir.types import DTYPES, DType, Type, a8g32, bf16, f32, i32, symbol

from .c_harness import Calls, build, every_product_target, same_bits
from .test_quant import random_raw

T = symbol("T", 1, 512)
TOKENS = (1, 2, 5, 7, 13, 37)
LOWERINGS = {**linear.LOWERINGS, **embedding.LOWERINGS}
INNER = {32: 352, 64: 448, 128: 384, 256: 512, 1: 301}  # by block size: uneven blocks of k, an odd dense row


def x_dtype(name: str) -> DType:
    """The activations that a weight dtype multiplies."""
    return a8g32 if name in quant.FORMATS else bf16 if name == "bf16" else f32


def weight(name: str, rows: int, k: int, seed: int = 0) -> np.ndarray:
    """Row-major raw bytes or array of a random weight."""
    if name in quant.FORMATS:
        return random_raw(name, rows, k, seed)
    values = np.random.default_rng(seed).normal(size=(rows, k)).astype(np.float32)
    return numerics.to_bf16(values) if name == "bf16" else values.astype({"f16": np.float16, "f32": np.float32}[name])


def activations(tokens: int, k: int, dtype: DType, seed: int = 1) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(tokens, k)).astype(np.float32)
    return x if dtype == f32 else numerics.quantize(x, dtype)


def node(op: str, *types: Type, **attrs: object) -> Node:
    return make(OPS[op], *(make_input(f"i{i}", "arg", t)[0] for i, t in enumerate(types)), **attrs)


def packed(name: str, n: int, k: int, *experts: int) -> Type:
    return Type((*experts, n, k), DTYPES[name], "panel16")


class Case:
    """A node with operands for any number of tokens, and what numerics says of them."""

    def __init__(self, op: str, weights: Sequence[tuple[str, int]], biases: Sequence[bool] = (), residual: bool = False,
                 activation: str = "", stored: str = "") -> None:  # fmt: skip
        name, n = weights[0]
        self.k, self.x, self.weights = INNER[DTYPES[name].block], x_dtype(name), weights
        self.biases, self.residual, self.activation = tuple(biases) or (False,) * len(weights), residual, activation
        types = [Type((T, self.k), self.x), *(packed(w, n, self.k) for w, n in weights)]
        types += [Type((T, n), f32)] * residual
        types += [Type((n,), f32) for (_, n), has in zip(weights, self.biases) if has]
        self.stored = DTYPES[stored] if stored else None
        attrs = {"biases": self.biases} if op == "linear_group" else {"activation": activation} if activation else {}
        attrs |= {"dtype": self.stored} if stored else {}
        self.node = node(op, *types, **attrs)
        self.raw = [weight(w, n, self.k, seed) for seed, (w, n) in enumerate(weights)]
        rng = np.random.default_rng(9)
        self.bias = [rng.normal(size=n).astype(np.float32) for (_, n), has in zip(weights, self.biases) if has]

    def operands(self, tokens: int) -> list[np.ndarray]:
        packs = [quant.pack(Type((n, self.k), DTYPES[w]), raw) for (w, n), raw in zip(self.weights, self.raw)]
        return [activations(tokens, self.k, self.x), *packs, *self._residual(tokens), *self.bias]

    def _residual(self, tokens: int) -> list[np.ndarray]:
        shape = (tokens, self.weights[0][1])
        return [np.random.default_rng(7).normal(size=shape).astype(np.float32)] if self.residual else []

    def expected(self, tokens: int) -> list[np.ndarray]:
        x, bias = activations(tokens, self.k, self.x), iter(self.bias)
        out = []
        for (w, n), raw, has in zip(self.weights, self.raw, self.biases):
            y = numerics.linear(x, self.x, raw, Type((n, self.k), DTYPES[w]))
            out.append(y + next(bias) if has else y)
        if self.activation:
            y = elementary.ACTIVATIONS[self.activation](out[0]) * out[1]
            return [numerics.quantize(y, self.stored) if self.stored else y]
        return [r + y for r, y in zip(self._residual(tokens) or out, out)] if self.residual else out


BY_32 = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0")
CASES = [
    *(Case("linear", [(name, 37)]) for name in quant.DIRECT),
    *(Case("linear", [(name, 64)], [True]) for name in ("q4_0", "q4_k", "bf16", "f32")),
    *(Case("linear_add", [(name, 49)], residual=True) for name in ("q4_1", "q6_k", "f16")),
    Case("linear_add", [("q8_0", 16)], [True], residual=True),
    Case("linear_group", [("q4_k", 96), ("q4_k", 33), ("q6_k", 33)]),
    Case("linear_group", [("q4_0", 70), ("q8_0", 20), ("q4_0", 20)], [True, False, True]),
    Case("linear_group", [("f16", 40), ("f32", 17)]),
    Case("gated_linear", [("q4_k", 100), ("q4_k", 100)], activation="silu"),
    Case("gated_linear", [("q4_k", 39), ("q6_k", 39)], activation="gelu_tanh"),
    Case("gated_linear", [("q5_0", 48), ("q4_1", 48)], activation="gelu"),
    Case("gated_linear", [("bf16", 50), ("bf16", 50)], activation="silu"),
    Case("gated_linear", [("q4_0", 96), ("q4_0", 96)], activation="silu", stored="a8g32"),
    Case("gated_linear", [("q6_k", 160), ("q4_k", 160)], activation="gelu_tanh", stored="a8g32"),
    Case("gated_linear", [("bf16", 57), ("bf16", 57)], activation="gelu", stored="bf16"),
]


def lower(node: Node, target: str) -> Call:
    return LOWERINGS[node.op.name](node, get(target).ir)


@cache
def cases(target: str) -> Calls:
    return Calls([lower(c.node, target) for c in CASES], target)


@every_product_target
@pytest.mark.parametrize("index", range(len(CASES)), ids=[
    f"{c.node.op.name}-{'-'.join(w for w, _ in c.weights)}{'-bias' * any(c.biases)}"
    f"{f'-{c.stored}' if c.stored else ''}" for c in CASES])  # fmt: skip
def test_products(index: int, target: str) -> None:
    case = CASES[index]
    for tokens in TOKENS:
        want = case.expected(tokens)
        for threads in (1, 3):
            got = [np.full_like(w, np.nan) for w in want]
            cases(target).run(index, case.operands(tokens), got, {"T": tokens}, threads)
            assert all(map(same_bits, got, want)), f"{tokens} tokens, {threads} threads"


@every_product_target
def test_extreme_integers_do_not_saturate(target: str) -> None:
    """All weights and activations as large as they go, of either sign: 16-bit steps may not overflow."""
    for index, case in enumerate(CASES[: len(quant.FORMATS)]):
        fmt = quant.FORMATS[case.weights[0][0]]
        for byte, sign in ((0xFF, 1), (0xFF, -1), (0x80, 1), (0x7F, -1), (0x00, 1)):
            raw = np.full((37, case.k // fmt.block, fmt.dtype.block_bytes), byte, np.uint8)
            for part, start in zip(fmt.parts, fmt.offsets):
                if part.kind in "dm":
                    raw[..., start : start + 2] = np.array([1.5], np.float16).view(np.uint8)
            raw = raw.reshape(37, -1)
            x = numerics.quantize(np.full((7, case.k), sign, np.float32), case.x)
            want = numerics.linear(x, case.x, raw, Type((37, case.k), fmt.dtype))
            got = np.empty_like(want)
            cases(target).run(index, [x, quant.pack(Type((37, case.k), fmt.dtype), raw)], [got], {"T": 7})
            assert same_bits(got, want), f"{fmt.dtype} of bytes {byte}, activations of sign {sign}"


@every_product_target
def test_denormals_and_infinities_in_bf16(target: str) -> None:
    index = quant.DIRECT.index("bf16")
    rng = np.random.default_rng(0)
    k, exponents = CASES[index].k, rng.integers(-80, -50, (2, 37, CASES[index].k))
    x, w = (numerics.to_bf16((rng.normal(size=e.shape) * 2.0**e).astype(np.float32)) for e in exponents)
    x[0, 5], w[3, 7], x[1, 9] = 0x7F80, 0xFF80, 0x0001
    want = numerics.dense_bf16(x, w)
    got = np.empty_like(want)
    cases(target).run(index, [x, quant.pack(Type((37, k), bf16), w)], [got], {"T": 37})
    assert same_bits(got, want)


@every_product_target
def test_experts(target: str) -> None:
    names, n, used, ids = ("q4_0", "q4_k", "f16"), 40, 2, np.array([[0, 2], [1, 1], [2, 0]], np.int32)
    nodes = []
    for name in names:
        k = INNER[DTYPES[name].block]
        nodes.append(node("expert_linear", Type((T, k), x_dtype(name)), packed(name, n, k, 3), Type((T, used), i32)))
    calls = Calls([lower(v, target) for v in nodes], target)
    for index, name in enumerate(names):
        k, type = nodes[index].inputs[0].shape[1], Type((3, n, nodes[index].inputs[0].shape[1]), DTYPES[name])
        raw, x = weight(name, 3 * n, k).reshape(3, n, -1), activations(3, k, x_dtype(name))
        every = np.stack([numerics.linear(x, x_dtype(name), w, Type((n, k), DTYPES[name])) for w in raw], axis=1)
        want = np.take_along_axis(every, ids[:, :, None], axis=1)
        got = np.empty_like(want)
        calls.run(index, [x, quant.pack(type, raw), ids], [got], {"T": 3}, 2)
        assert same_bits(got, want), name


@every_product_target
def test_quantize(target: str) -> None:
    dtypes = (a8g32, bf16)
    x = np.random.default_rng(0).normal(size=(3, 20, 512)).astype(np.float32)
    x[0, 0], x[0, 1], x[0, 2], x[0, 3] = 0, 1e-31, 1e-38, 3e38
    x[1, 0, 3], x[1, 1, 40], x[1, 2, :32] = np.inf, np.nan, -np.inf
    x[2] = np.round(x[2] * 254) / 2  # ties
    nodes = [node("quantize", Type((3, T, 512), f32), dtype=d) for d in dtypes]
    calls = Calls([lower(v, target) for v in nodes], target)
    for index, dtype in enumerate(dtypes):
        want = numerics.quantize(x, dtype)
        got = np.empty_like(want)
        calls.run(index, [x], [got], {"T": 20}, 2)
        if dtype == bf16:
            assert np.array_equal(got, want)
            continue
        a, b = (quant.decode_activation(dtype, rows) for rows in (got, want))
        assert same_bits(a.q, b.q) and same_bits(a.d, b.d) and same_bits(a.sums, b.sums)


@every_product_target
def test_embedding(target: str) -> None:
    ids, tables = np.array([0, 69, 33, 5, 5], np.int32), []
    for name in quant.DIRECT:
        k = INNER[DTYPES[name].block]
        for layout in ("panel16", "") if name in quant.DENSE else ("panel16",):
            tables.append((name, Type((70, k), DTYPES[name], layout)))
    calls = Calls([lower(node("embedding", t, Type((T,), i32)), target) for _, t in tables], target)
    for index, (name, type) in enumerate(tables):
        raw = weight(name, *type.shape)
        want = quant.dequantize(type.dtype, raw, type.shape)[ids]
        got = np.empty_like(want)
        calls.run(index, [quant.pack(type, raw) if type.layout else raw, ids], [got], {"T": len(ids)}, 2)
        assert same_bits(got, want), type


def test_a_pair_without_kernel_is_refused() -> None:
    wrong = node("linear", Type((T, 512), f32), packed("q4_k", 16, 512))
    with pytest.raises(IRError, match="no kernel multiplies f32 with q4_k"):
        lower(wrong, "generic")
    with pytest.raises(IRError, match="panel16"):
        lower(node("linear", Type((T, 512), a8g32), Type((16, 512), DTYPES["q4_k"])), "generic")


def test_fma_equals_c() -> None:
    """The emulation of fmaf, and with a flush of what x86 flushes, over all sorts of magnitudes and cancellations."""
    library = build("""
void all(int n, const float *a, const float *b, const float *c, float *y);
void all(int n, const float *a, const float *b, const float *c, float *y) {
  for (int i = 0; i < n; i++) y[i] = fmaf(a[i], b[i], c[i]);
}
void flushing(int n, const float *a, const float *b, const float *c, float *y);
void flushing(int n, const float *a, const float *b, const float *c, float *y) {
  for (int i = 0; i < n; i++) y[i] = fma_flushed(a[i], b[i], c[i]);
}""", "generic")  # fmt: skip
    rng, count = np.random.default_rng(0), 1 << 18

    def normal(exponents: range) -> np.ndarray:
        return (rng.normal(size=count) * 2.0 ** rng.integers(exponents.start, exponents.stop, count)).astype(np.float32)

    def integers() -> np.ndarray:
        return (rng.integers(-(1 << 24), 1 << 24, count) * 2.0 ** rng.integers(-20, 20, count)).astype(np.float32)

    any_bits = [rng.integers(0, 1 << 32, count, np.uint64).astype(np.uint32).view(np.float32) for _ in range(3)]
    small = [np.float32(2.0**-78) * rng.integers(-255, 256, count).astype(np.float32) for _ in range(2)]
    triples = [
        any_bits,
        [normal(range(0, 1)) for _ in range(3)],
        [integers() for _ in range(3)],
        [normal(range(-75, -60)), normal(range(-75, -60)), normal(range(-149, -120))],
        [*small, np.full(count, 2.0**-126, np.float32)],
    ]
    for a, b, c in triples:
        for function, emulated in ((library.all, numerics.fma), (library.flushing, numerics.fma_flushed)):
            got = np.empty(count, np.float32)
            function(ctypes.c_int(count), *(ctypes.c_void_p(v.ctypes.data) for v in (a, b, c, got)))
            assert same_bits(got, emulated(a, b, c))
