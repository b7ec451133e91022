"""The primitives of JAX, each as ops of the IR: a table by the primitive's name.

An entry is a function (body, params, operands, types) -> values: `body` is the graph being built, `params` are the
equation's parameters, `operands` its operands as values, `types` those of its results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np

from ..ir.graph import IRError, Value
from ..ir.ops.decompose import length
from ..ir.types import DTYPES, Dim, Type, f32, i32
from .primitives_complex import Complex
from .primitives_complex import apply as apply_complex
from .primitives_random import RANDOM_PRIMITIVES
from .primitives_special import SPECIAL_PRIMITIVES
from .primitives_window import WINDOW_PRIMITIVES

if TYPE_CHECKING:
    from .tracing import Body

Params = Mapping[str, Any]
Lowering = Callable[["Body", Params, list[Value], list[Type]], Sequence[Value]]


def _to_shape(body: Body, value: Value, shape: tuple[Dim, ...]) -> Value:
    """JAX lets scalars and axes of 1 stand beside an array in elementwise operations; the IR broadcasts them."""
    if value.shape == shape:
        return value
    return body.make("broadcast", value, shape=shape, dims=tuple(range(len(value.shape))))[0]


def _elementwise(op: str, **attrs: Any) -> Lowering:
    def lower(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
        return body.make(op, *(_to_shape(body, v, types[0].shape) for v in operands), **attrs)

    return lower


def _simple(op: str, **attrs: Callable[[Body, Params, list[Value], list[Type]], Any]) -> Lowering:
    """An op whose attributes are each a function of what there is."""

    def lower(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
        return body.make(op, *operands, **{k: f(body, params, operands, types) for k, f in attrs.items()})

    return lower


def _param(name: str) -> Callable[..., Any]:
    return lambda body, params, operands, types: params[name]


def _shape_of_result(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Any:
    return types[0].shape


def _identity(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    return operands


def _convert(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    x = operands[0]
    return [x] if x.dtype == types[0].dtype else body.make("convert", x, dtype=types[0].dtype)


def _dim_as_value(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    return _convert(body, params, [length(body.trace.dim(params["dim"]))], types)


def _square(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    return body.make("mul", operands[0], operands[0])


def _filled(body: Body, value: float, type: Type) -> Value:
    """An array of one number."""
    scalar = np.asarray(value, jnp.dtype(type.dtype.numpy or "bfloat16"))
    return _to_shape(body, body.constant(scalar), type.shape)


def _integer_pow(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    """By repeated squaring, in XLA's order."""
    power, factor, result = abs(params["y"]), operands[0], None
    while power:
        if power & 1:
            result = factor if result is None else body.make("mul", result, factor)[0]
        power >>= 1
        if power:
            factor = body.make("mul", factor, factor)[0]
    one = _filled(body, 1, types[0])
    result = one if result is None else result
    return body.make("div", one, result) if params["y"] < 0 else [result]


