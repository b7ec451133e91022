"""Products and convolutions with weights take one form, `patch_linear`, whose weight has a row for each output.

What makes the rows from a weight (a transpose, a scale for each output) is computed once, in `Module.prepare`. Only the
order of rounding may change, and only where a scale moves into the weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

from ...ir.graph import Graph, Module, Node, Value, make, make_input, map_graphs, rebuild
from ...ir.ops import OPS
from ...ir.ops.decompose import constant
from ...ir.ops.fused import channels_last
from ...ir.rewrite import count_uses
from ...ir.target import Target
from ...ir.types import f32
from . import sink
from .hoist import hoist

FEW = 16  # channels: with fewer, a padded copy is cheaper than windows whose rows are apart


def run(module: Module, target: Target) -> Module:
    """Rewrites the graphs of functions; a language model's step has linears of its own."""
    if "patch_linear" not in target.fusions or "step" in module.entries:
        return module
    early = target.weight_layout and not target.rounded  # else the bodies' weights are rounded first
    packed = map_graphs(module, lambda graph: packed_for_bodies(graph, target)) if early else module
    return hoist(map_graphs(packed, lambda graph: _scaled(sink.run(_products(graph), fixed_values))))


def _emit(like: Node, op: str, *operands: Value, **attrs: Any) -> Value:
    return make(OPS[op], *operands, origin=like.origin, **attrs)[0]


def fixed_values(graph: Graph) -> set[Node]:
    """The nodes that depend on weights and constants alone."""
    fixed: set[Node] = set()
    for node in graph.nodes():
        if node.attr("role") == "weight" if node.op.name == "input" else all(v.node in fixed for v in node.inputs):
            fixed.add(node)
    return fixed


def _products(graph: Graph) -> Graph:
    fixed = fixed_values(graph)

    def transform(node: Node, operands: tuple[Value, ...]) -> tuple[Value, ...] | None:
        if node.op.name not in ("dot_general", "convolution") or node.types[0].dtype != f32:
            return None
        if any(v.dtype != f32 for v in operands) or node.inputs[1].node not in fixed or node.inputs[0].node in fixed:
            return None
        made = (_dot if node.op.name == "dot_general" else _convolution)(node, *operands)
        return None if made is None else (made,)

    return rebuild(graph, transform)


def _transposed(node: Node, x: Value, order: tuple[int, ...]) -> Value:
    return x if order == tuple(range(len(order))) else _emit(node, "transpose", x, permutation=order)


def _reshaped(node: Node, x: Value, shape: tuple[Any, ...]) -> Value:
    return x if x.shape == shape else _emit(node, "reshape", x, shape=shape)


def _dot(node: Node, x: Value, w: Value) -> Value | None:
    (summed, of_weight), batch = node.attr("contracting"), node.attr("batch")
    if batch[0] or not summed:
        return None
    free = tuple(d for d in range(x.type.rank) if d not in summed)
    outputs = tuple(d for d in range(w.type.rank) if d not in of_weight)
    inner, count = prod(w.shape[d] for d in of_weight), prod(w.shape[d] for d in outputs)
    if not isinstance(inner, int) or not isinstance(count, int) or count == 1:
        return None
    rows = _reshaped(node, _transposed(node, w, (*outputs, *of_weight)), (count, inner))
    lead = tuple(x.shape[d] for d in free)
    flat = _reshaped(node, _transposed(node, x, (*free, *summed)), (*lead, inner))
    return _reshaped(node, _emit(node, "patch_linear", flat, rows), node.types[0].shape)


