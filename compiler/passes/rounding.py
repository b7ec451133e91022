"""Products of a function with matrices, in the format that the user asked for: the rows are rounded once, when
compiling, and the product is a `linear` over them, whose activations the target rounds as it runs.
"""

from __future__ import annotations

from ...ir.graph import Graph, Module, Node, Value, make, map_graphs, rebuild
from ...ir.ops import OPS
from ...ir.rewrite import count_uses
from ...ir.target import Target
from ...ir.types import DTYPES, DType, bf16
from .hoist import hoist
from .products import fixed_values, linear_of, packed_for_bodies, vector_of

SHORT = 128  # values of a row below which rounding the activations costs more than it saves

def run(module: Module, target: Target) -> Module:
    """Products with matrices become linears of `target.rounded`; convolutions with windows, short rows, and rows that
    are no whole blocks of it nor of q8_0, stay f32."""
    if not target.rounded or "step" in module.entries:
        return module
    wanted = DTYPES[target.rounded]

    def rounded(graph: Graph) -> Graph:
        return packed_for_bodies(_rounded(graph, wanted), target, lambda rows: _rows(rows, _format_of(rows, wanted)))

    return hoist(map_graphs(module, rounded))


def _emit(like: Node, op: str, *operands: Value, **attrs: object) -> Value:
    return make(OPS[op], *operands, origin=like.origin, **attrs)[0]


def _format_of(rows: Value, wanted: DType) -> DType | None:
    """The format of the rows f32[N, K] of a matrix, None where they stay."""
    inner = rows.shape[1]
    if not isinstance(inner, int):
        return None
    return next((d for d in (wanted, DTYPES["q8_0"]) if inner % d.block == 0), None) if inner >= SHORT else None


def _rows(rows: Value, dtype: DType | None) -> Value:
    """The rows in a format."""
    if dtype is None:
        return rows
    return _emit(rows.node, "convert" if dtype == bf16 else "encode", rows, dtype=dtype)


def _rounded(graph: Graph, wanted: DType) -> Graph:
    fixed, uses = fixed_values(graph), count_uses(graph)

    def product(node: Node) -> DType | None:
        """The format for a product with a matrix, None for any other node."""
        if node.op.name != "patch_linear" or node.attr("window") or node.inputs[1].node not in fixed:
            return None
        return _format_of(node.inputs[1], wanted)

    def linear(node: Node, x: Value, w: Value, *bias: Value) -> Value:
        return linear_of(node, x, _rows(w, product(node)), *bias)

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
