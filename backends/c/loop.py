"""The family by which any op runs in C: one row an op, from its node to a `Loop` or to a named kernel."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ...ir.graph import IRError, Node, Value
from ...ir.ops.common import drop, put
from ...ir.ops.shape import KINDS
from ...ir.target import Target
from ...ir.types import Dim, DType, f32, symbol
from . import named_kernels
from .kernels import Arg, Call, DimValue, Operand, Result, Run, Scratch
from .loop_emit import emit
from .loop_function import Emitted, kernel_name
from .loop_model import (
    Affine,
    Apply,
    Axis,
    Body,
    Constant,
    Guard,
    Lookup,
    Loop,
    Position,
    Quotient,
    Read,
    Within,
    axes,
    index_of,
    window_starts,
)
from .scalar import DOUBLE

Rule = Callable[[Node], Loop]


def read(value: Value, index: tuple[Affine, ...] | None = None) -> Read:
    """An element of a value; without an index, the one at the loop's own axes."""
    return Read(value, axes(value.type.rank) if index is None else index, value.shape)


def reads(node: Node) -> tuple[Read, ...]:
    return tuple(map(read, node.inputs))


def loop(node: Node, body: Body, **rest: Any) -> Loop:
    return Loop(node[0], node.types[0].shape, body, **rest)


def constant(value: float | bool, dtype: DType) -> Constant:
    return Constant(value, dtype)


# ---- elementwise ----------------------------------------------------------------------------------------------------


def same_name(node: Node) -> Loop:
    """An op whose scalar has its name, on operands of the result's shape."""
    return loop(node, Apply(node.op.name, reads(node), node.types[0].dtype))


def renamed(name: Callable[[Node], str]) -> Rule:
    return lambda node: loop(node, Apply(name(node), reads(node), node.types[0].dtype))


def clamp(node: Node) -> Loop:
    low, x, high = reads(node)
    return loop(node, Apply("min", (Apply("max", (x, low), x.dtype), high), x.dtype))


def softcap(node: Node) -> Loop:
    return loop(node, Apply("softcap", (read(node.inputs[0]), constant(node.attr("cap"), f32)), f32))


def gated(node: Node) -> Loop:
    gate, up = reads(node)
    return loop(node, Apply("mul", (Apply(node.attr("activation"), (gate,), f32), up), f32))


# ---- views and moves ------------------------------------------------------------------------------------------------


def iota(node: Node) -> Loop:
    return loop(node, Position(index_of(Axis(node.attr("dim"))), node.types[0].dtype))


def broadcast(node: Node) -> Loop:
    x = node.inputs[0]
    index = tuple(Affine() if size == 1 else index_of(Axis(d)) for size, d in zip(x.shape, node.attr("dims")))
    return loop(node, read(x, index))


def reshape(node: Node) -> Loop:
    shape = node.types[0].shape
    return loop(node, Read(node.inputs[0], axes(len(shape)), shape))


def transpose(node: Node) -> Loop:
    permutation = node.attr("permutation")
    index = tuple(index_of(Axis(permutation.index(d))) for d in range(len(permutation)))
    return loop(node, read(node.inputs[0], index))


def reverse(node: Node) -> Loop:
    x = node.inputs[0]
    index = tuple(i * -1 + (size - 1) if d in node.attr("axes") else i
                  for d, (i, size) in enumerate(zip(axes(x.type.rank), x.shape)))  # fmt: skip
    return loop(node, read(x, index))


def slice_(node: Node) -> Loop:
    index = (i * step + start for i, step, start in zip(axes(99), node.attr("stride"), node.attr("start")))
    return loop(node, read(node.inputs[0], tuple(index)))


