"""The text form of modules and graphs, printed. `parse` reads it back to the same.

    symbol T in 1..512

    weight blk.0.ffn_gate.weight: q4_0[1536, 576]

    graph mlp {
      input x: arg f32[T, 576]
      input blk.0.ffn_gate.weight: weight q4_0[1536, 576]
      gate = linear(x, blk.0.ffn_gate.weight): f32[T, 1536]  # mlp.gate
      act = silu(gate): f32[T, 1536]  # mlp.act <- mlp.logistic, mlp.mul
      return y = act
    }

    entry step = mlp

Values are named after their origins, or their ops where the origin is a scope that holds others. Origins stand
after `#`, with the sources of a fused op after `<-`. Attributes follow a semicolon, defaults are left out. Types are
there for the reader: parsing infers them and refuses others. Weights are named, their data is elsewhere. A name that is
no word is a JSON string.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .graph import Graph, IRError, Module, Node, Origin, subgraphs
from .parse import parse_graph, parse_module
from .types import DType, Expr, Sym, Type, numpy_dtype, symbols

__all__ = ["parse_graph", "parse_module", "print_graph", "print_module"]


def print_module(module: Module) -> str:
    """The text of a whole module: symbols, weights, graphs with callees first, entries."""
    roots = [*module.entries.values(), *([module.prepare] if module.prepare else [])]
    names = _graph_names(roots)
    parts = [_print_symbols(names, [w.type for w in module.weights.values()])]
    parts.append("".join(f"weight {_name(w.name)}: {w.type}\n" for w in module.weights.values()))
    parts += [_print_graph(g, names) for g in names]
    last = [f"entry {_name(entry)} = {_name(names[g])}\n" for entry, g in module.entries.items()]
    if module.prepare:
        last.append(f"prepare {_name(names[module.prepare])}\n")
    return "\n".join(p for p in (*parts, "".join(last)) if p)


def print_graph(graph: Graph) -> str:
    """The text of one graph after the graphs that it calls."""
    names = _graph_names([graph])
    return "\n".join(p for p in (_print_symbols(names, []), *(_print_graph(g, names) for g in names)) if p)


def _graph_names(roots: Iterable[Graph]) -> dict[Graph, str]:
    """Every graph under these, callees first, with a name of its own."""
    names: dict[Graph, str] = {}
    taken: set[str] = set()

    def visit(graph: Graph) -> None:
        if graph in names:
            return
        for node in graph.nodes():
            for callee in subgraphs(node):
                visit(callee)
        names[graph] = _unused(graph.name or "graph", taken)

    for root in roots:
        visit(root)
    return names


def _print_symbols(graphs: Iterable[Graph], types: Iterable[Type]) -> str:
    found: dict[str, Sym] = {}

    def collect(item: Any) -> None:
        match item:
            case tuple():
                for part in item:
                    collect(part)
            case Type():
                collect(item.shape)
            case Expr():
                for s in symbols(item):
                    if found.setdefault(s.name, s) != s:
                        raise IRError(f"the symbol {s.name} has two pairs of bounds")

    collect(tuple(types))
    for graph in graphs:
        for node in graph.nodes():
            collect(node.types)
            collect(tuple(v for _, v in node.attrs))
    return "".join(f"symbol {s.name} in {s.lo}..{s.hi}\n" for _, s in sorted(found.items()))


def _print_graph(graph: Graph, graphs: Mapping[Graph, str]) -> str:
    taken: set[str] = set()
    names = {n[0]: _unused(n.attr("name"), taken) for n in graph.inputs}
    lines = [f"input {_name(names[n[0]])}: {n.attr('role')} {n.types[0]}" for n in graph.inputs]
    scopes = {n.origin.path[: dot.start()] for n in graph.nodes() for dot in re.finditer(r"\.", n.origin.path)}
    for node in graph.nodes():
        if node[0] in names:
            continue
        for v, name in zip(node.values, _result_names(node, scopes)):
            names[v] = _unused(name, taken)
        operands = ", ".join(_name(names[v]) for v in node.inputs)
        attrs = _print_attrs(node, graphs)
        results, types = ", ".join(_name(names[v]) for v in node.values), ", ".join(map(str, node.types))
        inside = "; ".join(p for p in (operands, attrs) if p) if operands else f"; {attrs}" if attrs else ""
        lines.append(f"{results} = {node.op.name}({inside}): {types}{_print_origin(node.origin)}")
    outputs = [_name(names[v]) for v in graph.outputs]
    if graph.output_names:
        outputs = [f"{_name(n)} = {v}" for n, v in zip(graph.output_names, outputs)]
    lines.append(f"return {', '.join(outputs)}".rstrip())
    return f"graph {_name(graphs[graph])} {{\n" + "".join(f"  {line}\n" for line in lines) + "}\n"


def _unused(name: str, taken: set[str]) -> str:
    """`name`, or the first of name_2, name_3 … that is not taken; it is taken then."""
    candidate, count = name, 1
    while candidate in taken:
        count += 1
        candidate = f"{name}_{count}"
    taken.add(candidate)
    return candidate


def _result_names(node: Node, scopes: set[str]) -> list[str]:
    """The last part of the origin, or its parts a+b where there are as many results, as words; else the op's name."""
    last = "" if node.origin.path in scopes else node.origin.path.rpartition(".")[2]
    parts = last.split("+")
    return [_word(p) or node.op.name for p in (parts if len(parts) == len(node.types) else [last] * len(node.types))]


