"""Products of a function with matrices, in the format that the user asked for: the rows are rounded once, when
compiling, and the product is a `linear` over them, whose activations the target rounds as it runs.
"""

from __future__ import annotations

from math import prod

from ...ir.graph import Graph, Module, Node, Value, make, map_graphs, rebuild
from ...ir.ops import OPS
from ...ir.rewrite import count_uses
from ...ir.target import Target
from ...ir.types import DTYPES, DType, bf16
from .hoist import hoist
from .products import fixed_values, vector_of


def run(module: Module, target: Target) -> Module:
    """Products with matrices become linears of `target.rounded`; convolutions with windows, and rows that are no whole
    blocks of it nor of q8_0, stay f32."""
    if not target.rounded or "step" in module.entries:
        return module
    return hoist(map_graphs(module, lambda graph: _rounded(graph, DTYPES[target.rounded])))


def _emit(like: Node, op: str, *operands: Value, **attrs: object) -> Value:
    return make(OPS[op], *operands, origin=like.origin, **attrs)[0]


def _format(inner: int, wanted: DType) -> DType | None:
    """The format of rows of `inner` values, None where they stay."""
    return next((d for d in (wanted, DTYPES["q8_0"]) if inner % d.block == 0), None)


def _rounded(graph: Graph, wanted: DType) -> Graph:
    fixed, uses = fixed_values(graph), count_uses(graph)

    def product(node: Node) -> DType | None:
        """The format for a product with a matrix, None for any other node."""
        if node.op.name != "patch_linear" or node.attr("window") or node.inputs[1].node not in fixed:
            return None
        inner = node.inputs[1].shape[1]
        return _format(inner, wanted) if isinstance(inner, int) else None

    def linear(node: Node, x: Value, w: Value, *bias: Value) -> Value:
        dtype = product(node)
        rows = _emit(node, "convert", w, dtype=bf16) if dtype == bf16 else _emit(node, "encode", w, dtype=dtype)
        flat = _emit(node, "reshape", x, shape=(prod(x.shape[:-1], start=1), x.shape[-1]))
        y = _emit(node, "linear", flat, rows, *bias)
        return _emit(node, "reshape", y, shape=(*x.shape[:-1], w.shape[0]))

    biased: dict[Node, tuple[Node, Value]] = {}  # a sum, its product, and what is added to each row
    for node in graph.nodes():
        for i, y in enumerate(node.inputs if node.op.name == "add" else ()):
            if uses[y] == 1 and product(y.node) and node not in biased:
                bias = vector_of(node.inputs[1 - i], y.shape[-1], fixed)
                if bias is not None:
                    biased[node] = y.node, bias
    inner = {made for made, _ in biased.values()}
    operands_of: dict[Node, tuple[Value, ...]] = {}

    def transform(node: Node, operands: tuple[Value, ...]) -> tuple[Value, ...] | None:
        operands_of[node] = operands
        if node in biased:
            made, bias = biased[node]
            return (linear(made, *operands_of[made], bias),)
        if product(node) and node not in inner:
            return (linear(node, *operands),)
        return None

    return rebuild(graph, transform)