def _convolution(node: Node, x: Value, w: Value) -> Value | None:
    """A depthwise one stays a convolution, channels last; other groups and transposed ones stay as they are."""
    x_dims, w_dims, out_dims = (node.attr(name) for name in ("x_dims", "w_dims", "out_dims"))
    spatial = x.type.rank - 2
    if any(d != 1 for d in node.attr("base_dilation")) or not all(isinstance(d, int) for d in w.shape) or not spatial:
        return None
    outputs, inputs, *window = (w.shape[d] for d in w_dims)
    groups = node.attr("groups")
    last = _transposed(node, x, (x_dims[0], *x_dims[2:], x_dims[1]))
    settings = {name: node.attr(name) for name in ("strides", "low", "high", "dilation")}
    places = (out_dims[0], *out_dims[2:], out_dims[1])
    back = tuple(places.index(d) for d in range(spatial + 2))
    if groups == outputs and inputs == 1 and groups > 1:
        filters = _transposed(node, w, (*w_dims[2:], w_dims[1], w_dims[0]))
        y = _emit(node, "convolution", last, filters, groups=groups, base_dilation=(1,) * spatial, **settings,
                  **channels_last(spatial))  # fmt: skip
        return _transposed(node, y, back)
    if groups != 1 or outputs == 1:
        return None
    rows = _reshaped(node, _transposed(node, w, (w_dims[0], *w_dims[2:], w_dims[1])),
                     (outputs, prod(window) * inputs))  # fmt: skip
    if inputs < FEW and any(n != 0 for n in (*settings["low"], *settings["high"])):
        none = (0,) * (spatial + 2)
        last = _emit(node, "pad", last, constant(0.0), low=(0, *settings["low"], 0), high=(0, *settings["high"], 0),
                     interior=none)  # fmt: skip
        settings |= {"low": (0,) * spatial, "high": (0,) * spatial}
    if all(n == 1 for n in (*window, *settings["strides"])) and not any(
        n != 0 for n in (*settings["low"], *settings["high"])):  # fmt: skip
        y = _emit(node, "patch_linear", last, rows)
    else:
        y = _emit(node, "patch_linear", last, rows, window=tuple(window), **settings)
    return _transposed(node, y, back)


# ---- loops ----------------------------------------------------------------------------------------------------------


def packed_for_bodies(graph: Graph, target: Target, rounded: Callable[[Value], Value] = lambda rows: rows) -> Graph:
    """Scans whose body multiplies with a weight are given its rows, packed before the first step. `rounded` gives the
    rows f32[N, K] in the dtype that the body is to multiply with."""
    fixed = fixed_values(graph)

    def transform(node: Node, operands: tuple[Value, ...]) -> Node | None:
        if node.op.name != "scan":
            return None
        body: Graph = node.attr("body")
        given, changed = list(operands), dict[Node, Node]()
        for i in range(node.attr("consts")):
            rows = _only_rows(body, body.inputs[i]) if node.inputs[i].node in fixed else None
            if rows is not None:
                given[i] = _emit(node, "pack", rounded(rows(operands[i])), layout=target.weight_layout)
                changed[body.inputs[i]] = make_input(body.inputs[i].attr("name"), "arg", given[i].type)
        if not changed:
            return None
        inner = rebuild(body, lambda n, inputs: _with_rows(n, inputs, changed), changed)
        return make(node.op, *given, origin=node.origin, **(dict(node.attrs) | {"body": inner}))

    return rebuild(graph, transform)


def _only_rows(body: Graph, weight: Node) -> Callable[[Value], Value] | None:
    """What gives the rows of a weight that the body only multiplies with, always along the same axis."""
    users = [n for n in body.nodes() if weight[0] in n.inputs]
    places = {_multiplied(n, weight[0]) for n in users}
    if len(places) != 1 or None in places or weight[0] in body.outputs or weight.types[0].rank != 2:
        return None
    (axis,) = places
    return lambda value: value if axis else _emit(weight, "transpose", value, permutation=(1, 0))


def _multiplied(node: Node, weight: Value) -> int | None:
    """The axis of the weight that a product sums over, its other operand being summed over its last."""
    if node.op.name != "dot_general" or node.inputs[1] != weight or node.inputs[0] == weight:
        return None
    (of_x, of_w), batch = node.attr("contracting"), node.attr("batch")
    plain = not batch[0] and len(of_x) == 1 and of_x[0] == node.inputs[0].type.rank - 1
    return of_w[0] if plain and node.types[0].dtype == f32 == weight.dtype else None


def _with_rows(node: Node, inputs: tuple[Value, ...], changed: Mapping[Node, Node]) -> tuple[Value, ...] | None:
    if len(node.inputs) != 2 or node.inputs[1].node not in changed:
        return None
    x, w = inputs
    return (_emit(node, "patch_linear", x, w) if w.dtype == f32 else linear_of(node, x, w),)


def linear_of(like: Node, x: Value, w: Value, *bias: Value) -> Value:
    """`linear` of x[..., K] by rows w[N, K], whatever the rank of x: f32[..., N]."""
    flat = _reshaped(like, x, (prod(x.shape[:-1], start=1), x.shape[-1]))
    return _reshaped(like, _emit(like, "linear", flat, w, *bias), (*x.shape[:-1], w.shape[0]))


