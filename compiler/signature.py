"""The signature of a plain function, as the manifest holds it and callers are checked against."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from ..ir.graph import Graph
from ..ir.types import Dim, Type, symbols


def described(graph: Graph, output_names: Sequence[str] = (), complex_inputs: Collection[str] = (),
              complex_outputs: Collection[int] = ()) -> dict[str, Any]:  # fmt: skip
    """{"inputs": [{name, dtype, shape}], "outputs": […], "dims": {name: [least, most]}} of an entry.

    Complex inputs, by name, and outputs, by place, are arrays of pairs whose entry has "complex": true. Shapes hold
    numbers, names of dimensions, and text such as "2*batch + 1" for what is computed from them.
    """
    names = output_names or graph.output_names or [f"out{i}" for i in range(len(graph.outputs))]
    inputs = [(n.attr("name"), n.types[0]) for n in graph.inputs_of("arg")]
    outputs = list(zip(names, graph.output_types))
    dims = {s.name: [s.lo, s.hi] for _, t in inputs for d in t.shape for s in symbols(d)}
    return {"inputs": [_array(*i, i[0] in complex_inputs) for i in inputs],
            "outputs": [_array(*o, n in complex_outputs) for n, o in enumerate(outputs)], "dims": dims}  # fmt: skip


def _array(name: str, type: Type, of_pairs: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": name, "dtype": str(type.dtype), "shape": [_size(d) for d in type.shape]}
    return entry | {"complex": True} if of_pairs else entry


def _size(dim: Dim) -> int | str:
    return dim if isinstance(dim, int) else str(dim)