def pad(node: Node) -> Loop:
    x, value = node.inputs
    index, guards = [], []
    for i, size, low, interior in zip(axes(99), x.shape, node.attr("low"), node.attr("interior")):
        step = interior + 1
        inside = i + low * -1
        guards.append(Guard(inside, size * step, step))
        index.append(inside if step == 1 else index_of(Quotient(inside, step)))
    moved = read(x, tuple(index))
    return loop(node, Within(tuple(guards), moved, read(value)) if guards else moved)


def concatenate(node: Node) -> Loop:
    """The operand whose range the axis is in: each but the last is guarded by its end alone."""
    axis = node.attr("axis")
    body: Body | None = None
    end = node.types[0].shape[axis]
    whole = axes(node.types[0].rank)
    for value in reversed(node.inputs):
        size = value.shape[axis]
        end = end - size
        element = read(value, put(whole, axis, whole[axis] + end * -1))
        body = element if body is None else Within((Guard(whole[axis], end + size),), element, body)
    assert body is not None
    return loop(node, body)


# ---- addresses ------------------------------------------------------------------------------------------------------


def dynamic_slice(node: Node) -> Loop:
    x, *starts = node.inputs
    return loop(node, read(x, tuple(
        i + index_of(Lookup(read(s), (0, whole - size)))
        for i, s, whole, size in zip(axes(x.type.rank), starts, x.shape, node.attr("sizes")))))  # fmt: skip


def dynamic_update_slice(node: Node) -> Loop:
    x, update, *starts = node.inputs
    index = tuple(i + index_of(Lookup(read(s), (0, whole - size))) * -1
                  for i, s, whole, size in zip(axes(x.type.rank), starts, x.shape, update.shape))  # fmt: skip
    guards = tuple(Guard(i, size) for i, size in zip(index, update.shape))
    return loop(node, Within(guards, read(update, index), read(x)) if guards else read(update))


def gather(node: Node) -> Loop:
    x, indices = node.inputs
    offset_dims = node.attr("offset_dims")
    dropped = (*node.attr("collapsed_slice_dims"), *node.attr("operand_batching_dims"))
    whole = axes(node.types[0].rank)
    batch = drop(whole, offset_dims)
    starts, guards = window_starts(
        x, indices, batch, node.attr("slice_sizes"), node.attr("start_index_map"), node.attr("operand_batching_dims"),
        node.attr("start_indices_batching_dims"), node.attr("mode") == "clip")  # fmt: skip
    steps = iter(offset_dims)
    index = tuple(start if d in dropped else start + whole[next(steps)] for d, start in enumerate(starts))
    if not guards:
        return loop(node, read(x, index))
    return loop(node, Within(guards, read(x, index), constant(fill_value(x.dtype, node.attr("fill_value")), x.dtype)))


def fill_value(dtype: DType, value: float | None) -> float | bool:
    """What an address outside reads: `value`, else NaN, the lowest signed or the highest unsigned integer, or true."""
    if value is not None:
        return value
    if dtype.is_float:
        return float("nan")
    bits = dtype.block_bytes * 8
    return True if dtype.name == "bool" else -(1 << bits - 1) if dtype.name[0] == "i" else (1 << bits) - 1


def take_rows(node: Node) -> Loop:
    x, rows = node.inputs
    i, k = axes(2)
    return loop(node, read(x, (index_of(Lookup(read(rows, (i,)), (0, x.shape[0] - 1))), k)))


# ---- reductions -----------------------------------------------------------------------------------------------------


def reduce(node: Node) -> Loop:
    x, reduced = node.inputs[0], node.attr("axes")
    outer, inner = iter(axes(x.type.rank)), iter(axes(len(reduced), x.type.rank - len(reduced)))
    index = tuple(next(inner if d in reduced else outer) for d in range(x.type.rank))
    return loop(node, read(x, index), reduced=tuple(x.shape[d] for d in reduced), monoid=node.attr("kind"))


