"""Control flow of torch: cond, while_loop, scan and map become cond, while and scan of the IR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ...ir.graph import Graph, Value, make_input
from ...ir.types import Type, boolean
from .arrays import Array
from .torch_import import Call, Complex, Rule

Closed = tuple[Graph, list[Value]]


def _array(c: Call, value: Any) -> Array:
    """A tensor, or a number that is fixed as a scalar of i64."""
    if isinstance(value, Complex):
        raise c.error("complex numbers cannot be carried; carry torch.view_as_real of them")
    return value if isinstance(value, Array) else c.body.dim(value)


def _types(arrays: Sequence[Array]) -> list[Type]:
    return [a.value.type for a in arrays]


def _closed(c: Call, module: torch.fx.GraphModule, name: str, own: Sequence[Type], outer: Sequence[Any],
            results: Sequence[Type] | None = None) -> Closed:  # fmt: skip
    """A graph inside the graph: inputs of the types `own`, then `outer` values that it reads where they are.

    Its outputs are made the types of `results`, where these are given.
    """
    c.importer.around.append(c.node)
    with c.body.scope():
        inputs = [make_input(f"arg{i}", "arg", t) for i, t in enumerate(own)]
        given = iter([*(Array(n[0], c.body) for n in inputs), *outer])
        nodes = list(module.graph.nodes)
        values = {n: next(given) for n in nodes if n.op == "placeholder"}
        made = c.importer.run([n for n in nodes if n.op != "placeholder"], values)
        outputs = [_array(c, v) for v in (made if isinstance(made, (tuple, list)) else [made])]
        if results is not None:
            outputs = [o.astype(t.dtype) for o, t in zip(outputs, results)] + outputs[len(results) :]
        c.importer.around.pop()
        return c.body.close(name, inputs, outputs)


def cond(c: Call) -> list[Array]:
    which, *modules, operands = c.operands
    if not isinstance(which, Array):
        which = c.body.constant(bool(which))
    built = [_closed(c, m, name, [], operands) for name, m in zip(("true", "false"), modules)]
    graphs, captured = c.body.closed_together(built[::-1])  # index 0 is false
    which = which if which.dtype == boolean else which.compare("ne", 0)
    made = c.body.make("cond", which.reshape(()).value, *captured, branches=tuple(graphs))
    return [Array(v, c.body) for v in made]


def while_loop(c: Call) -> list[Array]:
    condition, body, carried, outer = c.operands
    carry = [_array(c, v) for v in carried]
    types = _types(carry)
    test, for_test = _closed(c, condition, "condition", types, outer, [Type((), boolean)])
    test = Graph(test.name, test.inputs, (Array(test.outputs[0], c.body).reshape(()).value,))
    turn, for_turn = _closed(c, body, "body", types, outer, types)
    made = c.body.make(
        "while", *for_test, *for_turn, *(a.value for a in carry), cond=test, body=turn, cond_consts=len(for_test),
        body_consts=len(for_turn),
    )  # fmt: skip
    return [Array(v, c.body) for v in made]


def _scanned(c: Call, body: Any, carry: Sequence[Array], rows: Sequence[Array], outer: Sequence[Any]) -> list[Array]:
    own = [*_types(carry), *(Type(r.shape[1:], r.dtype) for r in rows)]
    graph, captured = _closed(c, body, "body", own, outer, _types(carry))
    made = c.body.make(
        "scan", *captured, *(a.value for a in (*carry, *rows)), body=graph, length=rows[0].shape[0],
        consts=len(captured), carry=len(carry),
    )  # fmt: skip
    return [Array(v, c.body) for v in made]


def scan(c: Call) -> list[Array]:
    """Over the first axis: torch turns and moves others itself."""
    body, carried, rows, outer = c.operands
    return _scanned(c, body, [_array(c, v) for v in carried], [_array(c, r) for r in rows], outer)


def map_(c: Call) -> list[Array]:
    body, rows, outer = c.operands
    return _scanned(c, body, [], [_array(c, r) for r in rows], outer)


def with_effects(c: Call) -> list[Any]:
    """An operation in an order among others, which a token keeps: checks, which compute nothing."""
    token, operation, *_ = c.operands
    if operation._schema.name.removeprefix("aten::") not in CHECKS:
        raise c.error(f"{operation} is a side effect; leave it out before exporting")
    return [token, None]


CHECKS = frozenset(
    "_linalg_check_errors _assert_async _assert_scalar _functional_assert_async _assert_tensor_metadata".split()
)
HIGHER: Mapping[str, Rule] = {
    "cond": cond, "while_loop": while_loop, "scan": scan, "map_impl": map_, "with_effects": with_effects,
}
