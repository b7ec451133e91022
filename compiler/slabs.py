"""Weights as an artifact holds them, a slab of rows at a time, so that no large weight is in memory as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import numpy as np

from ..ir.graph import Graph, Module, Node, Value, Weight, make, make_input
from ..ir.interpret import prepare_weights, run, to_array
from ..ir.quant.panels import ROWS, known_shape
from ..ir.types import Type
from .mapped import let_go

BYTES = 1 << 24  # of a slab as the source has it
BY_ROWS = frozenset(("recode", "pack"))  # what they make of 16 rows depends on no others


def prepared(module: Module, name: str) -> Iterator[tuple[int, Type, np.ndarray]]:
    """(first byte, type, array) of the parts of a weight that the entries read, in order: slabs where it is packed, row
    by row, from one weight of the source, else the whole. A part is valid until the next is asked for."""
    packing = _packing(module, name)
    if packing is None:
        yield from ((0, type, array) for _, type, array in prepare_weights(module, {name}))
        return
    weight, nodes = packing
    array = to_array(weight.type, weight.load())
    *lead, n, k = known_shape(weight.type)
    rows = array.reshape(prod(lead) * n, array.shape[-1])
    step, at = max(1, BYTES // (rows.strides[0] * ROWS)) * ROWS, 0
    for first in (matrix * n + row for matrix in range(prod(lead)) for row in range(0, n, step)):
        slab = rows[first : min(first + step, (first // n + 1) * n)]
        graph = _of_rows(name, Type((len(slab), k), weight.type.dtype), nodes)
        (packed,) = run(graph, (slab,), {}, None)
        yield at, graph.output_types[0], packed
        at += packed.size
        let_go(array)


def _packing(module: Module, name: str) -> tuple[Weight, Sequence[Node]] | None:
    """The source's weight that a prepared one is packed from, and the ops that do it; None where others do too."""
    if module.prepare is None:
        return None
    value, nodes = dict(zip(module.prepare.output_names, module.prepare.outputs))[name], list[Node]()
    while value.node.op.name in BY_ROWS:
        nodes.insert(0, value.node)
        value = value.node.inputs[0]
    if not nodes or value.node.op.name != "input":
        return None
    return module.weights[value.node.attr("name")], nodes


def _of_rows(name: str, type: Type, nodes: Sequence[Node]) -> Graph:
    """A graph of the same ops over fewer rows."""
    given = make_input(name, "weight", type)
    value: Value = given[0]
    for node in nodes:
        value = make(node.op, value, origin=node.origin, **dict(node.attrs))[0]
    return Graph(name, (given,), (value,))
