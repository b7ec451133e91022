"""XLA beside the interpreter on the same graph, value by value: the results of layers, and the first op that is off.

XLA rounds as it fuses, so that values are near, not equal, and a program that gives every value is fused less than the
one that an artifact holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import jax
import ml_dtypes
import numpy as np

from ...backends.xla.context import Context, Facts
from ...backends.xla.lower import lower
from ...backends.xla.parts import part_types, split
from ...backends.xla.portable import serialize
from ...ir.graph import Graph, Module, Node, Value
from ...ir.interpret import prepare_weights, run
from ...ir.types import Type, f32
from ...runtime import xla_call
from . import compare
from .parting import Parting

NEAR = 1e-3  # the most that a result may be off, of its norm, where its operands were equal or near


@dataclass
class Seen:
    """`layers` are the results of the entry's calls by XLA, by name; `parting` the first op that is off."""

    layers: dict[str, np.ndarray] = field(default_factory=dict)
    parting: Parting | None = None


def watched(module: Module, entry: str, given: Mapping[str, np.ndarray], dims: Mapping[str, int]) -> Seen:
    """Runs an entry of a module after XLA's passes, on the CPU. `given` has its arguments and states as the interpreter
    holds them. Raises IRError for what cannot be expressed."""
    graph = module.entries[entry]
    names = {n.attr("name") for n in graph.inputs_of("weight")} - set(given)
    arrays = {**given, **{name: array for name, _, array in prepare_weights(module, names)}}
    return _watched(graph, [arrays[n.attr("name")] for n in graph.inputs], dims, "")


def _watched(graph: Graph, arrays: Sequence[np.ndarray], dims: Mapping[str, int], layer: str) -> Seen:
    nodes = [n for n in graph.nodes() if n not in graph.inputs]
    shown = [v for n in nodes if n.op.name != "constant" for v in n.values if v.type.dtype == f32]
    found = dict(zip(shown, values(graph, arrays, shown, dims)))
    seen, calls = Seen(), list[tuple[Node, tuple[np.ndarray, ...]]]()
    of_graph = set(nodes)

    def observe(node: Node, operands: tuple[np.ndarray, ...], results: tuple[np.ndarray, ...]) -> None:
        if node not in of_graph:  # inside of a call
            return
        if node.op.name == "call" and node[0] in found and node.origin.path:
            seen.layers[node.origin.path] = found[node[0]]
        for i, expected in enumerate(results):
            if seen.parting or node[i] not in found:
                continue
            apart = compare.difference(expected, found[node[i]])
            if not apart.norm_rel <= NEAR:
                seen.parting = _parting(node, i, layer, operands, expected, found[node[i]], apart)
                calls.extend([(node, operands)] * (node.op.name == "call"))

    run(graph, tuple(arrays), dict(dims), observe)
    for node, operands in calls:  # what is off within the call
        inner = _watched(node.attr("graph"), operands, dims, node.origin.path)
        seen.parting = inner.parting or seen.parting
    return seen


def values(graph: Graph, arrays: Sequence[np.ndarray], shown: Sequence[Value],
           dims: Mapping[str, int]) -> list[np.ndarray]:  # fmt: skip
    """What XLA computes for f32 values of a graph, given its inputs as the interpreter holds them."""
    context = Context(dims, Facts("one"))
    told = replace(graph, outputs=tuple(shown), output_names=())
    code = serialize(lower(context, told, "watched"))
    tensors: list[np.ndarray] = []
    for node, array in zip(graph.inputs, arrays):
        t = node.types[0]
        parts = split(Type(context.shape(t.shape), t.dtype, t.layout), array)
        tensors += [p.view(ml_dtypes.bfloat16) if t.dtype.name == "bf16" else p for p in parts]
    inputs = [(p.shape, p.element) for n in graph.inputs for p in part_types(context.type(n.types[0]))]
    outputs = [h for v in shown for h in context.held(v.type)]
    call = xla_call.exported(code, inputs, outputs, "cpu").call
    program = jax.jit(call).lower(*xla_call.structs(inputs)).compile(compiler_options=xla_call.options("cpu"))
    return [np.asarray(x) for x in program(*tensors)]


def _parting(node: Node, result: int, layer: str, operands: Sequence[np.ndarray], expected: np.ndarray,
             found: np.ndarray, apart: compare.Difference) -> Parting:  # fmt: skip
    """The element that is farthest off stands for all."""
    distance = np.nan_to_num(np.abs(expected.astype(np.float64) - found), nan=np.inf)
    index = tuple(int(i) for i in np.unravel_index(int(distance.argmax()), expected.shape))
    return Parting(
        node.op.name, node.origin.path, tuple(sorted(node.origin.sources)), layer, 0, result, str(node.types[result]),
        index, float(expected[index]), float(found[index]), int(np.count_nonzero(expected != found)), apart,
        tuple(compare.statistics_of(x) for x in operands),
    )  # fmt: skip