def dot_general(node: Node) -> Loop:
    """a[batch, free of a, k] · b[batch, free of b, k]: one chain over k for each output, as a dense linear."""
    (a, b), contracting, batch = node.inputs, node.attr("contracting"), node.attr("batch")
    result = node.types[0].dtype
    if "f64" in (a.dtype.name, result.name) and a.dtype != result or a.dtype.is_float != result.is_float:
        raise IRError(f"C has no dot product of {a.dtype} that gives {result}")
    whole = axes(node.types[0].rank + len(contracting[0]))
    inner = whole[node.types[0].rank :]
    free = iter(whole[len(batch[0]) :])
    operands = []
    for x, summed, common in zip((a, b), contracting, batch):
        index = tuple(inner[summed.index(d)] if d in summed else whole[common.index(d)] if d in common else next(free)
                      for d in range(x.type.rank))  # fmt: skip
        element: Body = read(x, index)
        wide = result if result.is_integer or result.name == "f64" else f32
        operands.append(element if element.dtype == wide else Apply("convert", (element,), wide))
    return loop(node, Apply("mul", tuple(operands), operands[0].dtype),
                reduced=tuple(a.shape[d] for d in contracting[0]), monoid="dot")  # fmt: skip


# ---- windows --------------------------------------------------------------------------------------------------------


def _place(node: Node, at: Sequence[Affine], tap: Sequence[Affine],
           shape: Sequence[Dim]) -> tuple[list[Affine], list[Guard]]:  # fmt: skip
    """Where a window's position `tap` lies on the axes of `shape` that it slides along, and when that is inside."""
    index, guards = [], []
    settings = (node.attr(name) for name in ("strides", "low", "high", "base_dilation", "dilation"))
    for i, t, size, stride, low, high, spread, dilation in zip(at, tap, shape, *settings):
        inside = i * stride + t * dilation + low * -1
        if low != 0 or high != 0 or spread != 1:
            guards.append(Guard(inside, (size - 1) * spread + 1, spread))
        index.append(inside if spread == 1 else index_of(Quotient(inside, spread)))
    return index, guards


def _by_axis(axes_named: Sequence[int], values: Sequence[Affine]) -> tuple[Affine, ...]:
    """An index whose axis `axes_named[i]` is `values[i]`."""
    return tuple(value for _, value in sorted(zip(axes_named, values), key=lambda pair: pair[0]))


