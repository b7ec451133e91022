"""Operators of com.microsoft, which onnxruntime's optimizer and quantisers write; ONNX has no schema of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from ...ir.graph import Weight
from ...ir.types import Type, boolean, f32, i64
from .arrays import Array, concatenate, where
from .onnx_elementwise import wide
from .onnx_import import Call, Rule, Tensor
from .onnx_nn import heads_of, joined_heads, rotary
from .onnx_quant import saturated
from .products import is_weight, linear, matmul

# --- activations, products, norms ---


def activation(op: str) -> Rule:
    """Of an operand, to which a second one is added where it is given."""
    return lambda c: wide(c.x() + c.x(1) if c.has(1) else c.x(), lambda x: x.unary(op))


def quick_gelu(c: Call) -> Array:
    alpha = c.attr("alpha", 1.702)
    return wide(c.x(), lambda x: x * (alpha * x).logistic())


def fused_matmul(c: Call) -> Array:
    if c.attr("transBatchA", 0) or c.attr("transBatchB", 0):
        raise c.error("products with transposed batches are not supported; use the model as it was exported")
    a, b = (x.swapaxes(-1, -2) if c.attr(f"trans{n}", 0) else x for x, n in ((c.x(0), "A"), (c.x(1), "B")))
    y, alpha = matmul(a, b), c.attr("alpha", 1.0)
    return y if alpha == 1 else y * alpha


def _normalised(c: Call, x: Array, scale: Array, bias: Array | None, plain: bool) -> Array:
    """A layer norm, or `plain` a root mean square norm, of the last axis, in f32."""
    eps = float(c.attr("epsilon", 1e-12 if "Skip" in c.node.op_type else 1e-5))
    w, s = x.astype(f32), scale.astype(f32)
    if plain:
        return c.body.apply("rms_norm", w, s, eps=eps).astype(x.dtype)
    shift = c.body.full(scale.shape, 0.0) if bias is None else bias.astype(f32)
    return c.body.apply("layer_norm", w, s, shift, eps=eps).astype(x.dtype)


def simplified_norm(c: Call) -> Array:
    if c.attr("axis", -1) not in (-1, c.x().rank - 1):
        raise c.error("norms of the last axis only are supported; export the model with standard operators")
    return _normalised(c, c.x(0), c.x(1), None, True)


def skip_norm(plain: bool) -> Rule:
    """The norm of a sum, and as the fourth result the sum."""

    def rule(c: Call) -> Sequence[Any]:
        skip, extra = c.x(1), c.optional(3 if plain else 4)
        total = c.x(0) + skip
        total = total if extra is None else total + extra
        y = _normalised(c, total, c.x(2), None if plain else c.optional(3), plain)
        return [y, None, None, total]

    return rule


def embed_norm(c: Call) -> Sequence[Any]:
    """Rows of tables for words, positions and segments, their norm, how many tokens each text has, and the sum."""
    ids = c.x(0).astype(i64)
    length = ids.shape[1]
    places = c.x(8).astype(i64) if c.has(8) else c.body.arange(length).unsqueeze(0)
    total = c.x(2).take(ids) + c.x(3).take(places)
    if c.has(4):
        total = total + c.x(4).take(c.x(1).astype(i64))
    counts = c.x(7).sum(1) if c.has(7) else c.body.full(ids.shape[:1], 0).astype(c.x(0).dtype)
    return [_normalised(c, total, c.x(5), c.x(6), False), counts, total]


# --- attention ---


def _attended(c: Call, q: Array, k: Array, v: Array, mask: Array | None, bias: Array | None) -> Array:
    """Attention of heads [N, heads, length, width]; `mask` is of lengths [N] or of keys [N, length], 0 where hidden."""
    if mask is not None and mask.rank == 1:
        mask = c.body.arange(k.shape[2]).unsqueeze(0) < mask.astype(i64).unsqueeze(1)
    if mask is not None and mask.rank != 2:
        raise c.error(f"a mask of rank {mask.rank} is not supported; use the model as it was exported")
    causal = bool(c.attr("unidirectional", 0))
    seen = None if mask is None else (mask if mask.dtype == boolean else mask.compare("ne", 0)).unsqueeze(1, 2)
    if seen is not None and causal or bias is not None and (causal or seen is not None):
        row, column = (c.body.iota((q.shape[2], k.shape[2]), i) for i in range(2))
        late = c.body.dim(k.shape[2] - q.shape[2])
        visible = (column <= row + late).unsqueeze(0, 1) if causal else None
        seen = visible if seen is None else seen if visible is None else seen & visible
        causal = False
    operands = [x.astype(f32) for x in (q, k, v)]
    if bias is not None:
        whole = bias.astype(f32).broadcast_to((*bias.shape[:2], q.shape[2], k.shape[2]))
        if seen is not None:
            whole = whole + seen.astype(f32) * 1e4 - 1e4  # the number that onnxruntime adds
        operands.append(whole)
    elif seen is not None:
        operands.append(seen)
    scale = c.attr("scale", 0.0) or 1 / math.sqrt(q.shape[3])  # type: ignore[arg-type]
    y = c.body.apply("attention", *operands, scale=float(scale), causal=causal, softcap=0.0)
    return joined_heads(y.astype(q.dtype))


def attention(c: Call) -> Sequence[Any]:
    """Projections of one operand to queries, keys and values, and attention."""
    if c.has(4) or c.attr("do_rotary", 0):
        raise c.error("attention with a past or rotary positions is not supported; use the model as it was exported")
    heads, x = c.attr("num_heads"), c.x(0)
    y = matmul(x, c.x(1))
    y = y + c.x(2) if c.has(2) else y
    third = y.shape[2] // 3
    sizes = c.attr("qkv_hidden_sizes") or [third] * 3
    q, k, v = (heads_of(p, heads) for p in y.split(2, sizes))
    return [_attended(c, q, k, v, c.optional(3), c.optional(5))]


def multi_head_attention(c: Call) -> Sequence[Any]:
    """Attention of queries, keys and values that were projected; keys and values after those of the past."""
    if not c.has(1) or not c.has(2) or c.x(0).rank != 3:
        raise c.error("queries, keys and values packed in one are not supported; use the model as it was exported")
    q, k, v = c.x(0), c.x(1), c.x(2)
    heads = c.attr("num_heads")
    if c.has(3):
        parts = c.x(3).split(0, [q.shape[2], k.shape[-1] if k.rank == 3 else q.shape[2], v.shape[-1]])
        q, k, v = q + parts[0], k + parts[1] if k.rank == 3 else k, v + parts[2] if v.rank == 3 else v
    q, k, v = (x if x.rank == 4 else heads_of(x, heads) for x in (q, k, v))
    if c.has(6):
        k, v = concatenate([c.x(6), k], 2), concatenate([c.x(7), v], 2)
    return [_attended(c, q, k, v, c.optional(4), c.optional(5)), k, v]


def rotary_(c: Call) -> Any:
    """As ONNX's, with the positions second: of each token, or the first one's."""
    x, positions = c.x(0), c.x(1)
    batch, length = (x.shape[0], x.shape[1]) if x.rank == 3 else (x.shape[0], x.shape[2])
    if positions.rank == 1:
        positions = (positions.unsqueeze(1) + c.body.arange(length).unsqueeze(0)).broadcast_to((batch, length))
    standard = onnx.defs.get_schema("RotaryEmbedding", 23)
    operands = [c.operands[0], c.operands[2], c.operands[3], Tensor(array=positions)]
    return rotary(replace(c, operands=operands, schema=standard))


# --- matrices of a few bits ---


def _reader(c: Call, index: int) -> Callable[[], np.ndarray]:
    """How the numbers of a weight are read."""
    operand = c.operands[index]
    if operand is not None and operand.known is not None:
        known = operand.known
        return lambda: known
    x = c.x(index)
    if not is_weight(x):
        raise c.error(f"its input {c.node.input[index]!r} must be an initializer")
    return c.body.weights[x.value.node.attr("name")].load


def _unpacked(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Integers u8 [..., count] of bytes whose lowest bits come first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    values = (packed[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return values.reshape(*packed.shape[:-1], -1)[..., :count]


def matmul_nbits(c: Call) -> Array:
    """x times a matrix [N, K] of integers in blocks along K, with a scale and a zero point each: a matrix in f32."""
    bits, block, inputs, outputs = (c.attr(name, 4) for name in ("bits", "block_size", "K", "N"))
    if bits not in (2, 4, 8) or c.has(4):
        raise c.error("only 2, 4 or 8 bits without an order of groups (g_idx) are supported; quantise it again")
    blocks = -(-inputs // block)
    packed, scales = _reader(c, 1), _reader(c, 2)
    zeros = _reader(c, 3) if c.has(3) else None

    def load() -> np.ndarray:
        q = _unpacked(packed().reshape(outputs, blocks, -1), bits, block).astype(np.float32)
        zero: Any = float(1 << (bits - 1))
        if zeros is not None:
            given = zeros().reshape(outputs, -1)
            zero = (_unpacked(given, bits, blocks) if given.dtype == np.uint8 else given).astype(np.float32)[..., None]
        scale = scales().reshape(outputs, blocks, 1).astype(np.float32)
        return ((q - zero) * scale).reshape(outputs, -1)[:, :inputs].copy()

    name = f"{c.node.input[1]}.dequantized"
    weight = c.body.weight(Weight(name, Type((outputs, inputs), f32), load))
    return linear(c.x(0), weight, c.optional(5))


# --- elementwise operations of quantised numbers: as floats, and rounded again ---


def _float(c: Call, first: int) -> Array:
    """The operand at `first` with its scale and zero point after it, as floats."""
    return (c.x(first).astype(f32) - c.x(first + 2).reshape(()).astype(f32)) * c.x(first + 1).reshape(()).astype(f32)


def quantised(operands: int, function: Callable[..., Array]) -> Rule:
    """Of operands that have a scale and a zero point each; those of the result are last."""

    def rule(c: Call) -> Array:
        y = function(c, *(_float(c, 3 * i) for i in range(operands)))
        scale, zero = c.x(3 * operands), c.x(3 * operands + 1)
        return saturated(y / scale.reshape(()).astype(f32), zero.reshape(()), zero.dtype)

    return rule


def leaky_relu(c: Call, x: Array) -> Array:
    return where(x < 0, x * float(c.attr("alpha", 0.01)), x)


def global_mean(c: Call, x: Array) -> Array:
    last = c.attr("channels_last", 0)
    return x.mean(*(range(1, x.rank - 1) if last else range(2, x.rank)), keepdims=True)


def quantised_concat(c: Call) -> Array:
    """Its result's scale and zero point come first."""
    y = concatenate([_float(c, i) for i in range(2, len(c.operands), 3)], c.attr("axis"))
    return saturated(y / c.x(0).reshape(()).astype(f32), c.x(1).reshape(()), c.x(1).dtype)


CONTRIB: dict[tuple[str, str], Rule] = {
    ("", "SimplifiedLayerNormalization"): simplified_norm,
    **{("com.microsoft", name): rule for name, rule in {
        "Gelu": activation("gelu"), "BiasGelu": activation("gelu"), "FastGelu": activation("gelu_tanh"),
        "QuickGelu": quick_gelu, "FusedMatMul": fused_matmul, "SkipLayerNormalization": skip_norm(False),
        "SkipSimplifiedLayerNormalization": skip_norm(True), "EmbedLayerNormalization": embed_norm,
        "Attention": attention, "MultiHeadAttention": multi_head_attention, "RotaryEmbedding": rotary_,
        "MatMulNBits": matmul_nbits, "QLinearAdd": quantised(2, lambda c, a, b: a + b),
        "QLinearMul": quantised(2, lambda c, a, b: a * b), "QLinearSigmoid": quantised(1, lambda c, x: x.logistic()),
        "QLinearLeakyRelu": quantised(1, leaky_relu), "QLinearGlobalAveragePool": quantised(1, global_mean),
        "QLinearConcat": quantised_concat, "QLinearSoftmax": quantised(1, lambda c, x: x.softmax(c.attr("axis", -1))),
    }.items()},
}  # fmt: skip