def _word(text: str) -> str:
    text = re.sub(r"\W", "_", text)
    return f"_{text}" if text[:1].isdigit() else text


_WORD = re.compile(r"[A-Za-z_][\w.+\-/]*")


def _name(name: str) -> str:
    return name if _WORD.fullmatch(name) else json.dumps(name)


def _print_origin(origin: Origin) -> str:
    if origin == Origin():
        return ""
    sources = ", ".join(_name(s) for s in sorted(origin.sources))
    return f"  # {_name(origin.path)}" + (f" <- {sources}" if sources else "")


def _print_attrs(node: Node, graphs: Mapping[Graph, str]) -> str:
    defaults = dict(node.op.attributes)
    attrs = [(k, v) for k, v in node.attrs if not _same(v, defaults[k])]
    return ", ".join(f"{k}={_print_value(v, node, graphs)}" for k, v in attrs)


def _same(value: Any, default: Any) -> bool:
    return type(value) is type(default) and value == default


def _print_value(value: Any, node: Node, graphs: Mapping[Graph, str]) -> str:
    match value:
        case tuple():
            inside = ", ".join(_print_value(v, node, graphs) for v in value)
            return f"({inside},)" if len(value) == 1 else f"({inside})"
        case Graph():
            return f"@{_name(graphs[value])}"
        case str():
            return json.dumps(value)
        case bytes():
            return _print_bytes(value, node)
        case bool() | np.bool_():
            return str(bool(value))
        case float() | np.floating():
            return repr(float(value))
        case int() | np.integer():
            return str(int(value))
        case None | DType() | Type() | Expr():
            return str(value)
    raise IRError(f"{node.op.name} at {node.origin}: an attribute of type {type(value).__name__} has no text form")


def _print_bytes(value: bytes, node: Node) -> str:
    """A constant's elements as numbers where that is exact, else hexadecimal bytes."""
    if node.op.name == "constant":
        dtype = numpy_dtype(node.types[0].dtype)
        numbers = [x.item() if x.dtype.kind in "iub" else float(str(x)) for x in np.frombuffer(value, dtype)]
        if np.array(numbers, dtype).tobytes() == value:
            return f"[{', '.join(map(repr, numbers))}]"
    return f'hex"{value.hex()}"'
