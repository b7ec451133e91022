"""What an op must move and multiply: bytes of memory and multiply-adds of one call, from its types alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from ...ir.graph import Node, Value
from ...ir.quant.panels import packed_bytes
from ...ir.types import evaluate
from ..passes.operands import weight_operands

# The peak that bounds products with weights of a dtype, and the unit that does the same on tiles.
PEAK_OF = {"f32": "fp32_fma", "f16": "fp32_fma", "bf16": "bf16_dot"}
AMX_OF = {"int8_dot": "amx_int8", "bf16_dot": "amx_bf16"}


@dataclass(frozen=True)
class Cost:
    """`bytes` are read or written, each value once; `macs` are multiply-adds on the unit `peak` ("" where there are
    none)."""

    bytes: int = 0
    macs: int = 0
    peak: str = ""


def cost(node: Node, dims: Mapping[str, int], position: int) -> Cost:
    """The least that one call costs, with the symbols at `dims` and `position` positions in the caches before it.

    Of an embedding table the tokens' rows are read, of a cache the positions that each token sees, and once all that
    are seen by any.
    """
    tokens = dims.get("T", 1)
    weights = set(weight_operands(node))
    if node.op.name == "embedding":
        table = node.inputs[0]
        row = size(table, dims) // max(int(evaluate(table.type.shape[0], dims)), 1)
        return Cost(row * tokens + results(node, dims))
    if node.op.name == "cached_attention":
        return _attention(node, dims, position)
    if node.op.name in ("cache_write", "rope_cache_write"):
        return Cost(2 * size(node.inputs[1], dims))
    moved = sum(size(v, dims) for v in node.inputs) + results(node, dims)
    if not weights:
        return Cost(moved)
    rows = int(evaluate(node.types[0].shape[0], dims))
    macs = sum(rows * prod(evaluate(d, dims) for d in node.inputs[i].type.shape) for i in weights)
    return Cost(moved, macs, PEAK_OF.get(node.inputs[min(weights)].dtype.name, "int8_dot"))


def _attention(node: Node, dims: Mapping[str, int], position: int) -> Cost:
    q, k, v = node.inputs[:3]
    tokens, heads = (int(evaluate(d, dims)) for d in q.type.shape[:2])
    window = node.attr("window") or position + tokens
    seen = sum(min(position + t + 1, window) for t in range(tokens))
    kept = min(position + tokens, window + tokens)
    kv_heads, widths = int(evaluate(k.type.shape[1], dims)), [int(evaluate(x.type.shape[3], dims)) for x in (k, v)]
    cached = sum([kept * kv_heads * w * x.dtype.block_bytes // x.dtype.block for w, x in zip(widths, (k, v))])
    return Cost(cached + size(q, dims) + results(node, dims), seen * heads * sum(widths), "fp32_fma")


def size(value: Value, dims: Mapping[str, int]) -> int:
    """Bytes of a value as it lies in memory."""
    return int(evaluate(packed_bytes(value.type) if value.type.layout else value.type.bytes, dims))


def results(node: Node, dims: Mapping[str, int]) -> int:
    """Bytes of all results."""
    return sum(size(v, dims) for v in node.values)