def convolution(node: Node) -> Loop:
    """One chain over the window's positions and, at each, over the channels of the output's group."""
    x, w = node.inputs
    result, groups = node.types[0].dtype, node.attr("groups")
    if "f64" in (x.dtype.name, result.name) and x.dtype != result or x.dtype.is_float != result.is_float:
        raise IRError(f"C has no convolution of {x.dtype} that gives {result}")
    x_dims, w_dims, out_dims = (node.attr(name) for name in ("x_dims", "w_dims", "out_dims"))
    outputs, inner, *window = (w.shape[d] for d in w_dims)
    whole = axes(2 * x.type.rank - 1)
    batch, out, *at = (whole[d] for d in out_dims)
    *tap, c = whole[x.type.rank :]
    index, guards = _place(node, at, tap, [x.shape[d] for d in x_dims[2:]])
    channel = c if groups == 1 else c + index_of(Quotient(out, outputs // groups)) * inner
    element: Body = read(x, _by_axis(x_dims, (batch, channel, *index)))
    if guards:
        element = Within(tuple(guards), element, constant(0, x.dtype))
    operands: list[Body] = [element, read(w, _by_axis(w_dims, (out, c, *tap)))]
    wide = result if result.is_integer or result.name == "f64" else f32
    operands = [o if o.dtype == wide else Apply("convert", (o,), wide) for o in operands]
    return loop(node, Apply("mul", tuple(operands), wide), reduced=(*window, inner), monoid="dot")


def reduce_window(node: Node) -> Loop:
    x, kind = node.inputs[0], node.attr("kind")
    rank = x.type.rank
    index, guards = _place(node, axes(rank), axes(rank, rank), x.shape)
    element: Body = read(x, tuple(index))
    if guards:
        fill = KINDS[kind][2](np.dtype(x.dtype.numpy or "f4"))
        element = Within(tuple(guards), element, constant(fill, x.dtype))
    return loop(node, element, reduced=node.attr("window"), monoid=kind)


# ---- the tables -----------------------------------------------------------------------------------------------------

SAME_NAME = (
    "add sub mul div rem max min pow neg abs sign floor ceil sqrt rsqrt exp expm1 log log1p tanh logistic erf sin cos "
    "not and or xor shift_left shift_right_logical shift_right_arithmetic select is_finite convert bitcast "
    "silu gelu_tanh gelu"
).split()

LOOPS: Mapping[str, Rule] = {
    **{op: same_name for op in (*SAME_NAME, *DOUBLE)},
    "compare": renamed(lambda node: node.attr("direction")),
    "round": renamed(lambda node: f"round_{node.attr('mode')}"),
    "dequantize": renamed(lambda node: "convert"),
    "clamp": clamp, "softcap": softcap, "gated": gated,
    "iota": iota, "broadcast": broadcast, "reshape": reshape, "transpose": transpose, "reverse": reverse,
    "slice": slice_, "pad": pad, "concatenate": concatenate,
    "dynamic_slice": dynamic_slice, "dynamic_update_slice": dynamic_update_slice, "gather": gather,
    "take_rows": take_rows, "reduce": reduce, "dot_general": dot_general, "convolution": convolution,
    "reduce_window": reduce_window,
}  # fmt: skip


def loop_of(node: Node) -> Loop:
    """The node as a loop over its operands. Raises IRError for what has no scalar in C."""
    for value in (*node.inputs, *node.values):
        if value.dtype.is_block or value.type.layout:
            raise IRError(f"C computes {node.op.name} on plain row-major elements only, not on {value.type}")
    return LOOPS[node.op.name](node)


def lower_loop(node: Node, target: Target) -> Call:
    """A node of `LOOPS` as one kernel."""
    made = loop_of(node)
    return call(node, emit(made, kernel_name(node.op.name, node.types[0]), operand_names(node, made.operands)))


def call(node: Node, emitted: Emitted) -> Call:
    """The call of a kernel with a node's operands and results."""
    args: list[Arg] = [Run()] if emitted.parallel else []
    args += [DimValue(symbol(s.name, s.lo, s.hi)) for s in emitted.dims]
    args += [Operand(node.inputs.index(v)) for v in emitted.operands]
    args += [Result(n) for n in range(len(node.types))]
    scratch = named_kernels.SCRATCH.get(node.op.name)
    given = (*args, Scratch()) if scratch else tuple(args)
    return Call(emitted.kernel, given, scratch(node) if scratch else 0, regions=emitted.regions)


def operand_names(node: Node, operands: tuple[Value, ...]) -> list[str]:
    """What an op's typing calls its operands, for those that a kernel reads."""
    names: list[str] = []
    for p in inspect.signature(node.op.infer).parameters.values():
        if p.kind == p.POSITIONAL_OR_KEYWORD:
            names.append(p.name)
        elif p.kind == p.VAR_POSITIONAL and p.name != "types":
            names += [f"{p.name.removesuffix('s')}{n}" for n in range(len(node.inputs) - len(names))]
    if len(names) < len(node.inputs):
        count = len(node.inputs)
        names = ["x"] if count == 1 else [chr(ord("a") + n) if n < 8 else f"x{n}" for n in range(count)]
    return [names[node.inputs.index(v)] for v in operands]


def lower_named(node: Node, target: Target) -> Call:
    """A node that is no loop, by a kernel of its own shape."""
    return call(node, named_kernels.KERNELS[node.op.name](node))


LOWERINGS = {**{op: lower_loop for op in LOOPS}, **{op: lower_named for op in named_kernels.KERNELS}}