def _pow(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    x, y = (_to_shape(body, v, types[0].shape) for v in operands)
    return body.make("pow", x, y if y.dtype == x.dtype else body.make("convert", y, dtype=x.dtype)[0])


def _round(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    return body.make(
        "round", operands[0], mode="even" if params["rounding_method"].name == "TO_NEAREST_EVEN" else "away"
    )


def _select_n(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    """The case that `which` names; for two cases `which` is a flag."""
    which, *cases = (_to_shape(body, v, types[0].shape) for v in operands)
    if which.dtype.name == "bool":
        return body.make("select", which, cases[1], cases[0]) if len(cases) == 2 else cases
    result = cases[-1]
    for index, case in reversed(list(enumerate(cases[:-1]))):
        below = body.make("compare", which, _filled(body, index, which.type), direction="le")[0]
        result = body.make("select", below, case, result)[0]
    return [result]


def _slice(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    start, limit = body.trace.shape(params["start_indices"]), body.trace.shape(params["limit_indices"])
    return body.make("slice", operands[0], start=start, limit=limit, stride=params["strides"] or (1,) * len(start))


def _split(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    axis, shape = params["axis"], operands[0].shape
    ends = list(accumulate(body.trace.shape(params["sizes"])))
    zeros, ones = (0,) * len(shape), (1,) * len(shape)
    results: list[Value] = []
    for low, high in zip([0, *ends], ends):
        start, limit = (*zeros[:axis], low, *zeros[axis + 1 :]), (*shape[:axis], high, *shape[axis + 1 :])
        results += body.make("slice", operands[0], start=start, limit=limit, stride=ones)
    return results


def _stack(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    axis, shape = params["axis"], types[0].shape
    rows = [body.make("reshape", v, shape=(*shape[:axis], 1, *shape[axis + 1 :]))[0] for v in operands]
    return body.make("concatenate", *rows, axis=axis)


def _unstack(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    axis, shape = params["axis"], operands[0].shape
    count = shape[axis]
    assert isinstance(count, int)
    rows = _split(body, {"axis": axis, "sizes": (1,) * count}, operands, types)
    return [r for row, t in zip(rows, types) for r in body.make("reshape", row, shape=t.shape)]


def _tile(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    shape, reps = operands[0].shape, body.trace.shape(params["reps"])
    grid = tuple(d for pair in zip(reps, shape) for d in pair)
    spread = body.make("broadcast", operands[0], shape=grid, dims=tuple(range(1, 2 * len(shape), 2)))[0]
    return body.make("reshape", spread, shape=types[0].shape)


def _mulhi(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    """The upper half of a product twice as wide."""
    dtype = types[0].dtype
    bits = dtype.block_bytes * 8
    if bits == 64:
        raise IRError("mulhi of 64 bits has no wider product: use 32 bits")
    wide = DTYPES[f"{dtype.name[0]}{2 * bits}"]
    a, b = (body.make("convert", _to_shape(body, v, types[0].shape), dtype=wide)[0] for v in operands)
    product = body.make("mul", a, b)[0]
    upper = body.make("shift_right_arithmetic", product, _filled(body, bits, product.type))[0]
    return body.make("convert", upper, dtype=dtype)


def _pad(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    low, high, interior = (body.trace.shape(column) for column in zip(*params["padding_config"])) or ((), (), ())
    return body.make("pad", *operands, low=low, high=high, interior=interior)


def _reduce(kind: str) -> Lowering:
    def lower(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
        return body.make("reduce", operands[0], kind=kind, axes=tuple(sorted(params["axes"])))

    return lower


def _dot_general(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    contracting, batch = params["dimension_numbers"]
    if operands[0].dtype != operands[1].dtype:
        operands = [v for x in operands for v in _convert(body, params, [x], types)]
    return body.make("dot_general", *operands, contracting=contracting, batch=batch, dtype=types[0].dtype)


def _starts(body: Body, values: Sequence[Value]) -> list[Value]:
    return [v if v.dtype == i32 else body.make("convert", v, dtype=i32)[0] for v in values]


def _dynamic_slice(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    return body.make("dynamic_slice", operands[0], *_starts(body, operands[1:]), sizes=types[0].shape)


def _dynamic_update_slice(body: Body, params: Params, operands: list[Value], types: list[Type]):
    return body.make("dynamic_update_slice", *operands[:2], *_starts(body, operands[2:]))


GATHER_MODES = {"CLIP": "clip", "FILL_OR_DROP": "fill", "PROMISE_IN_BOUNDS": "promise"}
GATHER_FIELDS = ("offset_dims", "collapsed_slice_dims", "start_index_map", "operand_batching_dims",
                 "start_indices_batching_dims")  # fmt: skip
SCATTER_FIELDS = ("update_window_dims", "inserted_window_dims", "scatter_dims_to_operand_dims",
                  "operand_batching_dims", "scatter_indices_batching_dims")  # fmt: skip


def _fields(params: Params, names: Sequence[str]) -> dict[str, Any]:
    numbers = params["dimension_numbers"]
    found: dict[str, Any] = {name: tuple(map(int, getattr(numbers, name))) for name in names}
    return found | {"mode": GATHER_MODES[params["mode"].name]}


def _gather(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    if 0 in types[0].shape:  # of a batch of none
        return [_filled(body, 0, types[0])]
    sizes = body.trace.shape(params["slice_sizes"])
    fields = _fields(params, GATHER_FIELDS)
    return body.make("gather", *operands, slice_sizes=sizes, fill_value=params.get("fill_value"), **fields)


def _scatter(kind: str) -> Lowering:
    """Sums and products of half floats are f32's, rounded once at the end."""

    def lower(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
        x, indices, updates = operands
        half = kind in ("add", "mul") and x.dtype.name in ("f16", "bf16")
        if half:
            x, updates = (body.make("convert", v, dtype=f32)[0] for v in (x, updates))
        result = body.make("scatter", x, indices, updates, kind=kind, **_fields(params, SCATTER_FIELDS))
        return body.make("convert", *result, dtype=types[0].dtype) if half else result

    return lower


def _scatter_sub(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    x, indices, updates = operands
    return _scatter("add")(body, params, [x, indices, *body.make("neg", updates)], types)


def _fft(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Any]:
    return apply_complex(body, "fft", params, operands, types)


def _only_complex(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    """The parts of a number that is real already."""
    assert not any(isinstance(v, Complex) for v in operands)
    return operands


def _bitcast(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    """Of equal sizes; else the low parts of an integer come first, in an axis of their own."""
    x, dtype = operands[0], types[0].dtype
    if x.dtype.block_bytes == dtype.block_bytes:
        return body.make("bitcast", x, dtype=dtype)
    wide, narrow = (DTYPES[f"u{8 * d.block_bytes}"] for d in (x.dtype, dtype))
    bits = body.make("bitcast", x, dtype=wide)[0]
    if wide.block_bytes > narrow.block_bytes:
        parts = []
        for i in range(wide.block_bytes // narrow.block_bytes):
            amount = _filled(body, 8 * narrow.block_bytes * i, bits.type)
            part = body.make("convert", *body.make("shift_right_logical", bits, amount), dtype=narrow)[0]
            parts.append(body.make("reshape", part, shape=(*x.shape, 1))[0])
        return body.make("bitcast", *body.make("concatenate", *parts, axis=x.type.rank), dtype=dtype)
    total: Value | None = None
    for i in range(narrow.block_bytes // wide.block_bytes):
        rank = x.type.rank
        start, limit = (*(0,) * (rank - 1), i), (*x.shape[:-1], i + 1)
        piece = body.make("slice", bits, start=start, limit=limit, stride=(1,) * rank)[0]
        piece = body.make("convert", *body.make("reshape", piece, shape=types[0].shape), dtype=narrow)[0]
        shifted = body.make("shift_left", piece, _filled(body, 8 * wide.block_bytes * i, piece.type))[0]
        total = shifted if total is None else body.make("or", total, shifted)[0]
    assert total is not None
    return body.make("bitcast", total, dtype=dtype)


def _types(values: Sequence[Value]) -> list[Type]:
    return [v.type for v in values]


def _cond(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    index, *rest = operands
    jaxprs = params["branches"]
    graphs, captured = body.branches(jaxprs, [_types(rest)] * len(jaxprs), [f"branch{i}" for i in range(len(jaxprs))])
    return body.make("cond", index, *captured, *rest, branches=tuple(graphs))


def _until_none(params: Params) -> Any:
    """A loop under vmap, with a condition for each element of the batch: it goes on while one holds, and what carries
    elements whose own does not hold stays as it is."""
    test, turn = (jax.extend.core.jaxpr_as_fun(params[key]) for key in ("cond_jaxpr", "body_jaxpr"))
    in_cond, in_body = params["cond_nconsts"], params["body_nconsts"]

    def loop(*operands: Any) -> Any:
        for_cond, for_body = operands[:in_cond], operands[in_cond : in_cond + in_body]

        def body(carry: tuple[Any, ...]) -> tuple[Any, ...]:
            going = test(*for_cond, *carry)[0]
            new = turn(*for_body, *carry)
            return tuple(jnp.where(going.reshape(*going.shape, *[1] * (n.ndim - going.ndim)), n, o)
                         for n, o in zip(new, carry))  # fmt: skip

        carry = operands[in_cond + in_body :]
        return jax.lax.while_loop(lambda carry: jnp.any(test(*for_cond, *carry)[0]), body, carry)

    return loop


def _while(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    if params["cond_jaxpr"].out_avals[0].shape:
        return body.inline(_until_none(params), operands, keys=True)
    in_cond, in_body = params["cond_nconsts"], params["body_nconsts"]
    for_cond, for_body, carry = operands[:in_cond], operands[in_cond : in_cond + in_body], operands[in_cond + in_body :]
    jaxprs = params["cond_jaxpr"], params["body_jaxpr"]
    graphs, captured = body.branches(
        jaxprs, [_types(for_cond + carry), _types(for_body + carry)], ("condition", "body")
    )
    return body.make(
        "while", *captured, *for_cond, *captured, *for_body, *carry, cond=graphs[0], body=graphs[1],
        cond_consts=in_cond + len(captured), body_consts=in_body + len(captured),
    )  # fmt: skip


def _scan(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    fixed = params["num_consts"] + params["num_carry"]
    rows = [Type(t.shape[1:], t.dtype) for t in _types(operands[fixed:])]
    graphs, captured = body.branches([params["jaxpr"]], [[*_types(operands[:fixed]), *rows]], ("body",))
    return body.make(
        "scan", *captured, *operands, body=graphs[0], length=body.trace.dim(params["length"]),
        consts=params["num_consts"] + len(captured), carry=params["num_carry"], reverse=params["reverse"],
    )  # fmt: skip


SAME_NAME = (
    "tan sinh cosh asin acos atan atan2 asinh acosh atanh cbrt exp2 erfc "
    "add sub mul div max min rem neg abs sign floor ceil exp log expm1 log1p tanh logistic sqrt rsqrt sin cos erf not "
    "and or xor shift_left shift_right_logical shift_right_arithmetic is_finite clamp"
)
PRIMITIVES: dict[str, Lowering] = {
    **{name: _elementwise(name) for name in SAME_NAME.split()},
    **{name: _elementwise("compare", direction=name) for name in "eq ne lt le gt ge".split()},
    **{f"reduce_{kind}": _reduce(kind) for kind in "sum max min prod and or xor".split()},
    **{f"scatter{end}": _scatter(kind) for kind in ("add", "mul", "min", "max") for end in (f"-{kind}", f"_{kind}")},
    **{name: _identity for name in (
        "copy copy_p optimization_barrier sharding_constraint stop_gradient device_put name random_clone pin unpin "
        "layout_constraint reshard"
    ).split()},
    "add_any": _elementwise("add"),
    "pow": _pow,
    "integer_pow": _integer_pow,
    "square": _square,
    "round": _round,
    "select_n": _select_n,
    "convert_element_type": _convert,
    "dim_as_value": _dim_as_value,
    "bitcast_convert_type": _bitcast,
    "iota": _simple("iota", type=lambda body, params, operands, types: types[0], dim=_param("dimension")),
    "broadcast_in_dim": _simple("broadcast", shape=_shape_of_result, dims=_param("broadcast_dimensions")),
    "reshape": _simple("reshape", shape=_shape_of_result),
    "squeeze": _simple("reshape", shape=_shape_of_result),
    "transpose": _simple("transpose", permutation=_param("permutation")),
    "rev": _simple("reverse", axes=_param("dimensions")),
    "slice": _slice,
    "split": _split,
    "pad": _pad,
    "stack": _stack,
    "unstack": _unstack,
    "tile": _tile,
    "mulhi": _mulhi,
    "concatenate": _simple("concatenate", axis=_param("dimension")),
    "argmax": _simple("argmax", axis=lambda b, params, o, t: params["axes"][0], dtype=lambda b, p, o, t: t[0].dtype),
    "argmin": _simple("argmin", axis=lambda b, params, o, t: params["axes"][0], dtype=lambda b, p, o, t: t[0].dtype),
    "sort": _simple("sort", axis=_param("dimension"), keys=_param("num_keys")),
    "dot_general": _dot_general,
    "gather": _gather,
    "scatter": _scatter("set"),
    "scatter-sub": _scatter_sub,
    "scatter_sub": _scatter_sub,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "cond": _cond,
    "while": _while,
    "scan": _scan,
    **WINDOW_PRIMITIVES,
    **SPECIAL_PRIMITIVES,
    **RANDOM_PRIMITIVES,
    "fft": _fft,
    **{name: _only_complex for name in ("complex", "real", "imag", "conj")},
}
