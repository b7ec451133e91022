"""Operators of com.microsoft mean what the same is in ONNX's own operators, or in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from inferc.errors import InfercError
from inferc.ir.interpret import interpret

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

from inferc.compiler.frontends import onnx_model  # noqa: E402

RNG = np.random.default_rng(8)
X = RNG.standard_normal((2, 5, 16)).astype(np.float32)
TENSORS = {
    "scale": RNG.standard_normal(16).astype(np.float32), "bias": RNG.standard_normal(16).astype(np.float32),
    "w": RNG.standard_normal((16, 48)).astype(np.float32) / 4, "b": RNG.standard_normal(48).astype(np.float32),
    "heads": np.array([2, 5, 4, 4]), "flat": np.array([2, 5, 16]), "lengths": np.array([5, 3], np.int32),
    "mask": np.arange(5)[None, None, None] < np.array([5, 3])[:, None, None, None], "two": np.float32(2),
    "cos": RNG.standard_normal((9, 2)).astype(np.float32), "sin": RNG.standard_normal((9, 2)).astype(np.float32),
    "places": np.arange(10).reshape(2, 5) % 9, "start": np.array([3]),
    "shifted": np.arange(3, 8)[None].repeat(2, 0), "factor": np.float32(1.702),
}  # fmt: skip


def node(text: str, domain: str = "", **attributes: Any) -> Any:
    """"y, z = Op(a, b)"; a name of blanks is an operand that is missing."""
    results, _, call = text.partition(" = ")
    op, _, operands = call.removesuffix(")").partition("(")
    names = [o.strip() for o in operands.split(",")]
    return helper.make_node(op, names, results.split(", "), domain=domain, **attributes)


def ours(text: str, **attributes: Any) -> Any:
    return node(text, "com.microsoft", **attributes)


def model(nodes: list[Any]) -> Any:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, X.shape)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    tensors = [numpy_helper.from_array(a, n) for n, a in TENSORS.items()]
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(helper.make_graph(nodes, "test", inputs, outputs, tensors), opset_imports=opsets)


NORM = {"axis": -1, "epsilon": 1e-5}
PROJECTED = [node("p = MatMul(x, w)"), node("pb = Add(p, b)"), node("q, k, v = Split(pb)", axis=2, num_outputs=3)]
HEADS = {"q_num_heads": 4, "kv_num_heads": 4}
CASES: dict[str, tuple[list[Any], list[Any]]] = {
    "gelu": ([ours("y = Gelu(x)")], [node("y = Gelu(x)")]),
    "bias gelu": ([ours("y = BiasGelu(x, bias)")], [node("z = Add(x, bias)"), node("y = Gelu(z)")]),
    "fast gelu": ([ours("y = FastGelu(x)")], [node("y = Gelu(x)", approximate="tanh")]),
    "quick gelu": ([ours("y = QuickGelu(x)")],
                   [node("a = Mul(x, factor)"), node("s = Sigmoid(a)"), node("y = Mul(x, s)")]),
    "matmul": ([ours("y = FusedMatMul(x, x)", transB=1, alpha=2.0)],
               [node("t = Transpose(x)", perm=[0, 2, 1]), node("p = MatMul(x, t)"), node("y = Mul(p, two)")]),
    "skip": ([ours("a, , , s = SkipLayerNormalization(x, x, scale, bias, bias)", epsilon=1e-5), node("y = Add(a, s)")],
             [node("xx = Add(x, x)"), node("s = Add(xx, bias)"),
              node("a = LayerNormalization(s, scale, bias)", **NORM), node("y = Add(a, s)")]),
    "simplified": ([node("s = SimplifiedLayerNormalization(x, scale)", **NORM),
                    ours("y = SkipSimplifiedLayerNormalization(s, x, scale)", epsilon=1e-5)],
                   [node("s = RMSNormalization(x, scale)", **NORM), node("a = Add(s, x)"),
                    node("y = RMSNormalization(a, scale)", **NORM)]),
    "attention": ([ours("y = Attention(x, w, b, lengths)", num_heads=4)],
                  [*PROJECTED, node("y = Attention(q, k, v, mask)", **HEADS)]),
    "causal": ([ours("y = Attention(x, w, b)", num_heads=4, unidirectional=1)],
               [*PROJECTED, node("y = Attention(q, k, v)", is_causal=1, **HEADS)]),
    "heads": ([node("p = MatMul(x, w)"), node("q, k, v = Split(p)", axis=2, num_outputs=3),
               ours("y = MultiHeadAttention(q, k, v, b, lengths)", num_heads=4)],
              [*PROJECTED, node("y = Attention(q, k, v, mask)", **HEADS)]),
    "rotary": ([ours("y = RotaryEmbedding(x, places, cos, sin)", num_heads=4)],
               [node("y = RotaryEmbedding(x, cos, sin, places)", num_heads=4)]),
    "rotary from a start": ([ours("y = RotaryEmbedding(x, start, cos, sin)", num_heads=4)],
                            [node("y = RotaryEmbedding(x, cos, sin, shifted)", num_heads=4)]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_same_in_standard_operators(name: str) -> None:
    contributed, standard = CASES[name]
    (expected,) = ReferenceEvaluator(model(standard)).run(None, {"x": X})
    got = interpret(onnx_model.Source(model(contributed), None).build(), {"x": X}, entry="run")["y"]
    np.testing.assert_allclose(got, expected, 1e-4, 1e-5)


@pytest.mark.parametrize("counted", [True, False])
def test_embeddings(counted: bool) -> None:
    """Rows of words, positions and segments; how many tokens each text has, and the sum before the norm."""
    ids, kinds = RNG.integers(0, 9, (2, 5)).astype(np.int32), RNG.integers(0, 2, (2, 5)).astype(np.int32)
    seen = (np.arange(5) < np.array([[5], [3]])).astype(np.int32)
    tables = {n: RNG.standard_normal((rows, 16)).astype(np.float32) for n, rows in (("w", 9), ("p", 5), ("t", 2))}
    norm = {"g": TENSORS["scale"], "h": TENSORS["bias"]}
    made = ours(f"y, n, s = EmbedLayerNormalization(i, k, w, p, t, g, h{', m' if counted else ''})", epsilon=1e-5)
    value, tensors = helper.make_tensor_value_info, {**tables, **norm, "k": kinds, "m": seen}
    outputs = [value("y", TensorProto.FLOAT, None), value("n", TensorProto.INT32, None),
               value("s", TensorProto.FLOAT, None)]  # fmt: skip
    graph = helper.make_graph([made], "test", [value("i", TensorProto.INT32, [2, 5])], outputs,
                              [numpy_helper.from_array(a, n) for n, a in tensors.items()])  # fmt: skip
    source = onnx_model.Source(helper.make_model(graph, opset_imports=[helper.make_opsetid("com.microsoft", 1)]), None)
    got = interpret(source.build(), {"i": ids}, entry="run")
    total = tables["w"][ids] + tables["p"] + tables["t"][kinds]
    centred = total - total.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * norm["g"] + norm["h"]
    np.testing.assert_allclose(got["y"], expected, 1e-4, 1e-5)
    np.testing.assert_allclose(got["s"], total, 1e-6)
    assert got["n"].tolist() == (seen.sum(1).tolist() if counted else [0, 0])


@pytest.mark.parametrize("bits, zeros", [(4, False), (4, True), (8, True), (2, False)])
def test_matrices_of_a_few_bits(bits: int, zeros: bool) -> None:
    """Blocks of 16 along K = 40, the last of them not full, an odd number of blocks."""
    q = RNG.integers(0, 1 << bits, (6, 3, 16))
    zero = RNG.integers(0, 1 << bits, (6, 3)) if zeros else np.full((6, 3), 1 << (bits - 1))
    scale = RNG.random((6, 3)).astype(np.float32)

    def packed(values: np.ndarray) -> np.ndarray:
        each = 8 // bits
        whole = np.concatenate([values, np.zeros((*values.shape[:-1], -values.shape[-1] % each), values.dtype)], -1)
        parts = whole.reshape(*values.shape[:-1], -1, each)
        return sum(parts[..., i] << (bits * i) for i in range(each)).astype(np.uint8)

    tensors = {"w": packed(q), "s": scale.reshape(-1)} | ({"z": packed(zero).reshape(-1)} if zeros else {})
    made = ours(f"y = MatMulNBits({', '.join(['x', *tensors])})", K=40, N=6, bits=bits, block_size=16)
    value = helper.make_tensor_value_info
    graph = helper.make_graph([made], "test", [value("x", TensorProto.FLOAT, ["n", 40])],
                              [value("y", TensorProto.FLOAT, ["n", 6])],
                              [numpy_helper.from_array(a, n) for n, a in tensors.items()])  # fmt: skip
    source = onnx_model.Source(helper.make_model(graph, opset_imports=[helper.make_opsetid("com.microsoft", 1)]), None)
    x = RNG.standard_normal((3, 40)).astype(np.float32)
    matrix = ((q - zero[..., None]) * scale[..., None]).reshape(6, 48)[:, :40]
    np.testing.assert_allclose(interpret(source.build(), {"x": x}, entry="run")["y"], x @ matrix.T, 1e-4, 1e-4)


@pytest.mark.parametrize("op, result", [
    ("QLinearAdd(q, s, z, q, t, z, u, z)", lambda a, b: a + b), ("QLinearMul(q, s, z, q, t, z, u, z)", np.multiply),
    ("QLinearSigmoid(q, s, z, u, z)", lambda a, b: 1 / (1 + np.exp(-a))),
    ("QLinearLeakyRelu(q, s, z, u, z)", lambda a, b: np.where(a < 0, a * np.float32(0.01), a)),
    ("QLinearGlobalAveragePool(q, s, z, u, z)", lambda a, b: a.mean(2, keepdims=True)),
    ("QLinearSoftmax(q, s, z, u, z)", lambda a, b: np.exp(a) / np.exp(a).sum(-1, keepdims=True)),
    ("QLinearConcat(u, z, q, s, z, q, t, z)", lambda a, b: np.concatenate([a, b], 1)),
], ids=lambda v: v.partition("(")[0] if isinstance(v, str) else "")  # fmt: skip
def test_quantised_numbers(op: str, result: Any) -> None:
    q, zero = RNG.integers(0, 256, (2, 5, 16)).astype(np.uint8), np.uint8(120)
    s, t, u = np.float32(0.02), np.float32(0.01), np.float32(0.05)
    tensors = {"q": q, "z": zero, "s": s, "t": t, "u": u}
    made = model([ours(f"y = {op}", **({"axis": 1} if "Concat" in op else {}))])
    made.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), n) for n, a in tensors.items())
    got = interpret(onnx_model.Source(made, None).build(), {"x": X}, entry="run")["y"]
    a, b = ((q.astype(np.float32) - 120) * scale for scale in (s, t))
    expected = np.clip(np.rint(result(a, b) / u) + 120, 0, 255)
    assert got.dtype == np.uint8 and np.abs(got - expected).max() <= 1 and (got == expected).mean() >= 0.9


def test_what_is_not_supported() -> None:
    with pytest.raises(InfercError, match="com.microsoft.GroupQueryAttention .*not supported; use the model as"):
        onnx_model.Source(model([ours("y = GroupQueryAttention(x, x, x)", num_heads=4)]), None).build()
