"""Functions of JAX in the graphs that other front ends build: what JAX says in a line need not be said again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from ...errors import InfercError
from ...ir.graph import INPUT, IRError, Value
from ..tracing import Input, trace
from .arrays import Array

REFUSED = (InfercError, TypeError, ValueError, NotImplementedError, IndexError,
           jax.errors.InconclusiveDimensionOperation)  # what JAX raises for shapes that it cannot trace


def computed(function: Callable[..., Any], *arrays: Array) -> list[Array]:
    """The arrays of the pytree that a JAX function gives, traced with the types that `arrays` have, 64 bits included.

    The function may neither take nor give complex numbers. Raises IRError for what cannot be traced.
    """
    body = arrays[0].body
    inputs = [Input(f"x{i}", "arg", a.value.type) for i, a in enumerate(arrays)]
    with jax.enable_x64(True):
        try:
            graph, weights = trace(lambda *given: jax.tree.leaves(function(*given)), inputs, name="by_jax")
        except REFUSED as error:
            raise IRError(" ".join(str(error).split())) from error
    places: dict[Value, Value] = {n[0]: a.value for n, a in zip(graph.inputs, arrays)}
    for node in graph.inputs[len(arrays) :]:
        places[node[0]] = body.weight(weights[node.attr("name")]).value
    for node in graph.nodes():
        if node.op is not INPUT:
            made = body.make(node.op.name, *(places[v] for v in node.inputs), **dict(node.attrs))
            places.update(zip(node.values, made, strict=True))
    return [Array(places[v], body) for v in graph.outputs]

