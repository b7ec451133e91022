"""Ops whose attributes are graphs. The interpreter gives the references each graph as a function of arrays."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ..graph import REQUIRED, Graph, IRError, Op
from ..types import Dim, Type, array_dtype, array_shape, boolean, i32
from .common import Arrays, Types, expect


class Run(Protocol):
    """A graph as the references see it: `interpret.Function`."""

    def __call__(self, *arrays: np.ndarray) -> Arrays: ...

    @property
    def output_types(self) -> Types: ...


def _takes(graph: Graph, types: Types) -> None:
    inputs = tuple(n.types[0] for n in graph.inputs)
    if inputs != types:  # a text that is long for a layer, and that nobody reads for most
        raise IRError(f"{graph.name} takes ({_list(inputs)}), not ({_list(types)})")


def _list(types: Types) -> str:
    return ", ".join(map(str, types))


def _infer_call(*types: Type, graph: Graph) -> Types:
    _takes(graph, types)
    return graph.output_types


def _infer_cond(index: Type, *types: Type, branches: tuple[Graph, ...]) -> Types:
    expect(index in (Type((), i32), Type((), boolean)), f"the index must be i32[] or bool[], not {index}")
    expect(bool(branches), "needs a branch")
    first = branches[0]
    for graph in branches:
        _takes(graph, types)
        expect(graph.output_types == first.output_types, f"{graph.name} gives other types than {first.name}")
    return first.output_types


def _cond(types: Types, index: np.ndarray, *arrays: np.ndarray, branches: tuple[Run, ...]) -> Arrays:
    """Branch `index`, moved into range; false is branch 0."""
    return branches[min(max(int(index), 0), len(branches) - 1)](*arrays)


def _infer_while(*types: Type, cond: Graph, body: Graph, cond_consts: int, body_consts: int) -> Types:
    carry = types[cond_consts + body_consts :]
    _takes(cond, types[:cond_consts] + carry)
    _takes(body, types[cond_consts : cond_consts + body_consts] + carry)
    expect(cond.output_types == (Type((), boolean),), f"{cond.name} must give bool[], not {_list(cond.output_types)}")
    expect(body.output_types == carry, f"{body.name} must give the carry ({_list(carry)})")
    return carry


def _while(types: Types, *arrays: np.ndarray, cond: Run, body: Run, cond_consts: int, body_consts: int) -> Arrays:
    for_cond, for_body = arrays[:cond_consts], arrays[cond_consts : cond_consts + body_consts]
    carry = arrays[cond_consts + body_consts :]
    while cond(*for_cond, *carry)[0]:
        carry = body(*for_body, *carry)
    return carry


def _infer_scan(*types: Type, body: Graph, length: Dim, consts: int, carry: int, reverse: bool) -> Types:
    fixed, state, rows = types[:consts], types[consts : consts + carry], types[consts + carry :]
    for t in rows:
        expect(t.rank > 0 and t.shape[0] == length, f"{t} must have {length} rows")
    _takes(body, fixed + state + tuple(Type(t.shape[1:], t.dtype) for t in rows))
    expect(body.output_types[:carry] == state, f"{body.name} must give the carry ({_list(state)}) first")
    return state + tuple(Type((length, *t.shape), t.dtype) for t in body.output_types[carry:])


def _scan(types: Types, *arrays: np.ndarray, body: Run, length: int, consts: int, carry: int, reverse: bool) -> Arrays:
    fixed, state, rows = arrays[:consts], arrays[consts : consts + carry], arrays[consts + carry :]
    made: list[Arrays] = []
    for i in reversed(range(length)) if reverse else range(length):
        results = body(*fixed, *state, *(r[i] for r in rows))
        state = results[:carry]
        made.append(results[carry:])
    if not made:
        none = (Type((0, *t.shape), t.dtype) for t in body.output_types[carry:])
        return (*state, *(np.zeros(array_shape(t), array_dtype(t)) for t in none))
    return (*state, *(np.stack(column) for column in zip(*(made[::-1] if reverse else made))))


CONTROL = (
    Op("call", _infer_call, lambda types, *arrays, graph: graph(*arrays), attributes=(("graph", REQUIRED),)),
    Op("cond", _infer_cond, _cond, attributes=(("branches", REQUIRED),)),
    Op("while", _infer_while, _while,
       attributes=(("cond", REQUIRED), ("body", REQUIRED), ("cond_consts", 0), ("body_consts", 0))),
    Op("scan", _infer_scan, _scan,
       attributes=(("body", REQUIRED), ("length", REQUIRED), ("consts", 0), ("carry", 0), ("reverse", False))),
)  # fmt: skip
