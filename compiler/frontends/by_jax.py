"""Functions of JAX in the graphs that other front ends build: what JAX says in a line need not be said again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from ...ir.graph import INPUT, Value
from ..tracing import Input, trace
from .arrays import Array


def computed(function: Callable[..., Any], *arrays: Array) -> list[Array]:
    """The arrays of the pytree that a JAX function gives, traced with the types that `arrays` have, 64 bits included.

    The function may neither take nor give complex numbers. Raises InfercError for what cannot be traced.
    """
    body = arrays[0].body
    inputs = [Input(f"x{i}", "arg", a.value.type) for i, a in enumerate(arrays)]
    with jax.enable_x64(True):
        graph, weights = trace(lambda *given: jax.tree.leaves(function(*given)), inputs, name="by_jax")
    places: dict[Value, Value] = {n[0]: a.value for n, a in zip(graph.inputs, arrays)}
    for node in graph.inputs[len(arrays) :]:
        places[node[0]] = body.weight(weights[node.attr("name")]).value
    for node in graph.nodes():
        if node.op is not INPUT:
            made = body.make(node.op.name, *(places[v] for v in node.inputs), **dict(node.attrs))
            places.update(zip(node.values, made, strict=True))
    return [Array(places[v], body) for v in graph.outputs]


def alone(function: Callable[..., Any], *arrays: Array) -> Array:
    """As `computed`, of a function that gives one array."""
    (result,) = computed(function, *arrays)
    return result


def each(function: Callable[..., Any], arrays: Sequence[Array]) -> list[Array]:
    """As `computed`, of operands in a sequence."""
    return computed(function, *arrays)