# ---- scales and shifts ----------------------------------------------------------------------------------------------


def vector_of(value: Value, channels: Any, fixed: set[Node]) -> Value | None:
    """The one number per channel (the last axis) that a fixed value has, or None."""
    node = value.node
    if node not in fixed or value.dtype != f32:
        return None
    rank = value.type.rank
    while node.op.name == "reshape" and node.inputs[0].node in fixed and node.inputs[0].shape == value.shape:
        node = node.inputs[0].node
    if node.op.name == "constant" and value.shape == (channels,):
        return value
    if node.op.name != "broadcast":
        return None
    source, dims = node.inputs[0], node.attr("dims")
    if source.type.elements == 1:
        scalar = _reshaped(node, source, ())
        return _emit(node, "broadcast", scalar, shape=(channels,), dims=())
    alone = all(size == 1 for size, d in zip(source.shape, dims) if d != rank - 1)
    if alone and rank - 1 in dims and source.shape[dims.index(rank - 1)] == channels:
        return _reshaped(node, source, (channels,))
    return None


AFFINE = ("add", "sub", "mul", "div")


def _scaled(graph: Graph) -> Graph:
    """y = (x w' + b) s + t becomes x (s w)' + (b s + t), where s and t have a number for each output."""
    fixed, uses = fixed_values(graph), count_uses(graph)
    user: dict[Value, Node] = {v: n for n in graph.nodes() for v in n.inputs if uses[v] == 1}
    replaced: dict[Node, tuple[Value, Value | None, Value | None]] = {}
    for node in graph.nodes():
        depthwise = node.op.name == "convolution" and node.attr("groups") == node.types[0].shape[-1]
        if node.op.name != "patch_linear" and not depthwise or node.inputs[1].node not in fixed:
            continue
        if depthwise and node.attr("out_dims") != channels_last(node.types[0].rank - 2)["out_dims"]:
            continue
        scale: Value | None = None
        shift: Value | None = None
        end: Node | None = None
        last, y = node, node[0]
        channels = y.shape[-1]
        while (step := user.get(y)) is not None and step.op.name in AFFINE:
            left = step.inputs[0] == y
            vector = vector_of(step.inputs[1 if left else 0], channels, fixed)
            if vector is None or step.inputs[0] == step.inputs[1] or not left and step.op.name == "div":
                break
            name = step.op.name
            if name == "sub" and not left:
                break
            if name in ("mul", "div"):
                scale = vector if scale is None and name == "mul" else _emit(
                    step, name, scale if scale is not None else constant(1.0, (channels,)), vector)  # fmt: skip
                shift = None if shift is None else _emit(step, name, shift, vector)
                end = step
            elif shift is None:
                shift = vector if name == "add" else _emit(step, "neg", vector)
            else:
                shift = _emit(step, name, shift, vector)
            last, y = step, step[0]
        if end is not None:
            replaced[last] = node[0], scale, shift

    def transform(node: Node, operands: tuple[Value, ...]) -> tuple[Value, ...] | None:
        if node not in replaced:
            return None
        source, scale, shift = replaced[node]
        assert scale is not None
        new = {v: w for v, w in known.items()}
        anchor = new[source].node
        x, w = anchor.inputs
        axis = 0 if anchor.op.name == "patch_linear" else w.type.rank - 1
        scaled = _emit(anchor, "mul", w, _emit(anchor, "broadcast", scale, shape=w.shape, dims=(axis,)))
        y = make(anchor.op, x, scaled, origin=anchor.origin, **dict(anchor.attrs))[0]
        if shift is not None:
            y = _emit(node, "add", y, _emit(node, "broadcast", shift, shape=y.shape, dims=(y.type.rank - 1,)))
        return (y,)

    known: dict[Value, Value] = {}

    def remember(node: Node, operands: tuple[Value, ...]) -> Node | tuple[Value, ...] | None:
        made = transform(node, operands)
        if made is None and operands != node.inputs:
            made = make(node.op, *operands, origin=node.origin, **dict(node.attrs)).values
        known.update(zip(node.values, made or node.values))
        return made

    return rebuild(graph, remember)
