"""Groups of ops as one kernel: a loop that composes theirs, or a product with what follows it."""

from __future__ import annotations

import numpy as np

from ...ir.graph import Graph, Node, Value
from ...ir.ops.common import widen
from ...ir.rewrite import splat
from ...ir.target import Target
from ...ir.types import symbol
from . import dense_attention, depthwise, product
from .kernels import Arg, Call, DimValue, Operand, Result, Run
from .loop import loop_of
from .loop_emit import emit
from .loop_function import kernel_name
from .loop_model import Constant, Loop, fuse
from .text import Names

ANCHORS = {"patch_linear": product.product, "convolution": depthwise.depthwise}


def composed(graph: Graph) -> tuple[Loop, Node | None]:
    """The graph's result as one loop over its inputs and over the result of its product, if it has one.

    Raises ValueError where the loops do not compose.
    """
    anchor = next((n for n in graph.nodes() if n.op.name in ANCHORS), None)
    made: dict[Value, Loop] = {}
    for node in graph.nodes():
        if node.op.name == "input" or node is anchor:
            continue
        loop = _loop(node)
        for value in dict.fromkeys(node.inputs):
            if value in made and value in loop.operands:
                joined = fuse(made[value], loop)
                if joined is None:
                    raise ValueError(f"{value.node.op.name} cannot be computed inside of {node.op.name}")
                loop = joined
        made[node[0]] = loop
    return made[graph.outputs[0]], anchor


def _loop(node: Node) -> Loop:
    number = splat(node[0]) if node.op.name == "constant" else None
    if node.op.name != "constant":
        return loop_of(node)
    if number is None:
        raise ValueError("an array of constants stays outside")
    dtype = node.types[0].dtype
    return Loop(node[0], node.types[0].shape, Constant(widen(np.asarray(number), dtype).item(), dtype))


def fused(node: Node, target: Target) -> Call:
    """The call of one kernel for all that a graph computes."""
    graph: Graph = node.attr("graph")
    if (attention := next((n for n in graph.nodes() if n.op.name == "attention"), None)) is not None:
        return _attention(node, graph, attention, target)
    loop, anchor = composed(graph)
    operands = {n[0]: i for i, n in enumerate(graph.inputs)}
    if anchor is not None:
        return ANCHORS[anchor.op.name](node, anchor, loop, operands, target)
    last = graph.outputs[0].node.op.name
    names = Names()
    wished = [names.new(v.node.attr("name")) for v in loop.operands]
    emitted = emit(loop, kernel_name(f"{graph.name}_{last}", loop.result.type), wished)
    args: list[Arg] = [Run()] if emitted.parallel else []
    args += [DimValue(symbol(s.name, s.lo, s.hi)) for s in emitted.dims]
    args += [Operand(operands[v]) for v in emitted.operands]
    return Call(emitted.kernel, (*args, Result()), regions=emitted.regions)


def _attention(node: Node, graph: Graph, anchor: Node, target: Target) -> Call:
    """Attention over transposed arrays, into a transposed one."""
    operands = {n[0]: i for i, n in enumerate(graph.inputs)}
    views: dict[Value, tuple[int, ...]] = {}
    for value in anchor.inputs:
        if value.node.op.name == "transpose":
            views[value] = value.node.attr("permutation")
            operands[value] = operands[value.node.inputs[0]]
    out = (0, 1, 2, 3)
    if (last := graph.outputs[0].node) is not anchor:
        permutation = last.attr("permutation")
        out = tuple(permutation.index(axis) for axis in range(4))
    return dense_attention.attend(node, anchor, views, out, operands, target)


LOWERINGS = {"fused": fused}
